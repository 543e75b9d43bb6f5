"""Writing to a tree: documents grow in memory, then their rows are written, then one catalog says so."""

import time
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gistnet.tree.encoder import Encoder
from gistnet.tree.storage import catalog
from gistnet.tree.storage import rows as layout
from gistnet.tree.storage.catalog import Counts, TableState, TreeState
from gistnet.tree.storage.growth import Growth
from gistnet.tree.storage.location import flush_to_disk
from gistnet.tree.storage.snapshot import Snapshot


class Transaction:
    """Changes that one commit acknowledges together."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._growths: dict[str, Growth] = {}
        self._rows: dict[str, list[pa.Table]] = {}
        self.failed = False
        """Whether a change was added only in part, so that none must be committed."""

    def growth(self, document: str) -> Growth:
        """A document, with what this transaction has added so far."""
        if document not in self._growths:
            self._growths[document] = Growth(self._snapshot, document)
        return self._growths[document]

    def append(self, document: str, tokens: NDArray[np.int64], encoder: Encoder | None) -> int:
        """Add tokens, and the gists that they complete if there is an encoder; returns the document's tokens then."""
        growth = self.growth(document)
        if len(tokens):
            self.add_rows(layout.TOKENS, layout.token_rows(document, growth.n_tokens, tokens))
            growth.add_tokens(tokens)
            if encoder is not None:
                try:
                    growth.make_gists(encoder)
                except BaseException:
                    self.failed = True
                    raise
        return growth.n_tokens

    def add_rows(self, name: str, rows: pa.Table) -> None:
        """Add rows to a table."""
        self._rows.setdefault(name, []).append(rows)

    def write(self) -> dict[str, TableState]:
        """Write the rows to their tables, and return all tables' states; nothing counts until a catalog names them."""
        made = time.time_ns() // 1000
        for growth in self._growths.values():
            for name, rows in growth.gist_rows(made).items():
                self.add_rows(name, rows)
        states = dict(self._snapshot.catalog.state.tables)
        files = []
        for name, pieces in self._rows.items():
            before, rows = self._snapshot.table(name), pa.concat_tables(pieces)
            after = before.append(rows)
            files += after.files_since(before)
            state = states[name]
            states[name] = TableState(version=after.version, n_rows=state.n_rows + rows.num_rows, since=state.since)
        if self._snapshot.location.folder is not None:
            flush_to_disk(files)
        return states

    def documents(self) -> dict[str, Counts]:
        """The counts of all documents as they will be."""
        changed = {name: growth.counts for name, growth in self._growths.items() if growth.n_tokens}
        return {**self._snapshot.catalog.documents, **changed}

    def commit(self) -> Snapshot:
        """Write everything and acknowledge it. Without changes nothing is written."""
        if not self._rows and not any(growth.changed for growth in self._growths.values()):
            return self._snapshot
        state = self._snapshot.catalog.state
        return commit(self._snapshot, state.model_copy(update={"tables": self.write()}), self.documents())


def commit(snapshot: Snapshot, state: TreeState, documents: Mapping[str, Counts] | None = None) -> Snapshot:
    """Acknowledge a state of the tables, and return the generation that names it.

    Raises:
        StorageError: the system refused, or another writer was first.
    """
    base = snapshot.catalog
    after = catalog.commit(snapshot.location, base, state, base.documents if documents is None else documents)
    return Snapshot(snapshot.location, after, earlier=snapshot)
