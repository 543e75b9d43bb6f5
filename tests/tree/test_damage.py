"""Files that are not as they were written: every flipped bit that matters is found, and named in one sentence."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from gistnet.errors import DataError, GistNetError
from gistnet.tree.storage.snapshot import TreeDocument
from gistnet.tree.tree import GistTree
from tests.stub_encoder import StubEncoder

TOKENS = np.random.default_rng(0).integers(0, 1000, 400)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compacted tree of two documents."""
    folder = tmp_path_factory.mktemp("whole") / "tree"
    with GistTree.create(folder, StubEncoder(1)) as tree:
        tree.append(TOKENS)
        tree.append(TOKENS[:100], "other")
        tree.compact()
        tree.compact()
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "tree")
    return tmp_path / "tree"


def everything(document: TreeDocument) -> list[bytes]:
    parts = [document.tokens(0, document.n_tokens)]
    parts += [document.gists(level, 0, document.n_tokens // 4 ** (level + 1)) for level in range(2)]
    return [part.tobytes() for part in parts]


def noticed(folder: Path, wanted: list[list[bytes]]) -> str | None:
    """The sentence in which damage was reported, or None where all that can be read is as it was."""
    try:
        with GistTree.open(folder, StubEncoder(1)) as tree:
            report = tree.verify()
            if not report.ok:
                return report.problems[0]
            read = [everything(tree.document(name)) for name in ("main", "other")]
            assert read == wanted, "what was read is wrong, and verify found nothing"
            return None
    except GistNetError as error:
        return str(error)


@pytest.fixture(scope="module")
def wanted(whole: Path) -> list[list[bytes]]:
    with GistTree.open(whole) as tree:
        return [everything(tree.document(name)) for name in ("main", "other")]


def data_files(folder: Path) -> Iterator[Path]:
    return folder.rglob("data/*.lance")


def test_a_flipped_bit_is_never_read_as_if_it_were_right(copy: Path, wanted: list[list[bytes]]) -> None:
    """At 25 places of every data file, and in the first and last bytes. Padding is the only place that may differ."""
    random = np.random.default_rng(1)
    found = tried = 0
    for path in data_files(copy):
        original = path.read_bytes()
        size = len(original)
        for place in {0, size - 1, *random.integers(0, size, 25).tolist()}:
            changed = bytearray(original)
            changed[place] ^= 1 << int(random.integers(8))
            path.write_bytes(changed)
            tried += 1
            found += noticed(copy, wanted) is not None
        path.write_bytes(original)
    assert noticed(copy, wanted) is None
    assert tried > 100 and found > tried / 4


@pytest.mark.parametrize("level", [0, 1])
def test_damage_of_a_gist_is_named_when_it_is_read(copy: Path, level: int) -> None:
    (path,) = (copy / "gists" / "stub0001" / f"L{level}.lance").glob("data/*.lance")
    vector = StubEncoder(1).encode(0, TOKENS.reshape(100, 4), 0)[20:24]
    vector = vector if level == 0 else StubEncoder(1).encode(1, vector[None], 5)
    data = bytearray(path.read_bytes())
    place = bytes(data).index(vector[0].tobytes())
    data[place + 5] ^= 16
    path.write_bytes(data)
    index = 20 if level == 0 else 5
    sentence = rf"gists/stub0001/L{level} is damaged at gist {index} of 'main'"
    with GistTree.open(copy) as tree:
        assert tree.document().gists(level, 0, index).shape == (index, 8)
        with pytest.raises(DataError, match=sentence):
            tree.document().gists(level, 0, index + 1)
        with pytest.raises(DataError, match=sentence):
            tree.document().nodes(level, [index])[0]
        assert any("checksum" in problem for problem in tree.verify().problems)


def test_a_file_that_is_truncated_or_gone_is_one_sentence(copy: Path, wanted: list[list[bytes]]) -> None:
    """Every file, in three ways. What is not needed to read (a hint, a transaction) may be missed by nobody."""
    needless = {".txn", ".json", ".lock"}
    for path in sorted(copy.rglob("*")):
        if not path.is_file() or path.suffix in needless or path.parent.name == "readers":
            continue
        original = path.read_bytes()
        for damage in (original[: len(original) // 2], b"", None):
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
            sentence = noticed(copy, wanted)
            assert sentence is not None, path
            assert "\n" not in sentence and ".rs" not in sentence and sentence.endswith("."), sentence
            path.write_bytes(original)
    assert noticed(copy, wanted) is None


def retold(catalog: pa.Table, column: str, value: object) -> pa.Table:
    """The rows with another value in the first of them; the metadata, and with it the checksum, as they were."""
    place = catalog.schema.get_field_index(column)
    values = [value, *catalog[column].to_pylist()[1:]]
    return catalog.set_column(place, catalog.schema.field(place), pa.array(values, catalog.schema.field(place).type))


@pytest.mark.parametrize(("column", "value"), [("document", "mine"), ("tokens", 396), ("gists", [99, 25]), (None, 999)])
def test_a_catalog_that_says_otherwise_than_was_written_is_refused(
    copy: Path, column: str | None, value: object
) -> None:
    """All of it could be true of some tree: Lance reads it, and the tables hold at least as much."""
    path = str(copy / "catalog.lance")
    rows = lance.dataset(path).to_table()
    if column is None:
        state = json.loads(rows.schema.metadata[b"gistnet.tree"]) | {"vocabulary_size": value}
        rows = rows.replace_schema_metadata(rows.schema.metadata | {b"gistnet.tree": json.dumps(state).encode()})
    else:
        rows = retold(rows, column, value)
    lance.write_dataset(rows, path, mode="overwrite")
    with pytest.raises(DataError, match="checksum"):
        GistTree.open(copy)


def test_rows_of_another_place_are_found_though_they_are_intact(copy: Path, tmp_path: Path) -> None:
    """The file of a table replaced by that of another tree."""
    with GistTree.create(tmp_path / "other", StubEncoder(1)) as tree:
        tree.append(TOKENS[::-1].copy())
        tree.append(TOKENS[:100], "other")
        tree.compact()
        tree.compact()
    theirs = tmp_path / "other" / "gists" / "stub0001" / "L0.lance"
    shutil.rmtree(copy / "gists" / "stub0001" / "L0.lance")
    shutil.copytree(theirs, copy / "gists" / "stub0001" / "L0.lance")
    with GistTree.open(copy, StubEncoder(1)) as tree:
        problems = tree.verify().problems
    assert any("Gist 0 of level 0 of 'main'" in each for each in problems)


def test_a_table_of_fewer_rows_than_the_catalog_says_is_not_read(copy: Path, tmp_path: Path) -> None:
    """Nor those of its rows that are there: 99 gists of another tree in place of 100 of 'main' and 25 of 'other'."""
    with GistTree.create(tmp_path / "other", StubEncoder(1)) as tree:
        tree.append(TOKENS[:300])
        tree.append(TOKENS[:96], "other")
        tree.compact()
        tree.compact()
    table = Path("gists", "stub0001", "L0.lance")
    shutil.rmtree(copy / table)
    shutil.copytree(tmp_path / "other" / table, copy / table)
    with GistTree.open(copy) as tree, pytest.raises(DataError, match="has 99 rows, expected the 125 of the catalog"):
        tree.document().gists(0, 0, 1)


class SignedZeros(StubEncoder):
    """A zero in each gist, of the sign given."""

    def __init__(self, zero: float) -> None:
        super().__init__(1)
        self.zero = zero

    def encode(self, level: int, spans: NDArray[np.generic], first: int) -> NDArray[np.float16]:
        gists = super().encode(level, spans, first)
        gists[:, 2] = self.zero
        return gists


def test_gists_are_compared_bit_by_bit(tmp_path: Path) -> None:
    """0.0 and -0.0 are equal numbers, of which one alone is what the GistNet makes."""
    with GistTree.create(tmp_path / "tree", SignedZeros(0.0)) as tree:
        tree.append(TOKENS[:40])
        assert tree.verify().ok
    with GistTree.open(tmp_path / "tree", SignedZeros(-0.0)) as tree:
        report = tree.verify()
    assert (report.recomputed, len(report.problems)) == (12, 12)
