"""Runs of the tiny configuration, and what they leave behind."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gistnet.config import load_config
from gistnet.metrics_log import read_metrics
from gistnet.session import open_run
from gistnet.training.checkpoint import latest_checkpoint
from gistnet.training.recording import Recorder
from gistnet.training.run import Run, StageRun, TrainState

MIXED = "train.segments={lengths: {1: 0.5, 3: 0.5}, whole_prefix: 0.4, compact: 0.5}"
"""Segments of several lengths, half of them compact."""


def run_of(config_file: Path, *settings: str) -> Run:
    return open_run(load_config(config_file, settings))


def records(run_folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without the speed."""
    return [
        {name: value for name, value in record.items() if name != "spans_per_second"}
        for record in read_metrics(run_folder / "metrics.jsonl")
    ]


def newest_weights(run_folder: Path) -> dict[str, torch.Tensor]:
    """Those of the newest checkpoint."""
    folder = latest_checkpoint(run_folder)
    assert folder is not None
    return load_file(folder / "gistnet" / "model.safetensors")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], **tolerance: float) -> None:
    """Equality of tensors, to the bit unless a tolerance is given."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, **(tolerance or {"rtol": 0, "atol": 0}), msg=name)


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a real SIGTERM while the step before `step` is under way."""
    record = Recorder.record

    def recording(self: Recorder, stage: StageRun, state: TrainState, metrics: dict, interrupted: bool) -> None:
        if state.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        record(self, stage, state, metrics, interrupted)

    monkeypatch.setattr(Recorder, "record", recording)
