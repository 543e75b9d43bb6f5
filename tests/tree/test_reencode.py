"""Gists made anew: never mixed for a reader, resumed after an interruption, and the old ones removed when unread."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gistnet.errors import CheckpointError
from gistnet.tree.storage import maintenance
from gistnet.tree.tree import GistTree
from tests.stub_encoder import StubEncoder

TOKENS = np.random.default_rng(0).integers(0, 1000, 403)


class Interrupted(StubEncoder):
    """Dies after some calls, as a killed process would."""

    def __init__(self, seed: int, calls: int) -> None:
        super().__init__(seed)
        self.calls = calls

    def encode(self, level: int, spans: NDArray[np.generic], first: int) -> NDArray[np.float16]:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return super().encode(level, spans, first)


def made_by(tree: GistTree, encoder: StubEncoder, name: str = "main", n: int = 100) -> bool:
    """Whether the gists of `TOKENS` in the document are those of this encoder, to the bit."""
    level_0 = encoder.encode(0, TOKENS[: 4 * n].reshape(n, 4), 0)
    level_1 = encoder.encode(1, level_0.reshape(n // 4, 4, 8), 0)
    return np.array_equal(tree.document(name).gists(0, 0, n), level_0) and np.array_equal(
        tree.document(name).gists(1, 0, n // 4), level_1
    )


@pytest.fixture
def filled(tree: GistTree) -> GistTree:
    tree.append(TOKENS[:200])
    tree.append(TOKENS, "other")
    tree.append(TOKENS[200:])
    return tree


def test_a_reader_keeps_its_version_until_it_refreshes(filled: GistTree, tmp_path: Path) -> None:
    with GistTree.open(tmp_path / "tree") as reader:
        held = reader.document()
        filled.reencode(StubEncoder(2))
        filled.append(TOKENS[:4])
        filled.compact()
        assert made_by(reader, StubEncoder(1)) and reader.verify().ok
        assert reader.info().gist_version == "stub0001"
        reader.refresh()
        assert made_by(reader, StubEncoder(2)) and reader.verify().ok
        assert reader.document().nodes(1, [24])[0].gist_version == "stub0002"
        filled.compact()
        assert np.array_equal(held.gists(0, 0, 100), StubEncoder(1).encode(0, TOKENS[:400].reshape(100, 4), 0))
    del held
    filled.compact()
    filled.compact()
    assert not (tmp_path / "tree" / "gists" / "stub0001" / "L0.lance").exists()
    assert filled.verify().ok and made_by(filled, StubEncoder(2))


def test_afterwards_the_tree_writes_with_the_new_encoder(filled: GistTree, tmp_path: Path) -> None:
    filled.reencode(StubEncoder(2))
    filled.append(TOKENS, "third")
    assert made_by(filled, StubEncoder(2), "third")
    filled.close()
    with pytest.raises(CheckpointError, match=r"stub0002.*got stub0001"):
        GistTree.open(tmp_path / "tree", StubEncoder(1))


def test_an_interrupted_one_shows_nothing_and_is_resumed(
    filled: GistTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "_COMMIT_GISTS", 30)  # of 250: nine commits
    with pytest.raises(KeyboardInterrupt):
        filled.reencode(Interrupted(2, calls=5))
    info = filled.info()
    filled.close()
    with GistTree.open(tmp_path / "tree", StubEncoder(1), writable=True) as tree:
        assert tree.info().gist_version == "stub0001" and made_by(tree, StubEncoder(1))
        assert tree.info().pending_version == "stub0002" and info.version < tree.info().version
        tree.append(TOKENS, "third")  # life goes on with the old
        again = Interrupted(2, calls=1000)
        tree.reencode(again)
        assert 1000 - again.calls < 15  # at 30 a call: 375 gists, less what was there
        assert tree.info().pending_version is None
        assert all(made_by(tree, StubEncoder(2), name) for name in ("main", "other", "third"))
        report = tree.verify()
        assert (report.ok, report.recomputed, report.missing) == (True, 375, 0)


def test_another_can_take_the_place_of_an_interrupted_one(filled: GistTree) -> None:
    with pytest.raises(KeyboardInterrupt):
        filled.reencode(Interrupted(2, calls=2))
    filled.reencode(StubEncoder(3))
    assert made_by(filled, StubEncoder(3))
    filled.reencode(StubEncoder(2))  # which finds tables of its name, and must not take them for complete
    assert made_by(filled, StubEncoder(2)) and filled.verify().ok


def test_there_and_back_again(filled: GistTree, tmp_path: Path) -> None:
    """The tables of the first version are made anew under the same name while a reader still has the old."""
    with GistTree.open(tmp_path / "tree") as reader:
        filled.append(TOKENS[:40], "later")
        filled.reencode(StubEncoder(2))
        filled.reencode(StubEncoder(1))
        filled.compact()
        assert made_by(reader, StubEncoder(1)) and "later" not in reader.documents()
        reader.refresh()
        assert made_by(reader, StubEncoder(1)) and made_by(reader, StubEncoder(1), "later", 8)
    assert made_by(filled, StubEncoder(1)) and filled.verify().ok


def test_with_the_same_encoder_nothing_is_made_anew(filled: GistTree) -> None:
    version = filled.info().version
    filled.reencode(Interrupted(1, calls=0))
    assert filled.info().version == version


def test_another_span_length_and_more_levels(filled: GistTree) -> None:
    wide = StubEncoder(5, branchings=(8, 8, 8), dim=8)
    filled.reencode(wide)
    assert [level.gists for level in filled.info().levels] == [2 * 50, 2 * 6, 0]
    assert filled.document().levels == 3 and filled.document().branchings == (8, 8, 8)
    assert np.array_equal(filled.document().gists(0, 0, 50), wide.encode(0, TOKENS[:400].reshape(50, 8), 0))
    assert filled.append(TOKENS[3:]) == 803
    assert filled.verify().ok
