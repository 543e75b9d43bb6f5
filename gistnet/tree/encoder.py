"""What a tree needs of a GistNet: gists of spans, level by level, the same bits whatever the portions.

Nothing here imports torch, so that a tree can be read, verified and searched without it.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gistnet.model.fingerprint import TeacherFingerprint
from gistnet.settings import Section


class GistVersion(Section):
    """Record of the GistNet that made a set of gists; a tree keeps one for the gists that are read."""

    fingerprint: str = Field(pattern="^[0-9A-Za-z]+$")
    """Of the weights of all levels; tables are named by it."""
    span_tokens: int
    """K: tokens to a gist of level 0, and gists of a level to one of the next."""
    levels: int
    """1 at least; a gist of level n stands for K^(n+1) tokens."""
    dim: int
    positions: str
    """The position policy that it was trained for (`gistnet.positions`)."""


class EncoderInfo(GistVersion):
    """Description of an encoder: all but its weights and its tokenizer. It can be sent to another process."""

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
    """Makes the gists of a tree. A GistNet of several levels is one, `StubEncoder` another."""

    @property
    def info(self) -> EncoderInfo:
        """Fingerprint, shape and teacher; the same at every call."""

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
                `[spans, K, dim]`. The first of them is span `info.reads_from(level, first)` of its document and level.
            first: the index of the first gist to make; there is one for it and for each of the spans after it.
        """
