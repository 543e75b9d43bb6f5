"""Paths as a user types them."""

import os
from pathlib import Path

import pytest

from gistnet.errors import ConfigError
from gistnet.paths import local_path


def test_a_tilde_is_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/reader")
    assert local_path("~") == Path("/home/reader")
    assert local_path("~/a/~b") == local_path(Path("~/a/~b")) == Path("/home/reader/a/~b")
    assert local_path("~root/a").is_absolute()


def test_a_name_that_begins_with_a_tilde_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Path("./~root")` is `Path("~root")`, so that expanding it again would lead elsewhere."""
    monkeypatch.chdir(tmp_path)
    path = local_path("./~root")
    assert path.absolute() == tmp_path / "~root"
    assert local_path(path) == path


@pytest.mark.parametrize("path", ["", "a\0b", "~nosuchuser", "~nosuchuser/a"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="Got the path"):
        local_path(path)


def test_other_paths_stay_as_they_are() -> None:
    for path in (".", "..", "/", "a/b", "a~", os.fspath(Path("a") / "~")):
        assert local_path(path) == Path(path)
