"""A compressed document: its tokens, and its gists level by level. Contexts are assembled from it.

`compress` makes one in memory, for a text that is read once; `GistTree.document` gives one that is kept on disk.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gistnet.errors import DataError
from gistnet.model.fingerprint import TeacherFingerprint
from gistnet.tree.encoder import Encoder, count_gists, encode_levels, require_tokens
from gistnet.tree.passages import Passage


class CompressedDocument(ABC):
    """Tokens and gists of one document, which stay as they are."""

    name: str
    n_tokens: int
    n_gists: tuple[int, ...]
    """Gists there are, by level; in a tree, some may still be missing."""
    branchings: tuple[int, ...]
    """Branching of each level: tokens to a gist of level 0, then gists of a level to one of the next."""
    positions: str
    """The position policy that its gists were trained for (`gistnet.positions`)."""
    longest_row: int
    """The most gists of level 0 in a row that training read; 0 where that is not known."""
    teacher: TeacherFingerprint
    """The language model whose tokens these are, and for which the gists were made."""

    def __repr__(self) -> str:
        """Kind, name and sizes."""
        gists = " and ".join(f"{n:,}" for n in self.n_gists) or "no"
        return f"<{type(self).__name__} {self.name!r}: {self.n_tokens:,} tokens, {gists} gists>"

    @property
    def levels(self) -> int:
        """Number of complete levels, counted from level 0; 0 where there are tokens only."""
        for level, made in enumerate(self.n_gists):
            if made < count_gists(self.n_tokens, self.branchings, level):
                return level
        return len(self.n_gists)

    def tokens(self, start: int, stop: int) -> NDArray[np.int64]:
        """Token ids `[stop - start]`.

        Raises:
            DataError: the range is not within the document, or what is stored is damaged.
        """
        require_range(start, stop, self.n_tokens, f"tokens of {self.name!r}")
        return self._read_tokens(start, stop)

    def gists(self, level: int, start: int, stop: int) -> NDArray[np.float16]:
        """Gists `[stop - start, dim]` of a level, by their index; gist i stands for the tokens from
        i · `tokens_per_gist` on.

        Raises:
            DataError: there is no such level, the range is not within it, or what is stored is damaged.
        """
        self.require_gists(level, start, stop)
        return self._read_gists(level, start, stop)

    @property
    def goes_on(self) -> bool:
        """True where a prompt follows the end of the document, so that its last tokens are recent text."""
        return True

    def label(self, start: int, stop: int) -> str:
        """A range of tokens in words."""
        return f"{start:,}–{stop:,}"

    def find(self, query: str, k: int) -> list[tuple[Passage, float]] | None:
        """The k passages that share words with a query and fit it best, with their scores, best first.

        None where no index is kept, as in memory: then it takes reading all of the document.
        """
        return None

    def require_gists(self, level: int, start: int, stop: int) -> None:
        """Refuse a range of gists that are not there.

        Raises:
            DataError: there is no such level, or the range is not within it.
        """
        require_level(level, len(self.n_gists))
        require_range(start, stop, self.n_gists[level], f"gists of level {level} of {self.name!r}")

    @abstractmethod
    def _read_tokens(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens of a range that is within the document."""

    @abstractmethod
    def _read_gists(self, level: int, start: int, stop: int) -> NDArray[np.float16]:
        """Gists of a range that is within the level."""


@dataclass(eq=False, repr=False)
class InMemoryDocument(CompressedDocument):
    """A text compressed in memory.

    Attributes:
        token_ids: int64 `[n_tokens]`.
        level_gists: float16 `[gists, dim]` of each level.
        branchings: of each level.
        positions: the position policy that the gists were trained for.
        teacher: the language model whose tokens these are.
        longest_row: the most gists of level 0 in a row that training read; 0 where that is not known.
    """

    token_ids: NDArray[np.int64]
    level_gists: tuple[NDArray[np.float16], ...]
    branchings: tuple[int, ...]
    positions: str
    teacher: TeacherFingerprint
    name: str = "text"
    longest_row: int = 0

    def __post_init__(self) -> None:
        self.n_tokens, self.n_gists = len(self.token_ids), tuple(map(len, self.level_gists))

    def _read_tokens(self, start: int, stop: int) -> NDArray[np.int64]:
        return self.token_ids[start:stop]

    def _read_gists(self, level: int, start: int, stop: int) -> NDArray[np.float16]:
        return self.level_gists[level][start:stop]


def compress(
    text: str | Sequence[int] | NDArray[np.integer], encoder: Encoder, *, levels: int | None = None
) -> InMemoryDocument:
    """Gists of all levels of a text, by the rules of a tree: of complete blocks only, the tail stays tokens.

    Args:
        text: a text, or its token ids.
        encoder: makes the gists; a level reads those below as they are stored, in float16.
        levels: how many to make; None for all of the encoder's.

    Raises:
        DataError: there is no text, or something that is no token id.
        TeacherError: a text for a teacher without a tokenizer.
    """
    info = encoder.info
    tokens = encoder.tokenize(text) if isinstance(text, str) else require_tokens(text, info.vocabulary_size)
    if not len(tokens):
        raise DataError("Got an empty text to compress, expected one of at least one token.")
    gists = tuple(encode_levels(encoder, tokens, levels=levels))
    return InMemoryDocument(tokens, gists, info.branchings, info.positions, info.teacher, longest_row=info.longest_row)


def require_level(level: int, levels: int) -> None:
    """Refuse a level that there is not.

    Raises:
        DataError: it is none of 0 to `levels` - 1.
    """
    if not 0 <= level < levels:
        expected = f"one of 0 to {levels - 1}" if levels else "none: there are no gists"
        raise DataError(f"Got level {level}, expected {expected}.")


def require_range(start: int, stop: int, count: int, what: str) -> None:
    """Refuse a range that does not lie within 0 to `count`.

    Raises:
        DataError: it does not; names `what` is counted.
    """
    if not 0 <= start <= stop <= count:
        raise DataError(f"Got the range {start} to {stop} of {what}, expected one within 0 to {count}.")
