"""What a context is assembled from: the tokens of one document, and its gists, level by level."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gistnet.errors import DataError
from gistnet.model.fingerprint import TeacherFingerprint


class History(Protocol):
    """A document of a tree at one version, or a text that was compressed in memory."""

    @property
    def n_tokens(self) -> int:
        """Tokens of the document."""

    @property
    def span_tokens(self) -> int:
        """K: tokens to a gist of level 0, and gists of a level to one of the level above."""

    @property
    def levels(self) -> int:
        """How many levels there are; 0 where there are tokens only."""

    @property
    def positions(self) -> str:
        """The position policy that its gists were trained for (`gistnet.positions`)."""

    @property
    def teacher(self) -> TeacherFingerprint:
        """The language model whose tokens these are, and for which the gists were made."""

    def tokens(self, start: int, stop: int) -> NDArray[np.int64]:
        """Token ids `[stop - start]`.

        Raises:
            DataError: the range is not within the document.
        """

    def gists(self, level: int, start: int, stop: int) -> NDArray[np.float16]:
        """Gists `[stop - start, dim]` of a level, by their index; gist i stands for tokens i·K^(level+1) onwards.

        Raises:
            DataError: there is no such level, or the range is not within it.
        """


def tokens_per_gist(span_tokens: int, level: int) -> int:
    """How many tokens a gist of a level stands for: K^(level+1)."""
    return int(span_tokens ** (level + 1))


def count_gists(n_tokens: int, span_tokens: int, level: int) -> int:
    """How many gists of a level a document of `n_tokens` has: complete blocks only, the tail stays tokens."""
    return n_tokens // tokens_per_gist(span_tokens, level)


def require_range(start: int, stop: int, count: int, what: str) -> None:
    """Refuse a range that does not lie within 0 to `count`.

    Raises:
        DataError: it does not; names `what` is counted.
    """
    if not 0 <= start <= stop <= count:
        raise DataError(f"Got the range {start} to {stop} of {what}, expected one within 0 to {count}.")
