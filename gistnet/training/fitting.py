"""How much of a step runs at once: as many windows and branches as the device's memory holds."""

from dataclasses import dataclass

CPU_BRANCHES = 64
"""Branches of a pass on a CPU, at most: more do not make it faster."""


@dataclass(frozen=True)
class PassSizes:
    """How a process cuts its share of a batch up; memory and speed depend on it, and of the result only rounding.

    Attributes:
        windows: windows whose keys and values are held at once.
        branches: branches that run through the teacher at once.
    """

    windows: int
    branches: int
