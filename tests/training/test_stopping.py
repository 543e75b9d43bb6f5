"""Stopping early: what a lost process is told as. Real ones are in test_processes.py."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gistnet.errors import ProcessError
from gistnet.training import stopping


def test_a_lost_process_before_the_first_checkpoint_leaves_nothing_to_name(tmp_path):
    network = SimpleNamespace(trainable_state=lambda: {"w": torch.ones(1)})
    run: Any = SimpleNamespace(folder=tmp_path, gistnet=network)
    progress: Any = SimpleNamespace(step=0)
    with (
        pytest.raises(ProcessError, match=r"\(Connection closed by peer\); there is no checkpoint yet\.$"),
        stopping.keeping_the_last_good_state(run, progress, save=lambda: pytest.fail("there is nothing to save")),
    ):
        raise RuntimeError("[third_party/gloo/pair.cc:1] Connection closed by peer. This is")
