"""Timing, peak memory and the speed limit of this machine, and where benchmarks keep their results."""

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from gistnet.metrics_log import read_metrics
from gistnet.run_folder import METRICS_FILE

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

Result = TypeVar("Result")
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RELEASE = Path("smollm2-135m-gist32")
"""The GistNet that programs measure unless told another."""
CEILING_SIZES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}


def results_file(name: str, gistnet: Path) -> Path:
    """Where a program keeps its results: `name`.json, or `name`-GISTNET.json of another GistNet than `RELEASE`."""
    return RESULTS / (f"{name}.json" if gistnet == RELEASE else f"{name}-{gistnet.name}.json")


def in_own_process(action: Callable[..., Result], *arguments: Any) -> Result:
    """Call `action` in a new Python process, so that its peak memory, threads and caches are its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(action, *arguments).result()


def matmul_ceiling(device: str) -> float:
    """Rate of square matrix products in bfloat16, in floating-point operations a second, at the best of some sizes.

    On a CPU it is that of all cores at once, each at products of its own: threads that share a product wait for each
    other, and reach half as much.
    """
    sizes = CEILING_SIZES[device]
    if device != "cpu":
        return _best_rate(device, sizes)
    context, cores = get_context("spawn"), torch.get_num_threads()
    barrier = context.Barrier(cores)
    with ProcessPoolExecutor(cores, mp_context=context, initializer=_meet_at, initargs=(barrier,)) as pool:
        return sum(pool.map(_rate_of_a_core, [sizes] * cores))


_barrier: "Barrier | None" = None


def _meet_at(barrier: "Barrier") -> None:
    global _barrier
    _barrier = barrier


def _rate_of_a_core(sizes: Sequence[int]) -> float:
    """Rate of this process, which has one thread, while all others measure theirs."""
    torch.set_num_threads(1)
    assert _barrier is not None
    _barrier.wait()
    return _best_rate("cpu", sizes)


def _best_rate(device: str, sizes: Sequence[int]) -> float:
    """The best of five products of each size, in floating-point operations a second."""
    best = 0.0
    for size in sizes:
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
