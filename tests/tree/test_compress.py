"""Files into a tree: everything is there, a second run adds nothing, an interrupted one is continued to the bit."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gistnet.errors import DataError
from gistnet.tree import compress as module
from gistnet.tree.compress import CompressTotals, TextFiles, compress_files
from gistnet.tree.encoder import count_gists
from gistnet.tree.tree import GistTree
from tests.stub_encoder import StubEncoder

ENCODER = StubEncoder(branchings=(4, 4, 4))
TEXTS = {"a.txt": "one line\n" * 40, "b.txt": "and another, é\n" * 30, "c.txt": "x"}


@pytest.fixture
def files(tmp_path: Path) -> TextFiles:
    """Three text files and two documents in JSONL."""
    folder = tmp_path / "books"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text, encoding="utf-8")
    lines = [{"id": "first", "text": "some words " * 20}, {"id": "empty", "text": ""}]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return TextFiles(paths=(str(folder / "*"),))


@pytest.fixture
def tree(tmp_path: Path) -> GistTree:
    return GistTree.create(str(tmp_path / "tree"), ENCODER)


def contents(tree: GistTree) -> dict[str, list[bytes]]:
    """Tokens and gists of every level, by document."""
    found = {}
    for name in tree.documents():
        n = tree.document(name).n_tokens
        counts = [count_gists(n, ENCODER.info.branchings, level) for level in range(ENCODER.info.levels)]
        gists = [tree.document(name).gists(level, 0, count).tobytes() for level, count in enumerate(counts)]
        found[name] = [tree.document(name).tokens(0, n).tobytes(), *gists]
    return found


def expected_contents(texts: dict[str, str]) -> dict[str, list[bytes]]:
    """Tokens and gists by one call of the encoder for each level."""
    found = {}
    for name, text in texts.items():
        below = ENCODER.tokenize(text)
        found[name] = [below.tobytes()]
        for level, branching in enumerate(ENCODER.info.branchings):
            count = len(below) // branching
            spans = below[: count * branching].reshape(count, branching, *below.shape[1:])
            below = ENCODER.encode(level, spans, 0) if count else np.empty((0, ENCODER.info.dim), dtype=np.float16)
            found[name].append(below.tobytes())
    return found


EXPECTED = expected_contents({f"books/{name}": text for name, text in TEXTS.items()} | {"first": "some words " * 20})


@pytest.mark.parametrize("portion_tokens", [37, 64, 16384])
def test_every_document_is_in_the_tree_whatever_the_portions(
    files: TextFiles, tree: GistTree, portion_tokens: int
) -> None:
    done = compress_files(files, tree, ENCODER, portion_tokens=portion_tokens)
    assert contents(tree) == EXPECTED
    tokens = sum(len(text.encode()) for text in TEXTS.values()) + 220
    characters = sum(map(len, TEXTS.values())) + 220
    assert done == CompressTotals(5, characters, characters, tokens, 0, empty=1)


def test_a_second_run_finds_everything(files: TextFiles, tree: GistTree) -> None:
    first = compress_files(files, tree, ENCODER)
    second = compress_files(files, tree, ENCODER, portion_tokens=50)
    assert (second.appended_tokens, second.found_tokens) == (0, first.appended_tokens)
    assert (second.appended_characters, second.characters) == (0, first.characters)
    assert contents(tree) == EXPECTED


class Interrupted(Exception):
    pass


def test_a_partly_appended_document_is_continued_with_other_portions(
    files: TextFiles, tree: GistTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = tree.append

    def stop_within_b(tokens: np.ndarray, document: str) -> int:
        if document == "books/b.txt" and tree.documents()[-1:] == [document] and tree.document(document).n_tokens > 100:
            raise Interrupted
        return append(tokens, document)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(tree, "append", stop_within_b)
        compress_files(files, tree, ENCODER, portion_tokens=50)
    assert 0 < tree.document("books/b.txt").n_tokens < 480, "the test interrupts within the document"
    done = compress_files(files, tree, ENCODER, portion_tokens=64)
    assert done.found_tokens > 400
    assert contents(tree) == EXPECTED


def test_a_document_that_has_grown_is_continued(files: TextFiles, tree: GistTree, tmp_path: Path) -> None:
    compress_files(files, tree, ENCODER)
    longer = TEXTS["c.txt"] + " and more of it"
    (tmp_path / "books" / "c.txt").write_text(longer)
    assert compress_files(files, tree, ENCODER).appended_tokens == 15
    assert contents(tree)["books/c.txt"] == expected_contents({"c": longer})["c"]


@pytest.mark.parametrize("portion_tokens", [64, 16384])
def test_changed_documents_are_refused_and_all_others_completed(
    files: TextFiles, tree: GistTree, tmp_path: Path, portion_tokens: int
) -> None:
    compress_files(TextFiles(paths=files.paths[:1]), tree, ENCODER)
    books = tmp_path / "books"
    (books / "a.txt").write_text(TEXTS["a.txt"][:200] + "X" + TEXTS["a.txt"][201:])
    (books / "e.txt").write_text("a new one")
    with pytest.raises(DataError, match=r"books/a\.txt.*token 200"):
        compress_files(files, tree, ENCODER, portion_tokens=portion_tokens)
    expected = EXPECTED | expected_contents({"books/e.txt": "a new one"})
    assert contents(tree) == expected
    (books / "b.txt").write_text("and")
    with pytest.raises(DataError, match=r"books/a\.txt.*token 200.* 1 others"):
        compress_files(files, tree, ENCODER, portion_tokens=portion_tokens)
    (books / "a.txt").write_text(TEXTS["a.txt"])
    with pytest.raises(DataError, match=r"books/b\.txt.*token 3 "):
        compress_files(files, tree, ENCODER, portion_tokens=portion_tokens)
    assert contents(tree) == expected


@pytest.mark.parametrize("portion_tokens", [64, 16384])
def test_changed_documents_take_the_place_of_the_old_where_asked(
    files: TextFiles, tree: GistTree, tmp_path: Path, portion_tokens: int
) -> None:
    """One that differs at token 200, one that is shorter, one that is empty, and one that has grown."""
    compress_files(files, tree, ENCODER)
    changed = {"a.txt": TEXTS["a.txt"][:200] + "X" + TEXTS["a.txt"][201:], "b.txt": "and", "c.txt": "xyz"}
    for name, text in changed.items():
        (tmp_path / "books" / name).write_text(text)
    (tmp_path / "books" / "d.jsonl").write_text(json.dumps({"id": "first", "text": ""}))
    done = compress_files(files, tree, ENCODER, replace=True, portion_tokens=portion_tokens)
    expected = expected_contents({f"books/{name}": text for name, text in changed.items()})
    assert contents(tree) == expected and tree.verify().ok
    assert (done.replaced, done.empty, done.appended_tokens) == (3, 1, 160 + 0 + 2)
    assert done.found_tokens == sum(map(len, changed.values())) - 162
    again = compress_files(files, tree, ENCODER, replace=True, portion_tokens=portion_tokens)
    assert (again.replaced, again.appended_tokens) == (0, 0)


def test_a_folder_stands_for_the_texts_below_it(
    tree: GistTree, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tree itself lies in it."""
    texts = {"z.md": "last", "a/b.txt": "deep", "a/c.json": "[1]"}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "a" / "rows.jsonl").write_text(json.dumps({"id": "row", "text": "of a line"}))
    for name, content in {".env": b"hidden", "a/x.png": b"\x89PNG\0", "a/empty": b"", "a/l.txt": b"caf\xe9"}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden, too")
    caplog.set_level("INFO", "gistnet")
    compress_files(TextFiles(paths=(str(tmp_path),)), tree, ENCODER)
    assert tree.documents() == ["a/b.txt", "a/c.json", "row", "z.md"]
    assert re.findall(r"(\d+) hidden, (\d+)", caplog.text) == [("2", "4")]  # .env, .git; three files, and the tree
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no text"):
        compress_files(TextFiles(paths=(str(tmp_path / "none"),)), tree, ENCODER)


def test_a_name_is_that_of_one_document(files: TextFiles, tree: GistTree, tmp_path: Path) -> None:
    one = TextFiles(paths=(str(tmp_path / "books" / "c.txt"),), name="cee")
    compress_files(one, tree, ENCODER)
    assert contents(tree) == expected_contents({"cee": "x"})
    with pytest.raises(DataError, match="two documents"):
        compress_files(files.model_copy(update={"name": "cee"}), tree, ENCODER)


def test_short_documents_share_acknowledgements(
    tree: GistTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Documents of 10, 14 and 18 tokens in turn, so that 36 of them are the first with 500: 200 take 6 portions."""
    texts = {f"d{n}": "word" * (n % 3 + 2) + "!!" for n in range(200)}
    lines = [json.dumps({"id": name, "text": text}) for name, text in texts.items()]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    monkeypatch.setattr(module, "LOG_SECONDS", 0)
    caplog.set_level("INFO", "gistnet")
    compress_files(TextFiles(paths=(str(tmp_path / "x.jsonl"),)), tree, ENCODER, portion_tokens=500)
    assert contents(tree) == expected_contents(texts)
    done = [int(re.search(r"(\d+)/200 documents", message)[1]) for message in caplog.messages]
    assert done == [36, 72, 108, 144, 180, 200]


def test_unusable_input_is_refused_before_anything_is_appended(
    files: TextFiles, tree: GistTree, tmp_path: Path
) -> None:
    (tmp_path / "books" / "z.txt").write_bytes(b"good until \xff")
    with pytest.raises(DataError, match=r"z\.txt"):
        compress_files(files, tree, ENCODER)
    assert tree.documents() == []


COMPRESS = """
import logging, sys
from gistnet.tree import compress
from gistnet.tree.tree import GistTree
from tests.tree.test_compress import ENCODER

logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
compress.LOG_SECONDS = 0
with GistTree.open(sys.argv[1], ENCODER, writable=True) as tree:
    compress.compress_files(compress.TextFiles(paths=(sys.argv[2],)), tree, ENCODER, portion_tokens=16)
"""


def test_a_killed_run_is_continued_to_the_same_bits(files: TextFiles, tree: GistTree, tmp_path: Path) -> None:
    tree.close()
    uri = str(tmp_path / "tree")
    for portions in (3, 20):
        process = subprocess.Popen(
            [sys.executable, "-c", COMPRESS, uri, files.paths[0]],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(portions)]
        acknowledged = int(re.search(r"(\d+) tokens ", lines[-1])[1])
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with GistTree.open(uri, ENCODER) as reader:
            held = sum(reader.document(name).n_tokens for name in reader.documents())
        assert held >= acknowledged
    with GistTree.open(uri, ENCODER, writable=True) as again:
        assert compress_files(files, again, ENCODER).appended_tokens > 0, "the kills came before the end"
        assert contents(again) == EXPECTED


def test_messages_tell_rate_and_time_left(
    tree: GistTree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """2000 characters were in the tree; 2000 more took 20 s, so the other 6000 take a minute."""
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    caplog.set_level("INFO", "gistnet")
    tracker = module.ResumeTracker(tree, module.Survey(3, 10_000))
    for seconds, characters, tokens in [(0, 2000, 0), (15, 600, 300), (5, 1400, 700), (60, 6000, 3000)]:
        clock[0] += seconds
        tracker.count(module.Portion("b", 0, np.arange(tokens or 1000), characters, is_last=False), tokens)
        tracker.log("b")
    assert [re.findall(r"[\d:,]+", message) for message in caplog.messages] == [
        ["26", "0:03:05", "0", "3", "300", "20"],
        ["100", "0:00:00", "0", "3", "4,000", "50"],
    ]
