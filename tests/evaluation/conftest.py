"""A run whose GistNet can be evaluated."""

from pathlib import Path

import pytest
import torch

from gistnet.config import load_config
from gistnet.session import open_run


@pytest.fixture
def run(config_file: Path):
    """A run with a GistNet that is not at its beginning."""
    run = open_run(load_config(config_file, ["teacher.precision=float64"]))
    torch.nn.init.normal_(run.gistnet.w_out.weight, generator=torch.Generator().manual_seed(0))
    return run
