"""One writer of a local tree, and readers whose version the writer must not clean away.

Both are advisory locks of the operating system, which a killed process cannot leave behind. On an object store there
are none: there the writer that commits the catalog first wins, and old versions are kept for a day.
"""

import fcntl
import os
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gistnet.errors import StorageError
from gistnet.files import storage_errors

_WRITER = "writer.lock"
_PINS = "readers"
_GUARD = "guard.lock"


class FileLock:
    """A lock of the operating system on a file, held until closed, collected, or the process ends."""

    def __init__(self, path: Path, *, shared: bool = False, wait: bool = True) -> None:
        """Take the lock, creating the file if need be.

        Raises:
            BlockingIOError: another holds it, and `wait` is false.
            OSError: the file cannot be opened or locked.
        """
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._release = weakref.finalize(self, os.close, self._descriptor)
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the lock back."""
        self._release()

    def write(self, text: str) -> None:
        """Say in the file who holds it."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)


def lock_for_writing(folder: Path) -> FileLock:
    """Become the writer of the tree in `folder`.

    Raises:
        StorageError: another process, or another object of this one, writes the tree; or the folder is not writable.
    """
    path = folder / _WRITER
    with storage_errors("write the tree in", folder):
        try:
            lock = FileLock(path, wait=False)
        except BlockingIOError:
            holder = path.read_text(errors="replace").strip()
            raise StorageError(
                f"The tree {folder} is being written by {holder or 'another process'}, expected one writer at a time."
            ) from None
        lock.write(f"process {os.getpid()}")
    return lock


@contextmanager
def guard(folder: Path, *, shared: bool) -> Iterator[None]:
    """Keep readers from pinning a version (exclusive), or the writer from cleaning versions (shared)."""
    (folder / _PINS).mkdir(exist_ok=True)
    lock = FileLock(folder / _PINS / _GUARD, shared=shared)
    try:
        yield
    finally:
        lock.close()


class Pin:
    """Keeps a generation of the catalog, and all that it names, from being cleaned, as long as this object lives.

    To be made inside a shared `guard`, together with reading the generation.

    Raises:
        OSError: the folder is not writable.
    """

    def __init__(self, folder: Path, generation: int) -> None:
        lock = FileLock(folder / _PINS / f"{generation}-{os.getpid()}-{uuid.uuid4().hex[:8]}", shared=True)
        # Not at the end of the process: there the system gives the lock back, and the writer removes the file.
        weakref.finalize(self, _unpin, lock).atexit = False


def _unpin(lock: FileLock) -> None:
    with suppress(OSError):
        lock.path.unlink(missing_ok=True)
    lock.close()


def pinned_generations(folder: Path) -> set[int]:
    """The generations that live readers hold; what dead readers left is removed. To be called inside a `guard`."""
    pinned = set()
    for path in (folder / _PINS).iterdir():
        if path.name == _GUARD:
            continue
        try:
            FileLock(path, wait=False).close()
        except BlockingIOError:
            pinned.add(int(path.name.partition("-")[0]))
        else:
            path.unlink(missing_ok=True)
    return pinned
