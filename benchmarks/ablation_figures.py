"""How good a trained arm is: KL by document on the same held-out spans for all, and what intervals follow from it.

Every arm is judged by its last network, at the end of its learning-rate schedule, with one gist and H = 32, whatever it
was trained on. Arms with spans of another length are judged on spans of their own. Documents are drawn anew for all
intervals (`gistnet.evaluation.resampling`); a document's spans count alike, so that its mean and the number of its
spans are all that has to be kept.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistnet.config import RunConfig
from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, validation_windows
from gistnet.evaluation import baselines, metrics
from gistnet.evaluation.held_out import HeldOut, MakeStandIns, Measured
from gistnet.evaluation.resampling import DocumentDraws
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions, gist_stand_ins
from gistnet.objective.objective import encode_stretches

HORIZON = 32
"""Tokens after a span on which all arms are judged."""
RESAMPLES = 2000
PARTS = {"1–32": {"kl_1_8": 8 / 32, "kl_9_32": 24 / 32}, "1–8": {"kl_1_8": 1.0}, "9–32": {"kl_9_32": 1.0}}
"""Offsets after the span, and the share that each kept column has in their mean."""

Floats = NDArray[np.float64]
Record = dict[str, Any]
"""One arm with one seed, as it stands in the results."""


class Judge:
    """Measures GistNets on held-out spans, which depend on the default's `evaluation` section alone."""

    def __init__(self, default: RunConfig, teacher: Teacher, dataset: PreparedDataset) -> None:
        self._config, self._teacher, self._dataset = default, teacher, dataset
        self._held_out: dict[tuple[int, int | None], HeldOut] = {}
        self._baselines: dict[tuple[int, Positions], dict[str, Measured]] = {}

    def figures(self, gistnet_folder: Path, positions: Positions) -> Record:
        """KL in nats per token by document, after gists, nothing and last tokens, and the spans of each document."""
        gistnet = GistNet.from_pretrained(gistnet_folder, self._teacher).eval()
        held_out = self._spans_of(gistnet.config.span_tokens, gistnet.states_after)

        def placed(window: Any, read: Any) -> Any:
            return gist_stand_ins(
                window.stretches, encode_stretches(gistnet, self._teacher, window.stretches, read), positions
            )

        measured = held_out.measure({"gist": placed}) | self._baselines_of(gistnet.config.span_tokens, positions)
        _, rows, spans = np.unique(held_out.documents, return_inverse=True, return_counts=True)
        per_document = {
            name: {
                f"kl_{first}_{last}": _rounded(
                    np.bincount(rows, weights=metrics.mean_over_offsets(losses.kl, (first, last))) / spans
                )
                for first, last in ((1, 8), (9, HORIZON))
            }
            for name, losses in measured.items()
        }
        return {"spans_by_document": spans.tolist(), "kl_by_document": per_document}

    def _spans_of(self, span_tokens: int, states_after: int | None = None) -> HeldOut:
        key = (span_tokens, states_after)
        if key not in self._held_out:
            (stage,), evaluation = self._config.stages, self._config.evaluation
            layout = SpanLayout(
                span_tokens=span_tokens,
                horizon_tokens=HORIZON,
                spans_per_window=evaluation.spans_per_document,
                sink_tokens=evaluation.sink_tokens,
            )
            samples = validation_windows(
                self._dataset,
                layout,
                documents=evaluation.documents,
                spans_per_document=evaluation.spans_per_document,
                seed=evaluation.seed,
                domains=[domain for domain, share in sorted(stage.train.probabilities.items()) if share > 0],
            )
            room = stage.train.validation.cache_gigabytes
            self._held_out[key] = HeldOut(
                self._teacher, self._dataset, samples, layout, cache_gigabytes=room, states_after=states_after
            )
        return self._held_out[key]

    def _baselines_of(self, span_tokens: int, positions: Positions) -> dict[str, Measured]:
        key = (span_tokens, positions)
        if key not in self._baselines:
            teacher = self._teacher
            stand_ins: dict[str, MakeStandIns] = {
                "drop": lambda window, read: baselines.drop(teacher, window.stretches),
                "last_token": lambda window, read: baselines.last_token(teacher, window.stretches, positions),
            }
            self._baselines[key] = self._spans_of(span_tokens).measure(stand_ins)
        return self._baselines[key]


def _rounded(values: Floats) -> list[float]:
    return [round(float(value), 5) for value in values]


def kl_sums(records: Sequence[Record], stand_in: str, part: str) -> Floats:
    """The sum of KL over each document's spans, [documents], averaged over records of the same spans."""
    sums = [
        sum(share * np.asarray(record["kl_by_document"][stand_in][name]) for name, share in PARTS[part].items())
        * np.asarray(record["spans_by_document"])
        for record in records
    ]
    return np.asarray(np.mean(sums, axis=0), dtype=np.float64)


def mean_kl(records: Sequence[Record], stand_in: str, part: str) -> float:
    """Mean KL over spans, nats per token."""
    return float(kl_sums(records, stand_in, part).sum() / sum(records[0]["spans_by_document"]))


def recovered(records: Sequence[Record], part: str, stand_in: str = "gist") -> float:
    """The share of what dropping costs that the stand-in wins back."""
    return metrics.recovered_share(mean_kl(records, stand_in, part), mean_kl(records, "drop", part))


def recovered_interval(records: Sequence[Record], part: str) -> tuple[float, float]:
    """Its 95 % interval over documents; that of the mean where there are several seeds."""
    draws = _draws(records[0])
    gist, drop = (draws.sums(kl_sums(records, name, part)) for name in ("gist", "drop"))
    return metrics.percentile_interval(metrics.recovered_share(gist, drop))


def paired_difference(
    arm: Sequence[Record], default: Sequence[Record], part: str
) -> tuple[float, tuple[float, float]] | None:
    """How much more an arm recovers than the default on the same spans and with the same seeds, and its 95 % interval.

    Documents are drawn for both at once: what makes a document hard for both does not count as noise. None where they
    have no seed in common, or other spans.
    """
    seeds = {record["seed"] for record in arm} & {record["seed"] for record in default}
    ours, theirs = ([r for r in records if r["seed"] in seeds] for records in (arm, default))
    if not seeds or not paired(ours[0], theirs[0]):
        return None
    gains = kl_sums(theirs, "gist", part) - kl_sums(ours, "gist", part)
    drop = kl_sums(theirs, "drop", part)
    draws = _draws(ours[0])
    interval = metrics.percentile_interval(draws.sums(gains) / draws.sums(drop))
    return float(gains.sum() / drop.sum()), interval


def paired(record: Record, other: Record) -> bool:
    """Whether two records are of the same spans."""
    same = ("span_tokens", "spans_by_document")
    return all(record[key] == other[key] for key in same)


def _draws(record: Record) -> DocumentDraws:
    return DocumentDraws(range(len(record["spans_by_document"])), RESAMPLES, seed=0)
