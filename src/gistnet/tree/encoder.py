"""Encoders: token ids of a text, and gists of spans, level by level. A tree needs no more of a GistNet.

Nothing here imports torch, so that a tree can be read, verified and searched without it.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gistnet.errors import DataError
from gistnet.model.fingerprint import TeacherFingerprint
from gistnet.settings import Branching, Section
from gistnet.tree.passages import Detokenizer

_NO_TOKENS = np.empty(0, dtype=np.int64)


class GistVersion(Section):
    """Record of the GistNet that made a set of gists; a tree keeps one for the gists that are read."""

    fingerprint: str = Field(pattern="^[0-9A-Za-z]+$")
    """Hash of the weights of all levels; tables are named by it."""
    branchings: tuple[Branching, ...] = Field(min_length=1)
    """Branching of each level: tokens to a gist of level 0, then gists of a level to one of the next."""
    dim: int
    positions: str
    """The position policy that it was trained for (`gistnet.positions`)."""
    longest_row: int = 0
    """The most gists of level 0 in a row that its training read; 0 where that is not known."""

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.branchings)


class EncoderInfo(GistVersion):
    """Description of an encoder: all but its weights and its tokenizer."""

    teacher: TeacherFingerprint
    """The language model whose tokens it reads and for which its gists are made."""
    vocabulary_size: int
    """Every token id is below it."""
    read_together: int = 1
    """Spans of level 0 that are read in one window, from a multiple of this number on; 1 where each is read alone."""
    read_before: int = 0
    """Spans that are read before them in the window."""

    @property
    def version(self) -> GistVersion:
        """The part that a tree keeps with its gists."""
        return GistVersion(**self.model_dump(include=set(GistVersion.model_fields)))

    def reads_from(self, level: int, first: int) -> int:
        """The index of the first span that `encode` must be given for the gists from `first` on.

        It is `first` itself, or an earlier one where gists are made of what precedes their spans, too.
        """
        return first if level else max(0, first - first % self.read_together - self.read_before)


class Encoder(Protocol):
    """Makes the gists of a tree. `GistEncoder` is one, of a GistNet of several levels."""

    @property
    def info(self) -> EncoderInfo:
        """Fingerprint, shape and teacher; constant."""

    @property
    def tokenizer(self) -> Detokenizer | None:
        """The teacher's, which tells the text of tokens; None where there is none, and so no search by words."""

    def tokenize(self, text: str, *, continued: bool = False) -> NDArray[np.int64]:
        """Token ids of a text, without BOS and EOS; `continued`: the text follows another one."""

    def encode(self, level: int, spans: NDArray[np.generic], first: int) -> NDArray[np.float16]:
        """Gists `[n, dim]` of consecutive spans of a document.

        A gist must depend, to the bit, on the spans from `info.reads_from(level, index)` to its own and on its index
        alone, not on how many are asked for at once: an encoder that computes in batches puts span i always in row
        `i % batch` of a batch of fixed size.

        Args:
            level: of the gists to make.
            spans: for level 0 token ids, int64 `[spans, K]`; above, gists of the level below, float16
                `[spans, K, dim]`; K is the branching of the level. The first of them is span
                `info.reads_from(level, first)` of its document and level.
            first: the index of the first gist to make; there is one for it and for each of the spans after it.
        """


def tokens_per_gist(branchings: Sequence[int], level: int) -> int:
    """Number of tokens that a gist of a level stands for: the product of the branchings up to it; 1 for level -1.

    Raises:
        DataError: there is no such level.
    """
    if not -1 <= level < len(branchings):
        raise DataError(f"Got level {level}, expected one below {len(branchings)}, the number of levels.")
    return prod(branchings[: level + 1])


def count_gists(n_tokens: int, branchings: Sequence[int], level: int) -> int:
    """Number of gists of a level of `n_tokens`: complete blocks only, the tail stays tokens."""
    return n_tokens // tokens_per_gist(branchings, level)


def encode_levels(
    encoder: Encoder,
    tokens: NDArray[np.int64],
    *,
    levels: int | None = None,
    start: int = 0,
    before: NDArray[np.int64] = _NO_TOKENS,
) -> list[NDArray[np.float16]]:
    """Gists `[n, dim]` of each level of consecutive tokens, from level 0 on, of complete blocks only.

    Args:
        levels: how many levels to make; None for all of the encoder's.
        start: the index of the first token in its document. Levels end where no block begins at it.
        before: the tokens that precede it, as far back as gists of level 0 read; too few end the levels.
    """
    info, gists = encoder.info, []
    below: NDArray[np.generic] = tokens
    preceding: NDArray[np.generic] = before
    for level, branching in enumerate(info.branchings[:levels]):
        count = len(below) // branching
        first, within = divmod(start, tokens_per_gist(info.branchings, level))
        if within or len(preceding) != (first - info.reads_from(level, first)) * branching:
            break
        if count:
            spans = np.concatenate([preceding, below[: count * branching]])
            made = encoder.encode(level, spans.reshape(-1, branching, *below.shape[1:]), first)
        else:
            made = np.empty((0, info.dim), dtype=np.float16)
        gists.append(made)
        below, preceding = made, made[:0]
    return gists


def require_tokens(values: Sequence[int] | NDArray[Any], vocabulary_size: int) -> NDArray[np.int64]:
    """Token ids as int64 `[n]`.

    Raises:
        DataError: they are no ids of the vocabulary.
    """
    ids = np.asarray(values)
    if ids.size == 0 and ids.ndim == 1:
        return _NO_TOKENS
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise DataError(
            f"Got tokens of shape {list(ids.shape)} and type {ids.dtype}, expected the ids of one text, integers [n]."
        )
    outside = np.flatnonzero((ids < 0) | (ids >= vocabulary_size))
    if len(outside):
        raise DataError(f"Got the token {ids[outside[0]]} at {outside[0]}, expected ids 0 to {vocabulary_size - 1}.")
    return ids.astype(np.int64)
