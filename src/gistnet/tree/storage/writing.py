"""Writing to a tree: documents grow in memory, then their rows are written, then one catalog names them."""

import time
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gistnet.errors import DataError
from gistnet.files import WRITER_LOCK, lock_for_writing, storage_errors
from gistnet.locks import FileLock
from gistnet.tree.document import require_level
from gistnet.tree.encoder import Encoder, GistVersion, count_gists
from gistnet.tree.passages import Detokenizer, Passage, split_passages
from gistnet.tree.storage import catalog
from gistnet.tree.storage import rows as layout
from gistnet.tree.storage.catalog import FORMAT_VERSION, Counts, TableState, TreeState
from gistnet.tree.storage.snapshot import Snapshot, TreeDocument
from gistnet.tree.storage.tables import Location, Table

PORTION_GISTS = 512
"""Encoded at once."""
_OURS = {WRITER_LOCK, "readers", "tokens.lance", "passages.lance", "gists", "catalog.lance"}


def create_tree(location: Location, encoder: Encoder) -> tuple[Snapshot, FileLock | None]:
    """A tree without documents, and the lock on it. The catalog is written last: without it there is no tree.

    Raises:
        DataError: there is a tree already, or a folder with something else in it.
        StorageError: the location cannot be written, or somebody else is making a tree there.
    """
    info, version, folder, lock = encoder.info, encoder.info.version, location.folder, None
    if folder is not None:
        if folder.is_file():
            raise DataError(f"{folder} is a file, expected a folder for a tree, or one that is still to be made.")
        with storage_errors("create the tree", folder):
            folder.mkdir(parents=True, exist_ok=True)
            if strange := sorted({entry.name for entry in folder.iterdir()} - _OURS):
                raise DataError(f"{folder} has {strange[0]!r} in it, expected a new or empty folder for a tree.")
        lock = lock_for_writing(folder, "tree")
    try:
        if catalog.exists(location):
            raise DataError(f"{location.uri} is a tree already; open it, or create another one.")
        names = (layout.TOKENS, layout.PASSAGES)
        schemas = {name: layout.schema_of(name, version.dim) for name in names} | gist_schemas(version)
        state = TreeState(
            format=FORMAT_VERSION,
            teacher=info.teacher,
            vocabulary_size=info.vocabulary_size,
            active=version,
            pending=None,
            retired={},
            compacted=1,
            tables=create_tables(location, schemas, since=1),
        )
        return Snapshot(location, catalog.create(location, state)), lock
    except BaseException:
        if lock is not None:
            lock.close()
        raise


def gist_schemas(version: GistVersion) -> dict[str, pa.Schema]:
    """Columns of the tables of all levels of a version, by table."""
    schema = layout.gists_schema(version.dim)
    return {layout.gists_name(version.fingerprint, level): schema for level in range(version.levels)}


def create_tables(location: Location, schemas: dict[str, pa.Schema], since: int) -> dict[str, TableState]:
    """Tables without rows, to be named by the generation `since`."""
    tables = [Table.create(location, name, schema) for name, schema in schemas.items()]
    tables = [table.index_words("text", "document") if table.name == layout.PASSAGES else table for table in tables]
    location.flush(file for table in tables for file in table.files_since(None))
    return {table.name: TableState(version=table.version, n_rows=0, since=since) for table in tables}


def commit(snapshot: Snapshot, state: TreeState, documents: Mapping[str, Counts] | None = None) -> Snapshot:
    """Acknowledge a state of the tables, and return the generation that names it."""
    base = snapshot.catalog
    after = catalog.commit(snapshot.location, base, state, base.documents if documents is None else documents)
    return Snapshot(snapshot.location, after, earlier=snapshot)


class PendingDocument:
    """A document of a snapshot, perhaps a new one, with tokens and gists that are still to be written.

    Args:
        snapshot: of the tree.
        name: of the document.
        emptied: begin without what the snapshot has of it.
    """

    def __init__(self, snapshot: Snapshot, name: str, *, emptied: bool = False) -> None:
        self.name = name
        self._version = snapshot.version
        stored = not emptied and name in snapshot.catalog.documents
        self._document = TreeDocument(snapshot, name) if stored else None
        self._stored = snapshot.catalog.documents[name] if stored else Counts(0, (0,) * self._version.levels)
        self.n_tokens = self._stored.tokens
        self.n_gists = list(self._stored.gists)
        self.indexed, self.settled = self._stored.indexed, self._stored.settled
        self._tokens: list[NDArray[np.int64]] = []
        self._gists: list[list[NDArray[np.float16]]] = [[] for _ in self.n_gists]

    @property
    def counts(self) -> Counts:
        """Tokens and gists that the document will have."""
        return Counts(self.n_tokens, tuple(self.n_gists), self.indexed, self.settled)

    @property
    def changed(self) -> bool:
        """True where there is anything to be written."""
        return self.counts != self._stored

    def n_possible(self, level: int) -> int:
        """Number of gists of a level that can be made of the level below."""
        below = self.n_gists[level - 1] if level else self.n_tokens
        return below // self._version.branchings[level]

    def add_tokens(self, tokens: NDArray[np.int64]) -> None:
        """Put tokens at the end."""
        self._tokens.append(tokens)
        self.n_tokens += len(tokens)

    def add_gists(self, level: int, gists: NDArray[np.generic]) -> None:
        """Put gists `[n, dim]` at the end of a level.

        Raises:
            DataError: there is no such level, they are not gists, or too many for the level below.
        """
        require_level(level, self._version.levels)
        dim, most = self._version.dim, self.n_possible(level) - self.n_gists[level]
        if gists.ndim != 2 or gists.shape[1] != dim or gists.dtype.kind != "f":
            raise DataError(
                f"Got gists of shape {list(gists.shape)} and type {gists.dtype}, expected floats [n, {dim}]."
            )
        if len(gists) > most:
            below = f"gists of level {level - 1}" if level else "tokens"
            raise DataError(
                f"Got {len(gists)} gists of level {level} for {self.name!r}, expected {most} at most: "
                f"its {below} are enough for no more."
            )
        with np.errstate(over="ignore"):
            vectors = gists.astype(np.float16)
        if not np.isfinite(vectors).all():
            raise DataError(f"A gist of level {level} for {self.name!r} is not finite, expected entries below 65504.")
        self._gists[level].append(vectors)
        self.n_gists[level] += len(vectors)

    def make_gists(self, encoder: Encoder, at_most: int | None = None) -> int:
        """Make the gists that are missing, level by level, and return how many were made."""
        made = 0
        for level, branching in enumerate(self._version.branchings):
            while (missing := self.n_possible(level) - self.n_gists[level]) and made != at_most:
                first = self.n_gists[level]
                n = min(missing, PORTION_GISTS, missing if at_most is None else at_most - made)
                below = self._below(level, encoder.info.reads_from(level, first) * branching, (first + n) * branching)
                gists = encoder.encode(level, below.reshape(-1, branching, *below.shape[1:]), first)
                if len(gists) != n:
                    raise DataError(f"The encoder made {len(gists)} gists of {n} spans, expected one of each.")
                self.add_gists(level, gists)
                made += n
        return made

    def passage_rows(self, tokenizer: Detokenizer, at_most: int | None = None) -> pa.Table:
        """Rows of passages of text that is not indexed, and of the paragraph before it, whose rows they replace.

        Args:
            tokenizer: of the teacher.
            at_most: tokens to index; more stay unindexed.
        """
        start, stop = self.settled, self.n_tokens
        if at_most is not None:
            stop = min(stop, self.indexed + at_most)
        tokens = self._below(0, start, stop).astype(np.int64)
        passages = split_passages(tokens, tokenizer)
        texts = [tokenizer.decode(tokens[of.start : of.stop].tolist()) for of in passages]
        self.indexed, self.settled = stop, start + passages[-1].paragraph_start
        return layout.passage_rows(self.name, [Passage(*(start + bound for bound in of)) for of in passages], texts)

    def gist_rows(self, made: int) -> dict[str, pa.Table]:
        """Rows of the gists to be written, by table; `made` is the time in microseconds."""
        names = [layout.gists_name(self._version.fingerprint, level) for level in range(len(self.n_gists))]
        return {
            name: layout.gist_rows(name, self.name, first, np.concatenate(gists), made)
            for name, first, gists in zip(names, self._stored.gists, self._gists, strict=True)
            if gists
        }

    def _below(self, level: int, start: int, stop: int) -> NDArray[np.generic]:
        """Inputs of the gists of a level: tokens, or gists of the level below; stored ones, then new ones."""
        added: list[NDArray[np.generic]] = self._tokens if level == 0 else self._gists[level - 1]  # type: ignore[assignment]
        n_stored = self._stored.gists[level - 1] if level else self._stored.tokens
        parts: list[NDArray[np.generic]] = []
        if start < n_stored:
            assert self._document is not None
            parts.append(self._document.below(level, start, min(stop, n_stored)))
        if stop > n_stored:
            added[:] = [np.concatenate(added)]
            parts.append(added[0][max(start - n_stored, 0) : stop - n_stored])
        return np.concatenate(parts)


class Transaction:
    """Changes that one commit acknowledges together.

    Args:
        snapshot: to which they are made.
        tokenizer: makes passages of the documents that it changes; without it they stay to be indexed.
    """

    def __init__(self, snapshot: Snapshot, tokenizer: Detokenizer | None = None) -> None:
        self._snapshot = snapshot
        self._tokenizer = tokenizer
        self._pending: dict[str, PendingDocument] = {}
        self._removed: set[str] = set()
        self._deleted: dict[str, list[str]] = {}  # by table, what is true in rows that go before others come
        self._rows: dict[str, list[pa.Table]] = {}
        self.failed = False
        """Set once a change was added only in part, so that none must be committed."""

    def document(self, name: str) -> PendingDocument:
        """A document, with what this transaction has added so far."""
        if name not in self._pending:
            self._pending[name] = PendingDocument(self._snapshot, name)
        return self._pending[name]

    def remove(self, name: str) -> None:
        """Remove a document, with what this transaction has added to it; what comes after begins it anew.

        Raises:
            DataError: there is no such document.
        """
        if not self.document(name).n_tokens:
            TreeDocument(self._snapshot, name)  # refuses it, in the words of one that is not there
        if name in self._snapshot.catalog.documents:
            self._removed.add(name)
            for table in self._snapshot.catalog.state.tables:
                self._deleted.setdefault(table, []).append(layout.of_document(name))
        for table, pieces in self._rows.items():
            self._rows[table] = [rows for rows in pieces if rows["document"][0].as_py() != name]
        self._pending[name] = PendingDocument(self._snapshot, name, emptied=True)

    def replace(self, name: str, tokens: NDArray[np.int64], encoder: Encoder | None) -> int:
        """Put other tokens in the place of a stored document's; returns how many of its first ones stayed.

        Raises:
            DataError: there is no such document.
        """
        held, branchings = TreeDocument(self._snapshot, name), self._snapshot.version.branchings
        before = held.tokens(0, min(held.n_tokens, len(tokens)))
        common = int(np.append(before != tokens[: len(before)], True).argmax())
        counts = [min(made, count_gists(common, branchings, level)) for level, made in enumerate(held.n_gists)]
        kept = [held.gists(level, 0, count) for level, count in enumerate(counts)]
        self.remove(name)
        self.append(name, tokens[:common], None)
        for level, gists in enumerate(kept):
            if len(gists):
                self.document(name).add_gists(level, gists)
        self.append(name, tokens[common:], encoder)
        return common

    def append(self, name: str, tokens: NDArray[np.int64], encoder: Encoder | None) -> int:
        """Add tokens, and the gists that they complete if there is an encoder; returns the document's tokens then."""
        document = self.document(name)
        if len(tokens):
            self.add_rows(layout.TOKENS, layout.token_rows(name, document.n_tokens, tokens))
            document.add_tokens(tokens)
            if encoder is not None:
                try:
                    document.make_gists(encoder)
                except BaseException:
                    self.failed = True
                    raise
        return document.n_tokens

    def index(self, document: PendingDocument, tokenizer: Detokenizer, at_most: int | None = None) -> None:
        """Index text of a document that is not, `at_most` so many tokens of it."""
        if document.indexed < document.n_tokens:
            if document.settled < document.indexed:
                replaced = f"({layout.of_document(document.name)} AND start >= {document.settled})"
                self._deleted.setdefault(layout.PASSAGES, []).append(replaced)
            self.add_rows(layout.PASSAGES, document.passage_rows(tokenizer, at_most))

    def add_rows(self, table: str, rows: pa.Table) -> None:
        """Add rows of one document to a table."""
        self._rows.setdefault(table, []).append(rows)

    def write(self) -> dict[str, TableState]:
        """Write the rows to their tables, and return all tables' states; nothing counts until a catalog names them."""
        made = time.time_ns() // 1000
        for document in self._pending.values():
            for name, rows in document.gist_rows(made).items():
                self.add_rows(name, rows)
        states = dict(self._snapshot.catalog.state.tables)
        files = []
        for name in dict.fromkeys([*self._deleted, *self._rows]):
            before = after = self._snapshot.table(name)
            update: dict[str, int] = {}
            if gone := self._deleted.get(name):
                after = after.delete(" OR ".join(gone))
                if after.n_rows < before.n_rows:
                    update["since"] = self._snapshot.catalog.generation + 1
            if pieces := self._rows.get(name):
                after = after.append(pa.concat_tables(pieces))
                after = after.indexed() if name == layout.PASSAGES else after
            files += after.files_since(before)
            states[name] = states[name].model_copy(update={**update, "version": after.version, "n_rows": after.n_rows})
        self._snapshot.location.flush(files)
        return states

    def commit(self) -> Snapshot:
        """Write everything and acknowledge it. Without changes nothing is written."""
        if self._tokenizer is not None:
            for document in self._pending.values():
                self.index(document, self._tokenizer)
        changed = {name: document.counts for name, document in self._pending.items() if document.changed}
        if not self._rows and not self._deleted and not changed:
            return self._snapshot
        base = self._snapshot.catalog
        state = base.state.model_copy(update={"tables": self.write()})
        documents = {**base.documents, **changed}
        for name in self._removed - changed.keys():
            del documents[name]
        return commit(self._snapshot, state, documents)
