"""Which row of a table holds what: learnt from two of its columns, so that reading needs no search on disk."""

from array import array
from bisect import bisect_right

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from gistnet.errors import DataError


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
        """Add the rows that follow those known.

        Raises:
            DataError: the keys of a document do not rise, so the table is damaged.
        """
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

    def row(self, document: str, key: int) -> int:
        """The row whose key is `key`, or the last before it.

        Raises:
            DataError: there is none, so the table is damaged.
        """
        run = self._run(document, key)
        first, rows, counts = self._runs[document]
        return int(rows[run] + min(key - first[run], counts[run] - 1))

    def rows(self, document: str, start: int, stop: int) -> NDArray[np.int64]:
        """The rows from that of `start` to that of `stop - 1`, in the order of their keys.

        Raises:
            DataError: there are none, so the table is damaged.
        """
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
