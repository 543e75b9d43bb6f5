"""The parts GistNet is built from: self-attention with RoPE, slot reads, expansion, and dropout without hidden state.

Shapes: token streams are [spans, K, width], slots [spans, width]; `spans` is the batch. Every layer treats each span by
itself. Norms and softmax run in float32 at least, so the layers may be called under bf16 autocast.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gistnet.errors import ConfigError

ROPE_BASE = 10_000.0
EXPANSION_GATE = 0.1


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    """A linear layer that keeps unit variance: weights drawn with variance 1/inputs, bias zero."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def matmul_flops(rows: int, *modules: nn.Module) -> int:
    """Forward FLOPs of all linear layers within `modules`, each applied to `rows` vectors (2 per weight and row)."""
    layers = (layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear))
    return sum(2 * rows * layer.weight.numel() for layer in layers)


def attention_flops(queries: int, keys: int, width: int) -> int:
    """Forward FLOPs of scores and weighted sum over all heads together (2 · queries · keys · width each)."""
    return 4 * queries * keys * width


class Norm(nn.LayerNorm):
    """Layer normalisation in the precision of its own weights, whatever the precision of its input."""

    def __init__(self, width: int, initial_scale: float = 1.0) -> None:
        super().__init__(width)
        nn.init.constant_(self.weight, initial_scale)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


# --- dropout --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dropout:
    """Rate and keys of the dropout of one forward pass.

    `rate` is the probability of dropping an element, 0 ≤ rate < 1; `keys` is int64 [spans], one key per span. A span's
    masks depend on its own key only, so they are the same in any batch and in any number of processes.

    Raises:
        ConfigError: the rate is outside [0, 1), or the keys are not a one-dimensional int64 tensor.
    """

    rate: float
    keys: Tensor

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate < 1.0:
            raise ConfigError(f"The dropout rate is {self.rate}; expected 0 ≤ rate < 1.")
        if self.keys.dtype != torch.int64 or self.keys.ndim != 1:
            shape = list(self.keys.shape)
            raise ConfigError(f"Dropout keys are {self.keys.dtype} {shape}; expected one torch.int64 per span.")


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # Torch shifts int64 arithmetically; the mask removes the copies of the sign bit.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """The output function of SplitMix64 (Steele et al., 2014) on int64 words, whose arithmetic wraps modulo 2^64."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


class StatelessDropout(nn.Module):
    """Dropout whose mask is a hash of (the span's key, the module's salt, the element's index) and of nothing else.

    Integer arithmetic only: the mask is the same on every device and leaves the global random state alone.
    """

    def __init__(self, salt: int = 0) -> None:
        super().__init__()
        self.salt = salt

    def forward(self, x: Tensor, dropout: Dropout | None) -> Tensor:
        """x: [spans, ...] → the same shape; kept elements are scaled by 1 / (1 - rate)."""
        if dropout is None or dropout.rate == 0.0:
            return x
        seeds = mix64(dropout.keys.to(x.device) + _signed((self.salt + 1) * _GOLDEN % (1 << 64)))
        elements = torch.arange(1, x[0].numel() + 1, device=x.device)
        words = mix64(seeds[:, None] + elements * _GOLDEN)  # [spans, elements per span]
        dropped = _shift_right(words, 11) < int(dropout.rate * (1 << 53))
        return x.masked_fill(dropped.view(x.shape), 0.0) / (1.0 - dropout.rate)


# --- attention ------------------------------------------------------------------------------------------------------


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[spans, n, width] → [spans, heads, n, width / heads]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Bidirectional attention, written out because there are few keys and their probabilities are wanted.

    queries: [spans, heads, n, head_dim]; keys, values: [spans, heads, m, head_dim] → mixture [spans, n, width] and
    probabilities [spans, heads, n, m].
    """
    scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
    probabilities = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    mixture = probabilities.to(values.dtype) @ values
    return mixture.transpose(1, 2).flatten(2), probabilities


def rotary_table(length: int, head_dim: int) -> Tensor:
    """Cosines and sines of the angles position · base^(-2i/head_dim), float32 [2, length, head_dim / 2].

    Source: RoFormer (Su et al., 2021), section 3.2.2; dimension i is paired with i + head_dim / 2.
    """
    frequencies = ROPE_BASE ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn [..., length, head_dim] vectors by the angles of their positions."""
    cosines, sines = table.to(torch.promote_types(x.dtype, table.dtype))
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)


class MLP(nn.Sequential):
    """width → ratio · width → width with GELU."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__(linear(width, ratio * width, bias=True), nn.GELU(), linear(ratio * width, width, bias=True))


class SelfAttentionBlock(nn.Module):
    """Tokens look at each other, both ways: [spans, K, width] → the same. Pre-norm, RoPE, GELU MLP of ratio 4."""

    rotary: Tensor

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.width = width
        self.attention_norm = Norm(width)
        self.query_key_value = linear(width, 3 * width)
        self.out = linear(width, width)
        self.mlp_norm = Norm(width)
        self.mlp = MLP(width, ratio=4)
        self.attention_dropout = StatelessDropout()
        self.mlp_dropout = StatelessDropout()
        self.register_buffer("rotary", rotary_table(length, width // heads), persistent=False)

    def forward(self, tokens: Tensor, dropout: Dropout | None = None) -> Tensor:
        mixture, _ = self.attention(self.attention_norm(tokens))
        tokens = tokens + self.attention_dropout(self.out(mixture), dropout)
        return tokens + self.mlp_dropout(self.mlp(self.mlp_norm(tokens)), dropout)

    def attention(self, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised tokens [spans, K, width] → mixture [spans, K, width], probabilities [spans, heads, K, K]."""
        queries, keys, values = (split_heads(x, self.heads) for x in self.query_key_value(normed).chunk(3, dim=-1))
        return attend(rotate(queries, self.rotary), rotate(keys, self.rotary), values)

    def flops(self, length: int) -> int:
        """Forward FLOPs per span of `length` tokens."""
        return matmul_flops(length, self) + attention_flops(length, length, self.width)


class SlotRead(nn.Module):
    """A learned slot query reads a span: tokens [spans, K, tokens_width] → slot [spans, slot_width].

    The slot has no position. The query steers the attention only; it is not added to what was read, so that the slot
    starts as content and not as a constant. A wider token stream is narrowed to the slot's width first.
    """

    def __init__(self, tokens_width: int, slot_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.width = slot_width
        self.query = nn.Parameter(torch.randn(slot_width))
        self.tokens_norm = Norm(tokens_width)
        self.narrow = narrowing(tokens_width, slot_width)
        self.key_value = linear(slot_width, 2 * slot_width)
        self.out = linear(slot_width, slot_width)
        self.mlp_norm = Norm(slot_width)
        self.mlp = MLP(slot_width, ratio=2)
        self.read_dropout = StatelessDropout()
        self.mlp_dropout = StatelessDropout()

    def forward(self, tokens: Tensor, dropout: Dropout | None = None) -> tuple[Tensor, Tensor]:
        """Returns the slot [spans, slot_width] and the probabilities [spans, heads, K] of its reading the tokens."""
        keys, values = self.key_value(self.narrow(self.tokens_norm(tokens))).chunk(2, dim=-1)
        query = self.query.expand(len(tokens), 1, -1)
        mixture, probabilities = attend(*(split_heads(x, self.heads) for x in (query, keys, values)))
        slot = self.read_dropout(self.out(mixture[:, 0]), dropout)
        slot = slot + self.mlp_dropout(self.mlp(self.mlp_norm(slot)), dropout)
        return slot, probabilities[:, :, 0]

    def flops(self, length: int) -> int:
        """Forward FLOPs per span of `length` tokens."""
        per_token = matmul_flops(length, self.narrow, self.key_value)
        return per_token + matmul_flops(1, self.out, self.mlp) + attention_flops(1, length, self.width)


class Expansion(nn.Module):
    """The first gist goes back to the tokens: each token attends over [gist; all tokens], with a gated residual.

    Attention over the gist alone would be a constant (a softmax over one key is 1), with dead query and key weights.
    The gate starts small and not at zero, so that every weight behind it learns from the start.
    """

    def __init__(self, tokens_width: int, slot_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.width = slot_width
        self.tokens_norm = Norm(tokens_width)
        self.narrow = narrowing(tokens_width, slot_width)
        self.query_key_value = linear(slot_width, 3 * slot_width)
        self.slot_norm = Norm(slot_width)
        self.slot_key_value = linear(slot_width, 2 * slot_width)
        self.out = linear(slot_width, tokens_width)
        self.gate = nn.Parameter(torch.tensor(EXPANSION_GATE))
        self.dropout = StatelessDropout()

    def forward(self, slot: Tensor, tokens: Tensor, dropout: Dropout | None = None) -> Tensor:
        """slot [spans, slot_width], tokens [spans, K, tokens_width] → tokens [spans, K, tokens_width]."""
        mixture, _ = self.attention(slot, tokens)
        return tokens + self.gate * self.dropout(self.out(mixture), dropout)

    def attention(self, slot: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Mixture [spans, K, slot_width] and probabilities [spans, heads, K, 1 + K]; key 0 is the slot."""
        queries, keys, values = self.query_key_value(self.narrow(self.tokens_norm(tokens))).chunk(3, dim=-1)
        slot_key, slot_value = self.slot_key_value(self.slot_norm(slot))[:, None].chunk(2, dim=-1)
        keys = torch.cat([slot_key, keys], dim=1)
        values = torch.cat([slot_value, values], dim=1)
        return attend(*(split_heads(x, self.heads) for x in (queries, keys, values)))

    def flops(self, length: int) -> int:
        """Forward FLOPs per span of `length` tokens."""
        per_token = matmul_flops(length, self.narrow, self.query_key_value, self.out)
        return per_token + matmul_flops(1, self.slot_key_value) + attention_flops(length, length + 1, self.width)


def narrowing(tokens_width: int, slot_width: int) -> nn.Module:
    """The way from the token stream to the slot's width; nothing where they are equal."""
    return nn.Identity() if tokens_width == slot_width else linear(tokens_width, slot_width)
