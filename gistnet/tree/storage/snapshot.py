"""One generation of a tree, to read: nothing that is written later shows in it."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from gistnet.errors import DataError
from gistnet.model.fingerprint import TeacherFingerprint
from gistnet.tree.encoder import GistVersion
from gistnet.tree.history import count_gists, require_range, tokens_per_gist
from gistnet.tree.node import Node, Qualities, Quality
from gistnet.tree.storage import rows as layout
from gistnet.tree.storage.catalog import Catalog, Counts
from gistnet.tree.storage.location import Location
from gistnet.tree.storage.lock import Pin
from gistnet.tree.storage.row_index import RowIndex
from gistnet.tree.storage.tables import Table

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KEY = {layout.TOKENS: "start"}  # of gists it is the index
_NodeKey = tuple[str, str, int]  # version, document, level
_Extents = list[tuple[int, int, int]]  # start, stop, row


class Snapshot:
    """Reads the tables as a generation of the catalog names them, and checks every row that it reads.

    Args:
        location: the root of the tree.
        catalog: the generation.
        pin: what keeps the generation from being cleaned, if anything does.
        earlier: of the same tree, whose handles and indices are taken over where they are still true.
    """

    def __init__(
        self, location: Location, catalog: Catalog, pin: Pin | None = None, earlier: "Snapshot | None" = None
    ) -> None:
        self.location = location
        self.catalog = catalog
        self.pin = pin
        self._tables: dict[str, Table] = {} if earlier is None else dict(earlier._tables)
        self._indices: dict[tuple[str, int], RowIndex] = {} if earlier is None else earlier._indices
        self._measured: dict[_NodeKey, _Extents] | None = None

    @property
    def version(self) -> GistVersion:
        """Whose gists are read."""
        return self.catalog.state.active

    def counts(self, document: str) -> Counts:
        """What a document has.

        Raises:
            DataError: there is no such document.
        """
        if document not in self.catalog.documents:
            raise DataError(f"Got the document {document!r}, expected one that is in the tree {self.location.uri}.")
        return self.catalog.documents[document]

    def require_level(self, level: int) -> None:
        """Refuse a level that the tree does not have.

        Raises:
            DataError: it does not.
        """
        if not 0 <= level < self.version.levels:
            raise DataError(f"Got level {level}, expected one of 0 to {self.version.levels - 1}.")

    def table(self, name: str) -> Table:
        """A table at this generation."""
        state = self.catalog.state.tables[name]
        table = self._tables.get(name)
        if table is None or table.version != state.version:
            table = Table.open(self.location, name, state.version)
            if table.n_rows != state.n_rows:
                raise DataError(f"{table.uri} has {table.n_rows} rows, expected the {state.n_rows} of the catalog.")
            if not table.schema.equals(layout.schema_of(name, self.version.dim)):
                raise DataError(f"{table.uri} has other columns than those of a tree, or is damaged.")
            self._tables[name] = table
        return table

    def index(self, name: str) -> RowIndex:
        """Which row of a table holds what; what was read of it before is not read again."""
        state = self.catalog.state.tables[name]
        index = self._indices.setdefault((name, state.since), RowIndex(name))
        if index.n_rows < state.n_rows:
            key = _KEY.get(name, "index")
            table = self.table(name).scan(["document", key], start=index.n_rows)
            index.extend(table.column("document"), table.column(key).to_numpy())
        return index

    def tokens(self, document: str, start: int, stop: int) -> NDArray[np.int64]:
        """Token ids `[stop - start]`.

        Raises:
            DataError: the range is not within the document, or a row is damaged.
        """
        require_range(start, stop, self.counts(document).tokens, f"tokens of {document!r}")
        if start == stop:
            return np.empty(0, dtype=np.int64)
        numbers = self.index(layout.TOKENS).rows(document, start, stop)
        table = self.table(layout.TOKENS).take(numbers, layout.TOKENS_SCHEMA.names)
        pieces = list(layout.read_token_rows(table))
        ends = [begin + len(piece) for _, begin, piece in pieces]
        expected = [pieces[0][1], *ends[:-1]]
        for (name, begin, _), wanted in zip(pieces, expected, strict=True):
            if name != document or begin != wanted:
                raise DataError(f"The table {layout.TOKENS} is damaged: no row has token {wanted} of {document!r}.")
        if pieces[0][1] > start or ends[-1] < stop:
            raise DataError(f"The table {layout.TOKENS} is damaged: it lacks tokens {start} to {stop} of {document!r}.")
        return np.concatenate([piece for _, _, piece in pieces])[start - pieces[0][1] : stop - pieces[0][1]]

    def gists(self, document: str, level: int, start: int, stop: int) -> NDArray[np.float16]:
        """Gists `[stop - start, dim]`.

        Raises:
            DataError: there is no such level, the range is not within it, or a row is damaged.
        """
        self.require_level(level)
        require_range(start, stop, self.counts(document).gists[level], f"gists of level {level} of {document!r}")
        if start == stop:
            return np.empty((0, self.version.dim), dtype=np.float16)
        index = self.index(layout.gists_name(self.version.fingerprint, level))
        return self._gist_rows(document, level, np.arange(start, stop), index.rows(document, start, stop)).vectors

    def nodes(self, document: str, level: int, indices: Sequence[int]) -> list[Node]:
        """Gists with all that is known of them.

        Raises:
            DataError: there is no such level, an index is not within it, or a row is damaged.
        """
        self.require_level(level)
        counts = self.counts(document)
        for index in indices:
            require_range(index, index + 1, counts.gists[level], f"gists of level {level} of {document!r}")
        if not len(indices):
            return []
        row_index = self.index(layout.gists_name(self.version.fingerprint, level))
        numbers = [row_index.row(document, index) for index in indices]
        found = self._gist_rows(document, level, np.array(indices), np.array(numbers))
        quality = self.quality(document, level, min(indices), max(indices) + 1)
        return [
            self._node(document, level, index, found, n, quality, index - min(indices))
            for n, index in enumerate(map(int, indices))
        ]

    def quality(self, document: str, level: int, start: int, stop: int) -> Qualities:
        """What the gists `start` to `stop` lose, where it was measured; of two measurements the later.

        Raises:
            DataError: there is no such level, the range is not within it, or a row is damaged.
        """
        self.require_level(level)
        require_range(start, stop, self.counts(document).gists[level], f"gists of level {level} of {document!r}")
        kl, delta_nll = (np.full(stop - start, np.nan, dtype=np.float32) for _ in range(2))
        extents = self._quality_extents().get((self.version.fingerprint, document, level), [])
        numbers = [row for begin, end, row in extents if begin < stop and end > start]
        if numbers:
            table = self.table(layout.QUALITY).take(numbers, layout.QUALITY_SCHEMA.names)
            for measured in layout.read_quality_rows(table):
                skipped = max(start - measured.start, 0)
                at = measured.start + skipped - start
                values = measured.kl[skipped : skipped + stop - start - at]
                kl[at : at + len(values)] = values
                delta_nll[at : at + len(values)] = measured.delta_nll[skipped : skipped + len(values)]
        return Qualities(kl, delta_nll)

    def _gist_rows(
        self, document: str, level: int, indices: NDArray[np.int64], numbers: NDArray[np.int64]
    ) -> layout.Gists:
        name = layout.gists_name(self.version.fingerprint, level)
        table = self.table(name).take(numbers, layout.gists_schema(self.version.dim).names)
        found = layout.read_gist_rows(name, table)
        if set(found.documents) != {document} or not np.array_equal(found.indices, indices):
            raise DataError(
                f"The table {name} is damaged: it lacks one of the gists {indices[0]} to {indices[-1]} of {document!r}."
            )
        return found

    def _node(
        self, document: str, level: int, index: int, found: layout.Gists, row: int, quality: Qualities, at: int
    ) -> Node:
        span = self.version.span_tokens
        per_gist = tokens_per_gist(span, level)
        counts = self.counts(document).gists
        parent = index // span
        return Node(
            document=document,
            level=level,
            index=index,
            start=index * per_gist,
            stop=(index + 1) * per_gist,
            parent=parent if level + 1 < len(counts) and parent < counts[level + 1] else None,
            children=range(index * span, (index + 1) * span) if level else range(0),
            gist_version=self.version.fingerprint,
            made=_EPOCH + timedelta(microseconds=int(found.made[row])),
            quality=None if np.isnan(quality.kl[at]) else Quality(float(quality.kl[at]), float(quality.delta_nll[at])),
            vector=found.vectors[row],
        )

    def _quality_extents(self) -> dict[_NodeKey, _Extents]:
        if self._measured is None:
            names = ["version", "document", "level", "start", "stop"]
            self._measured = defaultdict(list)
            for row, line in enumerate(self.table(layout.QUALITY).scan(names).to_pylist()):
                key = (line["version"], line["document"], line["level"])
                self._measured[key].append((line["start"], line["stop"], row))
        return self._measured


class Document:
    """A document of a tree at one generation: a `History`."""

    def __init__(self, snapshot: Snapshot, name: str) -> None:
        """Raises DataError if there is no such document."""
        self._snapshot = snapshot
        self._counts = snapshot.counts(name)
        self.name = name

    @property
    def n_tokens(self) -> int:
        """Tokens of the document."""
        return self._counts.tokens

    @property
    def span_tokens(self) -> int:
        """K: tokens to a gist of level 0, and gists of a level to one of the level above."""
        return self._snapshot.version.span_tokens

    @property
    def positions(self) -> str:
        """The position policy that the gists were trained for."""
        return self._snapshot.version.positions

    @property
    def teacher(self) -> TeacherFingerprint:
        """The language model that the tree is for."""
        return self._snapshot.catalog.state.teacher

    @property
    def levels(self) -> int:
        """How many levels are complete, counted from level 0; gists still to be made end the count."""
        for level, made in enumerate(self._counts.gists):
            if made < count_gists(self.n_tokens, self.span_tokens, level):
                return level
        return len(self._counts.gists)

    def tokens(self, start: int, stop: int) -> NDArray[np.int64]:
        """Token ids `[stop - start]`.

        Raises:
            DataError: the range is not within the document, or a row is damaged.
        """
        return self._snapshot.tokens(self.name, start, stop)

    def gists(self, level: int, start: int, stop: int) -> NDArray[np.float16]:
        """Gists `[stop - start, dim]` of a level, by their index; gist i stands for tokens i·K^(level+1) onwards.

        Raises:
            DataError: there is no such level, the range is not within it, or a row is damaged.
        """
        return self._snapshot.gists(self.name, level, start, stop)
