"""A teacher whose layers are spread over the processes of a run, for where it does not fit on one device.

Each process keeps an equal part of every decoder layer; before a layer computes, forward and backward, its parts are
gathered, and dropped again afterwards (`fully_shard`: Zhao et al., 2023; Rajbhandari et al., 2020, stage 3). What is
not in a layer, embeddings, last norm and head, every process keeps whole. The weights are frozen, so no gradient of
theirs is ever summed; that of a branch's vectors flows through the layers as if they were whole.

Every process must call the teacher as often as every other, or some wait for parts that nobody sends.
"""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from gistnet.model.teacher import Teacher


def shard_layers(teacher: Teacher, device: torch.device, processes: int) -> None:
    """Spread the teacher's decoder layers over all processes of the default group, and move the rest to `device`.

    Layers go to the device one by one, so that it never holds more than one of them whole; the teacher may be loaded on
    the CPU. It cannot be copied from afterwards (`Teacher.copy_layers`).
    """
    model = teacher.model.base_model
    mesh = init_device_mesh(device.type, (processes,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    # Sharding the model around the layers, without parameters of its own, lets one layer's parts travel while the one
    # before it computes.
    whole = {parameter for parameter in model.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(model, mesh=mesh, ignored_params=whole)
    teacher.model.to(device)


def is_sharded(teacher: Teacher) -> bool:
    """Whether the processes of the run hold a part each of the teacher's layers."""
    return any(isinstance(parameter, DTensor) for parameter in teacher.model.parameters())
