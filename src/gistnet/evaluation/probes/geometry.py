"""Geometry of gists and their attention: distances, lengths, and the entropy with which slots read their span.

Spec, Secondary Metrics, 4 to 6. Nothing is predicted here, so that a thousand spans cost little.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from gistnet.data.dataset import PreparedDataset
from gistnet.errors import DataError
from gistnet.evaluation import metrics
from gistnet.evaluation.metrics import Floats
from gistnet.evaluation.records import BaselineName, MetricRecord, target_for
from gistnet.evaluation.resampling import DocumentDraws, percentile_interval
from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import GistNet, SpanContext
from gistnet.model.teacher import Teacher
from gistnet.progress import track

TOKENS_PER_PASS = 8192
"""Tokens whose spans are encoded at once; only memory and speed depend on it."""


class DrawnSpans(NamedTuple):
    """Held-out spans of one domain."""

    tokens: NDArray[np.int64]
    """Token ids, [spans, K]."""
    windows: NDArray[np.int64]
    """The window of each, [spans]; those of a window follow each other."""
    starts: NDArray[np.int64]
    """The index of its first token there, [spans]."""
    documents: NDArray[np.int64]
    """The document of each, [spans]."""
    pairs: NDArray[np.int64]
    """Rows of spans that follow each other in one window, [pairs, 2]."""


class EncodedSpans(NamedTuple):
    """Vectors that stand for spans, [spans, dim] each, and how the gists came about."""

    gists: Floats
    last_token: Floats
    mean: Floats
    entropies: Floats
    """Entropy of the attention of both slots, in bits: [spans, 2, heads]."""


@dataclass(frozen=True)
class Statistic:
    """A measure of one domain's gists, or of the mix."""

    value: float
    resampled: Floats | None
    """With the documents drawn anew, [resamples]; None where it cannot be had for each draw."""
    baselines: dict[BaselineName, float]
    n_spans: int
    n_documents: int


Geometry = dict[tuple[str, str, int | None], Statistic]
"""By name of the measure, slot of the attention and head; the latter are "" and None for all."""


def draw_spans(
    dataset: PreparedDataset, domain: str, *, span_tokens: int, sink_tokens: int, count: int, seed: int
) -> DrawnSpans:
    """Draw `count` spans at random from the held-out windows of a domain, or all where there are fewer.

    A window gets one random phase and aligned spans from it, behind its first `sink_tokens`. Neighbours are drawn by
    twos, so that there are adjacent pairs also among spans that are drawn thinly; among a thousand spans that makes
    one pair in a thousand, and changes no other statistic.
    """
    draw = np.random.default_rng(seed)
    windows = dataset.window_indices("held_out", domain)
    windows = windows[dataset.lengths[windows] >= sink_tokens + span_tokens]
    lengths = dataset.lengths[windows]
    first = sink_tokens + draw.integers(np.minimum(lengths - sink_tokens - span_tokens + 1, span_tokens))
    available = (lengths - first) // span_tokens
    twos = -(-available // 2)  # of a window; the last of them may be a single span

    window = np.repeat(np.arange(len(windows)), twos)
    index = 2 * (np.arange(len(window)) - np.repeat(np.cumsum(twos) - twos, twos))
    sizes = np.minimum(2, available[window] - index)
    order = draw.permutation(len(window))
    chosen = np.sort(order[np.cumsum(sizes[order]) - sizes[order] < count])
    window, index = (np.repeat(of_two[chosen], sizes[chosen])[:count] for of_two in (window, index))
    index[1:] += (window[1:] == window[:-1]) & (index[1:] == index[:-1])  # the second of two

    starts = first[window] + index * span_tokens
    drawn = windows[window]
    read = {window: dataset.read(window) for window in np.unique(drawn).tolist()}
    tokens = [
        read[window][start : start + span_tokens] for window, start in zip(drawn.tolist(), starts.tolist(), strict=True)
    ]
    follows = np.flatnonzero((np.diff(window) == 0) & (np.diff(index) == 1))
    return DrawnSpans(
        np.stack(tokens), drawn, starts, dataset.documents[drawn], np.stack([follows, follows + 1], axis=1)
    )


@torch.no_grad()
def encode_spans(teacher: Teacher, gistnet: GistNet, spans: DrawnSpans, dataset: PreparedDataset) -> EncodedSpans:
    """Encode spans of tokens_per_gist tokens, in passes of bounded memory; the windows are read only where needed."""
    encoder = SpanEncoder(teacher, gistnet)
    parts: list[EncodedSpans] = []
    batches = _batches(encoder, spans)
    for rows in track(batches, len(batches), "batches of spans"):
        context = _context(encoder, spans, rows, dataset)
        ids = torch.from_numpy(spans.tokens[rows]).to(teacher.device)
        gists, attention = encoder.encode_with_attention(ids, context)
        embeddings = teacher.embed(ids)
        entropies = [attention_entropy(_array(of_slot)) for of_slot in attention]
        vectors = (_array(gists[:, 0]), _array(embeddings[:, -1]), _array(embeddings.float().mean(dim=1)))
        parts.append(EncodedSpans(*vectors, entropies=np.stack(entropies, axis=1)))
    return EncodedSpans(*map(np.concatenate, zip(*parts, strict=True)))


def _batches(encoder: SpanEncoder, spans: DrawnSpans) -> list[slice]:
    """Spans to encode together; those that are read in context a window at a time."""
    if encoder.reads_context:
        begins = np.flatnonzero(np.diff(spans.windows, prepend=-1)).tolist()
        return list(map(slice, begins, [*begins[1:], len(spans.windows)]))
    together = max(1, TOKENS_PER_PASS // spans.tokens.shape[1])
    return [slice(first, first + together) for first in range(0, len(spans.tokens), together)]


def _context(encoder: SpanEncoder, spans: DrawnSpans, rows: slice, dataset: PreparedDataset) -> SpanContext | None:
    """Prefill that a batch of spans is read in, or None where each is read alone."""
    if not encoder.reads_context:
        return None
    starts = torch.from_numpy(spans.starts[rows]).to(encoder.teacher.device)
    tokens = dataset.read(int(spans.windows[rows.start]))[: spans.starts[rows].max() + spans.tokens.shape[1]]
    window = torch.from_numpy(tokens).to(encoder.teacher.device)[None]
    return encoder.context(window, starts)


def domain_geometry(spans: DrawnSpans, encoded: EncodedSpans, *, resamples: int, seed: int | Sequence[int]) -> Geometry:
    """Every measure of one domain's spans. What needs pairs is left out where there are none."""
    first, second = spans.pairs.T
    gist, last_token, mean = (metrics.geometry(vectors, (vectors[first], vectors[second])) for vectors in encoded[:3])
    draws = DocumentDraws(spans.documents, resamples, seed)
    in_pairs = np.unique(spans.pairs)
    resampled = _resampled_geometry(encoded.gists, spans.pairs, draws)
    statistics: Geometry = {}
    for name, value in gist.items():
        rows = in_pairs if name == "adjacent_distance" else np.arange(len(spans.tokens))
        statistics[name, "", None] = Statistic(
            value,
            _if_finite(resampled[name], draws),
            {"last_token": last_token[name], "mean": mean[name]},
            len(rows),
            len(np.unique(spans.documents[rows])),
        )
    _, slots, heads = encoded.entropies.shape
    entropies: dict[tuple[str, int | None], Floats] = {("", None): encoded.entropies.mean(axis=(1, 2))} | {
        (f"slot {slot + 1}", head + 1): encoded.entropies[:, slot, head]
        for slot in range(slots)
        for head in range(heads)
    }
    for of, column in entropies.items():
        statistics["attention_entropy", *of] = Statistic(
            float(column.mean()), _if_finite(draws.means(column), draws), {}, len(column), draws.documents
        )
    return statistics


def mixed_geometry(statistics: Mapping[str, Geometry], weights: Mapping[str, float]) -> Geometry:
    """The weighted mean over domains of every measure that all of them have; documents are drawn within each."""
    of_domains = [(weights[domain], statistics[domain]) for domain in sorted(weights)]
    names = [name for name in of_domains[0][1] if all(name in of_domain for _, of_domain in of_domains)]
    return {name: _weighted([(weight, of_domain[name]) for weight, of_domain in of_domains]) for name in names}


def geometry_records(statistics: Mapping[str, Geometry], *, positions: str, level: int) -> Iterator[MetricRecord]:
    """The records of statistics by domain. Only means have targets, single heads have none."""
    for domain, of_domain in statistics.items():
        for (name, slot, head), statistic in of_domain.items():
            yield MetricRecord(
                name=name,
                domain=domain,
                kind=slot,
                index=head,
                positions=positions,
                level=level,
                value=statistic.value,
                n_spans=statistic.n_spans,
                n_documents=statistic.n_documents,
                interval=None if statistic.resampled is None else percentile_interval(statistic.resampled),
                target=None if slot else target_for(name, domain=domain, level=level),
                baselines=statistic.baselines,
            )


def attention_entropy(probabilities: ArrayLike) -> Floats:
    """Entropy in bits of `probabilities` [spans, heads, keys]: [spans, heads] (spec, Secondary Metrics, 6).

    0 for a head that reads one key, log2(keys) for one that reads all alike.

    Raises:
        DataError: the probabilities of a span and head are negative or do not sum to 1.
    """
    shares = metrics.finite("probabilities", probabilities, 3)
    if shares.min() < 0 or not np.allclose(shares.sum(axis=-1), 1, atol=1e-2):  # loose enough for bfloat16
        raise DataError("Attention has negative shares or sums other than 1, expected probabilities over the keys.")
    information = -np.log2(shares, where=shares > 0, out=np.zeros_like(shares))
    return (shares * information).sum(axis=-1)


def _resampled_geometry(vectors: Floats, pairs: NDArray[np.int64], draws: DocumentDraws) -> dict[str, Floats]:
    """`metrics.geometry` with the documents drawn anew, [resamples] each.

    A document that is drawn twice counts as two documents of the same kind: a pair of a span and its own copy would be
    a pair of equal gists such as there are none, so pairs of two draws of one document are left out, and diversity
    keeps to its definition, the mean over distinct pairs.
    """
    norms = np.linalg.norm(vectors, axis=1)
    units = vectors / norms[:, None]
    spans = np.bincount(draws.document_of_span).astype(np.float64)  # of each document
    counts = draws.counts
    drawn = counts @ spans
    with np.errstate(divide="ignore", invalid="ignore"):
        # Of unit vectors u, the distances of all ordered pairs, each with itself included, sum to n² - |Σu|².
        of_documents = _by_document(units, draws)
        within = spans**2 - np.square(of_documents).sum(axis=1)
        distances = drawn**2 - np.square(counts @ of_documents).sum(axis=1) - counts**2 @ within + counts @ within
        diversity = distances / (drawn**2 - counts**2 @ spans**2 + counts @ (spans**2 - spans))

        of_pair = 1 - (units[pairs[:, 0]] * units[pairs[:, 1]]).sum(axis=1)
        sums, sizes = np.zeros(len(spans)), np.zeros(len(spans))
        np.add.at(sums, draws.document_of_span[pairs[:, 0]], of_pair)
        np.add.at(sizes, draws.document_of_span[pairs[:, 0]], 1)
        adjacent = (counts @ sums) / (counts @ sizes)

        means = counts @ _by_document(vectors, draws) / drawn[:, None]
        variance = 1 - np.square(means).sum(axis=1) / draws.means(norms**2)
    return {
        "gist_diversity": diversity,
        "adjacent_distance": adjacent,
        "contrastive_gap": diversity - adjacent,
        "gist_variance": variance,
        "gist_norm": draws.means(norms),
    }


def _by_document(vectors: Floats, draws: DocumentDraws) -> Floats:
    """The sum of the vectors of each document, [documents, dim]."""
    sums = np.zeros((draws.documents, vectors.shape[1]))
    np.add.at(sums, draws.document_of_span, vectors)
    return sums


def _if_finite(resampled: Floats, draws: DocumentDraws) -> Floats | None:
    return resampled if draws.documents > 1 and np.isfinite(resampled).all() else None


def _weighted(parts: Sequence[tuple[float, Statistic]]) -> Statistic:
    resampled = [weight * statistic.resampled for weight, statistic in parts if statistic.resampled is not None]
    names = parts[0][1].baselines
    return Statistic(
        sum(weight * statistic.value for weight, statistic in parts),
        np.sum(resampled, axis=0) if len(resampled) == len(parts) else None,
        {name: sum(weight * statistic.baselines[name] for weight, statistic in parts) for name in names},
        sum(statistic.n_spans for _, statistic in parts),
        sum(statistic.n_documents for _, statistic in parts),
    )


def _array(tensor: torch.Tensor) -> Floats:
    return tensor.double().cpu().numpy()
