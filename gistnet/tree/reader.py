"""What can be read of a tree, by its writer and by anybody else."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from gistnet.errors import ConfigError
from gistnet.tree.encoder import Encoder
from gistnet.tree.node import Hit, LevelInfo, Node, Qualities, TreeInfo
from gistnet.tree.storage import rows as layout
from gistnet.tree.storage import search, verify
from gistnet.tree.storage.inputs import tokens_of
from gistnet.tree.storage.opening import load
from gistnet.tree.storage.snapshot import Document, Snapshot

MAIN = "main"
"""The document of a tree of one."""


class TreeReader:
    """A tree at one generation, until `refresh`. For one thread."""

    def __init__(self, snapshot: Snapshot, encoder: Encoder | None) -> None:
        self._snapshot: Snapshot | None = snapshot
        self._encoder = encoder

    def close(self) -> None:
        """Give up the generation that was read."""
        self._snapshot = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def refresh(self) -> None:
        """Go to the newest generation. Documents that were asked for before stay where they are."""
        self._snapshot = load(self._current.location, self._current)

    @property
    def folder(self) -> Path | None:
        """The local folder of the tree, or None for an object store."""
        return self._current.location.folder

    def documents(self) -> list[str]:
        """The names of the documents, in the order in which they began."""
        return list(self._current.catalog.documents)

    def document(self, name: str = MAIN) -> Document:
        """A document, for a context to be assembled from; it stays as it is now.

        Raises:
            DataError: there is no such document.
        """
        return Document(self._current, name)

    def tokens(self, start: int, stop: int, document: str = MAIN) -> NDArray[np.int64]:
        """Token ids `[stop - start]`.

        Raises:
            DataError: there is no such document, the range is not within it, or a row is damaged.
        """
        return self._current.tokens(document, start, stop)

    def gists(self, level: int, start: int, stop: int, document: str = MAIN) -> NDArray[np.float16]:
        """Gists `[stop - start, dim]` of a level, by their index; gist i stands for tokens i·K^(level+1) onwards.

        Raises:
            DataError: there is no such document or level, the range is not within it, or a row is damaged.
        """
        return self._current.gists(document, level, start, stop)

    def node(self, level: int, index: int, document: str = MAIN) -> Node:
        """A gist with all that is known of it.

        Raises:
            DataError: there is no such document, level or gist, or a row is damaged.
        """
        return self._current.nodes(document, level, [index])[0]

    def nodes(self, level: int, indices: Sequence[int], document: str = MAIN) -> list[Node]:
        """Many nodes at the cost of a few, in the order asked for; raises as `node` does."""
        return self._current.nodes(document, level, list(indices))

    def quality(self, document: str, level: int, start: int, stop: int) -> Qualities:
        """What the gists `start` to `stop` of a level lose, NaN where it was not measured.

        Raises:
            DataError: there is no such document or level, the range is not within it, or a row is damaged.
        """
        return self._current.quality(document, level, start, stop)

    def search(
        self, query: str | NDArray[np.generic], level: int = 0, k: int = 10, document: str | None = None
    ) -> list[Hit]:
        """The k gists of a level that are nearest to a vector `[dim]` or a text, by cosine, best first.

        A text is turned into gists of the level; a short one is repeated until it fills a span.

        Args:
            query: a vector, several `[n, dim]` (a gist counts by the nearest of them), or a text.
            level: whose gists are searched.
            k: how many to find; fewer where there are fewer.
            document: to search only this one; by default all.

        Raises:
            DataError: there is no such level or document, or the query is no direction, or a gist found is damaged.
            ConfigError: the query is a text, and the tree was opened without an encoder.
        """
        if isinstance(query, str):
            self._current.require_level(level)
            encoder = self._need_encoder("to search for a text")
            query = search.gists_of_text(encoder, tokens_of(query, encoder.info.vocabulary_size, encoder), level)
        return search.nearest_gists(self._current, query, level, k, document)

    def info(self) -> TreeInfo:
        """A summary."""
        snapshot = self._current
        state, counts = snapshot.catalog.state, snapshot.catalog.documents.values()
        version = snapshot.version
        tables = [snapshot.table(layout.gists_name(version.fingerprint, level)) for level in range(version.levels)]
        return TreeInfo(
            uri=snapshot.location.uri,
            version=snapshot.catalog.generation,
            documents=len(counts),
            tokens=sum(each.tokens for each in counts),
            token_bytes=snapshot.table(layout.TOKENS).n_bytes,
            levels=[LevelInfo(gists=table.n_rows, bytes=table.n_bytes) for table in tables],
            gist_version=version.fingerprint,
            pending_version=None if state.pending is None else state.pending.fingerprint,
            teacher=state.teacher,
            span_tokens=version.span_tokens,
            dim=version.dim,
        )

    def verify(self) -> verify.VerifyReport:
        """Read everything and recompute every checksum; with an encoder, make every gist again and compare its bits.

        Gists have the same bits on one type of machine with one number of threads; elsewhere they may differ in the
        last bit, which the report then says.
        """
        return verify.verify(self._current, self._encoder)

    @property
    def _current(self) -> Snapshot:
        if self._snapshot is None:
            raise ConfigError("The tree was closed, expected an open one.")
        return self._snapshot

    def _need_encoder(self, purpose: str) -> Encoder:
        if self._encoder is None:
            raise ConfigError(f"The tree was opened without an encoder, expected one {purpose}.")
        return self._encoder
