"""What one process of a launch does in tests/training/test_processes.py: the command line, with a fault put into it.

As its very last act it says how many threads of gloo are left to it.

python -m torch.distributed.run … -m tests.training.one_of_many FAULT train --config …
"""

import atexit
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from gistnet import cli, terminal
from gistnet.training import trainer

RANK = int(os.environ["RANK"])
accumulate_gradient = trainer.accumulate_gradient


def failing(error: Exception) -> Any:
    """As `accumulate_gradient`, but in the last process of the third step with an error in the end."""

    def accumulate(*arguments: Any, dropout_seed: tuple[int, int], **options: Any) -> Any:
        sums = accumulate_gradient(*arguments, dropout_seed=dropout_seed, **options)
        if dropout_seed[1] == 2 and int(os.environ["WORLD_SIZE"]) == RANK + 1:
            raise error
        return sums

    return accumulate


def saying_late(say: Any) -> Any:
    """`print` on the standard error, but two seconds late for an error: time for a launcher to notice it."""

    def say_late(message: Any) -> None:
        if isinstance(message, str) and message.startswith("gistnet: "):
            time.sleep(2)
        say(message)

    return say_late


def gloo_threads() -> int:
    """How many there are; on Linux, where threads have a name that can be read, elsewhere 0."""
    count = 0
    for name in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has ended since
            count += "gloo" in name.read_text(encoding="utf-8")
    return count


def tell_of_threads() -> None:
    """Those that were waited for may be listed for a moment longer."""
    until = time.monotonic() + 5
    while (left := gloo_threads()) and time.monotonic() < until:
        time.sleep(0.01)
    print(f"threads of gloo at the end: {left}", file=sys.stderr)


def main(fault: str, *arguments: str) -> None:
    atexit.register(tell_of_threads)  # called after what is registered later
    if fault != "late-0":  # where the main process is the one that is gone, the others would wait for it in vain
        trainer.SECONDS_TO_SAVE = 60.0
    if fault == "memory":
        trainer.accumulate_gradient = failing(torch.OutOfMemoryError("Tried to allocate 2.00 GiB."))
    elif fault.startswith("late"):
        terminal.err.print = saying_late(terminal.err.print)
    sys.argv = ["gistnet", *arguments]
    cli.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
