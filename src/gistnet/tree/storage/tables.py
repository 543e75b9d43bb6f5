"""Tables of a tree on a local disk or an object store: append, delete, read by row number, scan, search, compact.

What Lance does not give is added here. Two appends to the same version both succeed in Lance, so an append that did
not come directly after the version it built on is refused, and versions after the one that the catalog names are put
back first. Lance's errors, whose types tell little, become one sentence each.

Row numbers stay true while rows are only appended: compaction keeps the order (after updates or merges it would not,
and a tree does neither). Deleting rows renumbers those after them.

A table of texts has Lance's full-text index. It is one of the files that a version names, and so never newer or older
than the rows: those that it does not hold yet are searched one by one, with the same scores, and it takes them in once
they are many. Words are scored by BM25 as they stand in the text, in lower case and without accents; English stop words
do not count.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit
from urllib.request import url2pathname

import lance
import numpy as np
import pyarrow as pa
from lance.query import MatchQuery

from gistnet.errors import ConfigError, DataError, StorageError
from gistnet.files import storage_errors
from gistnet.paths import local_path

_LINE_IN_SOURCE = re.compile(r",? /[^ ,]+\.rs:\d+(:\d+)?")
_WORD_INDEX = "words"
MOST_UNINDEXED = 4096
"""Rows outside the full-text index; with so many a search takes about ten times as long as within it."""
_WORDS = {"stem": False, "remove_stop_words": True, "ascii_folding": True, "with_position": False}
_SYSTEM_ERROR = re.compile(r"([^:]+) \(os error \d+\)")


@dataclass(frozen=True)
class Location:
    """The root of a tree.

    Args:
        uri: a path, in which `~` is the home folder, or a URI that Lance reads (`file://`, `s3://`, `gs://`, …).
        storage_options: what Lance needs to reach an object store: region, endpoint, keys.
    """

    uri: str
    storage_options: dict[str, str] | None = None

    def __post_init__(self) -> None:
        _ = self.folder  # refuse at once what is no location

    @cached_property
    def folder(self) -> Path | None:
        """The local folder, or None for an object store.

        Raises:
            ConfigError: the URI is empty, or of a file but not of one on this machine.
        """
        parts = urlsplit(self.uri) if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|file:/", self.uri, re.IGNORECASE) else None
        if parts is None:
            return local_path(self.uri)
        if parts.scheme != "file":
            return None
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or parts.path in ("", "/"):
            raise ConfigError(
                f"Got the tree {self.uri!r}, expected file:///FOLDER, with three slashes and %3F, %23 for ? and #."
            )
        return local_path(url2pathname(parts.path))

    def join(self, name: str) -> str:
        """The URI of what is called `name` under the root."""
        if self.folder is not None:
            return str(self.folder.absolute() / name)
        return f"{self.uri.rstrip('/')}/{name}"

    def flush(self, files: Iterable[Path]) -> None:
        """Flush files of a local disk, and the folders that name them, so that they outlive a loss of power.

        All at once, since a file system writes its journal once for flushes that arrive together (measured on ext4:
        nine in 1 ms, against 32 ms one by one). An object store has nothing to flush.
        """
        if self.folder is None:
            return
        files = list(files)
        entries = [*files, *{file.parent for file in files}]
        if entries:
            with ThreadPoolExecutor(len(entries)) as pool:
                list(pool.map(_flush, entries))


def _flush(path: Path) -> None:
    with storage_errors("flush", path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def lance_errors(action: str, name: str) -> Iterator[None]:
    """Turn what Lance raises into one sentence about the table.

    Raises:
        StorageError: the system refused: full disk, no permission, no such file.
        DataError: the table's files are missing, truncated or otherwise not what Lance wrote.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError, pa.ArrowException) as error:
        raise _translate(error, action, name) from error
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # of Rust, on some damaged files; no subclass of Exception
            raise _translate(error, action, name) from error
        raise


def _translate(error: BaseException, action: str, name: str) -> StorageError | DataError:
    message = _LINE_IN_SOURCE.sub("", str(error).splitlines()[0] if str(error) else type(error).__name__)
    if system := _SYSTEM_ERROR.search(message):
        return StorageError(f"Could not {action} {name}: {system[1].strip()}.")
    if "Generic " in message:  # of an object store: a network, a bucket or a permission that is not there
        return StorageError(f"Could not {action} {name}: {message.strip().rstrip('.')}.")
    if isinstance(error, OSError) and error.strerror:
        return StorageError(f"Could not {action} {name}: {error.strerror}.")
    return DataError(f"Could not {action} {name}, its files are missing or damaged: {message.strip().rstrip('.')}.")


class Table:
    """A version of a table; methods that write return the next.

    Args:
        location: the root of the tree.
        name: of the table, a path under the root without the ending.
        dataset: Lance's handle, at the version meant.
    """

    def __init__(self, location: Location, name: str, dataset: lance.LanceDataset) -> None:
        self.location = location
        self.name = name
        self._dataset = dataset

    @classmethod
    def create(cls, location: Location, name: str, schema: pa.Schema) -> Self:
        """A table without rows; what an interrupted writer left under this name is covered by a new version."""
        uri, options = location.join(f"{name}.lance"), location.storage_options
        with lance_errors("create", uri):
            try:
                there = lance.dataset(uri, storage_options=options)
            except ValueError:  # not there, or never completed
                mode = "create"
            else:
                uri, mode = there, "overwrite"
            dataset = lance.write_dataset(schema.empty_table(), uri, mode=mode, storage_options=options)
        return cls(location, name, dataset)

    def index_words(self, text: str, key: str) -> "Table":
        """The next version, whose column `text` can be searched for words, in the rows of a `key` too."""
        with lance_errors("index", self.uri):
            self._dataset.create_scalar_index(text, "INVERTED", name=_WORD_INDEX, **_WORDS)
            self._dataset.create_scalar_index(key, "BTREE")
        return Table(self.location, self.name, self._dataset)

    @classmethod
    def open(cls, location: Location, name: str, version: int | None = None) -> Self:
        """The table at a version, by default the newest."""
        uri = location.join(f"{name}.lance")
        with lance_errors("open", uri):
            return cls(location, name, lance.dataset(uri, version, storage_options=location.storage_options))

    @staticmethod
    def exists(location: Location, name: str) -> bool:
        """True where there is a table of this name."""
        uri = location.join(f"{name}.lance")
        try:
            with lance_errors("open", uri):
                lance.dataset(uri, storage_options=location.storage_options)
        except DataError as error:
            return "was not found" not in str(error)  # one that is damaged is there: it is for `open` to say so
        return True

    @staticmethod
    def drop(location: Location, name: str) -> None:
        """Remove the table with all of its versions, if it is there."""
        uri = location.join(f"{name}.lance")
        with lance_errors("remove", uri):
            lance.LanceDataset.drop(uri, location.storage_options, ignore_not_found=True)

    @property
    def uri(self) -> str:
        """The URI of its folder."""
        return self.location.join(f"{self.name}.lance")

    @property
    def version(self) -> int:
        """Lance's number of this version."""
        return int(self._dataset.version)

    @property
    def schema(self) -> pa.Schema:
        """Columns, and the metadata of the schema."""
        with lance_errors("read", self.uri):
            return self._dataset.schema

    @property
    def n_rows(self) -> int:
        """Rows of this version."""
        with lance_errors("read", self.uri):
            return int(self._dataset.count_rows())

    @property
    def n_bytes(self) -> int:
        """Bytes of the data files of this version, and of its indices."""
        files = [file for fragment in self._fragments() for file in fragment.data_files()]
        with lance_errors("read", self.uri):
            indices = sum(index.total_size_bytes or 0 for index in self._dataset.describe_indices())
        return sum(file.file_size_bytes or 0 for file in files) + indices

    def files_since(self, earlier: "Table | None") -> list[Path]:
        """The files and folders of a local disk that this version needs to be read, and `earlier` did not need."""
        if self.location.folder is None:
            return []
        root = Path(self.uri)
        known = set() if earlier is None else {f.fragment_id for f in earlier._fragments()}
        new = [f for f in self._fragments() if f.fragment_id not in known]
        data = [root / "data" / file.path for fragment in new for file in fragment.data_files()]
        folders = [root, root.parent] if earlier is None else []
        known_indices = set() if earlier is None else earlier._index_folders()
        indices = [file for folder in self._index_folders() - known_indices for file in [folder, *folder.iterdir()]]
        deleted = [root / path for path in self._deletions() - (set() if earlier is None else earlier._deletions())]
        manifest = root / "_versions" / f"{2**64 - 1 - self.version:020d}.manifest"
        return [*folders, *data, *indices, *deleted, manifest]

    def take(self, rows: Sequence[int] | np.ndarray, columns: list[str]) -> pa.Table:
        """The rows of these numbers, in this order."""
        with lance_errors("read", self.uri):
            return self._dataset.take(list(map(int, rows)), columns=columns).combine_chunks()

    def scan(self, columns: list[str], start: int = 0) -> pa.Table:
        """All rows from number `start` on."""
        with lance_errors("read", self.uri):
            return self._dataset.scanner(columns=columns, offset=start).to_table().combine_chunks()

    def first(self, count: int, columns: list[str]) -> pa.Table:
        """The first rows, `count` at most."""
        with lance_errors("read", self.uri):
            return self._dataset.scanner(columns=columns, limit=count).to_table().combine_chunks()

    def batches(self, rows: int) -> Iterator[pa.Table]:
        """All rows and columns in their order, about `rows` at a time."""
        with lance_errors("read", self.uri):
            for batch in self._dataset.to_batches(batch_size=rows, scan_in_order=True):
                yield pa.Table.from_batches([batch])

    def matching(self, query: str, k: int, where: str | None, columns: list[str]) -> pa.Table:
        """The k rows that share words with a query and fit it best by BM25, with their `_score`."""
        with lance_errors("search", self.uri):
            scanner = self._dataset.scanner(
                columns=[*columns, "_score"],
                full_text_query=MatchQuery(query, "text"),
                limit=k,
                filter=where,
                prefilter=where is not None,
            )
            return scanner.to_table().combine_chunks()

    def read_indices(self) -> None:
        """Read all indices of this version, so that a file that is missing or damaged is noticed."""
        with lance_errors("read", self.uri):
            for index in self._dataset.list_indices():
                self._dataset.prewarm_index(index["name"])

    def append(self, rows: pa.Table) -> "Table":
        """The next version, with these rows at the end."""
        base = self._newest()
        with lance_errors("write", self.uri):
            dataset = lance.write_dataset(rows, base, mode="append", storage_options=self.location.storage_options)
        if dataset.version != base.version + 1:
            raise StorageError(f"Another writer appended to {self.uri} at the same moment; nothing of this was kept.")
        return Table(self.location, self.name, dataset)

    def delete(self, where: str) -> "Table":
        """The next version, without the rows for which an SQL expression is true."""
        base = self._newest()
        with lance_errors("write", self.uri):
            dataset = lance.dataset(self.uri, base.version, storage_options=self.location.storage_options)
            dataset.delete(where)
        if dataset.version > base.version + 1:
            raise StorageError(f"Another writer changed {self.uri} at the same moment; nothing of this was kept.")
        return Table(self.location, self.name, dataset)

    def indexed(self) -> "Table":
        """A version whose full-text index holds all rows, if those that it lacks are many; else this one."""
        with lance_errors("index", self.uri):
            if self._dataset.stats.index_stats(_WORD_INDEX)["num_unindexed_rows"] < MOST_UNINDEXED:
                return self
            dataset = lance.dataset(self.uri, self.version, storage_options=self.location.storage_options)
            dataset.optimize.optimize_indices()
        return Table(self.location, self.name, dataset)

    def overwrite(self, rows: pa.Table) -> "Table":
        """The next version, with these rows only, if none came after this one."""
        with lance_errors("write", self.uri):
            try:
                dataset = lance.write_dataset(
                    rows, self._dataset, mode="overwrite", storage_options=self.location.storage_options
                )
            except OSError as error:
                if "conflict" not in str(error):
                    raise
                raise StorageError(
                    f"Another writer changed {self.uri} at the same moment; nothing of this was kept."
                ) from error
        return Table(self.location, self.name, dataset)

    def compact(self, rows_per_file: int) -> "Table":
        """A version with the same rows in the same order, in files of `rows_per_file` rows where they were smaller."""
        dataset = self._newest()
        with lance_errors("compact", self.uri):
            dataset = lance.dataset(self.uri, dataset.version, storage_options=self.location.storage_options)
            dataset.optimize.compact_files(target_rows_per_fragment=rows_per_file, num_threads=1)
            dataset.optimize.optimize_indices()
        return Table(self.location, self.name, dataset)

    def versions(self) -> dict[int, float]:
        """All versions on the disk, and when each was made (seconds since 1970)."""
        with lance_errors("read", self.uri):
            return {int(v["version"]): v["timestamp"].timestamp() for v in self._dataset.versions()}

    def clean(self, versions: list[int], *, alone: bool) -> None:
        """Remove these versions and what only they need; if `alone`, also what killed writers left unfinished."""
        if versions:
            with lance_errors("clean", self.uri):
                self._dataset.cleanup_old_versions(versions=versions, delete_unverified=alone)

    def _fragments(self) -> list[lance.LanceFragment]:
        with lance_errors("read", self.uri):
            return list(self._dataset.get_fragments())

    def _index_folders(self) -> set[Path]:
        with lance_errors("read", self.uri):
            return {Path(self.uri) / "_indices" / index["uuid"] for index in self._dataset.list_indices()}

    def _deletions(self) -> set[str]:
        return {file for fragment in self._fragments() if (file := fragment.deletion_file()) is not None}

    def _newest(self) -> lance.LanceDataset:
        """This version as the newest: what came after it was never acknowledged, and is put back."""
        with lance_errors("write", self.uri):
            if self._dataset.latest_version == self.version:
                return self._dataset
            dataset = lance.dataset(self.uri, self.version, storage_options=self.location.storage_options)
            dataset.restore()
            return dataset
