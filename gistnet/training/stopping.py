"""How training stops before its end: asked to by a signal, or because something went wrong, here or elsewhere.

Either way what was trained is kept, and whoever started the run is told in one sentence where it is.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch

from gistnet.errors import ProcessError, TrainingError
from gistnet.training.checkpoint import checkpoint_folder, latest_checkpoint
from gistnet.training.parallel import losing_processes
from gistnet.training.run import Progress, Run

SECONDS_TO_SAVE = 5.0
"""How long a process that lost another waits for the main process to save, before it names the last checkpoint."""


@dataclass
class StopRequest:
    """Whether a signal asked to stop."""

    requested: bool = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT instead of dying, so that the step under way ends in a checkpoint.

    SIGTERM stays noted where the block ends in a `ProcessError`: the launcher, which misses the same process, sends it
    to those that are left, and it must not cut off the sentence that they end with.
    """
    stop = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        stop.requested = True

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    except ProcessError:
        del before[signal.SIGTERM]
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def keeping_the_last_good_state(run: Run, progress: Progress, save: Callable[[], None]) -> Iterator[None]:
    """Where training fails, save the state before that step, if it is sound, and say where the last good one is.

    Args:
        save: writes a checkpoint of the present state, in the main process.

    Raises:
        TrainingError: what ended the block, with that added.
        ProcessError: the same, where another process is gone or cannot be reached.
    """
    try:
        with losing_processes():
            yield
    except TrainingError as error:
        sound = all(bool(torch.isfinite(tensor).all()) for tensor in run.gistnet.trainable_state().values())
        if sound and progress.step > 0:
            save()
            _await_checkpoint(run, progress.step)
        last = latest_checkpoint(run.folder)
        kept = "there is no checkpoint yet"
        if last is not None:
            kept = f"the last good checkpoint is {last}"
            if isinstance(error, ProcessError):
                kept += "; --resume continues from it on any number of processes"
        raise type(error)(f"{str(error).rstrip('.')}; {kept}.") from error


def _await_checkpoint(run: Run, step: int) -> None:
    """Give the main process the time to save, where it still can: what is gone may be just that one."""
    until = time.monotonic() + SECONDS_TO_SAVE
    while not checkpoint_folder(run.folder, step).is_dir() and time.monotonic() < until:
        time.sleep(0.1)
