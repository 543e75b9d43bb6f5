"""Results and statistics as tables for the terminal, and as Markdown."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Literal, get_args

from rich.table import Table

from gistnet.data.dataset import SplitStatistics
from gistnet.evaluation.records import BaselineName, MetricRecord
from gistnet.terminal import at_full_width

Second = Literal["offsets", "kind", "row"]
"""Second column of a table, which tells records of one name apart."""
FREE: tuple[BaselineName, ...] = ("drop", "last_token")
"""Baselines that need neither a GistNet nor a pass of the teacher."""
# Too many for a terminal: a line for each offset.
_IN_FULL = ("delta_nll_by_offset",)
_BY_KIND = ("kl_by_kind", "delta_nll_by_kind")


def results_tables(records: Sequence[MetricRecord]) -> Iterator[Table]:
    """Tables of a gist's figures, their intervals and baselines, for each domain.

    One for each position policy and horizon; one of what is lost by kind of token, under the first policy; and one of
    what nothing is predicted for. Single offsets and heads, and contexts of a budget, are not shown.
    """
    if not records:
        return
    first_policy = records[0].positions
    of_rows = [r for r in records if r.name.startswith("row_")]
    whole = [r for r in records if r.horizon is not None and r.is_whole and r.name not in _IN_FULL and r not in of_rows]
    for (domain, positions, horizon, level, spans), shown in grouped(whole):
        segments = f"segments of {spans} span{'s' if spans > 1 else ''}"
        title = f"{domain} · H = {horizon} · positions {positions} · level {level} · {segments}"
        yield _table(title, shown)
    by_kind = [r for r in records if r.name in _BY_KIND and r.positions == first_policy]
    for (domain, positions, horizon, level, _), shown in grouped(by_kind):
        title = f"{domain} · by kind of token · H = {horizon} · positions {positions} · level {level}"
        yield _table(title, shown, second="kind")
    for domain, positions in dict.fromkeys((r.domain, r.positions) for r in of_rows):
        shown = [r for r in of_rows if (r.domain, r.positions) == (domain, positions)]
        yield _table(f"{domain} · gists in a row + raw tail · positions {positions}", shown, second="row")
    alone = [r for r in records if r.horizon is None and r.is_whole]
    pairs = [record for record in alone if record.name == "pair_accuracy"]
    for (domain, positions, *_), shown in grouped(pairs):
        yield _table(f"{domain} · minimal pairs · positions {positions}", shown, second=None)
    rest = sorted((record for record in alone if record not in pairs), key=lambda r: (r.level, r.domain, r.positions))
    for (domain, positions, _, level, _), shown in grouped(rest):
        yield _table(f"{domain} · gists by themselves · level {level} · positions {positions}", shown, second=None)


def grouped(records: Sequence[MetricRecord]) -> Iterator[tuple[tuple[Any, ...], list[MetricRecord]]]:
    """Records that follow each other, of one domain, policy, horizon, level and length of segments."""
    for key, members in groupby(records, lambda r: (r.domain, r.positions, r.horizon, r.level, r.spans_per_segment)):
        yield key, list(members)


def _table(title: str, records: Sequence[MetricRecord], second: Second | None = "offsets") -> Table:
    spans = max(record.n_spans for record in records)
    documents = max(record.n_documents for record in records)
    table = Table(title=f"{title} · {spans} spans of {documents} documents", title_justify="left")
    header, rows = results_rows(records, second)
    for name in header:
        table.add_column(name, justify="left" if name in ("metric", second, "target") else "right")
    for row in rows:
        table.add_row(*row)
    return at_full_width(table)


def results_rows(
    records: Sequence[MetricRecord], second: Second | None = "offsets"
) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table of records: gist, interval, the baselines that any of them has, target.

    Args:
        second: the second column, or None for none.
    """
    shown = [name for name in get_args(BaselineName) if any(name in record.baselines for record in records)]
    names = (name.replace("_", " ") for name in shown)
    header = ["metric", *([second] if second else []), "gist", "95 % interval", *names, "target"]
    rows = []
    for record in records:
        tail = record.offsets[0] - 1 if record.offsets else 0
        row = f"{record.spans_per_segment} + {tail}"
        cells = {"offsets": offsets_text(record), "kind": record.kind, "row": row}
        beside = (f"{record.baselines[name]:.3f}" if name in record.baselines else "" for name in shown)
        own = [record.name, *([cells[second]] if second else []), f"{record.value:.3f}", interval_text(record)]
        rows.append([*own, *beside, target_text(record)])
    return header, rows


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]], bold: str | None = None) -> str:
    """A Markdown table, its first column to the left and the others to the right, one of them in bold."""
    lines = [
        f"| {' | '.join(f'**{cell}**' if name == bold else cell for name, cell in zip(header, row, strict=True))} |"
        for row in (header, *rows)
    ]
    return "\n".join([lines[0], f"|---|{'---:|' * (len(header) - 1)}", *lines[1:]])


def interval_text(record: MetricRecord) -> str:
    """The 95 % interval of a figure, or nothing."""
    return "" if record.interval is None else f"{record.interval[0]:.3f} … {record.interval[1]:.3f}"


def offsets_text(record: MetricRecord) -> str:
    """First and last of the predicted tokens that count, or nothing."""
    return "" if record.offsets is None else f"{record.offsets[0]}–{record.offsets[1]}"


def target_text(record: MetricRecord) -> str:
    """A figure's target, whether it is met, and what else meets it at no cost; or nothing."""
    if record.target is None:
        return ""
    also = " and ".join(name.replace("_", " ") for name in met_for_free(record)) if record.met else ""
    return f"{bounds_text(record)}: {'met' if record.met else 'not met'}{also and f', also by {also}'}"


def bounds_text(record: MetricRecord) -> str:
    """The bounds of a figure's target, or nothing."""
    if record.target is None:
        return ""
    bounds = [f"> {record.target.above}"] if record.target.above is not None else []
    bounds += [f"< {record.target.below}"] if record.target.below is not None else []
    return " and ".join(bounds)


def met_for_free(record: MetricRecord) -> list[BaselineName]:
    """Replacements that cost nothing and meet a figure's target too, so that it shows nothing of the gist."""
    return [
        name
        for name in FREE
        if record.target is not None and name in record.baselines and record.target.is_met_by(record.baselines[name])
    ]


def dataset_table(statistics: Sequence[SplitStatistics]) -> Table:
    """Table of the documents of each source: read, left out, kept."""
    table = Table(title="documents", title_justify="left")
    columns = (
        *("source", "domain", "split", "read", "too_short", "near_duplicates", "overlapping"),
        *("kept", "tokens", "windows"),
    )
    for name in columns:
        table.add_column(name.replace("_", " "), justify="left" if name in columns[:3] else "right")
    for split in statistics:
        values = (getattr(split, name) for name in columns)
        table.add_row(*(f"{value:,}" if isinstance(value, int) else value for value in values))
    return at_full_width(table)
