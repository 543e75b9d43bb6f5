"""The runs of the releases: turns, what is kept between machines, and what a release still needs."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import release_run
from benchmarks.release_run import Commands, keep, keep_figures, left_to_release, main, restore
from gistnet.config import load_config
from gistnet.errors import ConfigError
from gistnet.evaluation.records import MetricRecord
from gistnet.files import write_json
from gistnet.metrics_log import read_metrics
from gistnet.model.saved_gistnet import read_saved
from gistnet.training.checkpoint import best_checkpoint, latest_checkpoint, load_checkpoint
from gistnet.training.trainer import fit
from tests.training.runs import assert_same, newest_weights, run_of, stop_after

CONFIG = release_run.ROOT / release_run.CONFIG


# Turns ----------------------------------------------------------------------------------------------------------------


class Machine:
    """In place of commands: each run ends after its turns, the clock goes by what a turn may take."""

    def __init__(self, turns: dict[str, int], failing: str = "") -> None:
        self.turns, self.failing = turns, failing
        self.ran: list[tuple[str, float]] = []
        self.seconds = 1000.0

    def run(self, commands: Commands, *words: str, seconds: float | None = None) -> int:
        assert words[:4] == ("train", "--config", str(CONFIG), "--resume")
        name = words[-1].removeprefix("run_folder=runs/")
        self.ran.append((name, (seconds or 0) / 60))
        if name == self.failing:
            return 1
        self.seconds += seconds or 0
        self.turns[name] -= 1
        return 130 if self.turns[name] else 0


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(release_run, "CONFIG", CONFIG)
    monkeypatch.setattr(release_run, "prepare_data", lambda config: SimpleNamespace(identity={}))
    return tmp_path


def use(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(Commands, "run", lambda *words, **rest: machine.run(*words, **rest))
    monkeypatch.setattr(release_run, "monotonic", lambda: machine.seconds)
    return machine


def test_runs_take_turns_until_each_has_ended(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = use(Machine({"gist32": 2, "gist8": 1, "gist32-context": 3}), monkeypatch)
    assert main(["train", "--turn", "10"]) == 0
    order = ["gist32", "gist8", "gist32-context", "gist32", "gist32-context", "gist32-context"]
    assert machine.ran == [(name, 10.0) for name in order]
    spent = json.loads((workspace / "runs/gist32/spent.json").read_text())
    assert (spent["hours"], spent["rounded"], len(spent["machines"])) == (pytest.approx(1 / 3), 0, 1)


def test_no_turn_goes_beyond_the_time(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = use(Machine({"gist32": 9, "gist8": 9}), monkeypatch)
    assert main(["train", "--only", "gist8", "--only", "gist32", "--minutes", "50", "--turn", "20"]) == 130
    assert machine.ran == [("gist8", 20.0), ("gist32", 20.0), ("gist8", 10.0)]


def test_a_run_that_fails_ends_the_program_with_its_status(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = use(Machine({"gist32": 9}, failing="gist8"), monkeypatch)
    assert main(["train"]) == 1
    assert [name for name, _ in machine.ran] == ["gist32", "gist8"]
    with pytest.raises(ConfigError, match="nothing"):
        main(["train", "nothing.at.all=1"])


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Commands that wait for SIGTERM, for a minute at most."""
    popen, begun = subprocess.Popen, []

    def begin(words: list[str]) -> subprocess.Popen[bytes]:
        begun.append(popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return begun[-1]

    monkeypatch.setattr(subprocess, "Popen", begin)
    yield begun
    assert all(process.poll() is not None for process in begun)


def test_a_turn_ends_with_sigterm(patient: list[subprocess.Popen[bytes]]) -> None:
    with Commands() as commands:
        assert commands.run("train", seconds=0.2) == -signal.SIGTERM
        assert not commands.stopped


def test_a_signal_to_the_program_goes_on_to_the_command_and_no_other_begins(
    patient: list[subprocess.Popen[bytes]],
) -> None:
    with Commands() as commands:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert commands.run("train") in release_run.INTERRUPTED
        assert commands.run("evaluate") == 130
    assert len(patient) == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# What is kept of a run ------------------------------------------------------------------------------------------------

SETTINGS = ("train.optimiser.kind=muon", "train.validation.every_steps=2")


@pytest.fixture
def stopped(config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped after step 5 of 6, and kept in `state`; its best checkpoint is an earlier one."""
    with monkeypatch.context() as patched:
        stop_after(5, patched)
        fit(run_of(config_file, *SETTINGS))
    config = load_config(config_file, SETTINGS)
    (config.run_folder / "config.yaml").write_text("{format_version: 3}")
    write_json(
        config.run_folder / "spent.json", {"hours": 2.0, "processor_hours": 1.5, "machines": ["A"], "rounded": 0}
    )
    keep(config, tmp_path / "state")
    return config.run_folder


def test_a_run_goes_on_elsewhere_by_step_with_rounded_weights(stopped: Path, config_file: Path, tmp_path: Path) -> None:
    there, settings = tmp_path / "there", (*SETTINGS, f"run_folder={tmp_path / 'there'}")
    run = run_of(config_file, *settings)
    restore(tmp_path / "state", there, run.dataset.identity)
    before, after = (load_checkpoint(latest_checkpoint(folder) or folder) for folder in (stopped, there))
    assert (after.step, after.train_state, after.identity) == (5, before.train_state, before.identity)
    rounded = {name: tensor.bfloat16().float() for name, tensor in newest_weights(stopped).items()}
    assert_same(
        {name: tensor for name, tensor in rounded.items() if tensor.ndim},
        {name: tensor for name, tensor in newest_weights(there).items() if tensor.ndim},
    )
    moments, copied = (load_file(checkpoint.folder / "optimiser.safetensors") for checkpoint in (before, after))
    assert_same({name: t.bfloat16().float() if t.ndim else t for name, t in moments.items()}, copied)
    best = best_checkpoint(there)
    assert best is not None and best != after.folder
    assert not (best / "optimiser.safetensors").exists()
    assert json.loads((there / "spent.json").read_text())["rounded"] == 1
    assert fit(run, resume=True).step == 6
    fit(run_of(config_file, *SETTINGS), resume=True)  # where it began, to the bit
    logged = [
        [record for record in read_metrics(folder / "metrics.jsonl") if "loss" in record] for folder in (stopped, there)
    ]
    assert [r["step"] for r in logged[1]] == [1, 2, 3, 4, 5, 6]
    assert logged[0][:5] == logged[1][:5]
    assert logged[0][5]["learning_rate"] == logged[1][5]["learning_rate"]
    assert logged[0][5]["loss"] == pytest.approx(logged[1][5]["loss"], rel=0.02)


def test_only_the_newest_state_is_kept_and_a_folder_that_is_as_far_goes_first(
    stopped: Path, config_file: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    assert [folder.name for folder in state.iterdir()] == ["step-00000005"]
    fit(run_of(config_file, *SETTINGS), resume=True)
    weights = newest_weights(stopped)
    restore(state, stopped, {})
    assert_same(weights, newest_weights(stopped))
    keep(load_config(config_file, SETTINGS), state)
    assert [folder.name for folder in state.iterdir()] == ["step-00000006"]


def test_a_run_goes_on_with_another_corpus_and_both_are_on_record(
    stopped: Path, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"
    run = run_of(config_file, *SETTINGS, f"run_folder={there}", "data.min_tokens=70")
    restore(tmp_path / "state", there, run.dataset.identity)
    assert "corpus" in capsys.readouterr().out
    fit(run, resume=True)
    (folder,) = (latest_checkpoint(there),)
    assert folder is not None
    first = load_checkpoint(latest_checkpoint(stopped) or stopped).identity["dataset"]["content"]
    saved, _ = read_saved(folder / "gistnet")
    assert saved.trained_on == (first, run.dataset.content_fingerprint)


# Looks and releases ---------------------------------------------------------------------------------------------------


def test_a_look_is_a_line_of_the_progress_and_waits_for_its_time(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"domain": "narrative", "positions": "end", "value": 0.5, "n_spans": 16, "n_documents": 8}
    records = [MetricRecord.model_validate({"name": name, **record}) for name in ("pair_accuracy", "gist_norm")]

    def evaluate(commands: Commands, *words: str) -> int:
        write_json(Path(words[-1]), [r.model_dump(mode="json") for r in records])
        return 0

    monkeypatch.setattr(Commands, "run", evaluate)
    monkeypatch.setattr(release_run, "PROGRESS", tmp_path / "progress.jsonl")
    for every, ended in ((3.0, False), (1.0, False), (1.0, True)):
        release_run.look(Commands(), "gist8", stopped, every_hours=every, ended=ended)
    (line,) = map(json.loads, (tmp_path / "progress.jsonl").read_text().splitlines())
    assert (line["run"], line["step"], line["processor_hours"]) == ("gist8", 5, 1.5)
    assert [(figure["name"], figure["value"]) for figure in line["figures"]] == [("pair_accuracy", 0.5)]


def test_what_is_released_is_not_released_again(workspace: Path) -> None:
    run = Path("runs/gist8")
    write_json(run / "spent.json", {"hours": 3.0, "processor_hours": 2.5, "machines": ["A", "B"], "rounded": 1})
    release, *evaluations = left_to_release("gist8", run, ["seed=2"])
    assert release[:4] == ["release", "runs/gist8", "--out", "src/gistnet/released/smollm2-135m-gist8"]
    told = dict(zip(release[4::2], release[5::2], strict=True))
    assert told["--command"] == "python benchmarks/release_run.py train --only gist8 seed=2"
    assert all(word in told["--hardware"] for word in ("A and B", "2.5", "bfloat16 once"))
    Path("src/gistnet/released/smollm2-135m-gist8").mkdir(parents=True)
    assert list(left_to_release("gist8", run, [])) == evaluations
    for words in evaluations:
        write_json(Path(words[-1]), [])
    assert not list(left_to_release("gist8", run, []))


def test_records_of_a_kind_are_kept_with_the_machine(tmp_path: Path) -> None:
    shared = {"domain": "narrative", "positions": "end", "value": 0.5, "n_spans": 16, "n_documents": 8}
    names = ("kl", "long_context_nll", "retrieval_accuracy")
    figures, kept = tmp_path / "results.json", tmp_path / "kept.json"
    figures.write_text(json.dumps([{"name": name, **shared} for name in names]))
    keep_figures(figures, kept, ("long_context", "retrieval"))
    content = json.loads(kept.read_text())
    assert [record["name"] for record in content["records"]] == ["long_context_nll", "retrieval_accuracy"]
    assert content["machine"]["torch"] == torch.__version__


@pytest.mark.parametrize("name", release_run.RUNS)
def test_the_settings_of_a_run_and_its_evaluations_are_a_configuration(name: str) -> None:
    settings = release_run.settings_of(name, ["seed=3"])
    config = load_config(CONFIG, settings)
    assert (config.run_folder, config.seed) == (Path("runs") / name, 3)
    for changes in (release_run.ALSO, release_run.LONG_CONTEXT, release_run.ROWS, release_run.LOOK):
        assert load_config(CONFIG, [*settings, *changes]).evaluation != config.evaluation
    assert all((release_run.ROOT / release_run.NOTES / f).is_file() for f in ("data.md", f"limits-{name}.md"))
