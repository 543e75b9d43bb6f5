"""A document that grows: tokens at its end, and the gists that they complete, level by level."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gistnet.errors import DataError
from gistnet.tree.encoder import Encoder
from gistnet.tree.storage import rows as layout
from gistnet.tree.storage.catalog import Counts
from gistnet.tree.storage.snapshot import Snapshot

PORTION_GISTS = 512
"""Encoded at once."""


class Growth:
    """A document with what is to be added to it."""

    def __init__(self, snapshot: Snapshot, name: str) -> None:
        self.name = name
        self._snapshot = snapshot
        self._stored = snapshot.catalog.documents.get(name, Counts(0, (0,) * snapshot.version.levels))
        self.n_tokens = self._stored.tokens
        self.n_gists = list(self._stored.gists)
        self._tokens: list[NDArray[np.int64]] = []
        self._gists: list[list[NDArray[np.float16]]] = [[] for _ in self.n_gists]

    @property
    def changed(self) -> bool:
        """Whether there is anything to be added."""
        return self.counts != self._stored

    @property
    def counts(self) -> Counts:
        """What the document will have."""
        return Counts(self.n_tokens, tuple(self.n_gists))

    def n_possible(self, level: int) -> int:
        """How many gists of a level can be made of what there is of the level below."""
        below = self.n_gists[level - 1] if level else self.n_tokens
        return below // self._snapshot.version.span_tokens

    def add_tokens(self, tokens: NDArray[np.int64]) -> None:
        """Put tokens at the end."""
        self._tokens.append(tokens)
        self.n_tokens += len(tokens)

    def add_gists(self, level: int, gists: NDArray[np.generic]) -> None:
        """Put gists `[n, dim]` at the end of a level.

        Raises:
            DataError: they are not gists, or there is not yet enough of the level below for so many.
        """
        dim, room = self._snapshot.version.dim, self.n_possible(level) - self.n_gists[level]
        if gists.ndim != 2 or gists.shape[1] != dim or gists.dtype.kind != "f":
            raise DataError(
                f"Got gists of shape {list(gists.shape)} and type {gists.dtype}, expected floats [n, {dim}]."
            )
        if len(gists) > room:
            what = f"gists of level {level - 1}" if level else "tokens"
            raise DataError(
                f"Got {len(gists)} gists of level {level} for {self.name!r}, expected {room} at most: "
                f"its {what} are enough for no more."
            )
        with np.errstate(over="ignore"):
            vectors = gists.astype(np.float16)
        if not np.isfinite(vectors).all():
            raise DataError(f"A gist of level {level} for {self.name!r} is not finite, expected entries below 65504.")
        self._gists[level].append(vectors)
        self.n_gists[level] += len(vectors)

    def make_gists(self, encoder: Encoder, at_most: int | None = None) -> int:
        """Make the gists that are missing, level by level, and return how many were made."""
        span, made = self._snapshot.version.span_tokens, 0
        for level in range(len(self.n_gists)):
            while (missing := self.n_possible(level) - self.n_gists[level]) and made != at_most:
                first = self.n_gists[level]
                n = min(missing, PORTION_GISTS, missing if at_most is None else at_most - made)
                below = self._below(level, encoder.info.reads_from(level, first) * span, (first + n) * span)
                gists = encoder.encode(level, below.reshape(-1, span, *below.shape[1:]), first)
                if len(gists) != n:
                    raise DataError(f"The encoder made {len(gists)} gists of {n} spans, expected one of each.")
                self.add_gists(level, gists)
                made += n
        return made

    def gist_rows(self, made: int) -> dict[str, pa.Table]:
        """The rows of the gists to be added, by table; `made` is the time in microseconds."""
        version = self._snapshot.version.fingerprint
        names = [layout.gists_name(version, level) for level in range(len(self.n_gists))]
        return {
            name: layout.gist_rows(name, self.name, first, np.concatenate(gists), made)
            for name, first, gists in zip(names, self._stored.gists, self._gists, strict=True)
            if gists
        }

    def _below(self, level: int, start: int, stop: int) -> NDArray[np.generic]:
        """What gists of a level are made of: tokens, or gists of the level below."""
        added: list[NDArray[np.generic]] = self._tokens if level == 0 else self._gists[level - 1]  # type: ignore[assignment]
        n_stored = self._stored.gists[level - 1] if level else self._stored.tokens
        parts: list[NDArray[np.generic]] = []
        if start < n_stored and level:
            parts.append(self._snapshot.gists(self.name, level - 1, start, min(stop, n_stored)))
        elif start < n_stored:
            parts.append(self._snapshot.tokens(self.name, start, min(stop, n_stored)))
        if stop > n_stored:
            added[:] = [np.concatenate(added)]
            parts.append(added[0][max(start - n_stored, 0) : stop - n_stored])
        return np.concatenate(parts)
