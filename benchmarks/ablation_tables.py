"""The tables of docs/ablations.md, made from benchmarks/results; `benchmarks/page.py` puts them there.

There is a block for each group and kind of device, `GROUP-cpu` and `GROUP-cuda`, and for plots and extrapolation.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ablation_results as kept
from benchmarks.ablation_arms import DEFAULT, GROUPS
from benchmarks.ablation_figures import PARTS, Record, mean_kl, paired_difference, recovered, recovered_interval
from benchmarks.ablation_line import fit_line, second_half
from benchmarks.plots import describe_device
from gistnet.evaluation.tables import markdown

DEVICES = ("cpu", "cuda")
FARTHER = (10**5, 10**6, 10**7)
"""Spans for which the line is asked what it would say."""


def group_tables(group: str, device: str, results: Path, _: Path) -> str:
    """What became of a group's arms, for each comparison that has one of them: quality, and what it cost."""
    found = kept.load(results / f"ablations-{device}.json")["comparisons"].values()
    arms = [DEFAULT, *GROUPS[group].arms]
    parts = [
        _comparison(content, arms)
        for content in found
        if any(kept.records(content, arm) and not _is_default(content, arm) for arm in arms)
        and kept.records(content, DEFAULT)
    ]
    on_gpu = " --device cuda" if device == "cuda" else ""
    return "\n\n".join(parts) or f"TO MEASURE: `python benchmarks/ablations.py --group {group}{on_gpu}`"


def _comparison(content: kept.Comparison, asked: Sequence[str]) -> str:
    default = kept.records(content, DEFAULT)
    arms = [arm for arm in asked if kept.records(content, arm)]
    first = default[0]
    documents, spans = len(first["spans_by_document"]), sum(first["spans_by_document"])
    spans_text = f"{spans} spans of {documents} held-out documents"
    intro = f"**{kept.budget_text(content)}**, {describe_device(first)}; judged on {spans_text}."
    quality = [_quality_row(content, arm, default) for arm in arms]
    for name in ("drop", "last_token"):
        shares = [f"{recovered(default, part, name):.1%}" if name != "drop" else "0" for part in PARTS]
        quality.append([f"`{name}`", f"{mean_kl(default, name, '1–32'):.4f}", *shares, "", ""])
    header = ["arm", "KL@32", "recovered", "at 1–8", "at 9–32", "more than the default", "of it at 9–32"]
    reached = _spans_all_reached(content, arms)
    costs = [_cost_row(content, arm, first, reached) for arm in arms]
    at = f"recovered at {reached:,} spans" if reached else "recovered at equal spans"
    cost_header = ["arm", "trained", "compute", "spans/s", "spans seen", "minutes", at]
    tables = (markdown(header, quality), markdown(cost_header, costs))
    missing = [arm for arm in asked if arm not in arms and "failed" not in str(content["arms"].get(arm))]
    not_run = [f"Not run here: {', '.join(missing)}."] if missing else []
    return "\n\n".join([intro, *tables, *_failures(content, asked), *not_run])


def _is_default(content: kept.Comparison, arm: str) -> bool:
    """Whether an arm is the default, perhaps under another name."""
    return bool(content["same_as"].get(arm, arm) == DEFAULT)


def _quality_row(content: kept.Comparison, arm: str, default: Sequence[Record]) -> list[str]:
    records = kept.records(content, arm)
    low, high = recovered_interval(records, "1–32")
    whole = f"**{recovered(records, '1–32'):.1%}** [{100 * low:.1f}, {100 * high:.1f}]"
    if len(records) > 1:
        each = [recovered([record], "1–32") for record in records]
        whole += f", {len(records)} seeds {100 * min(each):.1f}–{100 * max(each):.1f}"
    shares = [f"{recovered(records, part):.1%}" for part in ("1–8", "9–32")]
    more = ["", ""] if _is_default(content, arm) else [_difference(records, default, part) for part in ("1–32", "9–32")]
    return [_name(content, arm), f"{mean_kl(records, 'gist', '1–32'):.4f}", whole, *shares, *more]


def _difference(records: Sequence[Record], default: Sequence[Record], part: str) -> str:
    found = paired_difference(records, default, part)
    if found is None:
        return "other spans"
    value, interval = found
    return _points((value, *interval))


def _cost_row(content: kept.Comparison, arm: str, default: Record, reached: int) -> list[str]:
    records = kept.records(content, arm)
    record = records[0]
    comparable = all(record[key] == default[key] for key in ("span_tokens", "horizon_tokens"))
    at_equal = np.mean([at_spans(r["curve"], reached) for r in records]) if comparable and reached else None
    return [
        _name(content, arm),
        f"{record['trained_parameters'] / 1e6:.2f}M",
        f"{record['share_of_teacher']:.1%}",
        f"{np.mean([r['spans_per_second'] for r in records]):.2f}",
        f"{record['spans_seen']:,}",
        f"{np.mean([r['minutes'] for r in records]):.1f}",
        "–" if at_equal is None else f"{at_equal:.1%}",
    ]


def _spans_all_reached(content: kept.Comparison, arms: Sequence[str]) -> int:
    """The largest number of spans that all of the arms have seen; 0 where one has seen none."""
    return min(record["spans_seen"] for arm in arms for record in kept.records(content, arm))


def at_spans(curve: Sequence[dict[str, float]], spans: float) -> float:
    """The share recovered on validation spans after so many spans; between two validations on a line over log2."""
    seen = [(point["spans_seen"], point["recovered_kl"]) for point in curve if point["spans_seen"] > 0]
    x, y = zip(*seen, strict=True)
    return float(np.interp(np.log2(spans), np.log2(x), y))


def _failures(content: kept.Comparison, arms: Sequence[str]) -> list[str]:
    failed = {
        f"{arm}, seed {seed}": record["failed"]
        for arm in arms
        for seed, record in content["arms"].get(arm, {}).items()
        if "failed" in record
    }
    return [f"Failed: {name}. {why}" for name, why in failed.items()]


def _name(content: kept.Comparison, arm: str) -> str:
    same = content["same_as"].get(arm)
    return f"{arm} (= {same})" if same else arm


def extrapolation_table(device: str, results: Path, _: Path) -> str:
    """What lines through what was measured would say farther on."""
    found = kept.load(results / f"ablations-{device}.json")
    longest, rows = kept.longest_curve(found), []
    if longest is not None:
        name, curve = longest
        points = second_half([(point["spans_seen"], point["recovered_kl"]) for point in curve])
        rows.append(_line_row(f"the second half of one curve ({name})", *points))
    ends = kept.ends_of_schedules(found)
    if len(ends) > 2:
        rows.append(_line_row("the ends of complete schedules of the default", *zip(*ends, strict=True)))
    rows = [row for row in rows if row]
    if not rows:
        return "TO MEASURE: `python benchmarks/ablations.py`, with a curve of six validations or more"
    header = ["line through", "points", "recovered a doubling", *(f"{spans:,} spans" for spans in FARTHER)]
    return markdown(header, rows)


def _line_row(name: str, spans: Sequence[float], shares: Sequence[float]) -> list[str]:
    if len(spans) < 3:
        return []
    line = fit_line(spans, shares)
    cells = []
    for farther in FARTHER:
        low, high = line.interval(farther)
        cells.append(f"{line.at(farther):.1%} [{100 * low:.1f}, {100 * high:.1f}]")
    points = f"{len(spans)}, {min(spans):,}–{max(spans):,} spans"
    return [name, points, f"{100 * line.per_doubling:+.2f}", *cells]


def plot_list(device: str, _: Path, plots: Path) -> str:
    """The plots of a kind of device that have been drawn."""
    found = sorted(plots.glob(f"*-{device}.svg"))
    images = [f"![{path.stem.replace('-', ' ')}](plots/{plots.name}/{path.name})" for path in found]
    return "\n".join(images) or "TO MEASURE: `python benchmarks/ablations.py`, then again with `--plots`"


def untrained_table(kind: str, results: Path, _: Path) -> str:
    """What stands in without training (benchmarks/untrained.py): states of the original context, or GistNets."""
    path = results / "untrained.json"
    if not path.exists():
        return "TO MEASURE: `python benchmarks/untrained.py`"
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        [
            _untrained_name(row),
            f"{row['compute']:.1%}" if "compute" in row else "",
            f"{row['kl']:.4f}",
            *(f"{row[f'recovered_{part}']:.1%}" for part in ("1_32", "1_8", "9_32")),
            *("" if row["kind"] == "baseline" else _points(row[f"more_than_last_token_{p}"]) for p in ("1_32", "9_32")),
        ]
        for row in content["rows"]
        if row["kind"] in ("baseline", kind)
    ]
    header = [
        "stand-in",
        "compute",
        "KL@32",
        "recovered",
        "at 1–8",
        "at 9–32",
        "more than the last token",
        "of it at 9–32",
    ]
    spans = f"{content['spans']} spans of {content['documents']} held-out documents"
    return f"{spans}, {describe_device(content)}.\n\n{markdown(header, rows)}"


def lengths_table(results: Path, _: Path) -> str:
    """What one vector keeps of spans of several lengths without training (benchmarks/untrained_lengths.py)."""
    path = results / "untrained-lengths.json"
    if not path.exists():
        return "TO MEASURE: `python benchmarks/untrained_lengths.py`"
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        [
            str(row["length"]),
            f"{row['compute']:.1%}",
            *(f"{row[name]['kl']:.4f}" for name in ("drop", "last_token", "gist")),
            *(f"{row[name]['recovered_1_32']:.1%}" for name in ("last_token", "gist")),
            _points(row["gist"]["more_than_last_token_1_32"]),
            *(f"{row[name]['recovered_9_32']:.1%}" for name in ("last_token", "gist")),
        ]
        for row in content["rows"]
    ]
    header = [
        "tokens per gist",
        "compute",
        "KL@32 of `drop`",
        "of `last_token`",
        "of the gist",
        "`last_token` recovers",
        "the gist",
        "more",
        "`last_token` at 9–32",
        "the gist",
    ]
    least, most = (end(row["spans"] for row in content["rows"]) for end in (min, max))
    counted = f"{least} spans" if least == most else f"{least} to {most} spans"
    documents = max(row["documents"] for row in content["rows"])
    return f"{counted} of {documents} held-out documents, {describe_device(content)}.\n\n{markdown(header, rows)}"


def _untrained_name(row: dict[str, Any]) -> str:
    if row["kind"] == "baseline":
        return f"`{row['name'].replace(' ', '_')}`"
    if row["kind"] == "state":
        return f"state behind layer {row['layers']}"
    return f"{row['token_layers']} layers for all tokens, {row['layers']} for the last, × {row['scale']}"


def _points(share: Sequence[float]) -> str:
    value, low, high = (100 * part for part in share)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


_MAKERS: dict[str, Callable[[str, Path, Path], str]] = {
    **{group: partial(group_tables, group) for group in GROUPS},
    "extrapolation": extrapolation_table,
    "ablation-plots": plot_list,
}
BLOCKS: Mapping[str, Callable[[Path, Path], str]] = (
    {f"{name}-{device}": partial(make, device) for name, make in _MAKERS.items() for device in DEVICES}
    | {f"untrained-{kind}": partial(untrained_table, kind) for kind in ("state", "gistnet")}
    | {"untrained-lengths": lengths_table}
)
"""What makes the content of a block from the folders of results and of plots, by its name."""
