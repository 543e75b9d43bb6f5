"""Documents that go or change: in one step, for new readers only, and to the bits of a tree that was made so."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gistnet.errors import ConfigError, DataError
from gistnet.tree.storage import catalog
from gistnet.tree.tree import GistTree
from tests.stub_encoder import StubEncoder

TEXTS = {name: f"{name} had seven lanterns. " * (20 + n) for n, name in enumerate(["ada", "it's", "cal"])}
IN_CONTEXT = StubEncoder(1, read_together=8, read_before=4)


@pytest.fixture
def filled(tree: GistTree) -> GistTree:
    for half in range(2):  # so that the rows of a document do not follow each other
        for name, text in TEXTS.items():
            middle = len(text) // 2
            tree.append(text[:middle] if half == 0 else text[middle:], name)
    return tree


def contents(tree: GistTree) -> dict[str, list[bytes]]:
    """Tokens, gists and passages of each document."""
    found = {}
    for name in tree.documents():
        document = tree.document(name)
        parts = [document.tokens(0, document.n_tokens)]
        parts += [document.gists(level, 0, document.n_tokens // 4 ** (level + 1)) for level in range(2)]
        passages = sorted(tree.find("lanterns lamps", 10_000, name), key=lambda hit: hit.passage)
        found[name] = [*(part.tobytes() for part in parts), repr([hit[:3] for hit in passages]).encode()]
    return found


def made(folder: Path, texts: dict[str, str], encoder: StubEncoder | None = None) -> dict[str, list[bytes]]:
    """Contents of a new tree of these texts."""
    with GistTree.create(folder, encoder or StubEncoder(1)) as tree:
        for name, text in texts.items():
            tree.append(text, name)
        return contents(tree)


def test_a_removed_document_is_gone_and_the_others_stay(filled: GistTree, tmp_path: Path) -> None:
    filled.remove("it's")
    left = {name: text for name, text in TEXTS.items() if name != "it's"}
    expected = made(tmp_path / "fresh", left)
    for opened in (filled, GistTree.open(tmp_path / "tree")):
        assert contents(opened) == expected and opened.verify().ok
        assert not opened.find("it's lanterns", document=None, k=1)[0].text.count("it's")
    filled.compact()
    assert contents(filled) == expected and filled.verify().ok
    filled.append(TEXTS["it's"], "it's")  # begins anew, at the end
    assert contents(filled) == made(tmp_path / "another", left | {"it's": TEXTS["it's"]})
    assert filled.append(TEXTS["ada"], "ada") == 2 * len(TEXTS["ada"]) and filled.verify().ok


def test_space_is_given_back_once_no_reader_is_left(filled: GistTree, tmp_path: Path) -> None:
    def size() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "tree").rglob("*") if path.is_file())

    filled.append("many words of one great text. " * 2000, "large")
    large = size()
    with GistTree.open(tmp_path / "tree") as reader:
        filled.remove("large")
        filled.compact()
        assert size() > large / 2 and reader.document("large").n_tokens == 60_000 and reader.verify().ok
    filled.compact()
    assert size() < large / 2 and filled.verify().ok


def test_a_reader_keeps_the_documents_that_it_opened(filled: GistTree, tmp_path: Path) -> None:
    before = contents(filled)
    with GistTree.open(tmp_path / "tree") as reader:
        filled.remove("ada")
        filled.replace("cal has lamps now", "cal")
        filled.append("more lanterns", "cal")
        filled.compact()
        filled.compact()
        assert contents(reader) == before and reader.verify().ok
        reader.refresh()
        assert contents(reader) == contents(filled) and reader.documents() == ["it's", "cal"]


CHANGES = {
    "middle": lambda text: (text[:205] + "lamps, not " + text[205:], 205),
    "beginning": lambda text: ("In the end, " + text, 0),
    "shorter": lambda text: (text[:101], 101),
    "shorter than a span": lambda text: (text[:3], 3),
    "longer": lambda text: (text + "And three lamps.", len(text)),
    "the same": lambda text: (text, len(text)),
}
"""Another text, and how many of the tokens it begins with."""


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("encoder", [StubEncoder(1), IN_CONTEXT], ids=["alone", "in context"])
def test_a_replaced_document_has_the_bits_of_a_fresh_tree(tmp_path: Path, change: str, encoder: StubEncoder) -> None:
    changed, common = CHANGES[change](TEXTS["it's"])
    texts = TEXTS | {"it's": changed}
    with GistTree.create(tmp_path / "tree", encoder) as tree:
        for name, text in TEXTS.items():
            tree.append(text, name)
        assert tree.replace(changed, "it's") == common
        expected = made(tmp_path / "fresh", texts, encoder)
        assert contents(tree) == expected and tree.documents() == list(texts)
        assert tree.verify().ok and tree.info().unindexed == 0
        tree.append(" More lamps.", "it's")
        assert contents(tree) == made(tmp_path / "later", texts | {"it's": texts["it's"] + " More lamps."}, encoder)


def test_the_gists_of_what_stays_are_not_made_again(filled: GistTree) -> None:
    calls: list[int] = []
    encoder = filled._need_encoder("")
    encode = encoder.encode
    encoder.encode = lambda level, spans, first: calls.append(len(spans)) or encode(level, spans, first)  # type: ignore
    assert filled.replace(TEXTS["cal"][:-1] + "!", "cal") == len(TEXTS["cal"]) - 1
    assert sum(calls) <= 2


def test_changes_of_a_batch_come_together(filled: GistTree, tmp_path: Path) -> None:
    generation = filled.info().version
    with filled.batch():
        filled.append("lanterns", "new")
        filled.append("gone again", "cal")
        filled.remove("new")
        filled.remove("cal")
        filled.append("lamps", "cal")
        filled.remove("ada")
        filled.remove("ada")
        filled.replace("its lamps", "it's")
    assert filled.info().version == generation + 1
    assert contents(filled) == made(tmp_path / "fresh", {"it's": "its lamps", "cal": "lamps"})
    assert filled.verify().ok


def test_a_change_that_fails_changes_nothing(filled: GistTree, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(filled)

    def refuse(*arguments: object) -> None:
        raise OSError("no space")

    for change in (lambda: filled.remove("ada"), lambda: filled.replace("lamps", "ada")):
        with monkeypatch.context() as patch, pytest.raises(OSError):
            patch.setattr(catalog, "commit", refuse)
            change()
        assert contents(filled) == before and filled.verify().ok
    filled.append("lanterns", "ada")
    assert filled.verify().ok


def test_an_interrupted_reencode_goes_on_without_what_was_removed(filled: GistTree, tmp_path: Path) -> None:
    class Interrupted(StubEncoder):
        def encode(self, level: int, spans: np.ndarray, first: int) -> np.ndarray:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filled.reencode(Interrupted(2))
    filled.remove("ada")
    filled.replace("cal has lamps", "cal")
    filled.reencode(StubEncoder(2))
    assert contents(filled) == made(tmp_path / "fresh", {"it's": TEXTS["it's"], "cal": "cal has lamps"}, StubEncoder(2))
    assert filled.verify().ok


def test_in_an_object_store(tmp_path: Path) -> None:
    with GistTree.create(f"file-object-store://{tmp_path}/store", StubEncoder(1)) as tree:
        for name, text in TEXTS.items():
            tree.append(text, name)
        with GistTree.open(f"file-object-store://{tmp_path}/store") as reader:
            tree.remove("ada")
            tree.replace("lamps", "cal")
            tree.compact()
            assert reader.documents() == list(TEXTS) and reader.verify().ok
        assert contents(tree) == made(tmp_path / "fresh", {"it's": TEXTS["it's"], "cal": "lamps"})


def test_bad_changes_are_refused(filled: GistTree, tmp_path: Path) -> None:
    before = contents(filled)
    for change in (lambda: filled.remove("adaa"), lambda: filled.replace("x", "adaa")):
        with pytest.raises(DataError, match="did you mean 'ada'"):
            change()
    with pytest.raises(DataError):
        filled.replace([10**6], "ada")
    with GistTree.open(tmp_path / "tree") as reader, pytest.raises(ConfigError, match="writable"):
        reader.remove("ada")
    assert contents(filled) == before


WRITER = """
import sys
from gistnet.tree.tree import GistTree
from tests.tree.test_changes import StubEncoder, versions

with GistTree.open(sys.argv[1], StubEncoder(1), writable=True) as tree:
    print("open", flush=True)
    for number in range(10**6):
        tree.replace(versions[number % 2], "doc")
        if number % 5 == 4:
            tree.compact()
"""
versions = ["seven lanterns, " * 50, "seven lamps " * 70]


def test_a_killed_writer_leaves_the_old_text_or_the_new(tmp_path: Path) -> None:
    expected = [made(tmp_path / f"fresh{n}", {"doc": text}) for n, text in enumerate(versions)]
    with GistTree.create(tmp_path / "tree", StubEncoder(1)) as tree:
        tree.append(versions[0], "doc")
    draw = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "tree")],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None and process.stdout.readline()
        time.sleep(draw.uniform(0.05, 0.6))
        with GistTree.open(tmp_path / "tree") as reader:
            assert contents(reader) in expected
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with GistTree.open(tmp_path / "tree", StubEncoder(1)) as reader:
            assert contents(reader) in expected and reader.verify().ok
