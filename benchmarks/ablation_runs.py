"""One arm of the ablations as a `gistnet train` in a process of its own: how fast it is, and then all of its steps.

Time is the processor's on a CPU, divided by the threads, since machines are shared, and the clock's on a GPU.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from gistnet.errors import DataError, TrainingError
from gistnet.files import write_text
from gistnet.run_folder import METRICS_FILE
from gistnet.training.tracking import read_metrics

POLL_SECONDS = 0.1
_PROBE = (
    "train.steps=1000000",
    "train.log_every_steps=1",
    "train.checkpoint_every_steps=1000000",
    "train.validation={every_steps: 1000000, documents: 2, spans_per_document: 2, cache_gigabytes: 0}",
)


class Interrupted(Exception):
    """The program was asked to stop; what was trained is in a checkpoint, and the next call goes on from it."""


@dataclass(frozen=True)
class Trainer:
    """Trains by a configuration.

    Attributes:
        config: the default's file.
        common: settings of every run.
        threads: of each process.
        on_gpu: whether time is the clock's.
        stop: once set, processes are asked to stop.
    """

    config: Path
    common: list[str]
    threads: int
    on_gpu: bool
    stop: threading.Event

    def train(
        self, run_folder: Path, settings: Sequence[str], until: Callable[[float], bool] = lambda seconds: False
    ) -> float:
        """Train, or go on where a run was interrupted, to the end or until told to stop; returns the seconds taken.

        Args:
            until: asked again and again with the seconds so far, whether it is enough.

        Raises:
            TrainingError: training failed; has its last words.
            Interrupted: `stop` was set.
        """
        if self.stop.is_set():
            raise Interrupted
        log = run_folder.with_name(f"{run_folder.name}.log")
        log.parent.mkdir(parents=True, exist_ok=True)
        # --resume also begins a run that has no checkpoint yet.
        command = [sys.executable, "-m", "gistnet.cli", "train", "--config", str(self.config), "--resume"]
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        with log.open("a", encoding="utf-8") as output:
            process = subprocess.Popen(
                [*command, *self.common, *settings, f"run_folder={run_folder}"],
                env=environment,
                stdout=output,
                stderr=output,
            )
            seconds = self._watch(process, until)
        if self.stop.is_set():
            raise Interrupted
        if process.returncode not in (0, 130):
            lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
            said = lines[-1] if lines else f"status {process.returncode}"
            raise TrainingError(f"{run_folder.name} failed: {said.removeprefix('gistnet: ')}")
        return seconds

    def _watch(self, process: subprocess.Popen[bytes], until: Callable[[float], bool]) -> float:
        began, seconds, asked = time.monotonic(), 0.0, False
        try:
            while process.poll() is None:
                seconds = time.monotonic() - began if self.on_gpu else self._processor_seconds(process.pid) or seconds
                if not asked and (self.stop.is_set() or until(seconds)):
                    process.terminate()
                    asked = True
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        return seconds

    def _processor_seconds(self, pid: int) -> float:
        """Processor time of a process so far, a thread's share; 0 where it has just ended."""
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            return 0.0
        return (times.user + times.system) / self.threads


def seconds_per_step(trainer: Trainer, folder: Path, settings: Sequence[str], at_least_seconds: float) -> float:
    """How long a step takes, without start-up and validation: a run that is stopped after its first steps tells.

    Args:
        folder: of that run; deleted afterwards.
        at_least_seconds: of steps that are measured, the first not counted; two steps at least.

    Raises:
        TrainingError: training failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    seen: list[tuple[int, float]] = []  # steps done, and seconds at that time

    def enough(seconds: float) -> bool:
        done = steps_done(folder)
        if done > (seen[-1][0] if seen else 0):
            seen.append((done, seconds))
        return len(seen) > 1 and seen[-1][0] - seen[0][0] >= 2 and seen[-1][1] - seen[0][1] >= at_least_seconds

    trainer.train(folder, [*settings, *_PROBE], enough)
    shutil.rmtree(folder, ignore_errors=True)
    (first, began), (last, ended) = seen[0], seen[-1]
    return (ended - began) / (last - first)


def steps_done(run_folder: Path) -> int:
    """Steps in a run's metrics; 0 before there are any."""
    try:
        return max(
            (record["step"] for record in read_metrics(run_folder / METRICS_FILE) if "loss" in record), default=0
        )
    except DataError:
        return 0


def trained(trainer: Trainer, run_folder: Path, settings: Sequence[str]) -> float:
    """Train to the last step; returns the seconds of all attempts, of those before this one too.

    Raises:
        TrainingError, Interrupted: as `Trainer.train`.
    """
    note = run_folder.with_name(f"{run_folder.name}.seconds")
    before = float(note.read_text()) if note.exists() else 0.0
    latest = 0.0

    def follow(seconds: float) -> bool:
        nonlocal latest
        latest = seconds
        return False

    try:
        return before + trainer.train(run_folder, settings, follow)
    finally:
        write_text(note, f"{before + latest:.1f}\n")
