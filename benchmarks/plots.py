"""Draws what the speed benchmarks measured, into docs/plots/*.svg. Needs matplotlib.

    python benchmarks/plots.py                                   all results that are in benchmarks/results
    python benchmarks/plots.py --results FOLDER --out FOLDER     those of another folder (of `on_gpu.py`, say)

Each plot is made where its results are: engine-*.json (ratios, and where the time goes), sweep-*.json (cost by windows,
horizons, spans and passes; memory by spans) and compression-*.json.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

ROOT = Path(__file__).parent.parent
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


def draw_sweep(content: dict[str, Any], suffix: str, out: Path) -> list[Path]:
    """Cost per span along each series, and memory along the spans of a window."""
    where = f"{content['teacher']}, {describe_device(content)}"
    names = {
        "windows": ("window", "tokens of a window", "seconds_per_span_with_all_spans"),
        "horizons": ("horizon", "horizon H, tokens", "seconds_per_span"),
        "spans": ("spans", "spans replaced in a window", "seconds_per_span"),
        "passes": ("branches_per_pass", "branches per pass", "seconds_per_span"),
    }
    made = []
    for series, rows in content["series"].items():
        field, label, cost = names[series]
        x = [row[field] for row in rows]
        lines = {"all of it": [1000 * row[cost] for row in rows]}
        lines["without the document pass"] = [1000 * row["branch_seconds"] for row in rows]
        path = out / f"cost-by-{series}{suffix}.svg"
        made.append(_lines(path, x, lines, label, "milliseconds a span", f"What a span costs ({where})"))
        if series in ("spans", "passes"):
            lines = {"peak": [row["peak_memory_megabytes"] for row in rows]}
            path = out / f"memory-by-{series}{suffix}.svg"
            title = f"What memory it takes ({where})"
            made.append(_lines(path, x, lines, label, "peak memory, MB", title, from_zero=True))
    return made


def draw_compression(content: dict[str, Any], suffix: str, out: Path) -> list[Path]:
    """Tokens a second of each architecture by batch size, beside the teacher's own prefill."""
    rates = [row for row in content["gistnet"] if not row["compiled"]]
    x = sorted({row["spans"] for row in rates})
    lines = {
        architecture: [row["tokens_per_second"] for row in rates if row["architecture"] == architecture]
        for architecture in dict.fromkeys(row["architecture"] for row in rates)
    }
    lines["the teacher's prefill"] = [content["prefill_tokens_per_second"]] * len(x)
    title = f"Compression ({content['teacher']}, {describe_device(content)})"
    return [_lines(out / f"compression{suffix}.svg", x, lines, "spans in a batch", "tokens a second", title)]


def draw_engine(content: dict[str, Any], suffix: str, out: Path) -> list[Path]:
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
    made = []
    if ratios:
        title = f"The engine's speedup ({describe_device(content)})"
        made.append(_bars(out / f"engine-speedup{suffix}.svg", ratios, "times as fast", title, stacked=False))
    if parts:
        title = f"Where the engine's time goes ({describe_device(content)})"
        made.append(_bars(out / f"engine-parts{suffix}.svg", parts, "milliseconds a span", title, stacked=True))
    return made


def pyplot() -> Any:
    # Only drawing needs matplotlib, and measuring must go on without it.
    return importlib.import_module("matplotlib.pyplot")


def describe_device(content: dict[str, Any]) -> str:
    """The GPU that a result was measured on, or the cores of the processor."""
    machine = content["machine"]
    cores = f"{machine['cores']} core{'s' if machine['cores'] > 1 else ''} of {machine['processor']}"
    return machine["gpu"] if machine["gpu"] != "none" else cores


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
    figure, axes = pyplot().subplots(figsize=(8, 4.5), layout="constrained")
    for colour, (name, y) in zip(COLOURS, lines.items(), strict=False):
        axes.plot(x, y, color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [f"{value:,}" for value in x])
    axes.minorticks_off()
    if from_zero:
        axes.set_ylim(bottom=0)
    else:
        ticker = importlib.import_module("matplotlib.ticker")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,.4g}")
        axes.yaxis.set_minor_locator(ticker.NullLocator())
    if len(lines) > 1:
        axes.legend(frameon=False)
    return finish(figure, axes, path, x_label, y_label, title)


def _bars(path: Path, bars: dict[str, dict[str, float]], x_label: str, title: str, *, stacked: bool) -> Path:
    cases = list(dict.fromkeys(case for values in bars.values() for case in values))
    figure, axes = pyplot().subplots(figsize=(9, 1.5 + 0.8 * len(cases)), layout="constrained")
    height, begins = (0.7 if stacked else 0.7 / len(bars)), [0.0] * len(cases)
    for row, (colour, (name, values)) in enumerate(zip(COLOURS, bars.items(), strict=False)):
        widths = [values.get(case, 0.0) for case in cases]
        places = [case + (0.0 if stacked else row * height) for case in range(len(cases))]
        drawn = axes.barh(places, widths, height, left=begins if stacked else None, color=colour, label=name)
        if stacked:
            begins = [begin + width for begin, width in zip(begins, widths, strict=True)]
        else:
            axes.bar_label(drawn, [f"{width:.0f}×" if width else "" for width in widths], padding=3)
    axes.set_yticks([case + (0.0 if stacked else height * (len(bars) - 1) / 2) for case in range(len(cases))], cases)
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=2)
    return finish(figure, axes, path, x_label, "", title)


def finish(figure: Any, axes: Any, path: Path, x_label: str, y_label: str, title: str) -> Path:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_title(title, loc="left", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot().close(figure)
    return path


DRAWN = {"engine": draw_engine, "sweep": draw_sweep, "compression": draw_compression}


def draw_all(results: Path, out: Path) -> list[Path]:
    """Draw every result of the folder that there is a plot for; returns the files made."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    made = []
    with matplotlib.rc_context(STYLE):
        for kind, draw in DRAWN.items():
            for path in sorted(results.glob(f"{kind}-*.json")):
                if "quick" not in path.name:
                    made += draw(json.loads(path.read_text()), path.stem.removeprefix(kind), out)
    return made


def main() -> None:
    """Draw, and print what was drawn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "plots")
    arguments = parser.parse_args()
    for path in draw_all(arguments.results, arguments.out):
        print(path)


if __name__ == "__main__":
    main()
