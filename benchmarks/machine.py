"""Timing, peak memory and the speed limit of this machine, and where benchmarks keep their results."""

import resource
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from gistnet.metrics_log import read_metrics
from gistnet.run_folder import METRICS_FILE

Result = TypeVar("Result")
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CEILING_SIZES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}


def in_own_process(action: Callable[..., Result], *arguments: Any) -> Result:
    """Call `action` in a new Python process, so that its peak memory, threads and caches are its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(action, *arguments).result()


def matmul_ceiling(device: str) -> float:
    """Highest rate of square matrix products in bfloat16, in floating-point operations a second: the best of five."""
    best = 0.0
    for size in CEILING_SIZES[device]:
        left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
        for _ in range(6):  # the first one warms up, and cannot be the best
            began = now(device)
            torch.mm(left, right)
            best = max(best, 2 * size**3 / (now(device) - began))
    return best


def now(device: str) -> float:
    """Time in seconds, after the device has done all that it was asked for."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(action: Callable[[], Result], device: str, repeats: int = 1) -> tuple[Result, float]:
    """Result of the last of `repeats` calls, and the median of their seconds."""
    seconds = []
    for _ in range(repeats):
        began = now(device)
        result = action()
        seconds.append(now(device) - began)
    return result, median(seconds)


def peak_megabytes(device: str) -> float:
    """Peak memory of this process: of its tensors on a GPU, of all of it on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak(device: str) -> None:
    """Restart the peak memory of a GPU from what is held now; that of a process on a CPU cannot be reset."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def seconds_of_steps(run_folder: Path) -> list[tuple[float, int, float]]:
    """Loss, spans seen and seconds since the start, after each logged step of a run that was not interrupted."""
    steps = [record for record in read_metrics(run_folder / METRICS_FILE) if "loss" in record]
    return [(step["loss"], step["spans_seen"], step["spans_seen"] / step["spans_per_second"]) for step in steps]


def in_short(figures: Any) -> str:
    """Figures as a line to print, with four digits each."""
    if isinstance(figures, Mapping):
        return ", ".join(f"{name} {in_short(value)}" for name, value in figures.items())
    return f"{figures:.4g}" if isinstance(figures, float) else str(figures)
