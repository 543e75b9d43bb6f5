"""Draws what the ablations found into docs/plots/ablations/*.svg. Needs matplotlib.

Curves of each group against spans seen, the quality by tokens per gist, and the line that extrapolates.
"""

import importlib
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ablation_results as kept
from benchmarks.ablation_arms import DEFAULT, GROUPS, Group
from benchmarks.ablation_figures import Record, mean_kl, recovered, recovered_interval
from benchmarks.ablation_line import fit_line, second_half
from benchmarks.plots import COLOURS, STYLE, describe_device, finish, pyplot

DEVICES = ("cpu", "cuda")
FARTHEST = 10**7
"""Spans at which the extrapolating line ends."""
Curve = Sequence[Mapping[str, float]]


def draw_all(results: Path, out: Path) -> list[Path]:
    """Draw all that there are results for; returns the files made."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    made: list[Path] = []
    with matplotlib.rc_context(STYLE):
        for device in DEVICES:
            found = kept.load(results / f"ablations-{device}.json")
            for group in GROUPS:
                made += _draw_group(group, device, list(found["comparisons"].values()), out)
            made += _draw_span(device, list(found["comparisons"].values()), out)
            made += _draw_line(device, kept.longest_curve(found), out)
    return made


def _draw_group(group: str, device: str, comparisons: Sequence[kept.Comparison], out: Path) -> list[Path]:
    """The curves of a group's arms, a plot for each comparison that has some."""
    made = []
    for content in comparisons:
        names = [DEFAULT, *(arm for arm in GROUPS[group].arms if arm not in content["same_as"])]
        arms = {name: records for name in names if (records := kept.records(content, name))}
        if arms.keys() - {DEFAULT}:
            path = out / f"{group}-{budget_name(content)}-{device}.svg"
            made.append(_draw_curves(path, GROUPS[group], content, arms))
    return made


def _draw_curves(path: Path, group: Group, content: kept.Comparison, arms: Mapping[str, Sequence[Record]]) -> Path:
    figure, axes = pyplot().subplots(figsize=(9, 4.5), layout="constrained")
    for number, (name, records) in enumerate(arms.items()):
        spans, shares = _points(records[0]["curve"])
        also = [arm for arm, same in content["same_as"].items() if same == name and arm in group.arms]
        style = ("-", "--", ":")[number // len(COLOURS) % 3]
        axes.plot(spans, shares, style, color=COLOURS[number % len(COLOURS)], label=" = ".join([name, *also]))
    _log_spans(axes, (1, 2, 5))
    figure.legend(frameon=False, loc="outside right upper")
    where = describe_device(next(iter(arms.values()))[0])
    question = textwrap.fill(f"{group.question.partition('?')[0]}?", 60)  # the legend stands beside it
    title = f"{question}\n{kept.budget_text(content)}, {where}"
    return finish(figure, axes, path, "spans seen", "recovered on validation spans", title)


def _draw_span(device: str, comparisons: Sequence[kept.Comparison], out: Path) -> list[Path]:
    """KL and share recovered by tokens per gist, for each comparison that has three lengths at least."""
    made = []
    for content in comparisons:
        arms = {
            records[0]["span_tokens"]: records
            for name in (DEFAULT, *GROUPS["span"].arms)
            if (records := kept.records(content, name))
        }
        if len(arms) > 2:
            path = out / f"rate-quality-{budget_name(content)}-{device}.svg"
            made.append(_draw_rates(path, content, dict(sorted(arms.items()))))
    return made


def _draw_rates(path: Path, content: kept.Comparison, arms: Mapping[int, Sequence[Record]]) -> Path:
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(9, 4), layout="constrained")
    x = list(arms)
    for colour, name in zip(COLOURS, ("gist", "last_token", "drop"), strict=False):
        left.plot(x, [mean_kl(records, name, "1–32") for records in arms.values()], color=colour, label=name)
    shares = [recovered(records, "1–32") for records in arms.values()]
    bounds = np.array([recovered_interval(records, "1–32") for records in arms.values()])
    ends = np.abs(bounds.T - np.array(shares))
    right.errorbar(x, shares, ends, color=COLOURS[0], capsize=3)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [str(value) for value in x])
        axes.minorticks_off()
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    right.set_xlabel("tokens per gist")
    right.set_ylabel("recovered, and its 95 % interval")
    title = f"One vector for K tokens ({kept.budget_text(content)})"
    return finish(figure, left, path, "tokens per gist", "KL@32, nats per token", title)


def _draw_line(device: str, longest: tuple[str, Curve] | None, out: Path) -> list[Path]:
    """The longest curve, and the line through its second half; nothing where it has too few points."""
    if longest is None:
        return []
    name, curve = longest
    spans, shares = _points(curve)
    later = second_half(list(zip(spans, shares, strict=True)))
    if len(later[0]) < 3:
        return []
    line = fit_line(*later)
    figure, axes = pyplot().subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(spans, shares, color=COLOURS[0], label=name)
    x = np.geomspace(later[0][0], FARTHEST, 25)
    bounds = np.array([line.interval(float(value)) for value in x])
    drawn = {"color": COLOURS[1], "marker": ""}
    axes.plot(x, [line.at(float(value)) for value in x], "--", label="a line through its second half", **drawn)
    axes.fill_between(x, bounds[:, 0], bounds[:, 1], color=COLOURS[1], alpha=0.15, linewidth=0)
    _log_spans(axes, (1,))
    axes.legend(frameon=False, loc="upper left")
    path = out / f"extrapolation-{device}.svg"
    return [finish(figure, axes, path, "spans seen", "recovered on validation spans", "An extrapolation, no result")]


def _points(curve: Curve) -> tuple[list[float], list[float]]:
    seen = [point for point in curve if point["spans_seen"] > 0]
    return [point["spans_seen"] for point in seen], [point["recovered_kl"] for point in seen]


def _log_spans(axes: Any, marks: tuple[int, ...]) -> None:
    """A logarithmic axis of spans with marks at these multiples of the powers of ten, and shares as percentages."""
    ticker = importlib.import_module("matplotlib.ticker")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=marks))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))


def budget_name(content: kept.Comparison) -> str:
    """What each arm was given, as part of a file's name; with the comparison's own digits, since there may be two."""
    ((unit, amount),) = content["budget"].items()
    common = {key: content[key] for key in ("budget", "default", "data")}
    return f"{amount:g}-{unit}-{kept.digest(common)[:4]}"
