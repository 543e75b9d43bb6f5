"""How much of a step runs at once: as many windows and branches as the device's memory holds.

A step gives the same gradient, but for rounding, however it is cut into passes. Fewer passes are faster until one fills
the device, and gradient checkpointing costs a third pass through the teacher's layers; so the fewest passes that fit
are taken, without gradient checkpointing where that leaves the device busy.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from gistnet.errors import ConfigError
from gistnet.training.memory import StepMemory
from gistnet.training.stage import TrainConfig

USABLE = 0.9
"""The share of a device's memory that is planned with; the rest is for libraries and fragments. A guess."""
CPU_BRANCHES = 64
"""Branches of a pass on a CPU, at most: more do not make it faster."""
GPU_TOKENS = 32_768
"""Vectors of a pass on a GPU, at most: more are not expected to make it faster. A guess, not measured."""
ENOUGH_GPU_TOKENS = 1024
"""Vectors of a pass from which a GPU is taken to be busy, so that recomputing layers for larger ones does not pay: some
three times as many as its arithmetic does while it reads a weight from memory. A guess, not measured."""


class PassSizes(NamedTuple):
    """How a process cuts its share of a batch up; memory and speed depend on it, and of the result only rounding."""

    windows: int
    """Windows whose keys and values are held at once."""
    branches: int
    """Branches that run through the teacher at once."""

    def halved(self) -> "PassSizes | None":
        """Half of both, at least one of each; None where there is nothing left to halve."""
        smaller = PassSizes(max(1, self.windows // 2), max(1, self.branches // 2))
        return None if smaller == self else smaller

    def describe(self) -> str:
        """As words."""
        return f"{self.windows} window{'s' * (self.windows > 1)} and {self.branches} branch{'es' * (self.branches > 1)}"


class Fit(NamedTuple):
    """What was found to fit."""

    sizes: PassSizes
    gradient_checkpointing: bool

    @classmethod
    def in_all(cls, fits: Sequence["Fit"]) -> "Fit":
        """What fits wherever one of these does: processes go on alike, whatever memory each has left."""
        sizes = [fit.sizes for fit in fits]
        smallest = PassSizes(min(of_one.windows for of_one in sizes), min(of_one.branches for of_one in sizes))
        return cls(smallest, any(fit.gradient_checkpointing for fit in fits))


@dataclass(frozen=True)
class Batch:
    """What a process does in a batch, and what is asked of how.

    Attributes:
        windows: windows of a process, at most.
        spans_per_window: branches of a window.
        windows_per_pass, branches_per_pass: as in `TrainConfig`; None is left open.
        gradient_checkpointing: as in `TeacherConfig`; None is left open.
    """

    windows: int
    spans_per_window: int
    windows_per_pass: int | None = None
    branches_per_pass: int | None = None
    gradient_checkpointing: bool | None = None

    @classmethod
    def of(cls, train: TrainConfig, processes: int, gradient_checkpointing: bool | None) -> "Batch":
        """From the settings of a stage, for the process with the largest share."""
        return cls(
            windows=-(-train.windows_per_batch // processes),
            spans_per_window=train.spans_per_window,
            windows_per_pass=train.windows_per_pass,
            branches_per_pass=train.branches_per_pass,
            gradient_checkpointing=gradient_checkpointing,
        )

    def passes(self, sizes: PassSizes) -> tuple[int, int]:
        """How many passes of branches, and how many over windows."""
        groups, rest = divmod(self.windows, sizes.windows)
        branches = [sizes.windows * self.spans_per_window] * groups + [rest * self.spans_per_window]
        return sum(-(-count // sizes.branches) for count in branches), groups + (rest > 0)


def find_fit(memory: StepMemory, batch: Batch, *, room_bytes: float, device_type: str) -> Fit | None:
    """The fewest passes whose memory is within `room_bytes`; None where nothing fits.

    Gradient checkpointing is left off where it would make them fewer but they keep the device busy without.

    Args:
        device_type: "cpu" or "cuda".
    """
    asked = batch.gradient_checkpointing
    enough = 1 if device_type == "cpu" else ENOUGH_GPU_TOKENS
    found: Fit | None = None
    for recompute in (False, True) if asked is None else (asked,):
        candidates = _candidates(memory, batch, device_type)
        fitting = [sizes for sizes in candidates if memory.peak(*sizes, recompute=recompute) <= room_bytes]
        if not fitting:
            continue
        sizes = min(fitting, key=lambda sizes: (*batch.passes(sizes), -sizes.branches))
        if found is None or batch.passes(sizes) < batch.passes(found.sizes):
            found = Fit(sizes, recompute)
        if sizes.branches * memory.branch_tokens >= enough:
            break
    return found


def require_fit(
    memory_of: Callable[[int], StepMemory], batch: Batch, *, window_tokens: int, room_bytes: float, device: torch.device
) -> Fit:
    """As `find_fit`, for windows of `window_tokens`.

    Args:
        memory_of: the step's memory for windows of so many tokens.

    Raises:
        ConfigError: nothing fits; says what a step needs at least, and what would fit.
    """

    def fit(batch: Batch, window_tokens: int = window_tokens) -> Fit | None:
        return find_fit(memory_of(window_tokens), batch, room_bytes=room_bytes, device_type=device.type)

    if (found := fit(batch)) is not None:
        return found
    memory = memory_of(window_tokens)
    sizes, recompute = _least(memory, batch, device.type)
    needed = memory.peak(*sizes, recompute=recompute)
    raise ConfigError(
        f"A step of {sizes.windows} window{'s' * (sizes.windows > 1)} of {window_tokens:,} tokens and "
        f"{sizes.branches} branch{'es' * (sizes.branches > 1)} needs {needed / 1e9:.1f} GB on {device}, which has "
        f"{room_bytes / 1e9:.1f} GB for it; {_what_would_fit(fit, batch, window_tokens, memory)}."
    )


def least_bytes(memory: StepMemory, batch: Batch, device_type: str) -> int:
    """The least that a step needs, of all that is left open."""
    sizes, recompute = _least(memory, batch, device_type)
    return memory.peak(*sizes, recompute=recompute)


def _what_would_fit(fit: Callable[..., Fit | None], batch: Batch, window_tokens: int, memory: StepMemory) -> str:
    open_sizes = replace(batch, windows_per_pass=None, branches_per_pass=None)
    if (found := fit(open_sizes)) is not None:
        return (
            f"windows_per_pass={found.sizes.windows} and branches_per_pass={found.sizes.branches} would fit, which are "
            "found where they are left open"
        )
    if fit(replace(open_sizes, gradient_checkpointing=True)) is not None:
        return "it would fit with teacher.gradient_checkpointing=true"
    shorter = window_tokens
    while (shorter := shorter // 2) >= memory.shortest_window:
        if fit(replace(open_sizes, gradient_checkpointing=None), shorter) is not None:
            return f"windows of up to {shorter:,} tokens would fit"
    weights = sum(memory.fixed.values())
    return f"{weights / 1e9:.1f} GB are taken whatever the window, so that only another device or teacher would do"


def _least(memory: StepMemory, batch: Batch, device_type: str) -> tuple[PassSizes, bool]:
    """What needs the least memory of all that may be chosen."""
    asked = batch.gradient_checkpointing
    ways = (False, True) if asked is None else (asked,)
    choices = [(sizes, way) for sizes in _candidates(memory, batch, device_type) for way in ways]
    return min(choices, key=lambda choice: memory.peak(*choice[0], recompute=choice[1]))


def _candidates(memory: StepMemory, batch: Batch, device_type: str) -> Iterator[PassSizes]:
    most = CPU_BRANCHES if device_type == "cpu" else max(1, GPU_TOKENS // memory.branch_tokens)
    for windows in _choices(batch.windows, batch.windows, batch.windows_per_pass):
        for branches in _choices(windows * batch.spans_per_window, most, batch.branches_per_pass):
            yield PassSizes(windows, branches)


def _choices(there_are: int, most: int, asked: int | None) -> list[int]:
    """What is asked for alone; otherwise what there is, up to `most`, and the powers of two below."""
    if asked is not None:
        return [min(there_are, asked)]
    largest = min(there_are, most)
    return [largest, *(1 << exponent for exponent in range(largest.bit_length()) if 1 << exponent < largest)]
