"""What a tree needs of a GistNet: gists of spans, level by level, the same bits whatever the portions.

Nothing here imports torch, so that a tree can be read, verified and searched without it.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gistnet.model.fingerprint import TeacherFingerprint


class Encoder(Protocol):
    """Makes the gists of a tree. A GistNet of several levels is one, `StubEncoder` another."""

    @property
    def fingerprint(self) -> str:
        """Names the weights of all levels; the `gist_version` of what it makes. Letters and digits only."""

    @property
    def teacher(self) -> TeacherFingerprint:
        """The language model whose tokens it reads and for which its gists are made."""

    @property
    def vocabulary_size(self) -> int:
        """Every token id is below it."""

    @property
    def span_tokens(self) -> int:
        """K: tokens to a gist of level 0, and gists of a level to one of the level above."""

    @property
    def levels(self) -> int:
        """How many levels it makes, 1 at least; a gist of level n stands for K^(n+1) tokens."""

    @property
    def dim(self) -> int:
        """The dimension of a gist."""

    @property
    def positions(self) -> str:
        """The position policy that its gists were trained for (`gistnet.positions`)."""

    def tokenize(self, text: str, *, continued: bool = False) -> NDArray[np.int64]:
        """Token ids of a text, without BOS and EOS; `continued`: the text follows another one."""

    def reads_from(self, level: int, first: int) -> int:
        """The index of the first span that `encode` must be given for the gists from `first` on: `first` itself, or an
        earlier one where gists are made of what precedes their spans, too. It never falls as `first` grows."""

    def encode(self, level: int, spans: NDArray[np.generic], first: int) -> NDArray[np.float16]:
        """Gists `[n, dim]` of consecutive spans of a document.

        A gist must depend, to the bit, on the spans from `reads_from(level, index)` to its own and on its index alone,
        not on how many are asked for at once: whoever computes in batches puts span i always in row `i % batch` of a
        batch of fixed size.

        Args:
            level: of the gists to make.
            spans: for level 0 token ids, int64 `[spans, K]`; above, gists of the level below, float16
                `[spans, K, dim]`. The first of them is span `reads_from(level, first)` of its document and level.
            first: the index of the first gist to make; there is one for it and for each of the spans after it.
        """
