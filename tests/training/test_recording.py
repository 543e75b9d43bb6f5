"""Metrics file, display and trackers of a run: every step once, whatever happened in between."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import tracking

from gistnet.config import load_config
from gistnet.errors import ConfigError, DataError, StorageError
from gistnet.metrics_log import MetricsLog, read_metrics
from gistnet.session import train
from gistnet.training.recording import Trackers, _shown, require_installed


def write(path: Path, steps: range, resumed_after: tuple[int, int] | None = None) -> None:
    with MetricsLog(path, resumed_after=resumed_after) as log:
        for step in steps:
            log.record(step, {"loss": step / 4})


def test_each_record_is_one_line_and_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.record(1, {"loss": 0.5, "stage": "Erzählung"})
        assert path.read_text(encoding="utf-8") == '{"step": 1, "loss": 0.5, "stage": "Erzählung"}\n'
        log.record(2, {"loss": 0.25})
        assert read_metrics(path) == [{"step": 1, "loss": 0.5, "stage": "Erzählung"}, {"step": 2, "loss": 0.25}]


def test_an_interrupted_and_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    """Checkpoint at 4, killed at 6, resumed: the same bytes as a run that was never interrupted."""
    write(tmp_path / "whole", range(10))
    write(tmp_path / "resumed", range(7))
    write(tmp_path / "resumed", range(5, 10), resumed_after=(1, 4))
    assert [record["step"] for record in read_metrics(tmp_path / "resumed")] == list(range(10))
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_run_that_starts_anew_starts_an_empty_log(tmp_path: Path) -> None:
    write(tmp_path / "log", range(3))
    write(tmp_path / "log", range(1))
    assert read_metrics(tmp_path / "log") == [{"step": 0, "loss": 0.0}]


@pytest.mark.parametrize("torn", [b'{"step": 2, "lo', b'{"step": 2, "loss": 0.5}', '{"step": 2, "a": "ä'.encode()[:-1]])
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    """Cut inside the object, just before the line end, and inside a character."""
    path = tmp_path / "log"
    write(path, range(2))
    path.write_bytes(path.read_bytes() + torn)
    assert [record["step"] for record in read_metrics(path)] == [0, 1]
    write(path, range(2, 4), resumed_after=(1, 3))
    assert [record["step"] for record in read_metrics(path)] == [0, 1, 2, 3]


@pytest.mark.parametrize("damage", ['{"step": 1, "lo\n', "[1]\n", '{"loss": 1}\n', "\n"])
def test_damage_before_the_last_line_is_named_not_dropped(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "log"
    path.write_text('{"step": 0}\n' + damage + '{"step": 2}\n')
    with pytest.raises(DataError, match="Line 2 of"):
        read_metrics(path)
    with pytest.raises(DataError, match="Line 2 of"):
        MetricsLog(path, resumed_after=(1, 5))
    assert path.read_text().endswith('{"step": 2}\n')


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        read_metrics(tmp_path / "absent")


def test_numbers_that_are_not_finite_become_null_and_keep_their_key(tmp_path: Path) -> None:
    path = tmp_path / "log"
    metrics = {"a": float("nan"), "b": [1.0, float("inf")], "c": {"d": np.float32("-inf"), "e": np.float32(0.5)}}
    with MetricsLog(path) as log:
        log.record(np.int64(1), metrics)  # type: ignore[arg-type]
    strict = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict == {"step": 1, "a": None, "b": [1.0, None], "c": {"d": None, "e": 0.5}}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the Linux device that is always full")
def test_a_full_disk_is_a_storage_error_that_names_the_log(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "log")
    log._file.close()
    log._file = open("/dev/full", "a")  # noqa: SIM115, PTH123 - every write to it fails with "No space left on device"
    with pytest.raises(StorageError, match=r"append to .*log: No space left on device\."):
        log.record(1, {"loss": 0.5})
    with pytest.raises(StorageError, match="close"):
        log.__exit__()


RECORD_FOREVER = """
import itertools, sys
from pathlib import Path
from gistnet.metrics_log import MetricsLog
log = MetricsLog(Path(sys.argv[1]))
for step in itertools.count():
    log.record(step, {"text": "x" * 5000})
    if step == 50:
        print("running", flush=True)
"""


def test_a_killed_run_leaves_a_log_that_reads_and_resumes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writer = subprocess.Popen([sys.executable, "-c", RECORD_FOREVER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    steps = [record["step"] for record in read_metrics(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > 50
    write(path, range(21, 30), resumed_after=(1, 20))
    assert [record["step"] for record in read_metrics(path)] == list(range(30))


def test_a_loss_that_is_the_kl_is_shown_once():
    metrics = {"gist_norm": 3.219, "loss": 0.51234, "kl": 0.5, "delta_nll": 0.25, "spans_per_second": 12.04}
    assert _shown(metrics) == ["loss 0.5123", "KL 0.5000", "ΔNLL +0.250", "12.0 spans/s", "gist norm 3"]
    assert _shown({"loss": 0.5, "kl": 0.5}) == ["loss 0.5000"]


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
