"""Measuring the span map: every span of a few held-out windows, as the report page shows them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, fixed_windows
from gistnet.evaluation import baselines
from gistnet.evaluation.held_out import HeldOut
from gistnet.evaluation.probes.span_map import MappedDocument, MappedSpan, Neighbour, Prediction
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.objective.branches import Positions

SPANS_PER_PASS = 32
"""Spans that run through the teacher at once; only memory and speed depend on it."""
NEIGHBOURS = 5
"""Nearest spans that are named, at most."""
NEXT_TOKENS = 3
"""Predicted tokens that are kept of each span and replacement."""
DECIMALS = 3
"""Number that the page shows; the file is a quarter of one with all of them."""


def map_documents(
    teacher: Teacher,
    tokenizer: TeacherTokenizer,
    gistnet: GistNet,
    dataset: PreparedDataset,
    *,
    domains: Sequence[str],
    documents: int,
    horizon: int,
    positions: Positions,
    sink_tokens: int,
    seed: int,
) -> list[MappedDocument]:
    """Measure all aligned spans of one window, with room for the horizon, of so many held-out documents per domain.

    The documents are the first of those that an evaluation with the same seed takes.
    """
    if documents == 0:
        return []
    layout = SpanLayout(gistnet.branchings, horizon, sink_tokens=sink_tokens)
    every_span = int(dataset.lengths.max())
    samples = fixed_windows(
        dataset, layout, documents=documents, segments_per_window=every_span, seed=seed, domains=domains
    )
    passes = [
        replace(sample, starts=sample.starts[some], n_spans=sample.n_spans[some])
        for sample in samples
        for first in range(0, len(sample.starts), SPANS_PER_PASS)
        for some in (slice(first, first + SPANS_PER_PASS),)
    ]
    held_out = HeldOut(
        teacher, dataset, passes, layout, cache_gigabytes=0, hidden_state_layer=gistnet.hidden_state_layer
    )
    gists, attention = held_out.encode(gistnet)  # [spans, 1, dim], [2, spans, heads, K]
    first_slot, second_slot = attention.mean(dim=2).double().cpu().numpy()
    gist, drop = (gists, positions), (baselines.drop, positions)
    measured = held_out.measure({"gist": gist, "drop": drop, "last_token": (baselines.last_token, positions)})
    likeliest = held_out.next_tokens({"gist": gist, "drop": drop}, NEXT_TOKENS)

    vectors = gists[:, 0].double().cpu().numpy()
    nearest = nearest_spans(vectors, [len(sample.starts) for sample in samples])
    mapped = [
        MappedSpan(
            start=int(start),
            kl={name: rounded(m.kl[row].mean()) for name, m in measured.items()},
            delta_nll={name: rounded(m.delta_nll[row].mean()) for name, m in measured.items()},
            delta_nll_by_offset={name: rounded(m.delta_nll[row]) for name, m in measured.items()},
            next_tokens={
                name: [
                    Prediction(text=tokenizer.decode([token]), probability=rounded(probability))
                    for token, probability in zip(of.tokens[row].tolist(), of.probabilities[row], strict=True)
                ]
                for name, of in likeliest.items()
            },
            attention=(rounded(first_slot[row]), rounded(second_slot[row])),
            gist_norm=rounded(np.linalg.norm(vectors[row])),
            nearest=nearest[row],
        )
        for row, start in enumerate(np.concatenate([sample.starts for sample in samples]))
    ]
    prefix = len(dataset.description.window_prefix)
    rest = iter(mapped)
    return [
        MappedDocument(
            id=info.document_id,
            source=info.source,
            domain=info.domain,
            tokens=[""] * prefix + tokenizer.texts(dataset.read(sample.window)[prefix:].tolist()),
            spans=[next(rest) for _ in sample.starts],
        )
        for sample in samples
        for info in (dataset.describe(sample.window),)
    ]


def nearest_spans(gists: NDArray[np.float64], spans_of_documents: Sequence[int]) -> list[list[Neighbour]]:
    """For each of the `gists` [spans, dim] the spans whose gists are nearest by cosine; of equal ones the first.

    Args:
        spans_of_documents: how many spans each document has, in the order of the gists.
    """
    spans = [(document, span) for document, count in enumerate(spans_of_documents) for span in range(count)]
    lengths = np.linalg.norm(gists, axis=1, keepdims=True)
    units = gists / np.where(lengths > 0, lengths, 1)
    cosines = units @ units.T
    nearest = []
    for row, of_row in enumerate(cosines):
        order = [other for other in np.argsort(-of_row, kind="stable") if other != row][:NEIGHBOURS]
        nearest.append(
            [
                Neighbour(document=spans[other][0], span=spans[other][1], cosine=rounded(of_row[other]))
                for other in order
            ]
        )
    return nearest


def rounded(values: ArrayLike) -> Any:
    """A number, or a list of numbers, to so many decimals."""
    return np.asarray(values).round(DECIMALS).tolist()
