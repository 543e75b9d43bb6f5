"""What a tree tells about itself: a node, a hit of a search, a summary."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gistnet.model.fingerprint import TeacherFingerprint


class Quality(NamedTuple):
    """What a gist loses against the tokens that it stands for, on what follows them."""

    kl: float
    """KL(prediction after the tokens ‖ prediction after the gist), nats per token."""
    delta_nll: float
    """Nats per token."""


class Qualities(NamedTuple):
    """The same of consecutive nodes, NaN for a node that was not measured."""

    kl: NDArray[np.float32]
    """`[n]` nats per token."""
    delta_nll: NDArray[np.float32]
    """`[n]` nats per token."""


@dataclass(frozen=True, eq=False)
class Node:
    """A gist, what it stands for, and where it came from."""

    document: str
    level: int
    index: int
    """Among the gists of its document and level."""
    start: int
    """The first token that it stands for."""
    stop: int
    """One more than the last."""
    parent: int | None
    """The index of the gist above, or None while there is none."""
    children: range
    """The indices of the gists that it was made of, one level below; empty at level 0, which is made of tokens."""
    gist_version: str
    """The fingerprint of the GistNet that made it."""
    made: datetime
    quality: Quality | None
    """None where it was not measured."""
    vector: NDArray[np.float16]
    """`[dim]`"""


@dataclass(frozen=True)
class Hit:
    """A gist that a search found."""

    document: str
    level: int
    index: int
    start: int
    """The first token that it stands for."""
    stop: int
    """One more than the last."""
    score: float
    """The cosine of the angle to the query, -1 to 1."""


@dataclass(frozen=True)
class LevelInfo:
    """The gists of one level, all documents together."""

    gists: int
    bytes: int
    """Of the data files, as of this version."""


@dataclass(frozen=True)
class TreeInfo:
    """A summary of one version of a tree."""

    uri: str
    version: int
    """The generation: it rises with every write."""
    documents: int
    tokens: int
    token_bytes: int
    levels: list[LevelInfo]
    """From level 0 on."""
    gist_version: str
    """The fingerprint of the GistNet whose gists are read."""
    pending_version: str | None
    """The fingerprint of one that is to take its place, and whose gists are not complete."""
    teacher: TeacherFingerprint
    span_tokens: int
    """K: tokens to a gist of level 0, and gists of a level to one of the next."""
    dim: int
