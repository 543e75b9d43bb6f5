"""How this process asks the operating system for memory."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next tensor instead of giving it back to the system.

    Training on a CPU frees and asks again for megabytes thousands of times a second; by default much of that goes back
    to the system each time and costs page faults. Peak memory is the same. Does nothing where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**30)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
