"""What a result must say about the machine it was measured on, and what that machine can do at most."""

import os
import platform
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import psutil
import torch
import transformers

Result = TypeVar("Result")
CEILING_SIZES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}


def describe_machine() -> dict[str, str | int | float]:
    """Processor, memory and the versions that decide speed."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gigabytes": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


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


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
        flags = next((line for line in lines if line.startswith("flags")), "")
        matrix = " with AMX" if "amx_bf16" in flags else " with AVX-512 BF16" if "avx512_bf16" in flags else ""
        return model + matrix
    return platform.processor() or platform.machine()
