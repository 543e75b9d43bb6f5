"""Results and statistics as tables for the terminal."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from gistnet.data.dataset import DatasetStatistics
from gistnet.evaluation.metrics import MetricRecord

_BASELINES = ("drop", "last_token", "surprisal_token", "mean", "shuffled")


def results_table(records: Sequence[MetricRecord]) -> Iterator[Table]:
    """One table for each domain, position policy and horizon: the gist, its interval, and the baselines."""

    def group(record: MetricRecord) -> tuple[str, str, int, int, int]:
        return record.domain, record.positions, record.horizon, record.level, record.k

    for (domain, positions, horizon, level, k), members in groupby(records, group):
        shown = list(members)
        table = Table(
            title=f"{domain} · H = {horizon} · positions {positions} · level {level} · k = {k} · "
            f"{shown[0].n_spans} spans of {shown[0].n_documents} documents",
            title_justify="left",
        )
        table.add_column("metric")
        table.add_column("offsets")
        for name in ("gist", "95 % interval", *_BASELINES):
            table.add_column(name.replace("_", " "), justify="right")
        table.add_column("target")
        for record in shown:
            table.add_row(
                record.name,
                f"{record.offsets[0]}–{record.offsets[1]}",
                f"{record.value:.3f}",
                "" if record.interval is None else f"{record.interval[0]:.3f} … {record.interval[1]:.3f}",
                *(f"{record.baselines[name]:.3f}" if name in record.baselines else "" for name in _BASELINES),
                _target(record),
            )
        yield _at_full_width(table)


def _target(record: MetricRecord) -> str:
    if record.target is None:
        return ""
    bounds = [f"> {record.target.above}"] if record.target.above is not None else []
    bounds += [f"< {record.target.below}"] if record.target.below is not None else []
    return f"{' and '.join(bounds)}: {'met' if record.met else 'not met'}"


def dataset_table(statistics: DatasetStatistics) -> Table:
    """What became of the documents of each source."""
    table = Table(title="documents", title_justify="left")
    columns = ("source", "domain", "split", "read", "too_short", "near_duplicates", "kept", "tokens", "windows")
    for name in columns:
        table.add_column(name.replace("_", " "), justify="left" if name in columns[:3] else "right")
    for split in statistics.splits:
        values = (getattr(split, name) for name in columns)
        table.add_row(*(f"{value:,}" if isinstance(value, int) else value for value in values))
    return _at_full_width(table)


def _at_full_width(table: Table) -> Table:
    """Take the width that the cells need: a narrow terminal breaks the lines, but no digit is left out."""
    table.width = Console(width=1000, markup=False).measure(table).maximum
    return table
