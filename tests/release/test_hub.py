"""Loading from the Hub, with its own client: what `publish` uploads is what `load` reads."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import gistnet
from gistnet.errors import CheckpointError, ConfigError
from gistnet.release.publish import plan_upload
from gistnet.release_folder import find_folder
from gistnet.session import open_trained
from tests.conftest import Command
from tests.release.hub import COMMIT, ask, serving, use_cache

TEXT = "the river walked over seven quiet stones "


@pytest.fixture
def uploaded(release: Path, tmp_path: Path) -> Path:
    """A copy of the files that `gistnet publish` would upload."""
    folder = tmp_path / "uploaded"
    for name in plan_upload(release, "me/tiny").files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(release / name, folder / name)
    return folder


def test_what_is_published_is_loaded_and_then_read_from_the_cache(
    release: Path, uploaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = gistnet.load(release)
    with serving({"me/tiny": uploaded}, monkeypatch, tmp_path / "cache"):
        loaded = gistnet.load("me/tiny", revision="main")
        assert open_trained(Path("me/tiny")).dataset().statistics == open_trained(release).dataset().statistics
    assert loaded.info() == expected.info()
    assert np.array_equal(loaded.encode(TEXT).vectors, expected.encode(TEXT).vectors)

    use_cache(monkeypatch, tmp_path / "cache")
    for revision in (None, "main", COMMIT):
        assert gistnet.load("me/tiny", revision=revision).info() == expected.info()
    (tmp_path / "me" / "tiny").mkdir(parents=True)  # a folder of the name goes first
    assert find_folder("me/tiny") == Path("me/tiny")
    with pytest.raises(ConfigError, match="revision"):
        find_folder("me/tiny", revision="main")


def test_repositories_that_give_no_gistnet_are_one_sentence(
    uploaded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, empty = tmp_path / "other", tmp_path / "empty"
    for folder in (other, empty):
        folder.mkdir()
    (other / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with serving({"me/other": other, "me/empty": empty, "me/tiny": uploaded}, monkeypatch, tmp_path / "cache"):
        for name, revision, word in [
            ("me/missing", None, "no repository"),
            ("me/other", None, "no GistNet"),
            ("me/empty", None, "no GistNet"),
            ("me/tiny", "nowhere", "revision 'nowhere'"),
        ]:
            with pytest.raises(CheckpointError, match=word):
                find_folder(name, revision=revision)
    assert not list((tmp_path / "cache").rglob("model.safetensors"))


def test_a_name_that_is_neither_here_nor_in_the_cache(
    gistnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cache(monkeypatch, tmp_path / "cache")
    for arguments in (
        ("evaluate", "me/tiny"),
        ("show", "me/tiny", __file__),
        ("compress", "me/tiny", __file__, "--tree", tmp_path / "tree"),
    ):
        refused = gistnet(*arguments)
        assert refused.status == 1
        assert "no folder 'me/tiny'" in refused.err
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of the client, between its tries
    ask(monkeypatch, 9)  # where nobody listens
    with pytest.raises(CheckpointError, match="network"):
        find_folder("me/tiny")
