"""The SLURM example, with stand-ins for the commands of SLURM: what it launches, and that it is queued again."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "slurm" / "train.sbatch"
STAND_INS = {
    "scontrol": 'if [ "$1" = show ]; then printf "node7\\nnode8\\n"; else echo "$@" >> "$LOG"; fi',
    # Starts the launcher in its own place, as signals to srun reach what it runs.
    "srun": 'while [ "$1" != torchrun ]; do shift; done; exec "$@"',
    "torchrun": 'echo "torchrun $* threads $OMP_NUM_THREADS" >> "$LOG"\n'
    'trap "echo saved >> $LOG; exit 1" TERM\n'
    'for _ in $(seq "$STEPS"); do sleep 0.05; done; exit "$STATUS"',
}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    return tmp_path / "log"


def batch(log: Path, *, steps: int, status: int = 0) -> subprocess.Popen[bytes]:
    environment = {
        "PATH": f"{log.parent}:{os.environ['PATH']}",
        "LOG": str(log),
        "STEPS": str(steps),
        "STATUS": str(status),
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "41",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "32",
    }
    return subprocess.Popen(["bash", str(SCRIPT), "mine.yaml", "seed=3"], env=environment)


@pytest.mark.parametrize("status", [0, 1])
def test_one_launcher_a_node_meets_the_others_at_the_first_and_its_status_is_the_jobs(log, status):
    assert batch(log, steps=1, status=status).wait(timeout=20) == status
    (launched,) = log.read_text(encoding="utf-8").splitlines()
    assert "--nnodes 2 --nproc-per-node 8 --rdzv-id 41" in launched
    assert "--rdzv-endpoint node7:29500" in launched
    assert launched.endswith("-m gistnet.cli train --config mine.yaml --resume seed=3 threads 4")


def test_a_job_that_is_told_to_stop_lets_training_save_and_is_queued_again(log):
    job = batch(log, steps=400)
    while not log.exists():
        time.sleep(0.05)
    time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 1
    assert log.read_text(encoding="utf-8").splitlines()[1:] == ["saved", "requeue 41"]
