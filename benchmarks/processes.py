"""Training speed of one process with all cores against several processes that share them, in one run, on a CPU.

    python benchmarks/processes.py             (five minutes on two cores)

Each case trains the demo's GistNet for a few steps of the same batches with the real teacher, through the real command,
started as a user would: alone, or by torchrun with one process per core. Spans per second are those that the run logs
at its last step, without validation and without the start of the processes.
Results: benchmarks/results/processes-cpu.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import describe_machine
from gistnet.training.tracking import read_metrics

RESULT = Path(__file__).parent / "results" / "processes-cpu.json"
ROOT = Path(__file__).parent.parent


def measure(processes: int, threads: int, steps: int) -> dict[str, Any]:
    """Train with `processes` of `threads` each."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"run_folder={folder}/run",
            f"train.steps={steps}",
            "train.log_every_steps=1",
            "train.windows_per_batch=4",
            "train.spans_per_window=14",
            "train.validation.documents=4",
            "device=cpu",
        ]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), "-m", "gistnet.cli", "train"]
        command += ["--config", "configs/demo.yaml", *settings]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        records = [record for record in read_metrics(Path(folder) / "run" / "metrics.jsonl") if "loss" in record]
    return {
        "processes": processes,
        "threads_per_process": threads,
        "spans_per_second": records[-1]["spans_per_second"],
        "last_loss": records[-1]["loss"],
    }


def main() -> None:
    """Measure each way to use the cores, print the ratios, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    steps = parser.parse_args().steps
    cores = len(os.sched_getaffinity(0))
    cases = [measure(1, cores, steps), measure(cores, 1, steps)]
    alone, shared = cases
    for case in cases:
        print(
            f"{case['processes']} processes of {case['threads_per_process']} threads: "
            f"{case['spans_per_second']:.2f} spans/s, loss {case['last_loss']:.6f}"
        )
    ratio = shared["spans_per_second"] / alone["spans_per_second"]
    print(f"speedup {ratio:.2f}")
    content = {"machine": describe_machine(), "steps": steps, "cases": cases, "speedup": ratio}
    RESULT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
