"""What happens when the device's memory runs out in a step after all: the same step again, in smaller passes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from gistnet.errors import ProcessError, TrainingError
from gistnet.model.sharded_teacher import is_sharded
from gistnet.training.fitting import PassSizes
from gistnet.training.run import Progress, Run


def in_passes_that_fit(
    run: Run, progress: Progress, optimiser: Optimizer, accumulate: Callable[[PassSizes], Tensor]
) -> Tensor:
    """Add up the gradient of this process's share of a step, from zero, in passes of `progress.sizes`.

    Where memory runs out, all of the share is done again in passes of half the size, which stay so. Nothing is lost:
    the weights move only when the whole gradient is there.

    Args:
        accumulate: adds the gradient to the optimiser's parameters and returns the sums of the losses.

    Raises:
        TrainingError: memory runs out with one window and one branch at a time.
        ProcessError: it does in a pass of a sharded teacher, in whose layers the other processes wait for this one.
    """
    if progress.sizes is None:
        progress.sizes, progress.processes = run.stage(progress).fit.sizes, run.processes.count
    sizes = progress.sizes
    while True:
        optimiser.zero_grad(set_to_none=False)
        try:
            sums = accumulate(sizes)
        except torch.OutOfMemoryError:
            pass  # handled below, where the exception is gone, whose frames hold the tensors
        else:
            progress.sizes = sizes
            return sums
        torch.cuda.empty_cache()
        smaller = sizes.halved()
        ran_out = (
            f"Memory of {run.teacher.device} ran out in step {progress.step + 1} with {sizes.describe()} at a time"
        )
        # The other processes wait for this one's part of the layers, in the order of their own passes.
        if is_sharded(run.teacher):
            raise ProcessError(
                f"{ran_out}, and passes of a sharded teacher cannot be done again; expected a smaller "
                "train.windows_per_pass and train.branches_per_pass"
            )
        if smaller is None:
            raise TrainingError(
                f"{ran_out}, expected room for that; shorter windows, a shorter horizon or a smaller "
                "objective.chunk_tokens need less"
            )
        run.say(f"{ran_out}; the step is done again with {smaller.describe()}, and the run goes on so.")
        sizes = smaller
