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
from gistnet.model.sharded_teacher import layer_bytes_held
from gistnet.session import open_run
from gistnet.training import trainer

RANK = int(os.environ["RANK"])
add_up_gradient = trainer.add_up_gradient


def failing(error: Exception) -> Any:
    """As `add_up_gradient`, but in the last process of the third step with an error in the end."""

    def add_up(run: Any, progress: Any, optimiser: Any) -> Any:
        sums = add_up_gradient(run, progress, optimiser)
        if progress.step == 2 and run.processes.count - 1 == RANK:
            raise error
        return sums

    return add_up


def main(fault: str, *arguments: str) -> None:
    if fault == "loss":
        trainer.add_up_gradient = failing(TrainingError("The loss is not finite (documents: mine)"))
    elif fault == "memory":
        trainer.add_up_gradient = failing(torch.OutOfMemoryError("Tried to allocate 2.00 GiB. Of the rest nothing."))
    elif fault == "device" and RANK == 1:
        arguments = (*arguments, "device=meta")
    elif fault == "held":
        run = open_run(load_config(Path(arguments[2]), arguments[3:]))
        (run.folder / f"held-{RANK}.json").write_text(json.dumps(layer_bytes_held(run.teacher)), encoding="utf-8")
        trainer.fit(run)
        return
    sys.argv = ["gistnet", *arguments]
    cli.main()


if __name__ == "__main__":
    main(*sys.argv[1:])
