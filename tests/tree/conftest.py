"""Trees of the stub encoder, and a small disk."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.stub_encoder import StubEncoder
from gistnet.tree.tree import GistTree


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
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this system does not let us mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
