"""The rows of a tree's tables: how they are laid out, and the checksum that each carries (D24).

    tokens               document, start, tokens (uint32 list), checksum      one row an append, several if long
    gists/<version>/L<n> document, index, vector (float16), made, checksum    one row a gist
    passages             document, start, stop, paragraph_start, paragraph_stop, text, checksum    one row a passage

Lance keeps no checksums. Ours is a CRC-32 of everything in the row and of the table's name, so that a flipped bit is
found, and so is a row that is intact but in the wrong table or of another index. A `RowIndex` tells which row holds
what, so that reading needs no search on disk; passages are found by their words, with Lance's full-text index.
"""

import struct
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gistnet.errors import DataError
from gistnet.tree.passages import Passage

TOKENS, PASSAGES = "tokens", "passages"
MAX_ROW_TOKENS = 8192
"""A longer append becomes several rows, so that reading a few tokens never reads many."""

_TEXT, _INT64, _UINT32 = pa.string(), pa.int64(), pa.uint32()


def gists_name(version: str, level: int) -> str:
    """The name of the table of a level that the GistNet `version` made."""
    return f"gists/{version}/L{level}"


def _schema(**columns: pa.DataType) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


TOKENS_SCHEMA = _schema(document=_TEXT, start=_INT64, tokens=pa.list_(_UINT32), checksum=_UINT32)
PASSAGES_SCHEMA = _schema(
    document=_TEXT,
    start=_INT64,
    stop=_INT64,
    paragraph_start=_INT64,
    paragraph_stop=_INT64,
    text=_TEXT,
    checksum=_UINT32,
)


def gists_schema(dim: int) -> pa.Schema:
    """Columns of the gists of one level, vectors of `dim` entries."""
    vector, made = pa.list_(pa.float16(), dim), pa.timestamp("us", tz="UTC")
    return _schema(document=_TEXT, index=_INT64, vector=vector, made=made, checksum=_UINT32)


def schema_of(name: str, dim: int) -> pa.Schema:
    """Columns of the table `name` of a tree whose gists have `dim` entries."""
    fixed = {TOKENS: TOKENS_SCHEMA, PASSAGES: PASSAGES_SCHEMA}
    return fixed.get(name) or gists_schema(dim)


def of_document(name: str) -> str:
    """The SQL expression that is true in rows of a document."""
    return "document = '{}'".format(name.replace("'", "''"))


class Gists(NamedTuple):
    """Rows of a table of gists."""

    documents: list[str]
    indices: NDArray[np.int64]
    """`[n]`"""
    vectors: NDArray[np.float16]
    """`[n, dim]`"""
    made: NDArray[np.int64]
    """`[n]` microseconds since 1970."""


def token_rows(document: str, start: int, tokens: NDArray[np.int64]) -> pa.Table:
    """Rows of the tokens of an append that begins at token `start` of the document."""
    starts = np.arange(0, len(tokens), MAX_ROW_TOKENS)
    pieces = [tokens[at : at + MAX_ROW_TOKENS].astype("<u4") for at in starts]
    sums = [_token_sum(document, start + at, piece) for at, piece in zip(starts.tolist(), pieces, strict=True)]
    columns = [[document] * len(pieces), start + starts, pieces, pa.array(sums, _UINT32)]
    return pa.table(columns, schema=TOKENS_SCHEMA)


def gist_rows(name: str, document: str, first: int, vectors: NDArray[np.float16], made: int) -> pa.Table:
    """Rows of consecutive gists `[n, dim]` of a document, the first of index `first`, made at `made` (microseconds)."""
    n, dim = vectors.shape
    indices = np.arange(first, first + n)
    sums = _gist_sums(name, [document] * n, indices, vectors, np.full(n, made))
    vector = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), dim)
    columns = [[document] * n, indices, vector, pa.array(np.full(n, made), pa.timestamp("us", tz="UTC")), sums]
    return pa.table(columns, schema=gists_schema(dim))


def passage_rows(document: str, passages: Sequence[Passage], texts: Sequence[str]) -> pa.Table:
    """Rows of passages of a document, with their texts."""
    sums = [_passage_sum(document, of, text) for of, text in zip(passages, texts, strict=True)]
    bounds = np.array(passages, dtype=np.int64).reshape(-1, 4).T
    return pa.table([[document] * len(passages), *bounds, texts, pa.array(sums, _UINT32)], schema=PASSAGES_SCHEMA)


def read_passage_rows(table: pa.Table) -> Iterator[tuple[str, Passage, str]]:
    """Document, bounds and text of each row."""
    try:
        texts = table.column("text").to_pylist()
    except (ValueError, pa.ArrowException) as error:  # no longer UTF-8
        raise DataError(f"The table {PASSAGES} is damaged: a passage is not text.") from error
    documents, sums = _documents(table, PASSAGES), table.column("checksum").to_pylist()
    bounds = zip(*(table.column(name).to_pylist() for name in Passage._fields), strict=True)
    for document, passage, text, checksum in zip(documents, map(Passage._make, bounds), texts, sums, strict=True):
        if _passage_sum(document, passage, text) != checksum:
            raise _damage(PASSAGES, document, f"token {passage.start}")
        yield document, passage, text


def read_token_rows(table: pa.Table) -> Iterator[tuple[str, int, NDArray[np.int64]]]:
    """Document, first index and tokens of each row."""
    tokens, offsets = _lists(table, "tokens")
    sums = table.column("checksum").to_pylist()
    documents, starts = _documents(table, TOKENS), table.column("start").to_pylist()
    for n, (document, start) in enumerate(zip(documents, starts, strict=True)):
        piece = tokens[offsets[n] : offsets[n + 1]]
        if _token_sum(document, start, piece) != sums[n]:
            raise _damage(TOKENS, document, f"token {start}")
        yield document, start, piece.astype(np.int64)


def read_gist_rows(name: str, table: pa.Table) -> Gists:
    """The gists of rows of the table `name`."""
    n = table.num_rows
    documents, indices = _documents(table, name), table.column("index").to_numpy()
    vectors = _chunk(table, "vector").flatten().to_numpy(zero_copy_only=False).reshape(n, -1 if n else 0)
    made = _chunk(table, "made").cast(_INT64).to_numpy()
    sums = _gist_sums(name, documents, indices, vectors, made)
    wrong = np.flatnonzero(sums != table.column("checksum").to_numpy())
    if len(wrong):
        raise _damage(name, documents[wrong[0]], f"gist {indices[wrong[0]]}")
    return Gists(documents, indices, vectors, made)


def _damage(name: str, document: str, what: str) -> DataError:
    return DataError(f"The table {name} is damaged at {what} of {document!r}: the checksum does not match.")


def _chunk(table: pa.Table, column: str) -> pa.Array:
    return table.column(column).combine_chunks()


def _documents(table: pa.Table, name: str) -> list[str]:
    try:
        encoded = _chunk(table, "document").dictionary_encode()
        names = encoded.dictionary.to_pylist()
    except (ValueError, pa.ArrowException) as error:  # no longer UTF-8
        raise DataError(f"The table {name} is damaged: a document's name is not text.") from error
    return [names[code] for code in encoded.indices.to_pylist()]


def _lists(table: pa.Table, column: str) -> tuple[NDArray[Any], NDArray[np.int32]]:
    array = _chunk(table, column)
    return array.values.to_numpy(zero_copy_only=False), array.offsets.to_numpy()


def _seed(name: str, document: str) -> int:
    return zlib.crc32(f"{name}\0{document}".encode())


def _token_sum(document: str, start: int, tokens: NDArray[np.generic]) -> int:
    return zlib.crc32(tokens.astype("<u4").tobytes(), zlib.crc32(struct.pack("<q", start), _seed(TOKENS, document)))


def _passage_sum(document: str, passage: Passage, text: str) -> int:
    return zlib.crc32(text.encode(), zlib.crc32(struct.pack("<qqqq", *passage), _seed(PASSAGES, document)))


def _gist_sums(
    name: str,
    documents: Sequence[str],
    indices: NDArray[np.int64],
    vectors: NDArray[np.float16],
    made: NDArray[np.int64],
) -> NDArray[np.uint32]:
    seeds = {document: _seed(name, document) for document in set(documents)}
    keys = np.stack([indices, made], axis=1).astype("<i8")
    rows = np.ascontiguousarray(vectors, dtype="<f2")
    sums = [
        zlib.crc32(row, zlib.crc32(key, seeds[document]))
        for document, key, row in zip(documents, keys, rows, strict=True)
    ]
    return np.array(sums, dtype=np.uint32)


class RowIndex:
    """For each document, the rows in order of their key: the index of a gist, or the first token of an append.

    Rows of a document whose keys and numbers both follow each other are one run, so that a tree of one document needs
    one entry, however large it is. The index only grows: a reader of an earlier version sees keys of rows that its own
    version lacks, and asks for none of them.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.n_rows = 0
        self._runs: dict[str, tuple[array[int], array[int], array[int]]] = {}  # first key, first row, rows

    def extend(self, documents: pa.ChunkedArray, keys: NDArray[np.int64]) -> None:
        """Add the rows that follow those known."""
        if not len(keys):
            return
        encoded = documents.combine_chunks().dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        breaks = 1 + np.flatnonzero((np.diff(codes) != 0) | (np.diff(keys) != 1))
        starts = np.concatenate([[0], breaks])
        lengths = np.diff(np.append(starts, len(keys)))
        names = encoded.dictionary.to_pylist()
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            self._add(names[codes[start]], int(keys[start]), self.n_rows + start, length)
        self.n_rows += len(keys)

    def _add(self, document: str, key: int, row: int, count: int) -> None:
        first, rows, counts = self._runs.setdefault(document, (array("q"), array("q"), array("q")))
        if first:
            next_key, next_row = first[-1] + counts[-1], rows[-1] + counts[-1]
            if key < next_key:
                raise DataError(f"The table {self.name} is damaged at {document!r}: {key} follows {next_key - 1}.")
            if (key, row) == (next_key, next_row):
                counts[-1] += count
                return
        first.append(key)
        rows.append(row)
        counts.append(count)

    def next_key(self, document: str) -> int:
        """One more than the last key of a document, 0 if it has none."""
        if document not in self._runs:
            return 0
        first, _, counts = self._runs[document]
        return first[-1] + counts[-1]

    def rows(self, document: str, start: int, stop: int) -> NDArray[np.int64]:
        """The rows from that of `start` to that of `stop - 1`, in the order of their keys."""
        if start == stop:
            return np.empty(0, dtype=np.int64)
        begin, end = self._run(document, start), self._run(document, stop - 1)
        first, rows, counts = self._runs[document]
        pieces = []
        for run in range(begin, end + 1):
            low = min(max(start - first[run], 0), counts[run] - 1)
            high = min(stop - first[run], counts[run])
            pieces.append(np.arange(rows[run] + low, rows[run] + high))
        return np.concatenate(pieces)

    def _run(self, document: str, key: int) -> int:
        run = bisect_right(self._runs[document][0], key) - 1 if document in self._runs else -1
        if run < 0:
            raise DataError(f"The table {self.name} is damaged at {document!r}: the row of {key} is missing.")
        return run
