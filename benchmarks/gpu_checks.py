"""Two questions that only a GPU answers: is it as exact as the CPU, and does reading ahead on a second stream pay?

    python benchmarks/gpu_checks.py equality --out FILE      a minute
    python benchmarks/gpu_checks.py read-ahead --out FILE    a minute

    equality      losses and GistNet's gradient of the engine on the GPU, against the engine on the CPU in float32, and
                  against the spec's loop on the same GPU (transformers' own attention) in float32; in bfloat16 the
                  engine's and the loop's distances from the float32 result, of which neither should be the larger;
                  and each kernel against plain PyTorch by itself
    read-ahead    the engine over groups of windows, each read when its turn comes or, on a stream of its own, while the
                  branches of the group before run (`train.read_ahead`)

On a machine without a GPU both run on the CPU, which shows that they run and nothing else.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from gistnet.training.reading import read_groups

from benchmarks.engine_parts import take_gradient
from benchmarks.fitted import branches_per_pass
from benchmarks.machine import describe_machine, timed
from benchmarks.workload import (
    EMBEDDED_TEACHER,
    TEACHERS,
    Branches,
    all_starts,
    build_gistnet,
    build_teacher,
    cut_windows,
    engine,
    engine_on,
    loop,
    read_text,
    spread,
)
from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import WindowSample
from gistnet.files import write_json
from gistnet.model.prefix_attention import largest_difference_of_kernels
from gistnet.objective.losses import largest_difference_of_kernel

HORIZON = 32


def check_equality(teacher_name: str, device: str, window: int) -> dict[str, Any]:
    """Distances between CPU and GPU, and between engine and loop, on spans from all over two windows.

    KL in nats, the largest difference of a span; gradients as the norm of the difference over the norm.
    """
    spans = 8
    teacher = build_teacher(teacher_name, "float32", "cpu")
    gistnet = build_gistnet(teacher)

    def run(variant: str) -> tuple[Tensor, Tensor]:
        branches = Branches(read_text(teacher, 2, window), spread(all_starts(window, HORIZON), spans), HORIZON)
        if variant == "engine":
            kls = engine(teacher, gistnet, branches, branches_per_pass=2 * spans)
        else:
            kls = list(loop(teacher, gistnet, branches, cached=True))
        return torch.tensor(kls), take_gradient(gistnet)

    results = {"engine, cpu": run("engine")}
    teacher.model.to(device)
    gistnet.to(device)
    results |= {"engine, float32": run("engine"), "loop, float32": run("loop")}
    teacher.model.to(torch.bfloat16)
    results |= {"engine, bfloat16": run("engine"), "loop, bfloat16": run("loop")}
    pairs = (
        ("engine, float32", "engine, cpu"),
        ("engine, float32", "loop, float32"),
        ("engine, bfloat16", "engine, cpu"),
        ("loop, bfloat16", "engine, cpu"),
    )
    differences: dict[str, Any] = {}
    for one, other in pairs:
        (kl, gradient), (expected_kl, expected_gradient) = results[one], results[other]
        differences[f"{one} - {other}"] = {
            "kl_nats": float((kl - expected_kl).abs().max()),
            "gradient_relative": float((gradient - expected_gradient).norm() / expected_gradient.norm()),
        }
    return {
        "window": window,
        "spans": 2 * spans,
        "mean_kl_nats": float(results["engine, cpu"][0].mean()),
        **differences,
    }


def check_kernels(device: str) -> dict[str, float | str]:
    """How far the GPU's kernels are from plain PyTorch, as a share of the largest entry; why, where they do not run."""
    cases: dict[str, Callable[[], float]] = {}
    for dtype in (torch.bfloat16, torch.float32):
        format_name = str(dtype).removeprefix("torch.")
        for width in (64, 128):  # of the heads of SmolLM2-135M and SmolLM3-3B
            attention = partial(largest_difference_of_kernels, dtype, width, torch.device(device))
            cases[f"branch attention, {format_name}, heads of {width}"] = attention
        cases[f"losses, {format_name}"] = partial(largest_difference_of_kernel, dtype, torch.device(device))
    found: dict[str, float | str] = {}
    for name, difference in cases.items():
        try:
            found[name] = difference()
        except Exception as error:  # whatever Triton or the GPU refuses, the other kernels are asked all the same
            found[name] = f"{type(error).__name__}: {error}"
    return found


class TokensInMemory:
    """As much of a prepared dataset as reading its windows takes."""

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens.cpu().numpy()

    def read(self, window: int) -> NDArray[np.int64]:
        """The tokens of one window."""
        return self._tokens[window]


def check_read_ahead(teacher_name: str, device: str, window: int, n_groups: int) -> dict[str, float]:
    """Seconds of the engine over groups of windows, read in turn and ahead, and how much faster the latter is."""
    teacher = build_teacher(teacher_name, "bfloat16", device)
    gistnet = build_gistnet(teacher)
    branches = cut_windows(teacher, window, HORIZON)
    in_group, per_pass = len(branches.tokens), branches_per_pass(teacher, gistnet, branches)
    dataset = cast(PreparedDataset, TokensInMemory(read_text(teacher, n_groups * in_group, window)))
    starts = np.array(branches.starts)
    samples = [WindowSample(0, number, 0, starts, np.ones_like(starts)) for number in range(n_groups * in_group)]

    def run(ahead: bool) -> None:
        for group in read_groups(teacher, dataset, samples, in_group, ahead=ahead):
            of_group = Branches(group.tokens, branches.starts, HORIZON)
            engine_on(teacher, gistnet, group.read, of_group, per_pass)

    run(ahead=False)  # loads and tunes kernels
    _, in_turn = timed(lambda: run(ahead=False), device)
    _, ahead = timed(lambda: run(ahead=True), device)
    return {
        "window": window,
        "windows_per_group": in_group,
        "branches_per_group": len(branches),
        "branches_per_pass": per_pass,
        "groups": n_groups,
        "seconds_in_turn": in_turn,
        "seconds_ahead": ahead,
        "speedup": in_turn / ahead,
    }


def main() -> None:
    """Run a check, print its figures, keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=("equality", "read-ahead"))
    parser.add_argument("--teacher", choices=TEACHERS, default=EMBEDDED_TEACHER)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--window", type=int, help="tokens of a window (1024 for equality, 4096 to read ahead)")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    figures: dict[str, Any]
    if arguments.check == "equality":
        figures = check_equality(arguments.teacher, arguments.device, arguments.window or 1024)
        if arguments.device == "cuda":
            figures["kernels"] = check_kernels(arguments.device)
    else:
        figures = check_read_ahead(arguments.teacher, arguments.device, arguments.window or 4096, n_groups=4)
    for name, figure in figures.items():
        print(f"{arguments.check}: {name}: {figure}", flush=True)
    write_json(arguments.out, {"machine": describe_machine(), "teacher": arguments.teacher, **figures})


if __name__ == "__main__":
    main()
