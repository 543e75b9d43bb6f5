"""Means over spans and their bootstrap intervals (Davison & Hinkley, 1997, sections 3.2 and 3.8), as metric records.

Spans of a document resemble each other, so documents are drawn anew, each with all of its spans. Several domains are
averaged by stated weights, and their documents drawn within each domain.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gistnet.evaluation.metrics import Floats, finite
from gistnet.evaluation.records import BaselineName, MetricRecord, target_for

MIXED = "mixed"
"""The domain of a record that is the weighted mean over domains."""
CONFIDENCE = 0.95
"""Share of the resamples that an interval holds."""


def itself(mean: Any) -> Any:
    """The statistic of a plain mean."""
    return mean


def percentile_interval(resampled: ArrayLike) -> tuple[float, float]:
    """The middle 95 % of a statistic's values in the resamples, [resamples]: (low, high).

    Raises:
        DataError: one of them is not finite.
    """
    low, high = np.quantile(
        finite("bootstrapped statistic", resampled, 1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    )
    return float(low), float(high)


def bootstrap_over_documents(
    values: ArrayLike, documents: ArrayLike, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % interval of the mean of `values` [spans], which are of these `documents` [spans]; None for a single one.

    Raises:
        DataError: a value is not finite, or there are none.
    """
    column = finite("values", values, 1)
    return Population.of_domain("", documents, resamples=resamples, seed=seed).interval((column,), itself)


class DocumentDraws:
    """Documents drawn anew, as many as there are, each with all of its spans.

    Args:
        documents: which document each span is from, [spans], of any type that sorts.
        resamples: how many times.
        seed: decides the draws; a sequence of numbers is one seed, too.

    Attributes:
        documents: how many there are.
        document_of_span: the number of each span's document, [spans].
    """

    def __init__(self, documents: ArrayLike, resamples: int, seed: int | Sequence[int]) -> None:
        names, self.document_of_span = np.unique(np.asarray(documents), return_inverse=True)
        self.documents = len(names)
        self._resamples, self._seed = resamples, seed

    @cached_property
    def counts(self) -> Floats:
        """Number of times that each document is drawn, [resamples, documents]."""
        equal = np.full(self.documents, 1 / self.documents)
        drawn = np.random.default_rng(self._seed).multinomial(self.documents, equal, size=self._resamples)
        return drawn.astype(np.float64)

    def sums(self, values: ArrayLike) -> Floats:
        """The sum of `values` [spans] over the spans of each resample: [resamples]."""
        return self.counts @ np.bincount(self.document_of_span, weights=np.asarray(values), minlength=self.documents)

    def means(self, values: ArrayLike) -> Floats:
        """The mean of `values` [spans] over the spans of each resample: [resamples]."""
        return self.sums(values) / self.sums(np.ones(len(self.document_of_span)))


class Measure(NamedTuple):
    """A statistic of means over spans: of gists, and of every baseline alike."""

    columns: Mapping[str, Floats]
    """Replacement → one number per span, [spans]; the first is what is measured, usually `gist`, the rest baselines."""
    beside: tuple[Floats, ...] = ()
    """Columns whose means the statistic takes as well, after that of the replacement."""
    statistic: Callable[..., Any] = itself
    """A function of means, numbers or arrays [resamples]."""


class _Part(NamedTuple):
    """One domain's share of a population."""

    share: float
    rows: NDArray[np.int64]
    draws: DocumentDraws


class Population:
    """Spans of one domain, or of several in stated shares; takes means over them and makes records.

    The mean over several domains is the weighted mean of the domains' means: it depends on the shares, and not on how
    many documents of each domain there are.

    Args:
        name: what records call it: the domain, or `mixed`.
        shares: domain → its weight; they sum to 1.
        domains: of every span measured, [spans].
        documents: of the same, [spans].
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """

    def __init__(
        self,
        name: str,
        shares: Mapping[str, float],
        domains: NDArray[np.str_],
        documents: ArrayLike,
        *,
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        self.name = name
        self._documents = np.asarray(documents)
        self._parts = []
        # Each domain is drawn by numbers of its own; equal ones would tie domains of as many documents together.
        for number, domain in enumerate(sorted(set(domains.tolist()))):
            if domain in shares:
                rows = np.flatnonzero(domains == domain)
                draws = DocumentDraws(self._documents[rows], resamples, (seed, number))
                self._parts.append(_Part(shares[domain], rows, draws))
        self.rows = np.sort(np.concatenate([part.rows for part in self._parts]))
        """The spans that count, ascending."""

    @classmethod
    def of_domain(cls, name: str, documents: ArrayLike, *, resamples: int, seed: int) -> "Population":
        """All spans measured, where they are of one domain and of these `documents` [spans]."""
        domains = np.full(len(np.asarray(documents)), name)
        return cls(name, {name: 1.0}, domains, documents, resamples=resamples, seed=seed)

    def mean(self, column: Floats) -> float:
        """The mean of a column, [spans measured]."""
        return float(sum(part.share * column[part.rows].mean() for part in self._parts))

    def resampled_means(self, column: Floats) -> Floats:
        """Means of a column with the documents drawn anew, [resamples]."""
        return np.sum([part.share * part.draws.means(column[part.rows]) for part in self._parts], axis=0)

    def interval(self, columns: Sequence[Floats], statistic: Callable[..., Any]) -> tuple[float, float] | None:
        """The 95 % interval of a function of the columns' means; None where a domain has a single document.

        Raises:
            DataError: the statistic is not finite for some of the resamples.
        """
        if any(part.draws.documents == 1 for part in self._parts):
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return percentile_interval(statistic(*map(self.resampled_means, columns)))

    def values(self, measure: Measure) -> dict[str, float]:
        """The statistic of each replacement."""
        beside = [self.mean(column) for column in measure.beside]
        return {name: float(measure.statistic(self.mean(column), *beside)) for name, column in measure.columns.items()}

    def record(
        self,
        name: str,
        measure: Measure,
        *,
        counted: NDArray[np.bool_] | None = None,
        **labels: Any,
    ) -> MetricRecord:
        """The record of a measure, with its interval, its target and its baselines.

        Args:
            counted: `[spans measured]`, the spans that the measure says something of, where they are not all. There is
                no interval where documents may be drawn so that the first column beside it has nothing left to count.
            labels: further fields of the record.
        """
        rows = self.rows if counted is None else self.rows[counted[self.rows]]
        (of, column), *_ = measure.columns.items()
        values = self.values(measure)
        rare = counted is not None and bool((self.resampled_means(measure.beside[0]) == 0).any())
        wanted = {key: labels[key] for key in ("horizon", "offsets", "level", "spans_per_segment") if key in labels}
        return MetricRecord(
            name=name,
            domain=self.name,
            value=values.pop(of),
            n_spans=len(rows),
            n_documents=len(np.unique(self._documents[rows])),
            interval=None if rare else self.interval((column, *measure.beside), measure.statistic),
            target=target_for(name, domain=self.name, **wanted),
            baselines=cast(dict[BaselineName, float], values),
            **labels,
        )


def populations(
    domains: NDArray[np.str_],
    documents: ArrayLike,
    weights: Mapping[str, float],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Population]:
    """Each domain of the spans measured, and after them their mix where weights are given.

    Args:
        domains: of every span, [spans].
        documents: of the same, [spans].
    """
    shares: dict[str, Mapping[str, float]] = {domain: {domain: 1.0} for domain in sorted(set(domains.tolist()))}
    if weights:
        shares[MIXED] = weights
    return [Population(name, of, domains, documents, resamples=resamples, seed=seed) for name, of in shares.items()]
