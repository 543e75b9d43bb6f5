"""What a measurement must say about the machine that it was made on."""

import platform
from pathlib import Path

import psutil
import torch
import transformers

from gistnet.devices import usable_cores


def describe_machine() -> dict[str, str | int | float]:
    """Processor, memory and the versions that decide speed, and the last bits of figures."""
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gigabytes": round(psutil.virtual_memory().total / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
        flags = next((line for line in lines if line.startswith("flags")), "")
        matrix = " with AMX" if "amx_bf16" in flags else " with AVX-512 BF16" if "avx512_bf16" in flags else ""
        return model + matrix
    return platform.processor() or platform.machine()
