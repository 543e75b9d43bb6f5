"""Readers of a local tree, whose version the writer must not clean away.

On an object store there are no locks: there the writer that commits the catalog first wins, and old versions are kept
for a day.
"""

import os
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gistnet.locks import FileLock

_PINS = "readers"
_GUARD = "guard.lock"


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
