"""A straight line through share recovered against log2 of spans seen, and what it would say farther on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gistnet.errors import DataError
from gistnet.evaluation.metrics import percentile_interval

RESAMPLES = 2000


@dataclass(frozen=True)
class Line:
    """A line by least squares.

    Attributes:
        log2_spans, recovered: the points it was fitted to, [points].
        per_doubling: its slope, share recovered for each doubling of the spans.
        at_one: where it would begin, at a single span.
    """

    log2_spans: NDArray[np.float64]
    recovered: NDArray[np.float64]
    per_doubling: float
    at_one: float

    def at(self, spans: float) -> float:
        """What the line says after so many spans; a line knows no bound, and may say more than 1."""
        return self.at_one + self.per_doubling * float(np.log2(spans))

    @property
    def residuals(self) -> NDArray[np.float64]:
        """How far the points lie above the line, [points]."""
        return self.recovered - self.at_one - self.per_doubling * self.log2_spans

    def interval(self, spans: float) -> tuple[float, float]:
        """The 95 % interval of a new point there: lines through points with their residuals drawn anew, and one more.

        (Davison & Hinkley, 1997, sections 6.2.3 and 6.3.3.) Residuals are scaled up for the two numbers that were
        fitted. It knows neither that the points share held-out spans nor that the line may bend.
        """
        count = len(self.recovered)
        scaled = (self.residuals - self.residuals.mean()) * np.sqrt(count / (count - 2))
        drawn = np.random.default_rng(0).choice(scaled, size=(RESAMPLES, count + 1))
        x = self.log2_spans - self.log2_spans.mean()
        points = self.recovered - self.residuals + drawn[:, :-1]  # [resamples, points]
        farther = np.log2(spans) - self.log2_spans.mean()
        predicted = points.mean(axis=1) + farther * (points @ x) / (x @ x) + drawn[:, -1]
        return percentile_interval(predicted)


def fit_line(spans: Sequence[float] | NDArray[np.float64], recovered: Sequence[float] | NDArray[np.float64]) -> Line:
    """The line through points at so many spans, [points] each.

    Raises:
        DataError: there are fewer than three points, or all are at the same number of spans.
    """
    x, y = np.log2(np.asarray(spans, dtype=np.float64)), np.asarray(recovered, dtype=np.float64)
    if len(x) < 3 or np.ptp(x) == 0:
        raise DataError(
            f"Got {len(x)} points at {len(np.unique(x))} places, expected three at least, not at one place."
        )
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    return Line(x, y, slope, float(y.mean() - slope * x.mean()))


def second_half(curve: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """The later half of a curve's points (spans seen, share recovered): the spans, and the shares."""
    seen = [(spans, share) for spans, share in curve if spans > 0]
    later = seen[len(seen) // 2 :]
    return [spans for spans, _ in later], [share for _, share in later]
