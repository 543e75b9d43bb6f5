"""A tiny run, and the release that is made of it, once for all tests: they copy what they change."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from gistnet.config import load_config
from gistnet.release.make import make_release
from gistnet.session import train
from tests.conftest import tiny_values

NOTES = "Made of **random words**, in the public domain.\n"
TRAINING = {"command": "gistnet train --config tiny.yaml", "hardware": "an abacus"}


def two_level_values(folder: Path, teacher_folder: Path, corpus_file: Path) -> dict[str, Any]:
    """A run of two stages, the second of which trains gists of gists: 64 bytes in one vector."""
    values = tiny_values(folder, teacher_folder, corpus_file)
    values["levels"] = [8, 8]
    values["data"]["min_tokens"] = 80
    values["train"] |= {"steps": 2, "checkpoint_every_steps": 1}
    values["stages"] = [{"name": "tokens"}, {"name": "gists", "train": {"level": 1}}]
    return values


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, corpus_file: Path) -> Path:
    """The folder of a run with two levels."""
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(two_level_values(folder, teacher_folder, corpus_file)), encoding="utf-8")
    config = load_config(path)
    assert train(config)
    return config.run_folder


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> Path:
    """The release of that run, with notes about its data and none about its limits."""
    folder = tmp_path_factory.mktemp("released")
    (folder / "notes.md").write_text(NOTES, encoding="utf-8")
    make_release(finished_run, folder / "tiny-32", **TRAINING, data_notes=folder / "notes.md")
    return folder / "tiny-32"
