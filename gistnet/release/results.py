"""The results of a release as Markdown, made from its records alone: for its card, and for whoever tells of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gistnet.evaluation.records import Baseline, MetricRecord, read_records
from gistnet.model.saved_gistnet import SavedGistNet, read_saved
from gistnet.positions import POLICIES
from gistnet.report.tables import grouped, interval_text, markdown, results_rows, target_text
from gistnet.run_folder import RESULTS_FILE

_WHOLE_HORIZON = ("kl", "delta_nll", "substitutability_rate", "perplexity_ratio")
_EACH_RANGE = "recovered_kl"
_FREE: tuple[Baseline, ...] = ("drop", "last_token")


class ReleasedFigures(NamedTuple):
    """What a release folder says of its network and how good it is."""

    network: SavedGistNet
    records: list[MetricRecord]
    """All of them."""

    @property
    def shown(self) -> list[MetricRecord]:
        """Those under the position policy that it was trained for; under all, where that is a mixture."""
        policies = [self.network.positions] if self.network.positions in POLICIES else list(POLICIES)
        return [record for record in self.records if record.positions in policies]


def read_released(folder: Path) -> ReleasedFigures:
    """Read what a release folder says.

    Raises:
        CheckpointError, DataError: its network or its figures are missing or damaged.
    """
    network, _ = read_saved(folder)
    return ReleasedFigures(network, read_records(folder / RESULTS_FILE))


def summary(figures: ReleasedFigures) -> str:
    """Results and targets in short: the first kind of text that was evaluated, at its shortest horizon."""
    first = next((record for record in figures.shown if record.horizon is not None), None)
    shortest = min((record.horizon or 0 for record in figures.shown if record.horizon is not None), default=0)
    of_first = [r for r in figures.shown if first and (r.domain, r.horizon) == (first.domain, shortest)]
    return f"{results_tables(of_first)}\n\n{targets_table(figures.shown)}"


def results_tables(records: Sequence[MetricRecord]) -> str:
    """A table for each kind of text, horizon, policy and level, each headed by what it is.

    KL, ΔNLL, the substitutability rate and the perplexity ratio over the whole horizon, and the shares recovered for
    each range of offsets, beside their baselines.
    """
    shown = [r for r in records if r.is_whole and (r.name == _EACH_RANGE or _is_whole(r))]
    return "\n\n".join(_tables(shown))


def _is_whole(record: MetricRecord) -> bool:
    return record.name in _WHOLE_HORIZON and record.offsets == (1, record.horizon)


def _tables(records: Sequence[MetricRecord]) -> Iterator[str]:
    for (domain, positions, horizon, level, k), members in grouped(records):
        several = f", {k} gists in a row" if k > 1 else ""
        yield (
            f"{domain}, H = {horizon}, positions {positions}, level {level}{several}: {members[0].n_spans} spans of "
            f"{members[0].n_documents} documents\n\n{markdown(*results_rows(members), bold='gist')}"
        )


def targets_table(records: Sequence[MetricRecord]) -> str:
    """Every figure that has a target, beside the replacements that cost nothing, and whether it is met."""
    aimed = [record for record in records if record.target is not None and record.is_whole]
    if not aimed:
        return "None of the figures has a target."
    rows = [
        [
            record.name,
            f"{record.domain}{'' if record.horizon is None else f', H = {record.horizon}'}, level {record.level}",
            f"{record.value:.3f}",
            interval_text(record),
            *(f"{record.baselines[name]:.3f}" if name in record.baselines else "" for name in _FREE),
            target_text(record),
        ]
        for record in aimed
    ]
    return markdown(["metric", "text", "gist", "95 % interval", "drop", "last token", "target"], rows, bold="gist")
