"""Several processes that train one GistNet: who does what, and sums over all of them.

Processes are started by `accelerate launch` or `torchrun`; a single process needs neither. GistNet is small, so its
gradient is summed in one message after the backward pass, with each branch's weight already in it: the result does not
depend on how branches are spread over processes.
"""

from collections.abc import Iterable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from gistnet.errors import ConfigError

T = TypeVar("T")


class Processes:
    """This process among those of the run."""

    def __init__(self, device: str = "auto") -> None:
        self._state = PartialState(cpu=device == "cpu")
        self.rank = int(self._state.process_index)
        self.count = int(self._state.num_processes)
        self.device = torch.device(self._state.device if device == "auto" else device)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def share(self, items: range) -> range:
        """This process's slice of the items of a batch.

        Raises:
            ConfigError: the items cannot be shared out evenly.
        """
        if len(items) % self.count:
            raise ConfigError(
                f"A batch of {len(items)} windows cannot be shared among {self.count} processes; "
                "expected windows_per_batch to be a multiple of the number of processes."
            )
        each = len(items) // self.count
        return items[self.rank * each : (self.rank + 1) * each]

    def sum_in_place(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in one message."""
        if self.count == 1:
            return
        parts = list(tensors)
        flat = torch.cat([part.flatten() for part in parts])
        torch.distributed.all_reduce(flat)
        for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(total.view_as(part))

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        if self.count == 1:
            return flag
        total = torch.tensor([float(flag)], device=self.device)
        self.sum_in_place([total])
        return bool(total.item() > 0)

    def from_main(self, value: T) -> T:
        """What the main process holds as `value`, in every process."""
        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Return when every process is here."""
        self._state.wait_for_everyone()
