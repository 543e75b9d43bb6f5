"""Several processes that train one GistNet: who does what, sums over all of them, and failing together.

Processes are started by `torchrun` or `accelerate launch`; a single process needs neither. GistNet is small, so its
gradient is summed in one message after the backward pass, with each branch's weight already in it: the result does not
depend on how branches are spread over processes.

Beside the group that sums tensors there is one for whatever is agreed upon, over gloo and the CPUs on any device. Every
process passes through it before tensors are summed: one that failed tells the others there, and where one is gone, gloo
notices at once that the connection is closed, which NCCL would not.
"""

import atexit
import gc
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed

from gistnet.data.sampling import share_of
from gistnet.errors import ConfigError, GistNetError, ProcessError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""Longest wait of a process for the others, before it takes them for lost."""
_PATIENCE = timedelta(days=30)
"""Longest wait for what the main process does alone."""


class Processes:
    """This process among those of the run.

    Args:
        device: a torch device, or auto: CUDA where there is one, otherwise the CPU.

    Raises:
        ConfigError: the processes are on different kinds of devices, or two of them on one GPU.
        RuntimeError, AssertionError: PyTorch cannot use the device.
    """

    def __init__(self, device: str = "auto") -> None:
        on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        if on_gpu and ":" not in device:
            require_room_on_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count())
        with losing_processes():
            # Not told that there is no GPU, accelerate would make each process the only one of a run of its own.
            self._state = PartialState(cpu=not on_gpu, **({"timeout": TIMEOUT} if _is_launched() else {}))
        self.rank = int(self._state.process_index)
        self.count = int(self._state.num_processes)
        found = torch.device(self._state.device)
        # Where there is no GPU accelerate takes the CPU, which must not pass for one that was asked for.
        found = found if device in ("auto", found.type) else torch.device(device)
        self.device = torch.device("cpu") if found.type == "cpu" else found  # accelerate numbers CPUs, nobody else does
        self._control: distributed.ProcessGroup | None = None
        if self.count > 1:
            atexit.register(self._leave)
            with losing_processes():
                self._control = _gloo_group(TIMEOUT)
            require_one_kind(self.gather(ProcessDevice.of(self.device)))

    @property
    def is_main(self) -> bool:
        """True if this is the process that writes files and messages."""
        return self.rank == 0

    def share(self, items: range) -> range:
        """This process's slice of the items of a batch; the first processes have one more where they are uneven."""
        return share_of(items, self.rank, self.count)

    def require_work(self, windows: int) -> None:
        """Refuse a batch of which a process would have nothing.

        Raises:
            ConfigError: there are fewer windows than processes.
        """
        if windows < self.count:
            raise ConfigError(
                f"A batch of {windows} windows leaves some of the {self.count} processes without data; expected "
                f"windows_per_batch to be {self.count} or more, or at most {windows} processes."
            )

    def sum_in_place(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in one message.

        Raises:
            ProcessError: another process is gone or cannot be reached; so for all that follows here.
        """
        if self.count == 1:
            return
        parts = list(tensors)
        flat = torch.cat([part.flatten() for part in parts])
        with losing_processes():
            distributed.all_reduce(flat)
        for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(total.view_as(part))

    def any(self, flag: bool) -> bool:
        """True if `flag` is set in any process."""
        return any(self.gather(flag))

    def gather(self, value: T) -> list[T]:
        """Values of all processes, by rank, in every process."""
        return _gathered(value, self.count, self._control)

    def from_main(self, value: T) -> T:
        """Value of the main process, in every process."""
        if self.count == 1:
            return value
        held = [value]
        with losing_processes():
            distributed.broadcast_object_list(held, src=0, group=self._control)
        return held[0]

    def wait(self) -> None:
        """Return when every process is here."""
        self.gather(None)

    def main_first(self, make: Callable[[], T]) -> T:
        """`make()`, in the main process first; the others wait for it however long it takes, and then make theirs.

        Raises:
            GistNetError: what `make` raised in the main process, in all of them.
        """
        if self.count == 1:
            return make()
        with losing_processes():
            patient = _gloo_group(_PATIENCE)
        made: list[T] = []
        try:
            with _failing_together(self.count, patient):
                if self.is_main:
                    made.append(make())
        finally:
            distributed.destroy_process_group(patient)
        return made[0] if made else make()

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Raise in all processes the `GistNetError` in which the block ends in some of them.

        All processes must reach the end of the block: nothing belongs in it that only some of them do, nor for an error
        that leaves the others waiting inside it.
        """
        with _failing_together(self.count, self._control):
            yield

    def _leave(self) -> None:
        """End the groups over gloo, and with them their threads, as long as the interpreter runs.

        A thread of gloo holds the tensors of the last message until it gets round to letting go of them, which on a
        busy machine may be after the main thread went on. Where by then the interpreter has begun to end, it takes the
        whole process down with SIGABRT, after all was done well (PyTorch's pull request 179291 and issue 190489).

        This asks nothing of the other processes, which may be gone. A group over NCCL would, so it is left alone.
        """
        control, self._control = self._control, None
        if distributed.is_initialized():
            if control is not None:
                distributed.destroy_process_group(control)
            if distributed.get_backend() == distributed.Backend.GLOO:
                distributed.destroy_process_group()  # and all others
        # The threads end with the last reference to their group.
        del control
        gc.collect()


@contextmanager
def losing_processes() -> Iterator[None]:
    """Turn what the communication library reports of a broken connection into a `ProcessError`."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors, which begin with the line of its source code.
        if not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise
        reason = str(error).partition("] ")[2].partition(". ")[0].splitlines() or [type(error).__name__]
        raise ProcessError(f"Another process of this run is gone or cannot be reached ({reason[0]}).") from error


@contextmanager
def _failing_together(count: int, group: "distributed.ProcessGroup | None") -> Iterator[None]:
    failure: GistNetError | None = None
    try:
        yield
    except ProcessError:
        raise  # nothing can be agreed upon any more
    except GistNetError as error:
        if count == 1:
            raise
        failure = error
    failures = [of_one for of_one in _gathered(failure, count, group) if of_one is not None]
    if failures:
        raise failures[0] from failure


def _gathered(value: T, count: int, group: "distributed.ProcessGroup | None") -> list[T]:
    if count == 1:
        return [value]
    values: list[T] = [value] * count
    with losing_processes():
        distributed.all_gather_object(values, value, group=group)
    return values


def _gloo_group(timeout: timedelta) -> distributed.ProcessGroup:
    return distributed.new_group(backend="gloo", timeout=timeout)


def _is_launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


class ProcessDevice(NamedTuple):
    """Device on which one process computes."""

    kind: str
    """Type of the device, as torch calls it."""
    name: str
    """For messages: the device and its machine."""
    gpu: str | None
    """Unique id of the GPU, over all machines; None on a CPU."""

    @classmethod
    def of(cls, device: torch.device) -> "ProcessDevice":
        """The device of this machine, as the other processes must know it."""
        name, gpu = f"{device} of {platform.node()}", None
        if device.type == "cuda":
            # Not the index: processes that see one GPU each all call theirs the first.
            gpu = str(torch.cuda.get_device_properties(device).uuid)
        return cls(device.type, name, gpu)


def require_one_kind(devices: Sequence[ProcessDevice]) -> None:
    """Refuse devices, by rank, that one run cannot have.

    Raises:
        ConfigError: some are of another kind than others, or two processes are on one GPU.
    """
    first = devices[0]
    for rank, device in enumerate(devices):
        if device.kind != first.kind:
            raise ConfigError(
                f"Processes of one run are on different devices: process 0 is on {first.name}, process {rank} on "
                f"{device.name}; expected the same kind for all, as the setting device names it."
            )
        sharing = [other for other in range(rank) if device.gpu is not None and devices[other].gpu == device.gpu]
        if sharing:
            raise ConfigError(
                f"Processes {sharing[0]} and {rank} are on the same GPU, {device.name}; expected one process for each "
                "GPU, and the setting device to be 'auto' or 'cuda'."
            )


def require_room_on_gpus(processes: int, gpus: int) -> None:
    """Refuse more processes on this machine than it has GPUs.

    Raises:
        ConfigError: there are more; where there is no GPU at all, that is another error's to tell.
    """
    if processes > gpus > 0:
        raise ConfigError(
            f"{processes} processes were started on a machine with {gpus} GPU{'s' if gpus > 1 else ''}; expected at "
            "most one for each GPU (--nproc-per-node of torchrun, --num_processes of accelerate launch)."
        )
