"""The machine: its devices, their free memory, its cores, and a description."""

import ctypes
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from gistnet.errors import ConfigError

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still ask for on its device; on a CPU, its share among the processes of the machine.

    Limits that a container sets on a CPU's memory are not seen.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    # Set by torchrun and accelerate.
    return int(psutil.virtual_memory().available) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def usable_devices() -> str:
    """The devices that PyTorch can use here, as words."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return "auto or cpu" if gpus == 0 else f"auto, cpu, cuda or one of cuda:0 to cuda:{gpus - 1}"


def share_cores() -> None:
    """Let each process that a launcher started on this machine compute with its share of the cores.

    torchrun sets OMP_NUM_THREADS to 1 where it is not set, which would leave most of a large machine idle; any other
    value is taken as meant.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, usable_cores() // processes))


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_precision(device: torch.device, precision: str) -> None:
    """Refuse bfloat16 on a GPU that has none: it would be emulated, slower than float32.

    Raises:
        ConfigError: it has none; says what to set.
    """
    if device.type != "cuda" or precision != "bfloat16":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f"teacher.precision is bfloat16, which {torch.cuda.get_device_name(device)} does not compute in; expected "
            "teacher.precision=float32 there."
        )


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next tensor instead of giving it back to the system.

    Training on a CPU frees and asks again for megabytes thousands of times a second; by default much of that goes back
    to the system each time and costs page faults. Peak memory is the same. Does nothing where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**30)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def describe_machine() -> dict[str, str | int | float]:
    """Processor, memory and the versions that decide speed, and the last bits of figures."""
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gigabytes": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def device_name(machine: Mapping[str, Any]) -> str:
    """Name of the device of a described machine: its GPU, or the cores of its processor."""
    cores = f"{machine['cores']} core{'s' if machine['cores'] > 1 else ''} of {machine['processor']}"
    return str(machine["gpu"]) if machine["gpu"] != "none" else cores


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
        flags = next((line for line in lines if line.startswith("flags")), "")
        matrix = " with AMX" if "amx_bf16" in flags else " with AVX-512 BF16" if "avx512_bf16" in flags else ""
        return model + matrix
    return platform.processor() or platform.machine()
