"""The catalog of a tree: the versions of its tables that count. Overwriting it is what acknowledges a write (D24).

It is a small Lance table of its own: a row a document with its counts, and in the metadata of its schema the versions
of the other tables and the GistNet whose gists are current. Each of its versions is a *generation* of the tree. A
generation is complete or absent, since Lance creates a version only if it is not there yet, on disks and on object
stores; of two writers that start from the same generation, one is refused.

Readers of a local tree pin the generation that they read, so that the writer does not clean it away. On an object store
there are no locks: old versions are kept for a day.
"""

import json
import os
import uuid
import weakref
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from gistnet.errors import DataError
from gistnet.locks import FileLock
from gistnet.model.fingerprint import TeacherFingerprint
from gistnet.settings import Section
from gistnet.tree.encoder import GistVersion
from gistnet.tree.storage.tables import Location, Table

NAME = "catalog"
FORMAT_VERSION = 5
_STATE, _CHECKSUM = b"gistnet.tree", b"gistnet.checksum"
_PINS, _GUARD = "readers", "guard.lock"


class TableState(Section):
    """A table as a generation has it."""

    version: int
    """Lance's number."""
    n_rows: int
    since: int
    """The generation from which on its row numbers count: in which it began, or rows before others were deleted."""


class TreeState(Section):
    """Content of a generation, without its documents."""

    format: int
    teacher: TeacherFingerprint
    """In the precision in which the active GistNet read the tokens."""
    vocabulary_size: int
    active: GistVersion
    """The GistNet whose gists are read."""
    pending: GistVersion | None
    """The GistNet whose gists are being made to replace the active ones, and are not complete."""
    retired: dict[str, int]
    """Fingerprints whose gists no generation from the one given on names, to be removed when no reader has them."""
    compacted: int
    """The generation of the last compaction."""
    tables: dict[str, TableState]


class Counts(NamedTuple):
    """Size of a document."""

    tokens: int
    gists: tuple[int, ...]
    """By level, of the active GistNet."""
    indexed: int = 0
    """First tokens that the index of passages holds."""
    settled: int = 0
    """Those of them whose passages no append changes."""


@dataclass(frozen=True)
class Catalog:
    """A generation of the tree."""

    generation: int
    state: TreeState
    documents: Mapping[str, Counts]


_SCHEMA = pa.schema([("document", pa.string()), *((name, pa.int64()) for name in ("tokens", "indexed", "settled"))])
_SCHEMA = _SCHEMA.append(pa.field("gists", pa.list_(pa.int64())))


def exists(location: Location) -> bool:
    """True where there is a tree."""
    if location.folder is not None and not (location.folder / f"{NAME}.lance").is_dir():
        return False  # where a file is in the way, Lance would take seconds to say so
    return Table.exists(location, NAME)


def read(location: Location, generation: int | None = None) -> Catalog:
    """A generation of the tree, by default the newest.

    Raises:
        DataError: there is no tree, or it has another format, or the catalog is damaged.
    """
    if not exists(location):
        folder = location.folder
        if folder is not None and not folder.exists():
            raise DataError(f"There is no tree at {location.uri}; expected one that `gistnet compress` made.")
        raise DataError(f"{location.uri} is not a tree: it has no catalog.")
    table = Table.open(location, NAME, generation)
    metadata = table.schema.metadata or {}
    rows = table.scan(_SCHEMA.names)
    try:
        plain = json.loads(metadata[_STATE])
        if plain["format"] != FORMAT_VERSION:  # its other fields may mean anything
            raise DataError(f"The tree {location.uri} has format {plain['format']}, expected {FORMAT_VERSION}.")
        if int(metadata[_CHECKSUM]) != _checksum(metadata[_STATE], rows):
            raise DataError(f"The catalog of the tree {location.uri} is damaged: its checksum does not match.")
        state = TreeState.model_validate(plain)
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise DataError(f"The catalog of {location.uri} is not one of a tree, or is damaged.") from error
    documents = {
        row["document"]: Counts(row["tokens"], tuple(row["gists"]), row["indexed"], row["settled"])
        for row in rows.to_pylist()
    }
    return Catalog(table.version, state, documents)


def create(location: Location, state: TreeState) -> Catalog:
    """The first generation of a tree, without documents."""
    return _written(Table.create(location, NAME, _rows(state, {}).schema), state, {})


def commit(location: Location, base: Catalog, state: TreeState, documents: Mapping[str, Counts]) -> Catalog:
    """The generation after `base`. When this returns, what it names is acknowledged."""
    table = Table.open(location, NAME, base.generation).overwrite(_rows(state, documents))
    return _written(table, state, documents)


def _written(table: Table, state: TreeState, documents: Mapping[str, Counts]) -> Catalog:
    table.location.flush(table.files_since(None))
    return Catalog(table.version, state, documents)


def _rows(state: TreeState, documents: Mapping[str, Counts]) -> pa.Table:
    lines = [{"document": name, **counts._asdict()} for name, counts in documents.items()]
    rows = pa.Table.from_pylist(lines, schema=_SCHEMA)
    encoded = state.model_dump_json().encode()
    return rows.replace_schema_metadata({_STATE: encoded, _CHECKSUM: str(_checksum(encoded, rows)).encode()})


def _checksum(state: bytes, rows: pa.Table) -> int:
    documents = "\0".join(rows["document"].to_pylist()).encode()
    gists = rows["gists"].combine_chunks().flatten().to_numpy()
    numbers = [rows[name].to_numpy() for name in ("tokens", "indexed", "settled")]
    counts = np.concatenate([*numbers, gists]).astype("<i8")
    return zlib.crc32(counts.tobytes(), zlib.crc32(documents, zlib.crc32(state)))


@contextmanager
def guard(folder: Path | None, *, shared: bool) -> Iterator[None]:
    """Keep readers from pinning a version (exclusive), or the writer from cleaning versions (shared)."""
    if folder is None:
        yield
        return
    (folder / _PINS).mkdir(exist_ok=True)
    lock = FileLock(folder / _PINS / _GUARD, shared=shared)
    try:
        yield
    finally:
        lock.close()


class Pin:
    """Keeps a generation of the catalog, and all that it names, from being cleaned, as long as this object lives.

    To be made inside a shared `guard`, together with reading the generation.

    Raises:
        OSError: the folder is not writable.
    """

    def __init__(self, folder: Path, generation: int) -> None:
        lock = FileLock(folder / _PINS / f"{generation}-{os.getpid()}-{uuid.uuid4().hex[:8]}", shared=True)
        # Not at the end of the process: there the system gives the lock back, and the writer removes the file.
        weakref.finalize(self, _unpin, lock).atexit = False


def _unpin(lock: FileLock) -> None:
    with suppress(OSError):
        lock.path.unlink(missing_ok=True)
    lock.close()


def pinned_generations(folder: Path) -> set[int]:
    """The generations that live readers hold; what dead readers left is removed. To be called inside a `guard`."""
    pinned = set()
    for path in (folder / _PINS).iterdir():
        if path.name == _GUARD:
            continue
        try:
            FileLock(path, wait=False).close()
        except BlockingIOError:
            pinned.add(int(path.name.partition("-")[0]))
        else:
            path.unlink(missing_ok=True)
    return pinned
