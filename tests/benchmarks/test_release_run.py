"""What a release still needs, from nothing and after being stopped anywhere."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import release_run
from benchmarks.release_run import RELEASE, commands, keep_long_context
from gistnet.config import load_config
from gistnet.errors import ConfigError

SETTINGS = ("run_folder=runs/some", "stages.narrative.train.steps=3")


def parts(made: Path, processes: int = 1) -> list[str]:
    """The commands in short: what each begins with behind the interpreter, without its options."""
    said = commands(processes, SETTINGS, hardware="two cores", made=made)
    return [" ".join(word for word in words[1:5] if not word.startswith("-")) for words in said]


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    everything = [
        "gistnet.cli train",
        "gistnet.cli release runs/some",
        "gistnet.cli evaluate runs/some",
    ]
    assert parts(tmp_path) == everything
    (train, *_) = commands(1, SETTINGS, hardware="two cores", made=tmp_path)
    assert train[2:] == ["gistnet.cli", "train", "--config", "configs/release.yaml", *SETTINGS]
    touch(tmp_path / "runs/some/metrics.jsonl")
    (train, *_) = commands(1, SETTINGS, hardware="two cores", made=tmp_path)
    assert train[6:] == ["--resume", *SETTINGS]
    (tmp_path / RELEASE).mkdir(parents=True)
    assert parts(tmp_path) == [everything[0], everything[2]]
    touch(tmp_path / "runs/some/long-context/results.json")
    assert parts(tmp_path) == everything[:1]


def test_several_processes_are_launched_and_the_card_says_so(tmp_path: Path) -> None:
    train, release, *_ = commands(4, SETTINGS, hardware="two cores", made=tmp_path)
    assert train[1:7] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "-m"]
    told = dict(zip(release[5::2], release[6::2], strict=True))
    words = "python benchmarks/release_run.py --processes 4 run_folder=runs/some stages.narrative.train.steps=3"
    assert (told["--command"], told["--hardware"]) == (words, "two cores")
    assert all((release_run.ROOT / told[notes]).is_file() for notes in ("--data-notes", "--limits"))


def test_a_command_that_fails_ends_the_program_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[bytes]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 130)

    monkeypatch.setattr(subprocess, "run", run)
    assert release_run.main(["run_folder=runs/some"]) == 130
    assert len(ran) == 1
    with pytest.raises(ConfigError, match="nothing"):
        release_run.main(["nothing.at.all=1"])


def test_records_of_long_contexts_are_kept_with_the_machine(tmp_path: Path) -> None:
    shared = {"domain": "narrative", "positions": "end", "value": 0.5, "n_spans": 16, "n_documents": 8}
    names = ("kl", "long_context_nll", "retrieval_accuracy")
    figures, kept = tmp_path / "results.json", tmp_path / "kept.json"
    figures.write_text(json.dumps([{"name": name, **shared} for name in names]))
    keep_long_context(figures, kept)
    content = json.loads(kept.read_text())
    assert [record["name"] for record in content["records"]] == ["long_context_nll", "retrieval_accuracy"]
    assert content["machine"]["torch"] == torch.__version__


def test_the_settings_of_the_evaluations_are_a_configuration() -> None:
    path = release_run.ROOT / release_run.CONFIG
    for settings in (release_run.ALSO, release_run.LONG_CONTEXT):
        assert load_config(path, settings).evaluation != load_config(path).evaluation
