"""The tables of pages, each made from benchmarks/results or from a release; `benchmarks/page.py` puts them in place.

Where a result is missing, a table says what command measures it.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from benchmarks import ablation_tables, readme_tables
from benchmarks.flops import TeacherSize, engine_flops, loop_flops
from benchmarks.plots import describe_device
from benchmarks.scaling_plan import ASSUMED, plan
from benchmarks.workload import EMBEDDED_TEACHER, SMOLLM2_SHAPE, all_starts, build_teacher
from gistnet.evaluation.tables import markdown
from gistnet.model.gistnet import GistNet, GistNetConfig


class Sources(NamedTuple):
    """The folders that the blocks are made from."""

    results: Path
    plots: Path
    released: Path

    @classmethod
    def of(cls, root: Path) -> Self:
        """Those of a checkout."""
        return cls(root / "benchmarks" / "results", root / "docs" / "plots", root / "released")


def _load(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _to_measure(command: str) -> str:
    return f"TO MEASURE: `python benchmarks/{command}`"


def _size(teacher: str) -> tuple[TeacherSize, GistNet]:
    model = build_teacher(SMOLLM2_SHAPE if teacher == EMBEDDED_TEACHER else teacher, "bfloat16", "meta")
    return TeacherSize.of(model), GistNet.build(GistNetConfig(architecture="full"), model)


def counted_ratio(size: TeacherSize, gistnet: GistNet, window: int, horizon: int) -> float:
    """How many times the operations of the engine the loop needs for a span, where all spans are replaced."""
    starts = all_starts(window, horizon)
    engine = sum(engine_flops(size, gistnet, window, starts, horizon).values()) / len(starts)
    return loop_flops(size, gistnet, window=window, horizon=horizon) / engine


def engine_table(kind: str, sources: Sources) -> str:
    """Loop, cached loop and engine, by teacher, window and horizon."""
    content = _load(sources.results / f"engine-{kind}.json")
    if content is None:
        return _to_measure("engine.py" if kind == "cpu" else "on_gpu.py --out FOLDER")
    rows = []
    for teacher, result in content["teachers"].items():
        size, gistnet = _size(teacher)
        for case in result["cases"]:
            seconds = {name: case.get(name, {}).get("seconds_per_span") for name in ("loop", "cached", "engine")}
            cells = [f"{value:.4g}" if value else "–" for value in seconds.values()]
            for name in ("speedup_over_loop", "speedup_over_cached"):
                cells.append(f"**{case[name]:.0f}×**" if name in case else "–")
            cells.append(f"{counted_ratio(size, gistnet, case['window'], case['horizon']):.0f}×")
            cells.append(f"{case['model_flop_utilisation']:.0%}" if "model_flop_utilisation" in case else "–")
            cells.append(f"{case['engine']['peak_memory_megabytes'] / 1000:.1f} GB" if "engine" in case else "–")
            rows.append([f"{teacher}, {case['window']:,}, {case['horizon']}", *cells])
    header = ["teacher, window, H", "loop, s a span", "cached", "engine", "over loop", "over cached"]
    table = markdown([*header, "by operations", "utilisation", "peak"], rows)
    ceiling = content.get("matmul_flops_per_second")
    described = f"{describe_device(content)}, torch {content['machine']['torch']}"
    reached = f"; large matrix products in bfloat16 reach {ceiling / 1e9:,.0f} GFLOP/s" if ceiling else ""
    return f"{described}{reached}.\n\n{table}\n\n{_equality(content)}".rstrip()


def _equality(content: dict[str, Any]) -> str:
    found = {
        name: result["float32_equality"] for name, result in content["teachers"].items() if "float32_equality" in result
    }
    lines = (
        f"{name}: losses {row['kl_difference_nats']:.1e} nats apart at most, gradient of GistNet "
        f"{row['gradient_relative_difference']:.1e} of its norm"
        for name, row in found.items()
    )
    return f"Loop against engine in float32: {'; '.join(lines)}." if found else ""


def parts_table(kind: str, sources: Sources) -> str:
    """Where the engine's time goes, by case."""
    content = _load(sources.results / f"engine-{kind}.json")
    cases = [] if content is None else [(t, c) for t, r in content["teachers"].items() for c in r["cases"]]
    cases = [(teacher, case) for teacher, case in cases if "breakdown" in case]
    if not cases:
        return _to_measure("engine.py --parts engine breakdown" if kind == "cpu" else "on_gpu.py --out FOLDER")
    names = list(cases[0][1]["breakdown"])
    rows = []
    for teacher, case in cases:
        parts = [case["breakdown"][name] for name in names]
        cells = [f"{1000 * part['seconds_per_span']:.3g} ({part['flops_per_second'] / 1e9:,.0f})" for part in parts]
        rows.append([f"{teacher}, {case['window']:,}, {case['horizon']}", *cells])
    return f"Milliseconds a span (GFLOP/s):\n\n{markdown(['teacher, window, H', *names], rows)}"


def compression_table(kind: str, sources: Sources) -> str:
    """Tokens a second of GistNet alone, by architecture and batch."""
    content = _load(sources.results / f"compression-{kind}.json")
    if content is None:
        return _to_measure("compression.py" if kind == "cpu" else "on_gpu.py --out FOLDER")
    rows = [
        [
            f"{row['architecture']}, {row['spans']:,} spans a batch{', compiled' if row['compiled'] else ''}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['times_prefill']:.1f}×",
            f"{row['flops_per_token'] / 1e6:.2f}",
        ]
        for row in content["gistnet"]
    ]
    flops = content["prefill_flops_per_token"] / 1e6
    prefill = ["the teacher's prefill", f"{content['prefill_tokens_per_second']:,.0f}", "1×", f"{flops:.2f}"]
    table = markdown([content["teacher"], "tokens/s", "of the prefill", "MFLOP a token"], [prefill, *rows])
    return f"{describe_device(content)}.\n\n{table}"


def sweep_table(kind: str, sources: Sources) -> str:
    """All points of the sweep."""
    content = _load(sources.results / f"sweep-{kind}.json")
    if content is None:
        return _to_measure("sweep.py" if kind == "cpu" else "on_gpu.py --out FOLDER")
    rows = [
        [
            f"{series}: {row['window']:,}, {row['horizon']}, {row['spans']}, {row['branches_per_pass']}",
            f"{1000 * row['seconds_per_span_with_all_spans' if series == 'windows' else 'seconds_per_span']:.3g}",
            f"{1000 * row['branch_seconds']:.3g}",
            f"{row['peak_memory_megabytes']:,.0f}",
        ]
        for series, points in content["series"].items()
        for row in points
    ]
    header = ["series: window, H, spans, branches a pass", "ms a span", "without the document pass", "peak, MB"]
    return f"{content['teacher']}, {describe_device(content)}.\n\n{markdown(header, rows)}"


def plot_list(kind: str, sources: Sources) -> str:
    """The plots of a kind of device that have been drawn."""
    found = sorted(sources.plots.glob(f"*-{kind}.svg"))
    images = (f"![{path.stem.removesuffix(f'-{kind}').replace('-', ' ')}](plots/{path.name})" for path in found)
    return "\n".join(images) or _to_measure("sweep.py`, then `python benchmarks/plots.py")


def processes_table(sources: Sources) -> str:
    """One process with all cores against several, and with a compiled teacher."""
    content = _load(sources.results / "processes-cpu.json")
    if content is None:
        return _to_measure("processes.py")
    alone = content["cases"][0]["spans_per_second"]
    rows = [
        [
            f"{case['processes']} × {case['threads_per_process']} threads{', compiled' if case['compiled'] else ''}",
            f"{case['spans_per_second']:.2f}",
            f"{case['spans_per_second'] / alone:.2f}×",
            f"{case['first_steps_seconds']:.0f}",
            f"{case['last_loss']:.4f}",
        ]
        for case in content["cases"]
    ]
    header = ["processes", "spans/s", "of the first", "seconds of the first steps", f"loss of step {content['steps']}"]
    return f"{describe_device(content)}.\n\n{markdown(header, rows)}"


def plan_tables(sources: Sources) -> str:
    """The plans past these machines."""
    return "\n\n".join(f"#### {title}\n\n{table}" for title, table in plan(None, sources.results, **ASSUMED).items())


_KINDS = {
    "engine": engine_table,
    "parts": parts_table,
    "compression": compression_table,
    "sweep": sweep_table,
    "plots": plot_list,
}
BLOCKS: dict[str, Callable[[Sources], str]] = {
    f"{name}-{kind}": partial(make, kind) for name, make in _KINDS.items() for kind in ("cpu", "cuda")
}
BLOCKS["plan"] = plan_tables
BLOCKS["processes-cpu"] = processes_table


def _of_ablations(make: Callable[[Path, Path], str], sources: Sources) -> str:
    return make(sources.results, sources.plots / "ablations")


def _of_readme(make: Callable[[Path, Path], str], sources: Sources) -> str:
    return make(sources.results, sources.released)


BLOCKS |= {name: partial(_of_readme, make) for name, make in readme_tables.BLOCKS.items()}
BLOCKS |= {name: partial(_of_ablations, make) for name, make in ablation_tables.BLOCKS.items()}
"""What makes the content of a block, by its name."""
