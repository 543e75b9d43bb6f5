"""`GistTree`: the tokens of documents and their gists, level by level, in a local folder or an object store.

    with GistTree.create("my-tree", encoder) as tree:
        tree.append("text of any length")           # acknowledged when it returns
        document = tree.document("main")            # tokens and gists, for a context to be assembled from
        hits = tree.find("what was it about?")          # passages that share words with it

One process writes, any number read. What `append` returned for is there after `kill -9` of the writer, whenever it
came. On a local disk it should be there after a loss of power too: files are flushed before the catalog names them, and
the catalog before `append` returns (no plug was pulled to try it). A reader sees the generation that it opened, or last
refreshed to, and nothing of what is written meanwhile.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gistnet.errors import CheckpointError, ConfigError, DataError, GistNetError, StorageError, TeacherError
from gistnet.files import lock_for_writing
from gistnet.locks import FileLock
from gistnet.model.fingerprint import TeacherFingerprint
from gistnet.model.tokenizer import require_unicode
from gistnet.tree.encoder import Encoder, require_tokens
from gistnet.tree.passages import Detokenizer
from gistnet.tree.storage import catalog, maintenance
from gistnet.tree.storage import rows as layout
from gistnet.tree.storage.maintenance import VerifyReport
from gistnet.tree.storage.snapshot import AllDocuments, Found, Snapshot, TreeDocument
from gistnet.tree.storage.tables import Location
from gistnet.tree.storage.writing import Transaction, create_tree

MAIN = "main"
"""The document of a tree of one."""
COMPACT_EVERY = 64
"""Commits between two compactions, which come by themselves."""


@dataclass(frozen=True)
class LevelInfo:
    """The gists of one level, all documents together."""

    gists: int
    bytes: int
    """Size of the data files of this version."""


@dataclass(frozen=True)
class TreeInfo:
    """A summary of one version of a tree."""

    uri: str
    version: int
    """The generation: it rises with every write."""
    documents: int
    tokens: int
    token_bytes: int
    levels: list[LevelInfo]
    """From level 0 on."""
    index_bytes: int
    """Size of the passages that words are searched in, and of their index."""
    unindexed: int
    """Tokens that the index does not hold yet."""
    gist_version: str
    """The fingerprint of the GistNet whose gists are read."""
    pending_version: str | None
    """The fingerprint of one whose gists are being made to replace them, and are not complete."""
    teacher: TeacherFingerprint
    branchings: tuple[int, ...]
    """Branching of each level: tokens to a gist of level 0, then gists of a level to one of the next."""
    dim: int


class GistTree:
    """A tree at one generation, until `refresh`, open for reading, or for reading and writing. For one thread.

    Made by `create` and `open`.
    """

    def __init__(self, snapshot: Snapshot, encoder: Encoder | None, lock: FileLock | None, writable: bool) -> None:
        """Not for use: see `create` and `open`."""
        self._snapshot: Snapshot | None = snapshot
        self._encoder = encoder
        self._lock = lock
        self._writable = writable
        self._batch: Transaction | None = None
        self._behind = False  # whether a write failed, after which only the catalog knows what is true

    @staticmethod
    def exists(uri: str | Path, *, storage_options: dict[str, str] | None = None) -> bool:
        """True where there is a tree."""
        return catalog.exists(Location(str(uri), storage_options))

    @classmethod
    def create(cls, uri: str | Path, encoder: Encoder, *, storage_options: dict[str, str] | None = None) -> Self:
        """A new tree without documents, open for writing.

        Args:
            uri: a path, or a URI that Lance reads (`s3://`, `gs://`, `az://`, `file://`).
            encoder: the GistNet whose gists it is to hold.
            storage_options: what Lance needs to reach an object store.

        Raises:
            DataError: there is a tree already, or a folder with something else in it.
            StorageError: the location cannot be written.
        """
        snapshot, lock = create_tree(Location(str(uri), storage_options), encoder)
        return cls(snapshot, encoder, lock, writable=True)

    @classmethod
    def open(
        cls,
        uri: str | Path,
        encoder: Encoder | None = None,
        *,
        writable: bool = False,
        storage_options: dict[str, str] | None = None,
    ) -> Self:
        """A tree that is there. If it is opened for writing with an encoder, gists that are missing are made.

        Args:
            uri: as it was created.
            encoder: the GistNet that made the tree's gists: needed to make more, and for
                `verify` to make all of them again.
            writable: whether to write; one process at a time can.
            storage_options: what Lance needs to reach an object store.

        Raises:
            DataError: there is no tree, it is damaged, or it has another format.
            TeacherError: the encoder is for another language model.
            CheckpointError: the encoder is another GistNet than the tree's.
            StorageError: the location cannot be read or written, or another writer has it.
        """
        location = Location(str(uri), storage_options)
        snapshot = Snapshot.load(location, pinned=not writable)
        if encoder is not None:
            _require_encoder(snapshot, encoder)
        lock = lock_for_writing(location.folder, "tree") if writable and location.folder is not None else None
        tree = cls(snapshot, encoder, lock, writable)
        try:
            if writable:
                # What the writer before us did, after we looked and before it gave the lock back.
                tree._snapshot = Snapshot.load(location, tree._current, pinned=False)
            if writable and encoder is not None:
                _require_encoder(tree._current, encoder)
                tree._snapshot = maintenance.make_missing_gists(tree._current, encoder)
                if encoder.tokenizer is not None:
                    tree.index(encoder.tokenizer)
        except BaseException:
            tree.close()
            raise
        return tree

    @classmethod
    def open_or_create(
        cls, uri: str | Path, encoder: Encoder, *, storage_options: dict[str, str] | None = None
    ) -> Self:
        """The tree that is there, or a new one, open for writing; arguments and errors are those of both."""
        if cls.exists(uri, storage_options=storage_options):
            return cls.open(uri, encoder, writable=True, storage_options=storage_options)
        return cls.create(uri, encoder, storage_options=storage_options)

    def close(self) -> None:
        """Give up the lock, and the generation that was read. What was acknowledged needs no closing."""
        self._snapshot = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def refresh(self) -> None:
        """Go to the newest generation. Documents that were asked for before stay as they were."""
        self._snapshot = Snapshot.load(self._current.location, self._current)
        self._behind = False

    @property
    def folder(self) -> Path | None:
        """The local folder of the tree, or None for an object store."""
        return self._current.location.folder

    def documents(self) -> list[str]:
        """The names of the documents, in the order in which they began."""
        return list(self._current.catalog.documents)

    def document(self, name: str = MAIN) -> TreeDocument:
        """A document with its tokens, gists and nodes; it stays as it is now.

        Raises:
            DataError: there is no such document.
        """
        if self._writable and self._current.pin is None:
            self.refresh()  # pin the generation before handing out a document: old ones are cleaned away
        return TreeDocument(self._current, name)

    def only_document(self, name: str | None) -> TreeDocument:
        """The document of this name, or the only one where no name is given.

        Raises:
            ConfigError: there are several documents, or none, and no name.
            DataError: there is no document of this name.
        """
        names = self.documents()
        if name is None and not names:
            raise ConfigError(f"The tree {self._current.location.uri} is empty; `gistnet compress` adds documents.")
        if name is None and len(names) != 1:
            raise ConfigError(f"The tree has {len(names)} documents, expected --document to name one.")
        return self.document(names[0] if name is None else name)

    def all_documents(self) -> AllDocuments:
        """All documents as one, for a question that any of them may answer."""
        if self._writable and self._current.pin is None:
            self.refresh()  # as in `document`
        return AllDocuments(self._current)

    def find(self, query: str, k: int = 10, document: str | None = None) -> list[Found]:
        """The k passages that share words with a text and fit it best (BM25), best first, by the tree's index.

        Text that is not indexed is not found, see `TreeInfo.unindexed`.

        Args:
            query: words; common ones such as "the" do not count.
            k: how many to find; fewer where fewer share a word.
            document: to search only this one; by default all.

        Raises:
            DataError: the query is empty, there is no such document, or a passage found is damaged.
        """
        require_unicode(query, "a query")
        if not query.strip():
            raise DataError("Got an empty query, expected words to find.")
        if k < 1:
            raise DataError(f"Got k = {k}, expected 1 at least.")
        return self._current.find(query, k, document)

    def info(self) -> TreeInfo:
        """A summary."""
        snapshot = self._current
        state, counts = snapshot.catalog.state, snapshot.catalog.documents.values()
        version = snapshot.version
        tables = [snapshot.table(snapshot.gists_name(level)) for level in range(version.levels)]
        return TreeInfo(
            uri=snapshot.location.uri,
            version=snapshot.catalog.generation,
            documents=len(counts),
            tokens=sum(each.tokens for each in counts),
            token_bytes=snapshot.table(layout.TOKENS).n_bytes,
            levels=[LevelInfo(gists=table.n_rows, bytes=table.n_bytes) for table in tables],
            index_bytes=snapshot.table(layout.PASSAGES).n_bytes,
            unindexed=sum(each.tokens - each.indexed for each in counts),
            gist_version=version.fingerprint,
            pending_version=None if state.pending is None else state.pending.fingerprint,
            teacher=state.teacher,
            branchings=version.branchings,
            dim=version.dim,
        )

    def verify(self) -> VerifyReport:
        """Read everything and recompute every checksum; with an encoder, make every gist again and compare its bits.

        Gists have the same bits on one type of machine with one number of threads; elsewhere they may differ in the
        last bit, which the report then says.
        """
        return maintenance.verify(self._current, self._encoder)

    def append(self, tokens: str | Sequence[int] | NDArray[Any], document: str = MAIN, *, gists: bool = True) -> int:
        """Put tokens, or a text, at the end of a document, and make the gists that they complete.

        All of it is acknowledged when this returns, and none of it is there when it raises; so append what takes
        minutes to compress in pieces, which gives the same bits.

        A text continues what the document holds: what the tokenizer puts at the beginning of a text, such as a space,
        is put before the first one only. Tokens that are there stay, so a text in pieces has the tokens of the text
        in one if every cut is between two of those tokens: for nearly every tokenizer before the space in front of a
        word; mostly not within a word, among white space, or after the space.

        Args:
            tokens: ids, or a text that the teacher's tokenizer turns into ids.
            document: which; it begins with its first token.
            gists: False leaves gists to `add_gists`, or to the next time that the tree is opened with an encoder.

        Returns:
            The tokens that the document has now.

        Raises:
            DataError: the tokens are none of the vocabulary, or the text is not valid Unicode.
            ConfigError: gists are to be made, and the tree was opened without an encoder.
            StorageError: the system refused (full disk), or another writer was first.
        """
        _require_name(document)
        state = self._current.catalog.state
        with self._transaction() as transaction:
            there, span = transaction.document(document).n_tokens, state.active.branchings[0]
            ids = self._token_ids(tokens, state.vocabulary_size, continued=there > 0)
            if gists and there % span + len(ids) >= span:
                self._need_encoder("to make gists (or append with gists=False and add them)")
            return transaction.append(document, ids, self._encoder if gists else None)

    def remove(self, document: str = MAIN) -> None:
        """Remove a document: its tokens, gists, qualities and passages.

        Who has the tree open keeps it until `refresh`. Its space is free after the next `compact` that no such reader
        precedes.

        Raises:
            DataError: there is no such document.
            StorageError: the system refused, or another writer was first.
        """
        with self._transaction() as transaction:
            transaction.remove(document)

    def replace(self, tokens: str | Sequence[int] | NDArray[Any], document: str = MAIN, *, gists: bool = True) -> int:
        """Put other tokens, or another text, in the place of a document, in one step: none reads a mixture.

        Gists of the beginning that both have in common are kept; those behind it are made anew, so that the document
        is, bit for bit, the one that `append` would have made. Qualities are not kept.

        Args:
            tokens: as for `append`.
            document: which; it must be there.
            gists: as for `append`.

        Returns:
            The tokens at the beginning that stayed as they were.

        Raises:
            DataError: as `append`, or there is no such document.
            ConfigError: as `append`.
            StorageError: as `append`.
        """
        with self._transaction() as transaction:
            ids = self._token_ids(tokens, self._current.catalog.state.vocabulary_size)
            if gists and len(ids) >= self._current.version.branchings[0]:
                self._need_encoder("to make gists (or replace with gists=False and add them)")
            return transaction.replace(document, ids, self._encoder if gists else None)

    def add_gists(self, gists: NDArray[np.generic], level: int, document: str = MAIN) -> int:
        """Put gists that were made elsewhere, by the GistNet of this tree, at the end of a level.

        Their tokens, or the gists of the level below, must be there already.

        Args:
            gists: `[n, dim]`, stored as float16.
            level: of the gists.
            document: which.

        Returns:
            The gists that the level of the document has now.

        Raises:
            DataError: they are no gists of this tree, or more than the level below is enough for.
            StorageError: the system refused, or another writer was first.
        """
        with self._transaction() as transaction:
            pending = transaction.document(document)
            pending.add_gists(level, np.asarray(gists))
            return pending.n_gists[level]

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Acknowledge all appends and gists of a block together, when it ends: once for many documents.

        Until then they cannot be read. If the block raises, nothing of it is kept.

        Raises:
            StorageError: something within was added in part only (an encoder that failed), even if the block went on.
        """
        self._alone("a batch")
        with self._transaction() as transaction:
            self._batch = transaction
            try:
                yield
            finally:
                self._batch = None
            if transaction.failed:
                raise StorageError("An append of this batch failed after it began; nothing of the batch was kept.")

    def index(self, tokenizer: Detokenizer, *, rebuild: bool = False) -> None:
        """Index text that is not yet, so that it is found by its words.

        Appending with an encoder does it, and so does opening the tree for writing with one.

        Args:
            tokenizer: of the tree's teacher.
            rebuild: index all text anew, where `verify` found the index damaged.

        Raises:
            TeacherError: the tokenizer makes other text of the tree's tokens than the index has.
            StorageError: the system refused, or another writer was first.
        """
        self._alone("index")
        snapshot = self._fresh()
        with self._noticing_failure():
            index = maintenance.rebuild_passages if rebuild else maintenance.index_passages
            self._snapshot = index(snapshot, tokenizer)

    def reencode(self, encoder: Encoder) -> None:
        """Make all gists anew with another GistNet of the same teacher; readers keep those they have until `refresh`.

        Killed in the middle, the old gists stay, and calling this again continues. Afterwards the tree writes with
        this encoder.

        Raises:
            TeacherError: the encoder is for another language model.
            DataError: a gist cannot be made, or what it is made of is damaged.
            StorageError: the system refused, or another writer was first.
        """
        self._alone("reencode")
        snapshot = self._fresh()
        _require_encoder(snapshot, encoder, same_version=False)
        with self._noticing_failure():
            if encoder.info.fingerprint == snapshot.version.fingerprint:
                self._snapshot = maintenance.make_missing_gists(snapshot, encoder)
            else:
                self._snapshot = maintenance.reencode(snapshot, encoder)
        self._encoder = encoder

    def compact(self, bytes_per_file: int = maintenance.MANY_BYTES) -> None:
        """Put small appends together, and remove versions that nobody reads; by itself after every 64 commits.

        On a local disk, what a living reader has is kept. On an object store, where readers cannot be seen, a reader
        that does not refresh for a day loses what it reads.

        Raises:
            StorageError: the system refused, or another writer was first; what was acknowledged stays.
        """
        self._alone("compact")
        snapshot = self._fresh()
        with self._noticing_failure():
            self._snapshot = maintenance.compact(snapshot, bytes_per_file)

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        """Changes to be committed when the block ends, or with the batch that is open."""
        if self._batch is not None:
            yield self._batch
            return
        transaction = Transaction(self._fresh(), None if self._encoder is None else self._encoder.tokenizer)
        with self._noticing_failure():
            yield transaction
            self._snapshot = transaction.commit()
        generations = self._current.catalog.generation - self._current.catalog.state.compacted
        if generations >= COMPACT_EVERY:
            with suppress(GistNetError):  # what was appended is acknowledged; the next append tries again
                self.compact(maintenance.FEW_BYTES)

    @contextmanager
    def _noticing_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._behind = True
            raise

    def _fresh(self) -> Snapshot:
        """The generation to write after."""
        if not self._writable:
            raise ConfigError(f"The tree {self._current.location.uri} was opened for reading, expected writable=True.")
        if self._behind:
            self.refresh()
        return self._current

    def _alone(self, what: str) -> None:
        if self._batch is not None:
            raise ConfigError(f"Got {what} inside a batch, expected it after the batch has ended.")

    @property
    def _current(self) -> Snapshot:
        if self._snapshot is None:
            raise ConfigError("The tree was closed, expected an open one.")
        return self._snapshot

    def _need_encoder(self, purpose: str) -> Encoder:
        if self._encoder is None:
            raise ConfigError(f"The tree was opened without an encoder, expected one {purpose}.")
        return self._encoder

    def _token_ids(
        self, tokens: str | Sequence[int] | NDArray[Any], vocabulary_size: int, *, continued: bool = False
    ) -> NDArray[np.int64]:
        """Token ids `[n]` of ids or a text, which may continue another one."""
        if isinstance(tokens, str):
            require_unicode(tokens, "a text")
            tokens = self._need_encoder("to tokenise a text").tokenize(tokens, continued=continued)
        return require_tokens(tokens, vocabulary_size)


def _require_encoder(snapshot: Snapshot, encoder: Encoder, *, same_version: bool = True) -> None:
    """Refuse an encoder that cannot write to this tree, or that did not make its gists.

    Raises:
        TeacherError: it is for another language model.
        CheckpointError: it is another GistNet than the tree's, or its teacher has another precision, and `same_version`
            is asked for.
    """
    state, uri, info = snapshot.catalog.state, snapshot.location.uri, encoder.info
    if not state.teacher.same_model(info.teacher):
        raise TeacherError(
            f"The tree {uri} is for {state.teacher.describe()}; got a GistNet for {info.teacher.describe()}."
        )
    if same_version and state.active != info.version:
        raise CheckpointError(
            f"The gists of the tree {uri} were made by the GistNet {state.active.fingerprint} (teacher in "
            f"{state.teacher.precision}), got {info.fingerprint} (teacher in {info.teacher.precision}): "
            "open the tree without an encoder and call reencode to make them anew."
        )


def _require_name(document: str) -> None:
    """Refuse what cannot name a document: empty, not a text, or not valid Unicode."""
    if not isinstance(document, str) or not document:
        raise DataError(f"Got the document {document!r}, expected a name.")
    require_unicode(document, "a document's name")
    if "\0" in document:
        raise DataError(f"Got the document {document!r}, expected a name without NUL.")
