"""Whose figures a record gives: the spans of one domain, or of several domains in stated shares."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gistnet.evaluation.metrics import percentile_interval
from gistnet.evaluation.resampling import DocumentDraws, Floats

MIXED = "mixed"
"""The domain of a record that is the weighted mean over domains."""


class _Part(NamedTuple):
    """One domain's share of a population."""

    share: float
    rows: NDArray[np.int64]
    draws: DocumentDraws


class Population:
    """Spans to take means over, and their documents drawn anew.

    The mean over several domains is the weighted mean of the domains' means, and documents are drawn within each
    domain (Davison & Hinkley, 1997, section 3.2): a figure of the mix depends on its shares, and not on how many
    documents of each domain there are.

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
        documents: NDArray[np.int64],
        *,
        resamples: int,
        seed: int,
    ) -> None:
        self.name = name
        self.documents = documents
        self._parts = []
        # Each domain is drawn by numbers of its own; equal ones would tie domains of as many documents together.
        for place, domain in enumerate(sorted(set(domains.tolist()))):
            if domain in shares:
                rows = np.flatnonzero(domains == domain)
                draws = DocumentDraws(documents[rows], resamples, (seed, place))
                self._parts.append(_Part(shares[domain], rows, draws))

    @property
    def rows(self) -> NDArray[np.int64]:
        """The spans that count, ascending."""
        return np.sort(np.concatenate([part.rows for part in self._parts]))

    @property
    def has_interval(self) -> bool:
        """Whether each domain has two documents at least: a single one says nothing about others."""
        return all(part.draws.documents > 1 for part in self._parts)

    def mean(self, column: Floats) -> float:
        """The mean of a column, [spans measured]."""
        return float(sum(part.share * column[part.rows].mean() for part in self._parts))

    def resampled_means(self, column: Floats) -> Floats:
        """The same with the documents drawn anew, [resamples]."""
        return np.sum([part.share * part.draws.means(column[part.rows]) for part in self._parts], axis=0)

    def interval(self, columns: Sequence[Floats], statistic: Callable[..., Any]) -> tuple[float, float] | None:
        """The 95 % interval of a function of the columns' means; None where there is no interval.

        Raises:
            DataError: the statistic is not finite for some of the resamples.
        """
        if not self.has_interval:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            return percentile_interval(statistic(*map(self.resampled_means, columns)))
