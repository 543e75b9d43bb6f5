"""What a result must say about the machine it was measured on, and what that machine can do at most."""

import resource
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeVar

import torch

from gistnet.machine import describe_machine

__all__ = ["describe_machine", "matmul_ceiling", "now", "peak_megabytes", "reset_peak", "timed"]

Result = TypeVar("Result")
CEILING_SIZES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}


def matmul_ceiling(
    device: str, dtype: torch.dtype = torch.bfloat16, *, sizes: Sequence[int] | None = None, repeats: int = 5
) -> float:
    """The fastest that this machine multiplies square matrices, in floating-point operations a second.

    Args:
        dtype: the format of both matrices and of their product.
        sizes: rows of the matrices that are tried; None is what saturates a device of its kind.
        repeats: products of each size; the best of all counts.
    """
    best = 0.0
    for size in CEILING_SIZES[device] if sizes is None else sizes:
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        for _ in range(repeats + 1):  # the first one warms up, and cannot be the best
            began = now(device)
            torch.mm(left, right)
            best = max(best, 2 * size**3 / (now(device) - began))
    return best


def now(device: str) -> float:
    """The time in seconds, once all that was asked of the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(action: Callable[[], Result], device: str, repeats: int = 1) -> tuple[Result, float]:
    """What the action returned the last of `repeats` times, and the median of the seconds that it took."""
    seconds = []
    for _ in range(repeats):
        began = now(device)
        result = action()
        seconds.append(now(device) - began)
    return result, median(seconds)


def peak_megabytes(device: str) -> float:
    """The most memory that this process has held so far: on the GPU its tensors, on the CPU all of it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak(device: str) -> None:
    """Let the peak of a GPU's memory begin from what is held now; that of a process on the CPU cannot be reset."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
