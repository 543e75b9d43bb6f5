"""Row numbers against a plain search, for rows in every order and of every length."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistnet.errors import DataError
from gistnet.tree.storage.rows import RowIndex


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), min_size=1, max_size=40), st.integers(0, 40))
def test_rows_are_those_that_a_search_finds(appends: list[tuple[str, int]], cut: int) -> None:
    """Each row holds `length` keys of a document; what is found must be the rows that hold one of the range."""
    table: list[tuple[str, int, int]] = []
    counts = {"a": 0, "b": 0, "c": 0}
    for document, length in appends:
        table.append((document, counts[document], length))
        counts[document] += length
    index = RowIndex("tokens")
    for part in (table[:cut], table[cut:]):
        documents = pa.chunked_array([pa.array([row[0] for row in part], pa.string())])
        index.extend(documents, np.array([row[1] for row in part], dtype=np.int64))
    assert index.n_rows == len(table)
    for document, count in counts.items():
        for start in range(count):
            for stop in range(start, count + 1):
                held = [
                    row
                    for row, (name, begin, length) in enumerate(table)
                    if name == document and begin < stop and begin + length > start and start < stop
                ]
                assert index.rows(document, start, stop).tolist() == held
        last = max((begin for name, begin, _ in table if name == document), default=-1)
        assert index.next_key(document) == last + 1


def test_keys_that_do_not_rise_are_damage() -> None:
    index = RowIndex("gists/x/L0")
    index.extend(pa.chunked_array([["a", "a"]]), np.array([0, 1]))
    with pytest.raises(DataError, match="damaged"):
        index.extend(pa.chunked_array([["a"]]), np.array([1]))
    with pytest.raises(DataError, match="missing"):
        index.rows("b", 0, 1)
