"""A small decoder from one vector to the tokens of the span it stands for: what a gist holds of its tokens.

The decoder is trained on vectors that stay as they are, and so measures them without changing them. Each of the K
places reads the vector with weights of its own, blocks let the places look at each other, and the table of the frozen
teacher's input embeddings is the output layer, on top of how frequent each token is. As the vectors are of the space of
that table, a place may also copy the vector, as the last one would where the vector is the last token's embedding.
"""

import math
from typing import NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gistnet.errors import ConfigError
from gistnet.model.layers import Norm, SelfAttentionBlock, linear
from gistnet.settings import Section


class DecoderConfig(Section):
    """The shape of the decoder, and how it is trained."""

    width: int = Field(default=96, gt=0)
    """Dimensions of each place inside the decoder."""
    heads: int = Field(default=4, gt=0)
    """Attention heads; must divide the width into an even size per head."""
    blocks: int = Field(default=1, ge=0)
    """Self-attention blocks over the places."""
    steps: int = Field(default=400, ge=1)
    """Steps of AdamW."""
    spans_per_step: int = Field(default=16, ge=1)
    """Spans in a step."""
    learning_rate: float = Field(default=1e-2, gt=0)
    """The first; it falls to zero with a cosine."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's, per unit of learning rate."""
    drawn_tokens: int = Field(default=512, ge=1)
    """Tokens of the vocabulary drawn in a step to estimate what all others weigh (`Candidates`)."""
    judge_every_steps: int = Field(default=40, ge=1)
    """Steps between looks at the spans that are set aside, which decide when training was at its best."""

    @model_validator(mode="after")
    def _heads_fit(self) -> "DecoderConfig":
        if self.width % (2 * self.heads):
            raise ConfigError(
                f"{self.heads} heads do not fit a decoder of width {self.width}; expected an even width / heads."
            )
        return self


class Decoded(NamedTuple):
    """How well tokens were told from vectors, each `[spans, K]`."""

    cross_entropy: Tensor
    """Nats per token, over the whole vocabulary."""
    correct: Tensor
    """1 where the likeliest token is the true one, else 0."""
    squared_error: Tensor
    """Mean over dimensions of (expected embedding - true embedding)²; see `decode`."""


class Candidates(NamedTuple):
    """Tokens that stand for the whole vocabulary in a softmax.

    Those to be predicted stand for themselves. Of the others, a few are drawn by how frequent they are, each to be
    added to the sum of exponentials over its expected number of draws (`correction` is minus the logarithm of that), so
    that the sum is right in expectation (Bengio & Senécal, 2008; Jean et al., 2015).
    """

    tokens: Tensor
    """`[candidates]`, token ids."""
    correction: Tensor
    """`[candidates]`, added to their logits."""
    targets: Tensor
    """The tokens to be predicted, as places among the candidates."""


class TokenDecoder(nn.Module):
    """Vectors `[spans, dim]` → for each place a vector `[spans, K, dim]` to compare the embeddings of tokens with.

    Args:
        vectors: `[spans, dim]`, of the space of `table`; the usual size of each dimension is taken from them.
        table: `[vocab, dim]`, the embedding of each token.
        prior: `[vocab]`, the logarithm of how frequent each token is.
        places: K.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, vectors: Tensor, table: Tensor, prior: Tensor, places: int, config: DecoderConfig) -> None:
        super().__init__()
        self.table, self.prior = table, prior
        self.register_buffer("mean", vectors.mean(dim=0))
        # A dimension that never varies is zero after the mean is taken off, whatever it is divided by.
        self.register_buffer("scale", vectors.std(dim=0, correction=0).clamp(min=1e-6))
        self.read = linear(vectors.shape[1], config.width)
        self.gain = nn.Parameter(torch.randn(places, config.width))
        self.place = nn.Parameter(torch.randn(places, config.width))
        blocks = (SelfAttentionBlock(config.width, config.heads, places) for _ in range(config.blocks))
        self.blocks = nn.ModuleList(blocks)
        self.norm = Norm(config.width)
        # All that leads to a prediction starts at zero: the first is the frequency of each token.
        self.out = nn.Linear(config.width, table.shape[1])
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.copied = nn.Parameter(torch.zeros(places, 1))
        self.sharpness = 1 / (math.sqrt(table.shape[1]) * float(table.square().mean().sqrt()))

    def forward(self, vectors: Tensor) -> Tensor:
        vectors = ((vectors - self.mean) / self.scale)[:, None]
        hidden = self.gain * self.read(vectors) + self.place
        for block in self.blocks:
            hidden = block(hidden)
        return self.out(self.norm(hidden)) + self.copied * vectors

    def logits(self, states: Tensor, tokens: Tensor | slice = slice(None)) -> Tensor:
        """Of states `[..., dim]`, for the given tokens or all: `[..., tokens]`."""
        return states @ self.table[tokens].T * self.sharpness + self.prior[tokens]


def train_decoder(
    vectors: Tensor, tokens: Tensor, set_aside: Tensor, table: Tensor, config: DecoderConfig, seed: int
) -> TokenDecoder:
    """Train a decoder; the same for the same arguments.

    Args:
        vectors: `[spans, dim]`, float32.
        tokens: `[spans, K]`, the token ids of the span that each vector stands for.
        set_aside: `[spans]`, True for those not trained on, which decide how long to train; some, and not all.
        table: `[vocab, dim]`, float32, the embedding of each token.
        config: shape and training.
        seed: decides the first weights, the order of the spans and the candidates.
    """
    prior = log_frequencies(tokens[~set_aside], len(table))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        decoder = TokenDecoder(vectors[~set_aside], table, prior, tokens.shape[1], config).to(vectors.device)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    rows = torch.nonzero(~set_aside)[:, 0]
    aside = candidates(tokens[set_aside], prior, config.drawn_tokens, generator)
    order = torch.empty(0, dtype=torch.long)
    best, least = {name: value.clone() for name, value in decoder.state_dict().items()}, math.inf
    for step in range(config.steps + 1):
        if step % config.judge_every_steps == 0 or step == config.steps:
            with torch.no_grad():
                cost = float(_estimated_cross_entropy(decoder, vectors[set_aside], aside))
            if cost < least:
                best, least = {name: value.clone() for name, value in decoder.state_dict().items()}, cost
        if step < config.steps:
            if len(order) < config.spans_per_step:
                order = torch.cat([order, torch.randperm(len(rows), generator=generator)])
            batch, order = rows[order[: config.spans_per_step]], order[config.spans_per_step :]
            optimiser.param_groups[0]["lr"] = config.learning_rate * (1 + math.cos(math.pi * step / config.steps)) / 2
            optimiser.zero_grad()
            chosen = candidates(tokens[batch], prior, config.drawn_tokens, generator)
            _estimated_cross_entropy(decoder, vectors[batch], chosen).backward()
            optimiser.step()
    decoder.load_state_dict(best)
    return decoder


@torch.no_grad()
def decode(decoder: TokenDecoder, vectors: Tensor, tokens: Tensor, *, spans_per_pass: int = 8) -> Decoded:
    """Tell tokens `[spans, K]` from vectors `[spans, dim]`, over the whole vocabulary.

    The reconstructed embedding, whose squared error is given, is the mean of all embeddings weighted by the decoder's
    probabilities: of all vectors, the one with the least expected squared error if the decoder is right.
    """
    parts = []
    for some, truth in zip(vectors.split(spans_per_pass), tokens.split(spans_per_pass), strict=True):
        log_p = decoder.logits(decoder(some)).log_softmax(dim=-1)
        expected = log_p.exp() @ decoder.table
        parts.append(
            (
                -log_p.gather(-1, truth[..., None])[..., 0],
                (log_p.argmax(dim=-1) == truth).float(),
                (expected - decoder.table[truth]).square().mean(dim=-1),
            )
        )
    return Decoded(*(torch.cat(column) for column in zip(*parts, strict=True)))


def log_frequencies(tokens: Tensor, vocabulary: int) -> Tensor:
    """The logarithm of each token's frequency, `[vocabulary]`; those unseen share what those seen once have.

    (Good–Turing's estimate of how much text is made of tokens not seen before; Good, 1953. Added to all tokens alike.)
    """
    counts = torch.bincount(tokens.flatten(), minlength=vocabulary).float()
    counts = counts + (counts == 1).sum().clamp(min=1) / vocabulary
    return (counts / counts.sum()).log()


def candidates(targets: Tensor, prior: Tensor, drawn: int, generator: torch.Generator) -> Candidates:
    """Candidates for predicting `targets`; the whole vocabulary where it is not larger than these would be."""
    present, places = targets.unique(return_inverse=True)
    if len(present) + drawn >= len(prior):
        everything = torch.arange(len(prior), device=targets.device)
        return Candidates(everything, torch.zeros_like(prior), targets)
    share = prior.exp().index_fill(0, present, 0.0)
    share /= share.sum()
    tokens = torch.multinomial(share.cpu(), drawn, replacement=True, generator=generator).to(targets.device)
    correction = torch.cat([torch.zeros_like(prior[present]), -(drawn * share[tokens]).log()])
    return Candidates(torch.cat([present, tokens]), correction, places)


def _estimated_cross_entropy(decoder: TokenDecoder, vectors: Tensor, chosen: Candidates) -> Tensor:
    logits = decoder.logits(decoder(vectors), chosen.tokens)
    true = logits.gather(-1, chosen.targets[..., None])[..., 0]
    return ((logits + chosen.correction).logsumexp(dim=-1) - true).mean()
