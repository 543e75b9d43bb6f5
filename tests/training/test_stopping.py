"""Stopping early: what a full device, or a lost process, is told as. Real ones are in test_processes.py."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gistnet.errors import ProcessError, TrainingError
from gistnet.training import stopping


@pytest.mark.parametrize("sharded", [False, True])
def test_a_full_device_is_told_in_a_sentence_and_agreed_upon_only_where_no_one_waits(monkeypatch, sharded):
    """Inside a sharded teacher's layers the others wait for this process, and would not come to an agreement."""
    monkeypatch.setattr(stopping, "is_sharded", lambda teacher: sharded)
    run: Any = SimpleNamespace(teacher=SimpleNamespace(device="cuda:3"), processes=SimpleNamespace(rank=3, count=8))
    with (
        pytest.raises(TrainingError, match=r"cuda:3 of process 3 of 8 ran out of memory \(Tried 2 GiB\)") as raised,
        stopping.telling_of_memory(run),
    ):
        raise torch.OutOfMemoryError("Tried 2 GiB.\nMore of it.")
    assert isinstance(raised.value, ProcessError) == sharded


def test_a_lost_process_before_the_first_checkpoint_leaves_nothing_to_name(tmp_path):
    network = SimpleNamespace(trainable_state=lambda: {"w": torch.ones(1)})
    run: Any = SimpleNamespace(folder=tmp_path, gistnet=network)
    progress: Any = SimpleNamespace(step=0)
    with (
        pytest.raises(ProcessError, match=r"\(Connection closed by peer\); there is no checkpoint yet\.$"),
        stopping.keeping_the_last_good_state(run, progress, save=lambda: pytest.fail("there is nothing to save")),
    ):
        raise RuntimeError("[third_party/gloo/pair.cc:1] Connection closed by peer. This is")
