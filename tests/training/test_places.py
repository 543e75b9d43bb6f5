"""Where processes may be: what a run on several devices refuses. Real processes are in test_processes.py."""

import pytest
import torch

from gistnet.errors import ConfigError
from gistnet.training.places import Place, place_of, require_one_kind, require_room_on_gpus


def gpu(uuid: str) -> Place:
    return Place("cuda", "cuda:0 of node", uuid)


def test_processes_may_share_a_cpu_but_not_a_gpu():
    require_one_kind([place_of(torch.device("cpu"))] * 3)
    # Both call theirs the first, and each sees another.
    require_one_kind([gpu("a"), gpu("b")])
    with pytest.raises(ConfigError, match="Processes 1 and 2 are on the same GPU, cuda:0 of node"):
        require_one_kind([gpu("a"), gpu("b"), gpu("b")])


def test_different_kinds_of_devices_are_refused():
    with pytest.raises(ConfigError, match=r"process 0 is on cuda:0 of node, process 1 on cpu of .*the same kind"):
        require_one_kind([gpu("a"), place_of(torch.device("cpu"))])


def test_more_processes_than_gpus_are_refused_before_they_meet():
    require_room_on_gpus(8, 8)
    require_room_on_gpus(2, 0)  # that there is no GPU is told elsewhere
    with pytest.raises(ConfigError, match="3 processes were started on a machine with 2 GPUs"):
        require_room_on_gpus(3, 2)
    with pytest.raises(ConfigError, match="with 1 GPU;"):
        require_room_on_gpus(2, 1)
