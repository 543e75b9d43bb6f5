"""Training speed of one process with all cores, of several that share them, and of a compiled teacher, on a CPU.

    python benchmarks/processes.py             (ten minutes on two cores)

Each case trains the demo's GistNet for a few steps of the same batches with the real teacher, through the real command,
started as a user would: alone, or by torchrun with one process per core, and that with `teacher.compile`. Spans per
second are those of the later steps, without validation, the start of the processes, and compilation, whose time comes
with the first.
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

NOT_TIMED = 4
"""First steps, in which layers are compiled, and once more as shapes change."""
RESULT = Path(__file__).parent / "results" / "processes-cpu.json"
ROOT = Path(__file__).parent.parent


def measure(processes: int, threads: int, steps: int, *, compiled: bool) -> dict[str, Any]:
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
            f"teacher.compile={str(compiled).lower()}",
        ]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), "-m", "gistnet.cli", "train"]
        command += ["--config", "configs/demo.yaml", *settings]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled"}
        subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        records = [record for record in read_metrics(Path(folder) / "run" / "metrics.jsonl") if "loss" in record]
    spans = [record["spans_seen"] for record in records]
    seconds = [count / record["spans_per_second"] for count, record in zip(spans, records, strict=True)]  # so far
    return {
        "processes": processes,
        "threads_per_process": threads,
        "compiled": compiled,
        "spans_per_second": (spans[-1] - spans[NOT_TIMED - 1]) / (seconds[-1] - seconds[NOT_TIMED - 1]),
        "first_steps_seconds": seconds[NOT_TIMED - 1],
        "last_loss": records[-1]["loss"],
    }


def main() -> None:
    """Measure each way to use the cores, print the ratios, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args().steps
    if steps <= NOT_TIMED:
        parser.error(f"got {steps} steps, expected more than the {NOT_TIMED} that are not timed")
    cores = len(os.sched_getaffinity(0))
    cases = []
    for processes, threads, compiled in ((1, cores, False), (cores, 1, False), (1, cores, True), (cores, 1, True)):
        case = measure(processes, threads, steps, compiled=compiled)
        cases.append(case)
        print(
            f"{processes} processes of {threads} threads{', compiled' if compiled else ''}: "
            f"{case['spans_per_second']:.2f} spans/s, {case['spans_per_second'] / cases[0]['spans_per_second']:.2f} "
            f"times the first, loss {case['last_loss']:.6f}",
            flush=True,
        )
    content = {"machine": describe_machine(), "steps": steps, "cases": cases}
    RESULT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
