"""Gists that are missing, and gists made anew by another GistNet (D23: a reader never sees two versions mixed)."""

import pyarrow as pa

from gistnet.tree.encoder import Encoder, GistVersion
from gistnet.tree.storage import rows as layout
from gistnet.tree.storage.catalog import Catalog, Counts, TableState
from gistnet.tree.storage.location import Location, flush_to_disk
from gistnet.tree.storage.snapshot import Snapshot
from gistnet.tree.storage.tables import Table
from gistnet.tree.storage.transaction import Transaction, commit

_COMMIT_GISTS = 8192
"""Made between two commits where many are missing."""


def make_missing_gists(snapshot: Snapshot, encoder: Encoder) -> Snapshot:
    """Make the gists that documents lack, with a commit every few thousand.

    Raises:
        DataError: a gist cannot be made, or what it is made of is damaged.
        StorageError: the system refused.
    """
    while (transaction := _missing_gists(snapshot, encoder)) is not None:
        snapshot = transaction.commit()
    return snapshot


def _missing_gists(snapshot: Snapshot, encoder: Encoder) -> Transaction | None:
    transaction, made = Transaction(snapshot), 0
    for name, counts in snapshot.catalog.documents.items():
        below = (counts.tokens, *counts.gists)
        if all(n // snapshot.version.span_tokens == above for n, above in zip(below, counts.gists, strict=False)):
            continue
        made += transaction.growth(name).make_gists(encoder, _COMMIT_GISTS - made)
        if made == _COMMIT_GISTS:
            break
    return transaction if made else None


def reencode(snapshot: Snapshot, encoder: Encoder) -> Snapshot:
    """Make all gists anew, and let them take the place of those there are; resumes where an earlier call stopped.

    The gists of the new version are committed as they are made, but none is read before all are there.

    Raises:
        DataError: a gist cannot be made, or what it is made of is damaged.
        StorageError: the system refused.
    """
    pending = snapshot.catalog.state.pending
    if pending is None or pending.fingerprint != encoder.info.fingerprint:
        snapshot = _begin(snapshot, encoder)
    while (transaction := _missing_gists(view := _pending_view(snapshot), encoder)) is not None:
        state = snapshot.catalog.state.model_copy(update={"tables": transaction.write()})
        snapshot = commit(snapshot, state)
    state = snapshot.catalog.state
    kept, retired = _retire(snapshot, state.active.fingerprint)
    done = {"active": state.pending, "pending": None, "teacher": encoder.info.teacher}  # in another precision, perhaps
    update = done | {"tables": kept, "retired": retired}
    return commit(snapshot, state.model_copy(update=update), view.catalog.documents)


def _begin(snapshot: Snapshot, encoder: Encoder) -> Snapshot:
    state = snapshot.catalog.state
    kept, retired = dict(state.tables), dict(state.retired)
    if state.pending is not None:
        kept, retired = _retire(snapshot, state.pending.fingerprint)
    version = encoder.info.version
    created = create_tables(snapshot.location, gist_schemas(version), since=snapshot.catalog.generation + 1)
    retired = {name: since for name, since in retired.items() if name not in created}
    update = {"pending": version, "tables": {**kept, **created}, "retired": retired}
    return commit(snapshot, state.model_copy(update=update))


def _retire(snapshot: Snapshot, fingerprint: str) -> tuple[dict[str, TableState], dict[str, int]]:
    """The tables without those of a version, and the retired with them."""
    state, since = snapshot.catalog.state, snapshot.catalog.generation + 1
    gone = {name for name in state.tables if name.startswith(f"gists/{fingerprint}/")}
    kept = {name: table for name, table in state.tables.items() if name not in gone}
    return kept, {**state.retired, **dict.fromkeys(gone, since)}


def _pending_view(snapshot: Snapshot) -> Snapshot:
    """The tree as if the pending gists were those that are read, as far as they are made."""
    base = snapshot.catalog
    pending = base.state.pending
    assert pending is not None
    levels = [snapshot.index(layout.gists_name(pending.fingerprint, level)) for level in range(pending.levels)]
    documents = {
        name: Counts(counts.tokens, tuple(level.next_key(name) for level in levels))
        for name, counts in base.documents.items()
    }
    seen = Catalog(base.generation, base.state.model_copy(update={"active": pending}), documents)
    return Snapshot(snapshot.location, seen, earlier=snapshot)


def gist_schemas(version: GistVersion) -> dict[str, pa.Schema]:
    """The tables of all levels of a version."""
    schema = layout.gists_schema(version.dim)
    return {layout.gists_name(version.fingerprint, level): schema for level in range(version.levels)}


def create_tables(location: Location, schemas: dict[str, pa.Schema], since: int) -> dict[str, TableState]:
    """Tables without rows, to be named by the generation `since`.

    Raises:
        StorageError: the system refused.
    """
    tables = [Table.create(location, name, schema) for name, schema in schemas.items()]
    if location.folder is not None:
        flush_to_disk([file for table in tables for file in table.files_since(None)])
    return {table.name: TableState(version=table.version, n_rows=0, since=since) for table in tables}
