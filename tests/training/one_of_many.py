"""What one process of a launch does in tests/training/test_processes.py: the command line, with a fault put into it.

python -m torch.distributed.run … -m tests.training.one_of_many FAULT train --config …
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from gistnet import cli
from gistnet.config import load_config
from gistnet.errors import TrainingError
from gistnet.session import open_run
from gistnet.training import trainer
from gistnet.training.memory import held_by_teacher

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


def main(fault: str, *arguments: str) -> None:
    if fault == "loss":
        trainer.accumulate_gradient = failing(TrainingError("The loss is not finite (documents: mine)"))
    elif fault == "memory":
        trainer.accumulate_gradient = failing(torch.OutOfMemoryError("Tried to allocate 2.00 GiB."))
    elif fault == "device" and RANK == 1:
        arguments = (*arguments, "device=meta")
    elif fault == "held":
        run = open_run(load_config(Path(arguments[2]), arguments[3:]))
        (run.folder / f"held-{RANK}.json").write_text(json.dumps(held_by_teacher(run.teacher)), encoding="utf-8")
        trainer.fit(run)
        return
    sys.argv = ["gistnet", *arguments]
    cli.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
