"""Trees of the stub encoder, and a small disk."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gistnet.tree.tree import GistTree
from tests.small_disk import mounted
from tests.stub_encoder import StubEncoder


@pytest.fixture(autouse=True)
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing to the disk takes most of the time of a small append, and only a loss of power shows the difference."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def stub() -> StubEncoder:
    """K = 4, two levels, 8 dimensions, 1000 tokens."""
    return StubEncoder(1)


@pytest.fixture
def tree(tmp_path: Path, stub: StubEncoder) -> Iterator[GistTree]:
    """An empty tree, open for writing, in `tmp_path / "tree"`."""
    with GistTree.create(tmp_path / "tree", stub) as made:
        yield made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB, where the system lets us have one."""
    with mounted(tmp_path / "disk", "400k") as disk:
        yield disk
