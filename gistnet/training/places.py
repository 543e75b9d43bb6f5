"""Where the processes of a run are: all on one kind of device, and no two of them on the same GPU."""

import platform
from collections.abc import Sequence
from typing import NamedTuple

import torch

from gistnet.errors import ConfigError


class Place(NamedTuple):
    """Where one process computes."""

    kind: str
    """Of the device, as torch calls it."""
    name: str
    """For messages: the device and its machine."""
    gpu: str | None
    """What no other GPU has, on any machine; None on a CPU."""


def place_of(device: torch.device) -> Place:
    """Where a process on `device` of this machine is."""
    name, gpu = f"{device} of {platform.node()}", None
    if device.type == "cuda":
        # Not the index: processes that see one GPU each all call theirs the first.
        gpu = str(torch.cuda.get_device_properties(device).uuid)
    return Place(device.type, name, gpu)


def require_one_kind(places: Sequence[Place]) -> None:
    """Refuse places, by rank, at which no run could be.

    Raises:
        ConfigError: some are on another kind of device than others, or two are on one GPU.
    """
    first = places[0]
    for rank, place in enumerate(places):
        if place.kind != first.kind:
            raise ConfigError(
                f"Processes of one run are on different devices: process 0 is on {first.name}, process {rank} on "
                f"{place.name}; expected the same kind for all, as the setting device names it."
            )
        sharing = [other for other in range(rank) if place.gpu is not None and places[other].gpu == place.gpu]
        if sharing:
            raise ConfigError(
                f"Processes {sharing[0]} and {rank} are on the same GPU, {place.name}; expected one process for each "
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
