"""Writing that a killed process or a full disk cannot leave half done.

A file or folder is written beside its destination, in a temporary folder, flushed to the disk, and renamed: a reader
sees the old state or the new one, never a mixture. Its writer holds a lock in that folder. What nobody holds was left
by a killed writer, on whatever machine or in whatever container, and the next one sweeps it.
"""

import errno
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from gistnet.errors import StorageError
from gistnet.locks import FileLock

WRITER_LOCK = "writer.lock"
"""The file in a tree or a run whose lock its writer holds."""

_LOCK = "lock"


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a path on the file system of `path`, in a temporary folder beside it that nobody sweeps meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_leftovers(path.parent, path.name)
    folder, lock = _locked_folder(path)
    try:
        yield folder / path.name
    finally:
        lock.close()
        shutil.rmtree(folder, ignore_errors=True)


def _locked_folder(path: Path) -> tuple[Path, FileLock]:
    while True:
        folder = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
        folder.mkdir()
        try:
            lock = FileLock(folder / _LOCK, required=False)
        except FileNotFoundError:  # swept before there was a lock in it
            continue
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if (folder / _LOCK).exists():
            return folder, lock
        lock.close()  # swept before the lock was ours


def sweep_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed writers of `name`, or of anything, left in a folder."""
    for leftover in folder.glob(f".{escape(name) if name else '*'}.partial-????????"):
        try:
            lock = FileLock(leftover / _LOCK, wait=False)
        except OSError:  # its writer lives, or nothing can be known of it
            continue
        shutil.rmtree(leftover, ignore_errors=True)
        lock.close()


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
    with storage_errors("write", path), _temporary(path) as temporary:
        temporary.mkdir()
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


def is_special(path: Path) -> bool:
    """True if a path is something else than a file or folder: a pipe, a terminal, `/dev/null`."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _resolved(path: Path) -> Path:
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


def require_writable(path: Path) -> None:
    """Make sure, before long work, that `write_bytes` could write to `path`; missing folders are made.

    Raises:
        StorageError: it could not.
    """
    with storage_errors("write", path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not is_special(path):
            with _temporary(_resolved(path)) as temporary:
                temporary.touch()
        elif not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the contents of the file `path` by `data`, atomically.

    A symbolic link is followed, permissions stay, and what is no file, such as a pipe, is written to.

    Raises:
        StorageError: the file could not be written; `path` is then as it was.
    """
    with storage_errors("write", path):
        if is_special(path):
            path.write_bytes(data)
            return
        target = _resolved(path)
        with _temporary(target) as temporary:
            temporary.write_bytes(data)
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            _flush_to_disk(temporary)
            temporary.replace(target)
            _flush_to_disk(target.parent)


def write_text(path: Path, text: str) -> None:
    """Replace the contents of the file `path` by `text` in UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Replace the file `path` by `value` as indented JSON, atomically; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def lock_for_writing(folder: Path, what: str, *, required: bool = True) -> FileLock:
    """Become the only writer of a folder, which is made where it is missing.

    Args:
        what: the folder holds, a tree or a run.
        required: False goes on without a lock where the file system has none.

    Raises:
        StorageError: another process, or another object of this one, is its writer; or the folder is not writable.
    """
    path = folder / WRITER_LOCK
    with storage_errors(f"write the {what} in", folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(path, wait=False, required=required)
        except BlockingIOError:
            holder = path.read_text(errors="replace").strip()
            raise StorageError(
                f"The {what} {folder} is being written by {holder or 'another process'}, expected one writer at a time."
            ) from None
        lock.write(f"process {os.getpid()}")
    return lock
