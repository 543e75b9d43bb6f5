"""A text compressed in memory: gists without a tree, for a text that is read once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gistnet.errors import DataError
from gistnet.model.fingerprint import TeacherFingerprint
from gistnet.tree.encoder import Encoder
from gistnet.tree.history import count_gists, require_range


@dataclass(frozen=True)
class InMemoryHistory:
    """A compressed text; what a document of a tree offers, too (`gistnet.tree.history.History`).

    Attributes:
        token_ids: int64 `[n_tokens]`.
        level_gists: float16 `[gists, dim]` of each level.
        span_tokens: K.
        positions: the position policy that the gists were trained for.
        teacher: the language model whose tokens these are.
    """

    token_ids: NDArray[np.int64]
    level_gists: tuple[NDArray[np.float16], ...]
    span_tokens: int
    positions: str
    teacher: TeacherFingerprint

    @property
    def n_tokens(self) -> int:
        """Tokens of the text."""
        return len(self.token_ids)

    @property
    def levels(self) -> int:
        """How many levels of gists there are."""
        return len(self.level_gists)

    def tokens(self, start: int, stop: int) -> NDArray[np.int64]:
        """Token ids `[stop - start]`.

        Raises:
            DataError: the range is not within the text.
        """
        require_range(start, stop, self.n_tokens, "tokens")
        return self.token_ids[start:stop]

    def gists(self, level: int, start: int, stop: int) -> NDArray[np.float16]:
        """Gists `[stop - start, dim]` of a level, by their index.

        Raises:
            DataError: there is no such level, or the range is not within it.
        """
        if not 0 <= level < self.levels:
            raise DataError(f"Got level {level}, expected one of the {self.levels} from 0 on.")
        require_range(start, stop, len(self.level_gists[level]), f"gists of level {level}")
        return self.level_gists[level][start:stop]


def compress(text: str | Sequence[int] | NDArray[np.integer], encoder: Encoder) -> InMemoryHistory:
    """The gists of all levels of a text, by the rules of a tree: of complete blocks only, the tail stays tokens.

    Args:
        text: a text, or its token ids.
        encoder: makes the gists; a level reads those below as they are stored, in float16.

    Raises:
        DataError: there is no text, or something that is no token id.
        TeacherError: a text for a teacher without a tokenizer.
    """
    tokens = encoder.tokenize(text) if isinstance(text, str) else _token_ids(text, encoder.info.vocabulary_size)
    if not len(tokens):
        raise DataError("Got an empty text to compress, expected one of at least one token.")
    span, levels = encoder.info.span_tokens, []
    below: NDArray[np.generic] = tokens
    for level in range(encoder.info.levels):
        count = count_gists(len(tokens), span, level)
        levels.append(encoder.encode(level, below[: count * span].reshape(count, span, *below.shape[1:]), 0))
        below = levels[-1]
    return InMemoryHistory(tokens, tuple(levels), span, encoder.info.positions, encoder.info.teacher)


def _token_ids(values: Sequence[int] | NDArray[np.integer], vocabulary_size: int) -> NDArray[np.int64]:
    tokens = np.asarray(values)
    if tokens.ndim != 1 or (len(tokens) and not np.issubdtype(tokens.dtype, np.integer)):
        raise DataError(f"Got token ids of shape {tokens.shape} and type {tokens.dtype}, expected whole numbers [n].")
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocabulary_size:
        raise DataError(
            f"Got token ids from {tokens.min()} to {tokens.max()}, expected ids from 0 to {vocabulary_size - 1}."
        )
    return tokens.astype(np.int64)
