"""Spans per second of the packed engine against the spec's training loop, in one run, and its share of the machine.

    python benchmarks/engine.py --quick                       window 4096, H = 32 (under four minutes on two cores)
    python benchmarks/engine.py                               window 4096, H = 32, 64 and 128 (15 minutes)
    python benchmarks/engine.py --windows 16384 --spans 1     beyond the teacher's trained positions (an hour)
    python benchmarks/engine.py --teacher smollm3-3b-shape    random weights; on a CPU a window of 512 (minutes)

Three ways to the same losses and gradients, GistNet's own cost included in each:

    loop      per span: original forward, replaced forward over the whole window, backward (the spec's loop, corrected)
    cached    per span: replaced forward and backward; the original forward once per window
    engine    one pass over the window, then all of its spans as packed branches

None of them computes logits anywhere but at the horizon, and all use the same fused loss. Each runs in a process of its
own, so that its peak memory is its own (on a GPU, where the peak can be reset, one process runs all). The loops are
timed on a few spans, evenly over the window, since all of theirs cost the same. Before anything is timed, losses and
GistNet's gradient are compared in float32 on the same spans of a short window. `breakdown` times the engine's parts
apart; `ceiling` is what the machine reaches with plain large matrix products in bfloat16, and model FLOP utilisation
the engine's share of it (`benchmarks/flops.py` says what is counted).

A long run can be cut into parts, which come together in one file (`--restart` begins it anew, and so does `--quick`):

    python benchmarks/engine.py --windows 16384 --horizons 32 --parts engine breakdown
    python benchmarks/engine.py --windows 16384 --horizons 32 --parts loop --spans 1

Results: benchmarks/results/engine-cpu.json or engine-cuda.json.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.engine_parts import breakdown, equality, measure
from benchmarks.engine_results import EngineResults
from benchmarks.machine import matmul_ceiling
from benchmarks.own_process import in_own_process
from benchmarks.workload import (
    EMBEDDED_TEACHER,
    SMOLLM3_SHAPE,
    TEACHERS,
    Models,
    cut_windows,
)

RESULTS = Path(__file__).parent / "results"
PARTS = ("ceiling", "equality", "engine", "cached", "loop", "breakdown")
LOOP_SPANS = {"cpu": 3, "cuda": 8}


def run_part(part: str, window: int, horizon: int, arguments: argparse.Namespace, models: Models) -> Any:
    """Measure one part in this process."""
    device = arguments.device
    if part == "ceiling":
        return matmul_ceiling(device)
    teacher, gistnet = models.get(arguments.teacher, "float32" if part == "equality" else "bfloat16", device)
    if part == "equality":
        # A window of 1024 of the large teacher, in float32, would be too much for a CPU.
        return equality(teacher, gistnet, 256 if arguments.teacher == SMOLLM3_SHAPE else 1024)
    branches = cut_windows(teacher, window, horizon, windows=arguments.windows_at_once)
    if part == "breakdown":
        return breakdown(branches, teacher, gistnet)
    return measure(part, branches, teacher, gistnet, spans=arguments.spans or LOOP_SPANS[device])


def part_runner(arguments: argparse.Namespace) -> Callable[[str, int, int], Any]:
    """What measures a part, given a window and H: a process of its own, or this one where its peaks can be reset.

    The result is None where the memory of a GPU does not suffice.
    """
    if not arguments.in_process:
        options: list[object] = ["--device", arguments.device, "--teacher", arguments.teacher]
        options += ["--spans", arguments.spans] if arguments.spans else []
        options += ["--windows-at-once", arguments.windows_at_once] if arguments.windows_at_once else []
        return partial(in_own_process, "benchmarks.engine", *options, "--only")
    models = Models()

    def run(part: str, window: int, horizon: int) -> Any:
        try:
            return run_part(part, window, horizon, arguments, models)
        except torch.OutOfMemoryError:
            models.clear()
            return None

    return run


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="window 4096, H 32, one span of the loops, no breakdown")
    parser.add_argument("--teacher", choices=TEACHERS, default=EMBEDDED_TEACHER)
    parser.add_argument("--windows", type=int, nargs="+", metavar="TOKENS")
    parser.add_argument("--horizons", type=int, nargs="+", metavar="H")
    parser.add_argument("--parts", nargs="+", choices=PARTS)
    parser.add_argument("--spans", type=int, help="on how many the loops are timed (3 on a CPU, 8 on a GPU)")
    parser.add_argument("--windows-at-once", type=int, help="windows the engine reads at once (as many as 32k tokens)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="the file that results are added to")
    parser.add_argument("--restart", action="store_true", help="forget what that file holds")
    parser.add_argument("--in-process", action="store_true", help="measure all parts in this process, as on a GPU")
    parser.add_argument("--only", nargs=3, metavar=("PART", "WINDOW", "H"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.in_process |= arguments.device == "cuda"
    small = arguments.teacher == SMOLLM3_SHAPE and arguments.device == "cpu"
    if arguments.quick:
        arguments.spans = arguments.spans or 1
        arguments.parts = arguments.parts or [part for part in PARTS if part != "breakdown"]
    arguments.parts = arguments.parts or list(PARTS)
    arguments.windows = arguments.windows or [512 if small else 4096]
    arguments.horizons = arguments.horizons or ([32] if arguments.quick or small else [32, 64, 128])
    name = f"engine-{'quick-' if arguments.quick else ''}{arguments.device}.json"
    arguments.out = arguments.out or RESULTS / name
    return arguments


def main() -> None:
    """Measure each part in a process of its own; print and keep what is known after each."""
    arguments = parse()
    if arguments.only:
        part, window, horizon = arguments.only
        print(json.dumps(run_part(part, int(window), int(horizon), arguments, Models())))
        return
    run = part_runner(arguments)
    results = EngineResults.read(arguments.out, arguments.teacher, restart=arguments.restart or arguments.quick)
    for part in ("ceiling", "equality"):
        if part in arguments.parts and (measured := run(part, 0, 0)) is not None:
            print(results.add_general(part, measured), flush=True)
    parts = [part for part in ("engine", "breakdown", "cached", "loop") if part in arguments.parts]
    for window, horizon in itertools.product(arguments.windows, arguments.horizons):
        for part in parts:
            measured = run(part, window, horizon)
            known = measured is not None
            print(results.add(window, horizon, part, measured) if known else f"{part}: does not fit", flush=True)
        print(results.describe(window, horizon), flush=True)


if __name__ == "__main__":
    main()
