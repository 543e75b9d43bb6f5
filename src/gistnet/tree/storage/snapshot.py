"""One generation of a tree, to read: nothing that is written later shows in it."""

import difflib
import io
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_safetensors

from gistnet.errors import ConfigError, DataError
from gistnet.files import write_bytes
from gistnet.tree.document import CompressedDocument
from gistnet.tree.encoder import GistVersion, count_gists, tokens_per_gist
from gistnet.tree.passages import Passage
from gistnet.tree.storage import catalog as catalogs
from gistnet.tree.storage import rows as layout
from gistnet.tree.storage.catalog import Catalog, Pin
from gistnet.tree.storage.rows import RowIndex
from gistnet.tree.storage.tables import Location, Table

logger = logging.getLogger(__name__)

EXPORT_SUFFIXES = (".npy", ".safetensors")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KEY = {layout.TOKENS: "start"}  # of gists it is the index


@dataclass(frozen=True, eq=False)
class Node:
    """A gist, what it stands for, and where it came from."""

    document: str
    level: int
    index: int
    """Among the gists of its document and level."""
    start: int
    """The first token that it stands for."""
    stop: int
    """One more than the last."""
    parent: int | None
    """The index of the gist above, or None while there is none."""
    children: range
    """The indices of the gists that it was made of, one level below; empty at level 0, which is made of tokens."""
    gist_version: str
    """The fingerprint of the GistNet that made it."""
    made: datetime
    vector: NDArray[np.float16]
    """`[dim]`"""


class Found(NamedTuple):
    """A passage that shares words with a query."""

    document: str
    passage: Passage
    text: str
    score: float
    """BM25 of its words among all passages of the tree."""


class Snapshot:
    """Tables as a generation of the catalog names them.

    Args:
        location: the root of the tree.
        catalog: the generation.
        pin: keeps the generation from being cleaned, where that is possible.
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
        for name, since in list(self._indices):  # of rows that were renumbered since
            if (state := catalog.state.tables.get(name)) is None or state.since != since:
                del self._indices[name, since]

    @classmethod
    def load(cls, location: Location, earlier: "Snapshot | None" = None, *, pinned: bool = True) -> "Snapshot":
        """The newest generation, kept from being cleaned as long as it is read, where the location allows that.

        Args:
            location: the root of the tree.
            earlier: as above.
            pinned: False where nobody but ourselves could clean it, as for the one who writes.

        Raises:
            DataError: there is no tree, or it is damaged, or it has another format.
        """
        folder = location.folder
        if pinned and folder is not None and catalogs.exists(location):
            with suppress(OSError), catalogs.guard(folder, shared=True):  # a folder that we may only read has no pins
                newest = catalogs.read(location)
                return cls(location, newest, Pin(folder, newest.generation), earlier)
        return cls(location, catalogs.read(location), None, earlier)

    @property
    def version(self) -> GistVersion:
        """The GistNet whose gists are read."""
        return self.catalog.state.active

    def gists_name(self, level: int) -> str:
        """The name of the table of a level's gists."""
        return layout.gists_name(self.version.fingerprint, level)

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
        """Row numbers of a table by document and key; rows that were read before are not read again."""
        state = self.catalog.state.tables[name]
        index = self._indices.setdefault((name, state.since), RowIndex(name))
        if index.n_rows < state.n_rows:
            key = _KEY.get(name, "index")
            table = self.table(name).scan(["document", key], start=index.n_rows)
            index.extend(table.column("document"), table.column(key).to_numpy())
        return index

    def find(self, query: str, k: int, document: str | None) -> list[Found]:
        """The k passages that share words with a query and fit it best, best first.

        Raises:
            DataError: there is no such document, or a passage found is damaged.
        """
        if document is not None:
            TreeDocument(self, document)  # refuses one that is not there
        if not query.strip():
            return []
        where = None if document is None else layout.of_document(document)
        found = self.table(layout.PASSAGES).matching(query, k, where, layout.PASSAGES_SCHEMA.names)
        scores = found.column("_score").to_pylist()
        rows = layout.read_passage_rows(found.select(layout.PASSAGES_SCHEMA.names))
        hits = [Found(name, passage, text, score) for (name, passage, text), score in zip(rows, scores, strict=True)]
        return sorted(hits, key=lambda hit: (-hit.score, hit.document, hit.passage.start))


class TreeDocument(CompressedDocument):
    """A document of a tree at one generation. Every row that is read is checked.

    Raises:
        DataError: there is no such document.
    """

    def __init__(self, snapshot: Snapshot, name: str) -> None:
        catalog = snapshot.catalog
        if name not in catalog.documents:
            near = difflib.get_close_matches(name, catalog.documents, n=1, cutoff=0.5)
            meant = f" (did you mean {near[0]!r}?)" if near else "; `gistnet tree list` names them"
            raise DataError(
                f"Got the document {name!r}, expected one that is in the tree {snapshot.location.uri}{meant}."
            )
        self._snapshot = snapshot
        self.name = name
        counts = catalog.documents[name]
        self.n_tokens, self.n_gists, self.n_indexed = counts.tokens, counts.gists, counts.indexed
        version = snapshot.version
        self.branchings, self.positions, self.longest_row = version.branchings, version.positions, version.longest_row
        self.teacher = catalog.state.teacher

    @property
    def gist_version(self) -> str:
        """The fingerprint of the GistNet that made the gists."""
        return self._snapshot.version.fingerprint

    def find(self, query: str, k: int) -> list[tuple[Passage, float]] | None:
        """Passages that share words with a query, with their scores, best first; see `CompressedDocument.find`."""
        if self.n_indexed < self.n_tokens:
            logger.info(
                "Reading all of %r, since %s of its %s tokens are not in the tree's index; opening the tree for "
                "writing with its GistNet indexes them.",
                self.name,
                f"{self.n_tokens - self.n_indexed:,}",
                f"{self.n_tokens:,}",
            )
            return None
        return [(found.passage, found.score) for found in self._snapshot.find(query, k, self.name)]

    def below(self, level: int, start: int, stop: int) -> NDArray[np.generic]:
        """Inputs of the gists of a level: tokens for level 0, else gists of the level below."""
        return self.gists(level - 1, start, stop) if level else self.tokens(start, stop)

    def nodes(self, level: int, indices: Sequence[int]) -> list[Node]:
        """Gists with all that is known of them, in the order asked for; many cost as much as a few.

        Raises:
            DataError: there is no such level, an index is not within it, or a row is damaged.
        """
        for index in indices:
            self.require_gists(level, index, index + 1)
        if not len(indices):
            return []
        rows = self._snapshot.index(self._snapshot.gists_name(level))
        numbers = np.concatenate([rows.rows(self.name, index, index + 1) for index in indices])
        found = self._gist_rows(level, np.array(indices), numbers)
        branching, size = self.branchings[level], tokens_per_gist(self.branchings, level)
        has_above = level + 1 < len(self.n_gists)
        above, above_branching = (self.n_gists[level + 1], self.branchings[level + 1]) if has_above else (0, 1)
        return [
            Node(
                document=self.name,
                level=level,
                index=index,
                start=index * size,
                stop=(index + 1) * size,
                parent=index // above_branching if index // above_branching < above else None,
                children=range(index * branching, (index + 1) * branching) if level else range(0),
                gist_version=self.gist_version,
                made=_EPOCH + timedelta(microseconds=int(found.made[n])),
                vector=found.vectors[n],
            )
            for n, index in enumerate(map(int, indices))
        ]

    def export(self, path: Path, level: int | None = None, start: int = 0, stop: int | None = None) -> tuple[int, ...]:
        """Write a range of the tokens, int64 `[n]`, or of the gists of a level, float16 `[n, dim]`, atomically.

        Args:
            path: ends in `.npy` or `.safetensors`; the latter holds one tensor, `tokens` or `gists`, and as metadata
                the document, level, `tokens_per_gist`, range, teacher and `gist_version`.
            level: of the gists; None exports tokens.
            start: the first token or gist.
            stop: one more than the last; None is the end of the document.

        Returns:
            The shape of the array.

        Raises:
            ConfigError: the path has another ending.
            DataError: there is no such level, or the range is not within it.
            StorageError: the file cannot be written.
        """
        if path.suffix not in EXPORT_SUFFIXES:
            endings = " or ".join(EXPORT_SUFFIXES)
            raise ConfigError(f"Got {path.name}, expected a name that ends in {endings}.")
        if level is None:
            stop = self.n_tokens if stop is None else stop
            array: NDArray[np.generic] = self.tokens(start, stop)
        else:
            stop = count_gists(self.n_tokens, self.branchings, level) if stop is None else stop
            array = self.gists(level, start, stop)
        if path.suffix == ".npy":
            buffer = io.BytesIO()
            np.save(buffer, array)
            write_bytes(path, buffer.getvalue())
            return array.shape
        metadata = {"document": self.name, "start": str(start), "stop": str(stop)}
        metadata["teacher"] = self.teacher.model_dump_json()
        if level is not None:
            tokens = tokens_per_gist(self.branchings, level)
            metadata |= {"level": str(level), "tokens_per_gist": str(tokens), "gist_version": self.gist_version}
        write_bytes(path, save_safetensors({"tokens" if level is None else "gists": array}, metadata))
        return array.shape

    def _read_tokens(self, start: int, stop: int) -> NDArray[np.int64]:
        if start == stop:
            return np.empty(0, dtype=np.int64)
        numbers = self._snapshot.index(layout.TOKENS).rows(self.name, start, stop)
        table = self._snapshot.table(layout.TOKENS).take(numbers, layout.TOKENS_SCHEMA.names)
        pieces = list(layout.read_token_rows(table))
        ends = [begin + len(piece) for _, begin, piece in pieces]
        expected = [pieces[0][1], *ends[:-1]]
        damaged = f"The table {layout.TOKENS} is damaged"
        for (name, begin, _), wanted in zip(pieces, expected, strict=True):
            if name != self.name or begin != wanted:
                raise DataError(f"{damaged}: no row has token {wanted} of {self.name!r}.")
        if pieces[0][1] > start or ends[-1] < stop:
            raise DataError(f"{damaged}: it lacks tokens {start} to {stop} of {self.name!r}.")
        return np.concatenate([piece for _, _, piece in pieces])[start - pieces[0][1] : stop - pieces[0][1]]

    def _read_gists(self, level: int, start: int, stop: int) -> NDArray[np.float16]:
        if start == stop:
            return np.empty((0, self._snapshot.version.dim), dtype=np.float16)
        numbers = self._snapshot.index(self._snapshot.gists_name(level)).rows(self.name, start, stop)
        return self._gist_rows(level, np.arange(start, stop), numbers).vectors

    def _gist_rows(self, level: int, indices: NDArray[np.int64], numbers: NDArray[np.int64]) -> layout.Gists:
        name = self._snapshot.gists_name(level)
        table = self._snapshot.table(name).take(numbers, layout.gists_schema(self._snapshot.version.dim).names)
        found = layout.read_gist_rows(name, table)
        if set(found.documents) != {self.name} or not np.array_equal(found.indices, indices):
            lacking = f"one of the gists {indices[0]} to {indices[-1]} of {self.name!r}"
            raise DataError(f"The table {name} is damaged: it lacks {lacking}.")
        return found


class AllDocuments(CompressedDocument):
    """Documents of a tree at one generation as one, in the order of their names: their tokens, without gists.

    A prompt follows none of them, so there is no recent text.
    """

    name = "all documents"

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._documents = [TreeDocument(snapshot, name) for name in sorted(snapshot.catalog.documents)]
        self._starts = np.cumsum([0, *(document.n_tokens for document in self._documents)])
        self._number = {document.name: number for number, document in enumerate(self._documents)}
        self.n_tokens = int(self._starts[-1])
        self.n_gists, self.branchings, self.longest_row = (), (), 0
        self.positions, self.teacher = snapshot.version.positions, snapshot.catalog.state.teacher

    @property
    def goes_on(self) -> bool:
        """False."""
        return False

    def label(self, start: int, stop: int) -> str:
        """A range of tokens in words, with the documents it is of."""
        return ", ".join(f"{document.name} {own:,}–{end:,}" for document, own, end in self._parts(start, stop))

    def find(self, query: str, k: int) -> list[tuple[Passage, float]] | None:
        """Passages of any document, with their scores, best first; those that are not indexed are not found."""
        if unindexed := sum(document.n_tokens - document.n_indexed for document in self._documents):
            logger.warning(
                "%s tokens of the tree are not in its index and are not found; opening the tree for writing with its "
                "GistNet indexes them.",
                f"{unindexed:,}",
            )
        found = []
        for hit in self._snapshot.find(query, k, None):
            start = int(self._starts[self._number[hit.document]])
            found.append((Passage(*(start + bound for bound in hit.passage)), hit.score))
        return found

    def _parts(self, start: int, stop: int) -> list[tuple[TreeDocument, int, int]]:
        """The documents that a range is of, and its part of each."""
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        parts = []
        for document, begin in zip(self._documents[first:], self._starts[first:].tolist(), strict=False):
            if begin >= stop:
                break
            own, end = max(0, start - begin), min(document.n_tokens, stop - begin)
            if own < end:
                parts.append((document, own, end))
        return parts

    def _read_tokens(self, start: int, stop: int) -> NDArray[np.int64]:
        pieces = [document.tokens(own, end) for document, own, end in self._parts(start, stop)]
        return np.concatenate([np.empty(0, dtype=np.int64), *pieces])

    def _read_gists(self, level: int, start: int, stop: int) -> NDArray[np.float16]:
        return np.empty((0, self._snapshot.version.dim), dtype=np.float16)  # of no level
