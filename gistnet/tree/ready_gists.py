"""Gists that were made elsewhere, for a tree that is appended to here."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from gistnet.tree.encoder import Encoder
from gistnet.tree.history import tokens_per_gist


class ReadyGists:
    """An encoder that hands out gists that another one like it made, in another process, and makes the rest itself."""

    def __init__(self, encoder: Encoder) -> None:
        self.info, self.tokenize = encoder.info, encoder.tokenize
        self._encode = encoder.encode
        self._start = 0
        self._gists: Sequence[NDArray[np.float16]] = ()

    @contextmanager
    def supplied(self, start: int, gists: Sequence[NDArray[np.float16]]) -> Iterator[None]:
        """Inside the block, have gists `[n, dim]` of each level, from 0 on.

        Args:
            start: the token of the document at hand at which the first gist of every level begins.
        """
        self._start, self._gists = start, gists
        try:
            yield
        finally:
            self._gists = ()

    def encode(self, level: int, spans: NDArray[np.generic], first: int) -> NDArray[np.float16]:
        """The gists that were supplied, where all of these are among them; otherwise those of the encoder."""
        if level < len(self._gists):
            offset = first - self._start // tokens_per_gist(self.info.span_tokens, level)
            count = self.info.reads_from(level, first) + len(spans) - first
            if offset >= 0 and offset + count <= len(self._gists[level]):
                return self._gists[level][offset : offset + count]
        return self._encode(level, spans, first)
