"""Writing that a killed process or a full disk cannot leave half done.

A file or folder is written beside its destination under a temporary name, flushed to the disk, and renamed: a reader
sees the old state or the new one, never a mixture. What a killed writer left behind is swept by the next one.
"""

import json
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from gistnet.errors import StorageError


def _this_machine() -> str:
    return re.sub(r"\W", "_", platform.node())


def _temporary_sibling(path: Path) -> Path:
    # Machine and process id let a later writer tell leftovers of the dead from work of the living.
    return path.with_name(f".{path.name}.partial-{_this_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def sweep_leftovers(path: Path) -> None:
    """Remove the temporary siblings of `path` whose writer, a process of this machine, no longer runs."""
    for leftover in path.parent.glob(f".{path.name}.partial-{_this_machine()}-*"):
        pid = leftover.name.rsplit("-", 2)[-2]
        if pid.isdigit() and psutil.pid_exists(int(pid)):
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` inside the block into a `StorageError` that names the action and the path."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"Could not {action} {path}: {error.strerror or error}.") from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes `path` when the block ends without an exception.

    The first writer wins: where `path` exists by then (another process made it), it stays and ours is discarded.
    So a folder is never rewritten in place; a new state goes into a folder of a new name.

    Raises:
        StorageError: the folder could not be written (full disk, no permission); `path` is then as it was.
    """
    temporary = _temporary_sibling(path)
    with storage_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(path)
        temporary.mkdir()
        try:
            yield temporary
            for entry in temporary.rglob("*"):
                _flush_to_disk(entry)
            _flush_to_disk(temporary)
            try:
                temporary.rename(path)
            except OSError:
                if not path.is_dir():  # renaming onto a folder that is not empty is how the second writer learns it
                    raise
            _flush_to_disk(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the contents of the file `path` by `data`, atomically.

    Raises:
        StorageError: the file could not be written; `path` is then as it was.
    """
    temporary = _temporary_sibling(path)
    with storage_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(path)
        try:
            temporary.write_bytes(data)
            _flush_to_disk(temporary)
            temporary.replace(path)
            _flush_to_disk(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace the contents of the file `path` by `text` in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace the file `path` by `value` as indented JSON, atomically; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
