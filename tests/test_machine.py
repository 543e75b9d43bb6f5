"""Devices that are not there, lack a number format, or have too little memory; what GPUs answer is made up."""

import psutil
import pytest
import torch
from transformers import LlamaForCausalLM

from gistnet import machine
from gistnet.errors import ConfigError
from gistnet.machine import free_bytes, require_precision, share_cores, usable_devices

CUDA = torch.device("cuda:0")


@pytest.fixture
def old_gpu(monkeypatch):
    """A GPU that emulates bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")


def test_a_gpu_without_bfloat16_is_named_with_what_to_set(old_gpu):
    with pytest.raises(ConfigError) as refused:
        require_precision(CUDA, "bfloat16")
    assert str(refused.value) == (
        "teacher.precision is bfloat16, which Tesla T4 does not compute in; expected teacher.precision=float32 there."
    )
    require_precision(CUDA, "float32")
    require_precision(torch.device("cpu"), "bfloat16")


def test_a_run_asks_before_it_loads_a_teacher(old_gpu, gistnet, config_file, monkeypatch):
    """Refused for its precision, although there is no such teacher either."""
    monkeypatch.setattr("gistnet.session._processes", lambda device, *others: _OnGpu())
    outcome = gistnet("train", "--config", config_file, "teacher.precision=bfloat16", "teacher.name=nobody/nothing")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith("gistnet: teacher.precision is bfloat16, which Tesla T4")
    assert outcome.err.count("\n") == 1


class _OnGpu:
    """Stands in for `Processes`."""

    device, is_main, count = CUDA, True, 1


def test_free_memory_of_a_gpu_counts_what_pytorch_holds_without_using(monkeypatch):
    """Of 24 GB 10 are free; PyTorch has taken 8 and uses 5 of them."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10e9, 24e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 8e9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5e9)
    assert free_bytes(CUDA) == 13e9


def test_processes_of_a_machine_share_its_free_memory(monkeypatch):
    class Memory:
        available = 12_000

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    assert free_bytes(torch.device("cpu")) == 12_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes(torch.device("cpu")) == 3000


def test_the_devices_that_would_do_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usable_devices() == "auto or cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert usable_devices() == "auto, cpu, cuda or one of cuda:0 to cuda:3"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_gpu_that_is_not_there_is_refused_in_one_sentence(gistnet, config_file, device):
    outcome = gistnet("train", "--config", config_file, f"device={device}")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith(f"gistnet: device is '{device}', which PyTorch cannot use here (")
    assert outcome.err.endswith("); expected auto or cpu.\n")
    assert outcome.err.count("\n") == 1


def _full(*arguments: object, **others: object) -> None:
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.68 GiB of which 1.19 GiB is "
        "free. Including non-PyTorch memory, this process has 22.49 GiB memory in use."
    )


def test_a_teacher_too_large_for_the_device_is_refused_with_its_size(gistnet, config_file, monkeypatch):
    monkeypatch.setattr(LlamaForCausalLM, "to", _full)
    outcome = gistnet("train", "--config", config_file)
    assert (outcome.status, outcome.out) == (1, "")
    assert "has 0.0 GB of weights in float32, more than there is room for on cpu" in outcome.err
    assert outcome.err.count("\n") == 1


def test_memory_that_runs_out_anywhere_else_ends_in_one_sentence(gistnet, config_file, monkeypatch):
    monkeypatch.setattr("gistnet.session.fit", _full)
    outcome = gistnet("train", "--config", config_file)
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1] == (
        "gistnet: The device's memory ran out (Tried to allocate 2.00 GiB; GPU 0 has a total capacity of 23.68 GiB of "
        "which 1.19 GiB is free); expected room for it."
    )


@pytest.mark.parametrize(
    ("started", "threads", "expected"),
    [("4", "1", [4]), ("4", None, [4]), ("32", "1", [1]), ("4", "2", []), (None, None, []), ("1", "1", [])],
)
def test_processes_of_a_machine_share_its_cores_unless_told_otherwise(started, threads, expected, monkeypatch):
    """Sixteen cores; torchrun sets one thread for each of several processes where nobody set another number."""
    for name, value in (("LOCAL_WORLD_SIZE", started), ("OMP_NUM_THREADS", threads)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(machine, "usable_cores", lambda: 16)
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    share_cores()
    assert chosen == expected
