"""Draws what was measured into docs/plots/*.svg and docs/plots/ablations/*.svg. Needs matplotlib.

    python benchmarks/plots.py                                   all results that are in benchmarks/results
    python benchmarks/plots.py --results FOLDER --out FOLDER     those of another folder (of `on_gpu.py`, say)

Each plot is made where its results are: engine-*.json (ratios, and where the time goes), sweep-*.json (cost by windows,
horizons, spans and passes; memory), compression-*.json, ablations-*.json (curves of each group against spans seen, and
quality by tokens per gist), fading.json (what gists of each rate are worth, by the budget); and learning.svg of the
metrics of the releases, and of learning-*.jsonl, the validations of runs that were not released.
"""

import argparse
import importlib
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks import ablation_results as kept
from benchmarks.ablation_results import DEFAULT, Comparison, Record, mean_kl, recovered, recovered_interval
from benchmarks.machine import RESULTS, ROOT
from gistnet.machine import device_name
from gistnet.metrics_log import read_metrics
from gistnet.run_folder import METRICS_FILE

STYLE: dict[str, Any] = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "font.size": 12,
    "lines.linewidth": 2,
    "lines.marker": "o",
    "svg.fonttype": "none",  # text stays text: sharp, and readable to a search
    "svg.hashsalt": "gistnet",  # the same figures give the same file
}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart with any kind of sight (Okabe and Ito, 2008)."""

# Speed ----------------------------------------------------------------------------------------------------------------


def draw_sweep(content: dict[str, Any], suffix: str, out: Path) -> Iterator[Path]:
    """Cost per span along each series, and memory along spans and passes."""
    where = f"{content['teacher']}, {device_name(content['machine'])}"
    names = {
        "windows": ("window", "tokens of a window", "seconds_per_span_with_all_spans"),
        "horizons": ("horizon", "horizon H, tokens", "seconds_per_span"),
        "spans": ("spans", "spans replaced in a window", "seconds_per_span"),
        "passes": ("branches_per_pass", "branches per pass", "seconds_per_span"),
    }
    for series, rows in content["series"].items():
        field, label, cost = names[series]
        x = [row[field] for row in rows]
        lines = {"all of it": [1000 * row[cost] for row in rows]}
        lines["without the document pass"] = [1000 * row["branch_seconds"] for row in rows]
        path = out / f"cost-by-{series}{suffix}.svg"
        yield _lines(path, x, lines, label, "milliseconds a span", f"What a span costs ({where})")
        if series in ("spans", "passes"):
            lines = {"peak": [row["peak_memory_megabytes"] for row in rows]}
            path = out / f"memory-by-{series}{suffix}.svg"
            yield _lines(path, x, lines, label, "peak memory, MB", f"What memory it takes ({where})", from_zero=True)


def draw_compression(content: dict[str, Any], suffix: str, out: Path) -> Iterator[Path]:
    """Tokens a second of each architecture by batch size, beside the teacher's own prefill."""
    rates = [row for row in content["gistnet"] if not row["compiled"]]
    x = sorted({row["spans"] for row in rates})
    lines = {
        architecture: [row["tokens_per_second"] for row in rates if row["architecture"] == architecture]
        for architecture in dict.fromkeys(row["architecture"] for row in rates)
    }
    lines["the teacher's prefill"] = [content["prefill_tokens_per_second"]] * len(x)
    title = f"Compression ({content['teacher']}, {device_name(content['machine'])})"
    yield _lines(out / f"compression{suffix}.svg", x, lines, "spans in a batch", "tokens a second", title)


def draw_engine(content: dict[str, Any], suffix: str, out: Path) -> Iterator[Path]:
    """Speedups over the loops, and milliseconds of each part of the engine, by case."""
    ratios: dict[str, dict[str, float]] = {}
    parts: dict[str, dict[str, float]] = {}
    for teacher, results in content["teachers"].items():
        for case in results["cases"]:
            name = f"{teacher}\nwindow {case['window']}, H {case['horizon']}"
            if "speedup_over_loop" in case:
                ratios.setdefault("over the spec's loop", {})[name] = case["speedup_over_loop"]
            if "speedup_over_cached" in case:
                ratios.setdefault("over the cached loop", {})[name] = case["speedup_over_cached"]
            for part, row in case.get("breakdown", {}).items():
                parts.setdefault(part, {})[name] = 1000 * row["seconds_per_span"]
    where = device_name(content["machine"])
    if ratios:
        path = out / f"engine-speedup{suffix}.svg"
        yield _bars(path, ratios, "times as fast", f"The engine's speedup ({where})", stacked=False)
    if parts:
        path = out / f"engine-parts{suffix}.svg"
        yield _bars(path, parts, "milliseconds a span", f"Where the engine's time goes ({where})", stacked=True)


def _lines(
    path: Path,
    x: list[int],
    lines: dict[str, list[float]],
    x_label: str,
    y_label: str,
    title: str,
    *,
    from_zero: bool = False,
) -> Path:
    figure, axes = _pyplot().subplots(figsize=(8, 4.5), layout="constrained")
    for colour, (name, y) in zip(cycle(COLOURS), lines.items()):
        axes.plot(x, y, color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [f"{value:,}" for value in x])
    axes.minorticks_off()
    if from_zero:
        axes.set_ylim(bottom=0)
    else:
        axes.set_yscale("log")
        _mark_decades(axes.yaxis, "{x:,.4g}")
    if len(lines) > 1:
        axes.legend(frameon=False)
    return _finish(figure, axes, path, x_label, y_label, title)


def _bars(path: Path, bars: dict[str, dict[str, float]], x_label: str, title: str, *, stacked: bool) -> Path:
    cases = list(dict.fromkeys(case for values in bars.values() for case in values))
    figure, axes = _pyplot().subplots(figsize=(9, 1.5 + 0.8 * len(cases)), layout="constrained")
    height, begins = (0.7 if stacked else 0.7 / len(bars)), [0.0] * len(cases)
    for row, (colour, (name, values)) in enumerate(zip(cycle(COLOURS), bars.items())):
        widths = [values.get(case, 0.0) for case in cases]
        offsets = [case + (0.0 if stacked else row * height) for case in range(len(cases))]
        drawn = axes.barh(offsets, widths, height, left=begins if stacked else None, color=colour, label=name)
        if stacked:
            begins = [begin + width for begin, width in zip(begins, widths, strict=True)]
        else:
            axes.bar_label(drawn, [f"{width:.0f}×" if width else "" for width in widths], padding=3)
    axes.set_yticks([case + (0.0 if stacked else height * (len(bars) - 1) / 2) for case in range(len(cases))], cases)
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=2)
    return _finish(figure, axes, path, x_label, "", title)


# Ablations ------------------------------------------------------------------------------------------------------------


def draw_ablations(results: dict[str, Any], suffix: str, out: Path) -> Iterator[Path]:
    """Curves of each group's arms, and quality by tokens per gist, a plot for each comparison that has some."""
    groups = kept.read_groups()
    for key, content in results["comparisons"].items():
        ((unit, amount),) = content["budget"].items()
        ending = f"{amount:g}-{unit}-{key[:4]}{suffix}.svg"  # there may be two of one budget
        for name, group in groups.items():
            asked = [DEFAULT, *(arm for arm in group.arms if arm not in content["same_as"])]
            arms = {arm: records for arm in asked if (records := kept.records(content, arm))}
            if arms.keys() - {DEFAULT}:
                yield _curves(out / "ablations" / f"{name}-{ending}", group, content, arms)
        lengths = {
            records[0]["span_tokens"]: records
            for arm in (DEFAULT, *groups["span"].arms)
            if (records := kept.records(content, arm))
        }
        if len(lengths) > 2:
            yield _rates(out / "ablations" / f"rate-quality-{ending}", content, dict(sorted(lengths.items())))


def _curves(path: Path, group: kept.Group, content: Comparison, arms: Mapping[str, Sequence[Record]]) -> Path:
    figure, axes = _pyplot().subplots(figsize=(9, 4.5), layout="constrained")
    for number, (name, records) in enumerate(arms.items()):
        spans, shares = kept.curve_points(records[0]["curve"])
        also = [arm for arm, same in content["same_as"].items() if same == name and arm in group.arms]
        style = ("-", "--", ":")[number // len(COLOURS) % 3]
        axes.plot(spans, shares, style, color=COLOURS[number % len(COLOURS)], label=" = ".join([name, *also]))
    axes.set_xscale("log")
    _mark_decades(axes.xaxis, "{x:,.0f}")
    axes.yaxis.set_major_formatter(importlib.import_module("matplotlib.ticker").PercentFormatter(1.0))
    figure.legend(frameon=False, loc="outside right upper")
    where = device_name(next(iter(arms.values()))[0]["machine"])
    question = textwrap.fill(f"{group.question.partition('?')[0]}?", 60)  # the legend stands beside it
    title = f"{question}\n{kept.budget_text(content)}, {where}"
    return _finish(figure, axes, path, "spans seen", "recovered on validation spans", title)


def _rates(path: Path, content: Comparison, arms: Mapping[int, Sequence[Record]]) -> Path:
    figure, (left, right) = _pyplot().subplots(1, 2, figsize=(9, 4), layout="constrained")
    x = list(arms)
    for colour, name in zip(COLOURS, ("gist", "last_token", "drop"), strict=False):
        left.plot(x, [mean_kl(records, name, "1–32") for records in arms.values()], color=colour, label=name)
    shares = [recovered(records, "1–32") for records in arms.values()]
    bounds = np.array([recovered_interval(records, "1–32") for records in arms.values()])
    right.errorbar(x, shares, np.abs(bounds.T - np.array(shares)), color=COLOURS[0], capsize=3)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [str(value) for value in x])
        axes.minorticks_off()
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    right.set_xlabel("tokens per gist")
    right.set_ylabel("recovered, and its 95 % interval")
    title = f"One vector for K tokens ({kept.budget_text(content)})"
    return _finish(figure, left, path, "tokens per gist", "KL@32, nats per token", title)


def draw_learning(runs: Mapping[str, list[dict[str, Any]]], path: Path) -> Path:
    """Validations of the first stage of each run, narrative text: shares that gists recover, by the spans seen.

    Args:
        runs: the lines of each run's metrics.jsonl, by its name; one that was validated at its ends alone has no curve.
    """
    figure, (singles, rows) = _pyplot().subplots(1, 2, figsize=(11, 4), layout="constrained")
    of_first_stage = {
        name: [line for line in lines if "validation" in line and line["stage"] == 1] for name, lines in runs.items()
    }
    curves = {name: validated for name, validated in of_first_stage.items() if len(validated) > 2}
    styles = cycle(product(("-", "--", ":"), COLOURS))
    for (name, validated), (line_style, colour) in zip(curves.items(), styles, strict=False):
        x, style = [line["spans_seen"] for line in validated], {"color": colour, "linestyle": line_style}
        for axes, metric in ((singles, "recovered_kl"), (rows, "row_recovered_kl")):
            axes.plot(x, [line["validation"].get(metric) for line in validated], label=name, **style)
    ticker = importlib.import_module("matplotlib.ticker")
    rows.set_title("30 gists before 64 tokens", loc="left", fontsize=12)
    rows.set_xlabel("spans seen")
    for axes in (singles, rows):
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    figure.legend(*rows.get_legend_handles_labels(), frameon=False, loc="outside right upper")
    return _finish(figure, singles, path, "spans seen", "share of KL recovered", "one gist")


def draw_rates(content: Mapping[str, Any], path: Path) -> Path:
    """Plot of the nats that each rate of gists saves beside as much recent text, by the budget of vectors."""
    figure, axes = _pyplot().subplots(figsize=(8, 4.5), layout="constrained")
    rows = [row for row in dict.fromkeys(of["row"] for of in content["contexts"]) if row != "recent"]
    for number, (row, colour) in enumerate(zip(rows, cycle((*COLOURS, "#555555")))):
        of_row = [of for of in content["contexts"] if of["row"] == row]
        x = np.arange(len(of_row)) + 0.08 * (number - len(rows) / 2)  # side by side, so that intervals can be seen
        y = np.array([of["below_recent"] for of in of_row])
        low, high = np.array([of["interval"] for of in of_row]).T
        axes.errorbar(x, y, yerr=np.stack([y - low, high - y]), color=colour, linewidth=1.5, capsize=2, label=row)
        axes.set_xticks(range(len(of_row)), [f"1/{of['tokens_per_vector']}" for of in of_row])
    axes.axhline(0, color="#000000", linewidth=1, marker="")
    figure.legend(frameon=False, title="tokens a gist", loc="outside right upper")
    return _finish(
        figure,
        axes,
        path,
        "vectors a token of the document",
        "nats per token",
        "What follows is cheaper than after recent text by",
    )


# All of them ----------------------------------------------------------------------------------------------------------


def _pyplot() -> Any:
    # Only drawing needs matplotlib, and measuring must go on without it.
    return importlib.import_module("matplotlib.pyplot")


def _mark_decades(axis: Any, number_format: str) -> None:
    """Mark 1, 2 and 5 times the powers of ten on a logarithmic axis."""
    ticker = importlib.import_module("matplotlib.ticker")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(number_format)
    axis.set_minor_locator(ticker.NullLocator())


def _finish(figure: Any, axes: Any, path: Path, x_label: str, y_label: str, title: str) -> Path:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, loc="left", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    _pyplot().close(figure)
    return path


LEARNING = "learning-"
"""Prefix of files with the validations of runs that were not released; the run's name follows."""
RATES = "fading.json"
DRAWN = {"engine": draw_engine, "sweep": draw_sweep, "compression": draw_compression, "ablations": draw_ablations}


def draw_all(results: Path, out: Path, releases: Path) -> list[Path]:
    """Draw every result of a folder that there is a plot for, and the releases' training; returns the files made."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    made: list[Path] = []
    with matplotlib.rc_context(STYLE):
        for kind, draw in DRAWN.items():
            for device in ("cpu", "cuda"):
                path = results / f"{kind}-{device}.json"
                if path.exists():
                    made += draw(json.loads(path.read_text(encoding="utf-8")), f"-{device}", out)
        runs = {of.parent.name: read_metrics(of) for of in sorted(releases.glob(f"*/{METRICS_FILE}"))}
        others = sorted(results.glob(f"{LEARNING}*.jsonl"))
        runs |= {of.stem.removeprefix(LEARNING).replace("-", " "): read_metrics(of) for of in others}
        if runs:
            made.append(draw_learning(runs, out / "learning.svg"))
        if (results / RATES).exists():
            made.append(draw_rates(json.loads((results / RATES).read_text(encoding="utf-8")), out / "rates.svg"))
    return made


def main() -> None:
    """Draw, and print what was drawn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "plots")
    arguments = parser.parse_args()
    for path in draw_all(arguments.results, arguments.out, ROOT / "src" / "gistnet" / "released"):
        print(path)


if __name__ == "__main__":
    main()
