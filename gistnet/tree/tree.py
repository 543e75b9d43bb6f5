"""`GistTree`: the tokens of documents and their gists, level by level, in a local folder or an object store.

    with GistTree.create("my-tree", encoder) as tree:
        tree.append("text of any length")           # acknowledged when it returns
        history = tree.document("main")             # tokens and gists, for a context to be assembled from
        hits = tree.search("what was it about?")

One process writes, any number read. What `append` returned for is there after `kill -9` of the writer, whenever it
came. On a local disk it should be there after a loss of power too: files are flushed before the catalog names them, and
the catalog before `append` returns (no plug was pulled to try it). A reader sees the generation that it opened, or last
refreshed to, and nothing of what is written meanwhile.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gistnet.errors import ConfigError, DataError, GistNetError, StorageError
from gistnet.files import lock_for_writing
from gistnet.locks import FileLock
from gistnet.tree.encoder import Encoder
from gistnet.tree.history import require_range
from gistnet.tree.reader import MAIN, TreeReader
from gistnet.tree.storage import catalog, compact, reencode
from gistnet.tree.storage import rows as layout
from gistnet.tree.storage.inputs import require_document, require_finite, tokens_of
from gistnet.tree.storage.location import Location
from gistnet.tree.storage.opening import create_tree, load, require_encoder
from gistnet.tree.storage.snapshot import Document, Snapshot
from gistnet.tree.storage.transaction import Transaction

COMPACT_EVERY = 64
"""Commits between two compactions, which come by themselves."""


class GistTree(TreeReader):
    """A tree, open for reading, or for reading and writing. Made by `create` and `open`; for one thread."""

    def __init__(self, snapshot: Snapshot, encoder: Encoder | None, lock: FileLock | None, writable: bool) -> None:
        """Not for use: see `create` and `open`."""
        super().__init__(snapshot, encoder)
        self._lock = lock
        self._writable = writable
        self._batch: Transaction | None = None
        self._behind = False  # whether a write failed, after which only the catalog knows what is true

    @staticmethod
    def exists(uri: str | Path, *, storage_options: dict[str, str] | None = None) -> bool:
        """Whether there is a tree."""
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
            StorageError: the place cannot be written.
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
            encoder: the GistNet that made the tree's gists: needed to make more, to search for a text, and for
                `verify` to make all of them again.
            writable: whether to write; one process at a time can.
            storage_options: what Lance needs to reach an object store.

        Raises:
            DataError: there is no tree, it is damaged, or it has another format.
            TeacherError: the encoder is for another language model.
            CheckpointError: the encoder is another GistNet than the tree's.
            StorageError: the place cannot be read or written, or another writer has it.
        """
        location = Location(str(uri), storage_options)
        snapshot = load(location, pinned=not writable)
        if encoder is not None:
            require_encoder(snapshot, encoder)
        lock = lock_for_writing(location.folder, "tree") if writable and location.folder is not None else None
        tree = cls(snapshot, encoder, lock, writable)
        try:
            if writable:
                # What the writer before us did, after we looked and before it gave the lock back.
                tree._snapshot = load(location, tree._current, pinned=False)
            if writable and encoder is not None:
                require_encoder(tree._current, encoder)
                tree._snapshot = reencode.make_missing_gists(tree._current, encoder)
        except BaseException:
            tree.close()
            raise
        return tree

    def close(self) -> None:
        """Give up the lock, and the generation that was read. What was acknowledged needs no closing."""
        super().close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def refresh(self) -> None:
        """Go to the newest generation. Documents that were asked for before stay where they are."""
        super().refresh()
        self._behind = False

    def document(self, name: str = MAIN) -> Document:
        """A document, for a context to be assembled from; it stays as it is now.

        Raises:
            DataError: there is no such document.
        """
        if self._writable and self._current.pin is None:
            self.refresh()  # what a writer wrote over is soon cleaned away; what it gave out must stay
        return super().document(name)

    def append(self, tokens: str | Sequence[int] | NDArray[Any], document: str = MAIN, *, gists: bool = True) -> int:
        """Put tokens, or a text, at the end of a document, and make the gists that they complete.

        All of it is acknowledged when this returns, and none of it is there when it raises; so append what takes
        minutes to compress in pieces, which gives the same bits.

        A text continues what the document holds: what the tokenizer puts at the beginning of a text, such as a space,
        is put before the first one only. Tokens that are there stay, so a text in pieces has the tokens of the text
        in one if every cut is between two of those tokens. Before the space in front of a word is such a place for
        nearly every tokenizer; within a word, among white space, or after the space mostly is not.

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
        require_document(document)
        state = self._current.catalog.state
        with self._transaction() as transaction:
            growth, span = transaction.growth(document), state.active.span_tokens
            ids = tokens_of(tokens, state.vocabulary_size, self._encoder, continued=growth.n_tokens > 0)
            if gists and growth.n_tokens % span + len(ids) >= span:
                self._need_encoder("to make gists (or append with gists=False and add them)")
            return transaction.append(document, ids, self._encoder if gists else None)

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
        self._current.require_level(level)
        with self._transaction() as transaction:
            growth = transaction.growth(document)
            growth.add_gists(level, np.asarray(gists))
            return growth.n_gists[level]

    def set_quality(
        self, document: str, level: int, start: int, kl: Sequence[float], delta_nll: Sequence[float]
    ) -> None:
        """Record what gists from `start` on lose, in nats per token; a later record takes the place of an earlier one.

        Raises:
            DataError: there are no such gists, or the numbers are not as many, or not finite.
            StorageError: the system refused, or another writer was first.
        """
        snapshot = self._current
        snapshot.require_level(level)
        values = [require_finite(kl, "kl"), require_finite(delta_nll, "delta_nll")]
        if len(values[0]) != len(values[1]):
            raise DataError(f"Got {len(values[0])} of kl and {len(values[1])} of delta_nll, expected as many of both.")
        count = snapshot.counts(document).gists[level]
        require_range(start, start + len(values[0]), count, f"gists of level {level} of {document!r}")
        if not len(values[0]):
            return
        measured = layout.Measured(snapshot.version.fingerprint, document, level, start, values[0], values[1])
        with self._transaction() as transaction:
            transaction.add_rows(layout.QUALITY, layout.quality_rows(measured))

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Acknowledge all appends, gists and qualities of a block together, when it ends: once for many documents.

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
        require_encoder(snapshot, encoder, same_version=False)
        with self._noticing_failure():
            if encoder.info.fingerprint == snapshot.version.fingerprint:
                self._snapshot = reencode.make_missing_gists(snapshot, encoder)
            else:
                self._snapshot = reencode.reencode(snapshot, encoder)
        self._encoder = encoder

    def compact(self) -> None:
        """Put small appends together, and remove versions that nobody reads; by itself after every 64 commits.

        On a local disk, what a living reader has is kept. On an object store, where readers cannot be seen, a reader
        that does not refresh for a day loses what it reads.

        Raises:
            StorageError: the system refused, or another writer was first; what was acknowledged stays.
        """
        self._alone("compact")
        self._compact(compact.MANY_BYTES)

    def _compact(self, bytes_per_file: int) -> None:
        snapshot = self._fresh()
        with self._noticing_failure():
            self._snapshot = compact.compact(snapshot, bytes_per_file)

    @contextmanager
    def _transaction(self) -> Iterator[Transaction]:
        """Changes to be committed when the block ends, or with the batch that is open."""
        if self._batch is not None:
            yield self._batch
            return
        transaction = Transaction(self._fresh())
        with self._noticing_failure():
            yield transaction
            self._snapshot = transaction.commit()
        generations = self._current.catalog.generation - self._current.catalog.state.compacted
        if generations >= COMPACT_EVERY:
            with suppress(GistNetError):  # what was appended is acknowledged; the next append tries again
                self._compact(compact.FEW_BYTES)

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


def only_document(tree: TreeReader, name: str | None) -> str:
    """The name, or that of the only document where none is given.

    Raises:
        ConfigError: there are several documents, or none, and no name.
        DataError: there is no document of this name.
    """
    if name is not None:
        return tree.document(name).name
    names = tree.documents()
    if len(names) != 1:
        raise ConfigError(f"The tree has {len(names)} documents, expected --document to name one.")
    return names[0]
