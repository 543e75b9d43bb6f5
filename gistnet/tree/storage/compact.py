"""Small appends put together, and versions that nobody reads removed.

What is kept: the current generation; on a local disk every generation that a live reader has pinned, however old; on an
object store, where readers cannot be seen, every generation younger than a day. All else goes. (A reader that may not
write to a local folder cannot pin: it loses its generation at the next compaction, and finds the newest by `refresh`.)
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from gistnet.tree.storage import catalog
from gistnet.tree.storage.catalog import Catalog, TableState
from gistnet.tree.storage.location import flush_to_disk
from gistnet.tree.storage.lock import guard, pinned_generations
from gistnet.tree.storage.snapshot import Snapshot
from gistnet.tree.storage.tables import Table
from gistnet.tree.storage.transaction import commit

FEW_BYTES, MANY_BYTES = 1 << 23, 1 << 29
"""About the size of a file at which it is left alone: when compacting now and then, and when asked to. A compaction
needs memory for the files that it puts together: what comes by itself must stay small however large the tree."""
KEPT_SECONDS = 24 * 3600


def compact(snapshot: Snapshot, bytes_per_file: int = MANY_BYTES) -> Snapshot:
    """Compact all tables, acknowledge that, and remove what no reader can have.

    Raises:
        StorageError: the system refused; the tree is as it was, or compacted.
    """
    tables = _compacted(snapshot, bytes_per_file)
    with _readers_waiting(snapshot):
        kept = _kept(snapshot)
        state, oldest = snapshot.catalog.state, min(kept, default=snapshot.catalog.generation)
        gone = {name for name, since in state.retired.items() if since <= oldest}
        for name in gone:
            Table.drop(snapshot.location, name)
        retired = {name: since for name, since in state.retired.items() if name not in gone}
        compacted = snapshot.catalog.generation + 1
        update = {"tables": tables, "retired": retired, "compacted": compacted}
        after = commit(snapshot, state.model_copy(update=update))
        _clean(after, [*kept.values(), after.catalog])
    return after


def _compacted(snapshot: Snapshot, bytes_per_file: int) -> dict[str, TableState]:
    tables, files = {}, []
    for name, state in snapshot.catalog.state.tables.items():
        before = snapshot.table(name)
        bytes_per_row = max(1, before.n_bytes // max(1, state.n_rows))
        after = before.compact(max(1, bytes_per_file // bytes_per_row))
        tables[name] = state.model_copy(update={"version": after.version})
        files += after.files_since(before)
    if snapshot.location.folder is not None:
        flush_to_disk(files)
    return tables


@contextmanager
def _readers_waiting(snapshot: Snapshot) -> Iterator[None]:
    if snapshot.location.folder is None:
        yield
    else:
        with guard(snapshot.location.folder, shared=False):
            yield


def _kept(snapshot: Snapshot) -> dict[int, Catalog]:
    """The generations before the next that somebody may read; on an object store the oldest stands for all since."""
    location, now = snapshot.location, snapshot.catalog.generation
    if location.folder is not None:
        generations = pinned_generations(location.folder)
    else:
        versions = Table.open(location, catalog.NAME).versions()
        generations = {min(g for g, made in versions.items() if g == now or made > time.time() - KEPT_SECONDS)}
    return {g: snapshot.catalog if g == now else catalog.read(location, g) for g in generations}


def _clean(snapshot: Snapshot, kept: list[Catalog]) -> None:
    """Remove all versions of all tables that none of these generations names."""
    alone = snapshot.location.folder is not None
    _clean_table(Table.open(snapshot.location, catalog.NAME), {each.generation for each in kept}, alone)
    for name in snapshot.catalog.state.tables:
        named = {each.state.tables[name].version for each in kept if name in each.state.tables}
        if not alone and any(name not in each.state.tables for each in kept):
            continue  # it began within the day that is kept whole
        _clean_table(snapshot.table(name), named, alone)


def _clean_table(table: Table, named: set[int], alone: bool) -> None:
    versions = [v for v in table.versions() if v < table.version and v not in named]
    table.clean([v for v in versions if alone or v < min(named)], alone=alone)
