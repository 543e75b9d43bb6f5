"""Figures measured again beside those that a release came with."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gistnet.evaluation.records import MetricRecord


class Comparison(NamedTuple):
    """How many figures were measured again, and how far they are from the released ones."""

    equal: int
    """Figures that are the same to the digit."""
    different: int
    """Figures of the same spans that are not."""
    largest: tuple[float, MetricRecord] | None
    """The largest difference, and the figure measured again."""
    others: int
    """Figures that the release has not, or has of other spans."""

    def sentence(self) -> str:
        """What a reader should know of it."""
        both = self.equal + self.different
        told = f"{self.equal} of {both} figures are those of the release to the digit"
        if self.largest is not None:
            size, record = self.largest
            told += f", the others are at most {size:.2g} off ({record.name}, {record.domain})"
        return told + (f"; {self.others} are of other spans than the release's, or not in it." if self.others else ".")


def compare_figures(measured: Sequence[MetricRecord], released: Sequence[MetricRecord]) -> Comparison:
    """Compare the values of figures that are of the same thing and of as many spans and documents."""
    before = {what_it_is(record): record.value for record in released}
    pairs = [(record, before[what_it_is(record)]) for record in measured if what_it_is(record) in before]
    different = [(abs(record.value - value), record) for record, value in pairs if record.value != value]
    return Comparison(
        equal=len(pairs) - len(different),
        different=len(different),
        largest=max(different, key=lambda pair: pair[0], default=None),
        others=len(measured) - len(pairs),
    )


def what_it_is(record: MetricRecord) -> tuple[Any, ...]:
    """All that a figure says of itself but what was found."""
    return tuple(record.model_dump(exclude={"value", "interval", "baselines", "unit", "met", "target"}).values())
