"""Runs of several real processes on the CPU, over gloo, by the command line: as one process, and when one dies."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from gistnet.config import load_config
from gistnet.metrics_log import read_metrics
from gistnet.session import train
from gistnet.training.checkpoint import latest_checkpoint
from tests.training.runs import MIXED, assert_same, newest_weights

PATIENCE = 500.0
"""Seconds until a launch counts as hanging: more than any takes on a machine with twenty other things to do, and less
than the half hour after which a process takes another for lost."""

pytestmark = pytest.mark.timeout(4 * PATIENCE)

# The launcher kills what has not ended by itself so many seconds after the first process did, 30 by default, which on a
# busy machine is before it has said what happened.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(2 * PATIENCE))}
UNEVEN = ("train.windows_per_batch=5", "train.validation.documents=5", MIXED)
"""Windows with segments of several lengths, and held-out ones, that two or three processes share unevenly."""

# The sum of a gradient is rounded otherwise for every way to share it out, by some 1e-7 of it; six steps of Adam, which
# divides each entry by its own size, bring out more of that in small entries.
ROUNDING = {"rtol": 1e-3, "atol": 1e-5}

METRICS = ("loss", "kl", "delta_nll", "gradient_norm", "gist_norm", "spans_seen", "learning_rate")

IN_ORDER = "threads of gloo at the end: 0"
"""Said by a process of tests.training.one_of_many that nothing can abort any more, now that all else is done."""


def torchrun(processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def launched(processes: int, *arguments: object, module: str = "gistnet.cli") -> list[str]:
    return [*torchrun(processes), "-m", module, *map(str, arguments)]


def run_processes(processes: int, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return run_launch(launched(processes, *arguments, **options))


def run_launch(command: list[str]) -> subprocess.CompletedProcess[str]:
    with started(command) as launch:
        _, told = launch.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(launch.args, launch.returncode, stderr=told)


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A launch that leaves nothing behind: processes that wait for each other would, and hold its pipes open."""
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as launch:
        try:
            yield launch
        finally:
            if launch.poll() is None:
                for process in (*psutil.Process(launch.pid).children(recursive=True), launch):
                    process.kill()


def assert_as_one(run_folder: Path, alone: Path) -> None:
    """Weights and every figure are those of one process, to rounding; those before the first step, to the bit."""
    assert_same(newest_weights(alone), newest_weights(run_folder), **ROUNDING)
    of_many, of_one = (read_metrics(folder / "metrics.jsonl") for folder in (run_folder, alone))
    assert [r["step"] for r in of_many] == [r["step"] for r in of_one]
    validations = [[r["validation"] for r in records if "validation" in r] for records in (of_many, of_one)]
    assert validations[0][0] == validations[1][0]
    assert validations[0] == [pytest.approx(figures, rel=1e-3, abs=1e-5) for figures in validations[1]]
    for record, expected in zip(of_many, of_one, strict=True):
        for name in METRICS:
            assert record.get(name, 0) == pytest.approx(expected.get(name, 0), rel=1e-3, abs=1e-5), name


def killed_after(step: int, run_folder: Path) -> None:
    """Put a run folder back to what it was when `step` had just been saved."""
    for folder in (run_folder / "checkpoints").glob("step-*"):
        if int(folder.name[5:]) > step:
            shutil.rmtree(folder)


def test_two_processes_train_the_weights_of_one_and_any_other_number_continues(config_file, tmp_path):
    """Two processes from the start, three from step 4, and one from there: the same batches in uneven shares."""
    run_folder, alone = tmp_path / "run", tmp_path / "alone"
    train(load_config(config_file, (f"run_folder={alone}", *UNEVEN)))
    first = run_processes(2, "train", "--config", config_file, *UNEVEN)
    assert first.returncode == 0, first.stderr
    assert_as_one(run_folder, alone)
    checkpoints = sorted(path.name for path in (run_folder / "checkpoints").iterdir())
    assert checkpoints == sorted(path.name for path in (alone / "checkpoints").iterdir())
    killed_after(4, run_folder)
    # On its own, device=auto must find the processes, too.
    again = run_processes(3, "train", "--config", config_file, "--resume", *UNEVEN, "device=auto")
    assert again.returncode == 0, again.stderr
    assert_as_one(run_folder, alone)
    killed_after(4, run_folder)
    train(load_config(config_file, UNEVEN), start="resume")
    assert_as_one(run_folder, alone)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_stops_the_other_with_a_sentence_and_one_continues(config_file, tmp_path, killed):
    """`kill -9`: nothing is lost but, where it hits the process that saves, what came after the last checkpoint.

    The other says so even where the launcher asks it to end when its training has ended, but it has not said it.
    """
    metrics = tmp_path / "run" / "metrics.jsonl"
    endless = ("train.steps=100000", "train.checkpoint_every_steps=5", "train.validation.every_steps=100000")
    faults = "tests.training.one_of_many"
    command = launched(2, f"late-{killed}", "train", "--config", config_file, *UNEVEN, *endless, module=faults)
    with started(command) as launch:
        until = time.monotonic() + PATIENCE
        while not (metrics.is_file() and len(metrics.read_text(encoding="utf-8").splitlines()) > 7):
            assert launch.poll() is None and time.monotonic() < until
            time.sleep(0.1)
        process_of = {p.environ().get("RANK"): p for p in psutil.Process(launch.pid).children()}
        launch.send_signal(signal.SIGSTOP)
        process_of[str(killed)].send_signal(signal.SIGKILL)
        time.sleep(1)
        launch.send_signal(signal.SIGCONT)
        _, told = launch.communicate(timeout=PATIENCE)
    assert launch.returncode != 0
    sentences = [line for line in told.splitlines() if line.startswith("gistnet: ")]
    last = latest_checkpoint(tmp_path / "run")
    assert last is not None
    assert len(sentences) == 1, told
    assert "gone or cannot be reached (" in sentences[0]
    assert sentences[0].endswith(
        f"; the last good checkpoint is {last}; --resume continues from it on any number of processes."
    )
    step = int(last.name[5:])
    logged = read_metrics(metrics)[-1]["step"]
    assert 0 <= logged - step <= (5 if killed == 0 else 0)
    # One process continues; what it logged before, and nothing else, is there.
    train(load_config(config_file, (*UNEVEN, f"train.steps={step + 2}")), start="resume")
    steps = [r["step"] for r in read_metrics(metrics) if "loss" in r]
    assert steps == list(range(1, step + 3))


def test_what_goes_wrong_in_one_process_stops_all_and_the_state_before_it_is_kept(config_file, tmp_path):
    command = ("train", "--config", config_file, "train.checkpoint_every_steps=6", "train.validation.every_steps=6")
    ended = run_processes(2, "memory", *command, module="tests.training.one_of_many")
    assert ended.returncode != 0
    # Of both processes, unless the launcher has ended one of them when the other had said it.
    (sentence,) = {line for line in ended.stderr.splitlines() if line.startswith("gistnet: ")}
    assert "Memory ran out with a micro-batch of 1 window and 1 vector" in sentence
    assert sentence.endswith(f"; the last good checkpoint is {tmp_path / 'run' / 'checkpoints' / 'step-00000002'}.")
    assert IN_ORDER in ended.stderr  # of one, at least: the launcher may end the other before it comes to that
    last = latest_checkpoint(tmp_path / "run")
    assert last is not None
    assert last.name == "step-00000002"


def test_processes_on_different_kinds_of_devices_are_refused(tmp_path):
    """Without the command line, whose libraries take the longest to load."""
    script = tmp_path / "meet.py"
    make = "Processes(['cpu', 'meta'][int(os.environ['RANK'])])"
    script.write_text(f"import os\nfrom gistnet.training.parallel import Processes\n{make}\n")
    ended = run_launch([*torchrun(2), str(script)])
    assert ended.returncode != 0
    assert "process 0 is on cpu of " in ended.stderr
    assert "process 1 on meta of " in ended.stderr
