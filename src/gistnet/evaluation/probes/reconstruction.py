"""Token reconstruction: how much of a span a small probe reads from its gist (spec, Diagnostic Metrics, 7).

The probe is a multilayer perceptron from a vector to one vector for each of the K token offsets, whose logits are the
products with the teacher's own embedding table. Held-out documents are split in two halves; a probe trained on each
half is judged on the other, so that a release, which brings held-out documents only, can be measured too.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, WindowSample, fixed_windows
from gistnet.errors import DataError
from gistnet.evaluation import baselines
from gistnet.evaluation.held_out import HeldOut
from gistnet.evaluation.records import MetricRecord
from gistnet.evaluation.resampling import Measure, Population
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.progress import track


class Training(NamedTuple):
    """Spans and training of the probe; the same for gists and baselines."""

    documents: int = 64
    """Held-out documents per domain, one window of each."""
    segments_per_window: int = 24
    """Spans of each window."""
    width: int = 256
    """Hidden units of the probe."""
    steps: int = 300
    """Steps of AdamW."""
    tokens_per_step: int = 256
    """Tokens predicted in a step."""
    learning_rate: float = 3e-3
    """The first; it falls to zero with a cosine."""


TRAINING = Training()


class Reconstructed(NamedTuple):
    """Accuracy and loss of tokens read from vectors, each `[spans, K]`."""

    cross_entropy: Tensor
    """Nats per token, over the whole vocabulary."""
    correct: Tensor
    """1 where the likeliest token is the true one, else 0."""
    squared_error: Tensor
    """Mean over dimensions of (expected embedding - true embedding)²."""


class Probe(nn.Module):
    """Vectors `[n, dim]` and token offsets `[n]` → logits `[n, vocab]`.

    Args:
        vectors: `[spans, dim]`, of which mean and spread of each dimension are taken.
        tokens: `[spans, K]`, of which the frequency of each token is taken: the first prediction of all.
        table: `[vocab, dim]`, the embedding of each token.
        width: hidden units.
    """

    def __init__(self, vectors: Tensor, tokens: Tensor, table: Tensor, width: int) -> None:
        super().__init__()
        dim = vectors.shape[1]
        self.table, self.mean, self.spread = table, vectors.mean(dim=0), vectors.std(dim=0).clamp(min=1e-6)
        counts = torch.bincount(tokens.flatten(), minlength=len(table)) + 1e-2
        self.log_frequencies = (counts / counts.sum()).log()
        self.read = nn.Linear(dim, width)
        self.offsets = nn.Embedding(tokens.shape[1], width)
        self.gains = nn.Embedding(tokens.shape[1], width)
        self.out = nn.Linear(width, dim)
        self.copied = nn.Embedding(tokens.shape[1], 1)  # the last token's embedding may be passed on as it is
        for start_at_zero in (self.out.weight, self.out.bias, self.copied.weight):
            nn.init.zeros_(start_at_zero)
        self.scale = 1 / (dim**0.5 * float(table.square().mean().sqrt()))

    def forward(self, vectors: Tensor, offsets: Tensor) -> Tensor:
        vectors = (vectors - self.mean) / self.spread
        hidden = nn.functional.silu(self.gains(offsets) * self.read(vectors) + self.offsets(offsets))
        return (self.out(hidden) + self.copied(offsets) * vectors) @ self.table.T * self.scale + self.log_frequencies


def train_probe(vectors: Tensor, tokens: Tensor, table: Tensor, training: Training, seed: int) -> Probe:
    """Train a probe to read `tokens` `[spans, K]` from `vectors` `[spans, dim]`; the same for the same arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        probe = Probe(vectors, tokens, table, training.width).to(vectors.device)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(probe.parameters(), lr=training.learning_rate, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, training.steps)
    for _ in track(range(training.steps), training.steps, "steps"):
        chosen = torch.randint(tokens.numel(), (training.tokens_per_step,), generator=generator).to(vectors.device)
        spans, offsets = chosen // tokens.shape[1], chosen % tokens.shape[1]
        optimiser.zero_grad()
        nn.functional.cross_entropy(probe(vectors[spans], offsets), tokens[spans, offsets]).backward()
        optimiser.step()
        schedule.step()
    return probe


@torch.no_grad()
def read_tokens(probe: Probe, vectors: Tensor, tokens: Tensor) -> Reconstructed:
    """Judge a probe on `tokens` `[spans, K]` and the vectors `[spans, dim]` that stand for them."""
    offsets = torch.arange(tokens.shape[1], device=tokens.device)
    rows = []
    for vector, truth in zip(vectors, tokens, strict=True):  # a span at a time: K rows of the whole vocabulary
        log_p = probe(vector.expand(len(truth), -1), offsets).log_softmax(dim=-1)
        error = (log_p.exp() @ probe.table - probe.table[truth]).square().mean(dim=-1)
        rows.append(torch.stack([-log_p.gather(1, truth[:, None])[:, 0], log_p.argmax(dim=1) == truth, error]))
    return Reconstructed(*torch.stack(rows, dim=1))


def choose_windows(
    dataset: PreparedDataset, gistnet: GistNet, seed: int, training: Training = TRAINING
) -> list[WindowSample]:
    """Held-out windows that probes are trained and judged on; worth calling before anything is measured.

    Raises:
        DataError: they are of fewer than four documents, or a domain has none that is long enough.
    """
    chosen = fixed_windows(
        dataset,
        _layout(gistnet),
        documents=training.documents,
        segments_per_window=training.segments_per_window,
        seed=seed,
    )
    documents = {int(dataset.documents[sample.window]) for sample in chosen}
    if len(documents) < 4:
        raise DataError(f"Reconstruction got spans of {len(documents)} documents, expected four at least.")
    return chosen


def _layout(gistnet: GistNet) -> SpanLayout:
    return SpanLayout(gistnet.branchings, horizon_tokens=1)


def reconstruction(
    teacher: Teacher,
    gistnet: GistNet,
    dataset: PreparedDataset,
    *,
    seed: int = 0,
    resamples: int = 1000,
    training: Training = TRAINING,
) -> list[MetricRecord]:
    """Cross-entropy, accuracy and squared error with which a probe reads held-out spans from their gists.

    Returns:
        for each domain `reconstruction_ce` (nats per token), `reconstruction_accuracy` (0 to 1, of all tokens and of
        each by its `index`, 1 to K) and `reconstruction_mse`, with the baselines `last_token` and `shuffled`
        (the gist of another document), for which probes are trained alike.

    Raises:
        DataError: as `choose_windows`.
    """
    samples = choose_windows(dataset, gistnet, seed, training)
    layer = gistnet.hidden_state_layer
    held_out = HeldOut(teacher, dataset, samples, _layout(gistnet), cache_gigabytes=0, hidden_state_layer=layer)
    tokens = torch.cat([window.segments.replaced for window in held_out.windows])
    _, ranks = np.unique(held_out.documents, return_inverse=True)
    gists = held_out.encode(gistnet)[0].flatten(0, 1).float()
    others = baselines.other_documents(torch.from_numpy(ranks), seed)
    vectors = {"gist": gists, "last_token": teacher.embed(tokens[:, -1]).float(), "shuffled": gists[others]}
    table = teacher.embed(torch.arange(teacher.vocabulary_size, device=teacher.device)).float()
    halves = [torch.from_numpy(ranks % 2 == half).to(teacher.device) for half in (0, 1)]
    read: dict[str, Reconstructed] = {}
    for name, known in vectors.items():
        fields = torch.zeros(len(Reconstructed._fields), *tokens.shape, device=teacher.device)
        for judged, trained in (halves, reversed(halves)):
            probe = train_probe(known[trained], tokens[trained], table, training, seed)
            fields[:, judged] = torch.stack(read_tokens(probe, known[judged], tokens[judged]))
        read[name] = Reconstructed(*fields)
    records = []
    for domain in sorted(set(held_out.domains.tolist())):
        records += _records(read, domain, held_out.domains == domain, held_out.documents, gistnet, seed, resamples)
    return records


def _records(
    read: dict[str, Reconstructed],
    domain: str,
    rows: np.ndarray,
    documents: np.ndarray,
    gistnet: GistNet,
    seed: int,
    resamples: int,
) -> list[MetricRecord]:
    """The records of one domain, of the spans `rows` `[spans]`."""
    population = Population.of_domain(domain, documents[rows], resamples=resamples, seed=seed)
    labels: dict[str, Any] = {"positions": gistnet.positions, "level": gistnet.level}
    tables = {
        field: {name: getattr(values, field)[rows].double().cpu().numpy() for name, values in read.items()}
        for field in Reconstructed._fields
    }
    named = (
        ("reconstruction_ce", "cross_entropy"),
        ("reconstruction_accuracy", "correct"),
        ("reconstruction_mse", "squared_error"),
    )
    records = []
    for name, field in named:
        measure = Measure({vector: values.mean(axis=1) for vector, values in tables[field].items()})
        records.append(population.record(name, measure, **labels))
    for offset in range(gistnet.tokens_per_gist):
        measure = Measure({vector: values[:, offset] for vector, values in tables["correct"].items()})
        records.append(population.record("reconstruction_accuracy", measure, index=offset + 1, **labels))
    return records
