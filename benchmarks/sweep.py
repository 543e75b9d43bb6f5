"""What a span costs as windows, horizons, spans per window and passes grow, and what memory the spans of a window take.

    python benchmarks/sweep.py                            with the embedded teacher (about 12 minutes on two cores)
    python benchmarks/sweep.py --teacher smollm3-3b-shape --device cuda
    python benchmarks/sweep.py --smoke --teacher tiny-shape --out FILE     only shows that it runs

Four series, each with the other three quantities held:

    windows     tokens of a window; a share of its spans is timed, and all of them share its document pass
    horizons    H, the tokens predicted after a span
    spans       how many spans of one window are replaced: the document pass is shared by more and more of them, and
                memory stays flat once they fill a pass (a smaller one here than elsewhere, to show it)
    passes      branches that run through the teacher at once: what they save in time and take in memory

On a CPU each point runs in a process of its own, so that its peak memory is its own; on a GPU, where the peak can be
reset, one process runs all. Results: benchmarks/results/sweep-cpu.json or sweep-cuda.json, which
`benchmarks/plots.py` draws.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.engine_parts import warm_up_branches
from benchmarks.machine import describe_machine, peak_megabytes, reset_peak, timed
from benchmarks.own_process import in_own_process
from benchmarks.workload import (
    EMBEDDED_TEACHER,
    TEACHERS,
    Branches,
    all_starts,
    build_gistnet,
    build_teacher,
    engine,
    engine_on,
    read_text,
    spread,
)
from gistnet.files import write_json
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher

RESULTS = Path(__file__).parent / "results"
SERIES = ("windows", "horizons", "spans", "passes")


@dataclass(frozen=True)
class Point:
    """One setting of the engine.

    Attributes:
        window: its tokens.
        horizon: H, in tokens.
        spans: how many spans of each window are replaced, evenly over it.
        branches_per_pass: how many of them run through the teacher at once.
        windows_at_once: how many windows are read at once.
    """

    window: int
    horizon: int
    spans: int
    branches_per_pass: int
    windows_at_once: int = 1


_FIELDS = {"windows": "window", "horizons": "horizon", "spans": "spans", "passes": "branches_per_pass"}
_MIDDLE = {"smoke": Point(256, 16, 4, 4), "cpu": Point(4096, 32, 64, 64), "cuda": Point(4096, 32, 126, 256, 8)}
_WINDOWS, _HORIZONS, _SPANS = (512, 1024, 2048, 4096, 8192, 16384), (16, 32, 64, 128, 256), (1, 4, 16, 64, 126)
_VALUES: dict[str, dict[str, tuple[int, ...]]] = {
    "smoke": {"windows": (128, 256), "horizons": (8, 16), "spans": (1, 4), "passes": (2, 4)},
    "cpu": {"windows": _WINDOWS[:-1], "horizons": _HORIZONS[:-1], "spans": _SPANS, "passes": (4, 16, 64)},
    "cuda": {"windows": _WINDOWS, "horizons": _HORIZONS, "spans": _SPANS, "passes": (16, 64, 256, 1024)},
}


def points(series: str, scale: str) -> list[Point]:
    """The points of a series; a scale is a kind of device, or "smoke"."""
    middle, values = _MIDDLE[scale], _VALUES[scale][series]
    if series == "spans":  # memory grows until they fill a pass: most points are to lie beyond
        middle = dataclasses.replace(middle, branches_per_pass=middle.branches_per_pass // 4)
    found = [dataclasses.replace(middle, **{_FIELDS[series]: value}) for value in values]
    if series == "windows" and middle.windows_at_once > 1:  # the same number of tokens is read at once
        tokens = middle.window * middle.windows_at_once
        return [dataclasses.replace(point, windows_at_once=tokens // point.window) for point in found]
    return found


def measure_point(teacher: Teacher, gistnet: GistNet, point: Point) -> dict[str, Any]:
    """Time the document pass and the branches of a point, and the most memory that both took."""
    device = teacher.device.type
    starts = all_starts(point.window, point.horizon)
    tokens = read_text(teacher, point.windows_at_once, point.window)
    branches = Branches(tokens, spread(starts, point.spans), point.horizon)
    engine(teacher, gistnet, warm_up_branches(branches, device), point.branches_per_pass)
    reset_peak(device)
    read, read_seconds = timed(lambda: teacher.read_windows(tokens), device)
    _, seconds = timed(lambda: engine_on(teacher, gistnet, read, branches, point.branches_per_pass), device)
    gistnet.zero_grad()
    per_branch, per_window = seconds / len(branches), read_seconds / point.windows_at_once
    return dataclasses.asdict(point) | {
        "spans": len(branches.starts),
        "document_pass_seconds": per_window,
        "branch_seconds": per_branch,
        "seconds_per_span": per_branch + per_window / len(branches.starts),
        "seconds_per_span_with_all_spans": per_branch + per_window / len(starts),
        "peak_memory_megabytes": peak_megabytes(device),
    }


def sweep(teacher_name: str, device: str, scale: str, series: tuple[str, ...] = SERIES) -> Iterator[tuple[str, Any]]:
    """Measure all points: yields the name of the series and the figures of each point.

    A point that does not fit into the memory of a GPU is left out.
    """
    models: tuple[Teacher, GistNet] | None = None
    for name in series:
        for point in points(name, scale):
            if device == "cpu" and scale != "smoke":
                values = dataclasses.astuple(point)
                options = ("--device", device, "--teacher", teacher_name)
                yield name, in_own_process("benchmarks.sweep", *options, "--only", *values)
                continue
            if models is None:
                teacher = build_teacher(teacher_name, "bfloat16", device)
                models = teacher, build_gistnet(teacher)
            try:
                yield name, measure_point(*models, point)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()


def describe(series: str, figures: dict[str, Any]) -> str:
    """A point as a line to print."""
    return (
        f"{series:>8}: window {figures['window']:5} H {figures['horizon']:3} spans {figures['spans']:3} "
        f"per pass {figures['branches_per_pass']:4}: {1000 * figures['seconds_per_span']:9.2f} ms a span "
        f"({1000 * figures['branch_seconds']:.2f} without the document pass), "
        f"peak {figures['peak_memory_megabytes']:6.0f} MB"
    )


def main() -> None:
    """Measure every point, print it, and keep all so far after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", choices=TEACHERS, default=EMBEDDED_TEACHER)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES))
    parser.add_argument("--smoke", action="store_true", help="two tiny points of each series")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs=5, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        teacher = build_teacher(arguments.teacher, "bfloat16", arguments.device)
        print(json.dumps(measure_point(teacher, build_gistnet(teacher), Point(*arguments.only))))
        return
    scale = "smoke" if arguments.smoke else arguments.device
    out = arguments.out or RESULTS / f"sweep-{arguments.device}.json"
    content: dict[str, Any] = {"machine": describe_machine(), "teacher": arguments.teacher, "series": {}}
    for series, figures in sweep(arguments.teacher, arguments.device, scale, tuple(arguments.series)):
        print(describe(series, figures), flush=True)
        content["series"].setdefault(series, []).append(figures)
        write_json(out, content)


if __name__ == "__main__":
    main()
