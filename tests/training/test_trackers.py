"""Trackers get the numbers that the log gets; one that is not installed is named before anything begins."""

from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking

from gistnet.config import load_config
from gistnet.errors import ConfigError
from gistnet.metrics_log import read_metrics
from gistnet.session import train
from gistnet.training.trackers import Trackers, require_installed


class Remembering(tracking.GeneralTracker):
    """Stands for a service: remembers what it is told."""

    name = "wandb"
    requires_logging_directory = False
    told: list[tuple[int, dict[str, float]]]
    finished = False

    def __init__(self, run_name: str, **kwargs: Any) -> None:
        super().__init__(_blank=True)
        self.run_name = run_name

    def start(self) -> None:
        Remembering.told = []

    def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
        assert step is not None
        Remembering.told.append((step, values))

    def finish(self) -> None:
        Remembering.finished = True


def test_a_tracker_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["tensorboard"])
    require_installed(("tensorboard",))
    with pytest.raises(ConfigError, match=r"'wandb' is not installed, expected `pip install gistnet\[wandb\]`"):
        require_installed(("tensorboard", "wandb"))


def test_a_run_tells_its_tracker_every_number_of_its_log(monkeypatch, config_file):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["wandb"])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Remembering)
    config = load_config(config_file, ("trackers=[wandb]", "train.steps=2"))
    assert train(config)
    records = read_metrics(config.run_folder / "metrics.jsonl")
    assert [step for step, _ in Remembering.told] == [record["step"] for record in records]
    for record, (_, values) in zip(records, Remembering.told, strict=True):
        if "loss" in record:
            assert values["loss"] == record["loss"]
        if "validation" in record:
            assert values["validation/kl"] == record["validation"]["kl"]
        assert all(isinstance(value, float) for value in values.values())
    assert Remembering.finished


def test_nothing_is_tracked_unasked(tmp_path: Path):
    with Trackers((), tmp_path / "run") as trackers:
        trackers.record(1, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_tensorboard_files_hold_the_numbers(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="needs the extra gistnet[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Trackers(("tensorboard",), tmp_path / "run") as trackers:
        trackers.record(3, {"loss": 0.25, "stage_end": {"name": "narrative", "best_value": 0.5, "targets": []}})
    events = EventAccumulator(str(tmp_path / "run" / "trackers" / "run"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.25)]
    assert [(event.step, event.value) for event in events.Scalars("stage_end/best_value")] == [(3, 0.5)]
