"""Held out is held out: whatever happens to a corpus after training, nothing that was trained on is measured."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gistnet.config import load_config
from gistnet.data.dataset import PreparedDataset
from gistnet.errors import DataError
from gistnet.release.make import make_release
from gistnet.session import open_trained, train
from tests.conftest import tiny_values
from tests.release.conftest import TRAINING

Change = Callable[[Path], tuple[str, ...]]
"""What becomes of the folder of a project; returns settings of the evaluation."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, corpus_file: Path) -> Path:
    """A folder with `books/*.txt` and a run that was trained on them by relative paths."""
    folder = tmp_path_factory.mktemp("project")
    values: dict[str, Any] = tiny_values(folder, teacher_folder, corpus_file)
    (folder / "books").mkdir()
    for line in corpus_file.read_text().splitlines():
        (folder / "books" / f"{json.loads(line)['id']}.txt").write_text(json.loads(line)["text"])
    source = {"kind": "files", "name": "stories", "domain": "narrative", "paths": ["books/*.txt"]}
    values["run_folder"] = "run"
    values["data"] |= {"folder": "prepared", "sources": [source]}
    values["train"] |= {"steps": 2, "checkpoint_every_steps": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train(load_config(Path("run.yaml")))
    return folder


def texts(dataset: PreparedDataset, split: str) -> set[bytes]:
    return {tokens.tobytes() for _, tokens in dataset.whole_documents(split)}


def rename(project: Path) -> tuple[str, ...]:
    (project / "books").rename(project / "library")
    return ("data.sources.stories.paths=[library/*.txt]",)


def symlink(project: Path) -> tuple[str, ...]:
    (project / "books").rename(project / "library")
    (project / "books").symlink_to(project / "library")
    return ()


def move(project: Path) -> tuple[str, ...]:
    (project / "disk").mkdir()
    shutil.move(project / "books", project / "disk")
    return (f"data.sources.stories.paths=['{project}/disk/books/*.txt']",)


def respell(project: Path) -> tuple[str, ...]:
    return ("data.sources.stories.paths=['./books/../**/story-*.txt']",)


def more_held_out(project: Path) -> tuple[str, ...]:
    return ("data.held_out_fraction=0.6",)


def other_content(project: Path) -> tuple[str, ...]:
    for path in sorted((project / "books").iterdir())[:20]:
        path.unlink()
    return ()


def start_elsewhere(project: Path) -> tuple[str, ...]:
    """Where other documents lie under the same pattern."""
    (project / "other" / "books").mkdir(parents=True)
    for path in sorted((project / "books").iterdir())[:20]:
        shutil.copy(path, project / "other" / "books" / f"other-{path.name}")
    return ()


def with_prepared(change: Change) -> Change:
    """The change alone."""
    return change


def without_prepared(change: Change) -> Change:
    """The change, where the prepared corpus was deleted too."""

    def changed(project: Path) -> tuple[str, ...]:
        shutil.rmtree(project / "prepared")
        return change(project)

    return changed


@pytest.mark.parametrize("kept", [with_prepared, without_prepared])
@pytest.mark.parametrize("change", [rename, symlink, move, respell, more_held_out, other_content, start_elsewhere])
def test_only_documents_that_were_held_out_are_measured(
    project: Path, monkeypatch: pytest.MonkeyPatch, kept: Callable[[Change], Change], change: Change
) -> None:
    original = shutil.copytree(project, project.parent / f"{project.name}-original", dirs_exist_ok=True)
    (prepared,) = (original / "prepared").iterdir()
    expected = PreparedDataset.open(prepared)
    try:
        settings = kept(change)(project)
        monkeypatch.chdir(project / "other" if change is start_elsewhere else project)
        trained = open_trained(project / "run", settings)
        refused = {more_held_out: {with_prepared, without_prepared}, other_content: {without_prepared}}
        if kept in refused.get(change, set()):
            with pytest.raises(DataError, match="trained on") as caught:
                trained.dataset()
            assert "held_out_documents is" in str(caught.value)
            if not settings:
                with pytest.raises(DataError, match="trained on"):
                    make_release(project / "run", project / "out", **TRAINING)
                assert not (project / "out").exists()
        else:
            dataset = trained.dataset()
            assert texts(dataset, "held_out") == texts(expected, "held_out")
            assert texts(dataset, "train") == texts(expected, "train")
            assert not list((project / "other").glob("prepared"))
    finally:
        monkeypatch.chdir(original)
        shutil.rmtree(project)
        shutil.copytree(original, project, symlinks=True)


def test_a_corpus_that_is_gone_is_asked_for(project: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(project, tmp_path / "moved")
    config = yaml.safe_load((moved / "run" / "config.yaml").read_text())
    assert Path(config["data"]["folder"]) == project / "prepared"
    gone = ("data.folder=nowhere", "data.sources.stories.paths=[nowhere/*.txt]")
    with pytest.raises(DataError, match=r"data\.folder=FOLDER"):
        open_trained(moved / "run", gone).dataset()
    assert (
        open_trained(moved / "run", (f"data.folder={moved}/prepared", gone[1])).dataset().folder.parent.parent == moved
    )


def test_weights_that_were_trained_on_another_corpus_are_never_taken_for_new(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Documents held out of the second corpus may have been trained on in the first: every measurement says so."""
    (tmp_path / "books").mkdir()
    for path in sorted((project / "books").iterdir())[5:]:
        shutil.copy(path, tmp_path / "books")
    values = yaml.safe_load((project / "run.yaml").read_text())
    (first,) = {path.parent for path in (project / "run" / "checkpoints").glob("step-00000002/gistnet/config.json")}
    values |= {"run_folder": str(tmp_path / "run"), "start_from": str(first)}
    values["data"] |= {"folder": str(tmp_path / "prepared")}
    values["data"]["sources"][0]["paths"] = [str(tmp_path / "books" / "*.txt")]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    assert train(load_config(tmp_path / "run.yaml"))
    assert any("another corpus" in sentence for sentence in caplog.messages)
    trained = open_trained(tmp_path / "run")
    assert len(trained.gistnet.trained_on) == 2
    caplog.clear()
    trained.dataset()
    assert any("another corpus" in sentence for sentence in caplog.messages)
    make_release(tmp_path / "run", tmp_path / "out", **TRAINING)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "another corpus" in card
    assert "Held-out documents that it was not trained on" not in card


def test_going_on_with_the_same_corpus_needs_no_warning(
    project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = yaml.safe_load((project / "run.yaml").read_text())
    values |= {"run_folder": str(tmp_path / "run")}
    values["start_from"] = str(project / "run" / "checkpoints" / "step-00000002" / "gistnet")
    values["data"] |= {"folder": str(tmp_path / "prepared")}
    values["data"]["sources"][0]["paths"] = [str(project / "books" / "*.txt")]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    assert train(load_config(tmp_path / "run.yaml"))
    assert not any("another corpus" in sentence for sentence in caplog.messages)
    assert len(open_trained(tmp_path / "run").gistnet.trained_on) == 1
