"""Advisory locks of the operating system: seen from every container, and gone when their holder is killed."""

import errno
import fcntl
import os
import weakref
from pathlib import Path

# What a file system without locks answers, as some of clusters are.
_NOT_OFFERED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class FileLock:
    """A lock of the operating system on a file, held until closed, collected, or the process ends."""

    def __init__(self, path: Path, *, shared: bool = False, wait: bool = True, required: bool = True) -> None:
        """Take the lock, creating the file if need be.

        Args:
            path: of the file.
            shared: whether others may hold it too, if they share it.
            wait: until nobody else holds it.
            required: False goes on without a lock where the file system has none.

        Raises:
            BlockingIOError: another holds it, and `wait` is false.
            OSError: the file cannot be opened or locked.
        """
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self._release = weakref.finalize(self, os.close, self._descriptor)
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BaseException as error:
            if not required and isinstance(error, OSError) and error.errno in _NOT_OFFERED:
                return
            self.close()
            raise

    def close(self) -> None:
        """Give the lock back."""
        self._release()

    def write(self, text: str) -> None:
        """Say in the file who holds it."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, text.encode(), 0)
