"""Files into a tree: everything is there, a second run adds nothing, an interrupted one is continued to the bit."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gistnet.errors import DataError, StorageError
from gistnet.tree.compress import Progress, compress_files
from gistnet.tree.history import count_gists
from gistnet.tree.stub_encoder import StubEncoder
from gistnet.tree.texts import Survey, TextFiles
from gistnet.tree.tree import GistTree

ENCODER = StubEncoder(levels=3)
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
        counts = [count_gists(n, ENCODER.info.span_tokens, level) for level in range(ENCODER.info.levels)]
        gists = [tree.gists(level, 0, count, name).tobytes() for level, count in enumerate(counts)]
        found[name] = [tree.tokens(0, n, name).tobytes(), *gists]
    return found


def expected_contents(texts: dict[str, str]) -> dict[str, list[bytes]]:
    """The same by one call of the encoder for each level."""
    found = {}
    for name, text in texts.items():
        below = ENCODER.tokenize(text)
        found[name] = [below.tobytes()]
        for level in range(ENCODER.info.levels):
            count = len(below) // ENCODER.info.span_tokens
            spans = below[: count * ENCODER.info.span_tokens].reshape(count, ENCODER.info.span_tokens, *below.shape[1:])
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
    assert done == Progress(Survey(5, characters), done.document, 5, characters, characters, tokens, 0, empty=1)


def test_a_second_run_finds_everything(files: TextFiles, tree: GistTree) -> None:
    first = compress_files(files, tree, ENCODER)
    second = compress_files(files, tree, ENCODER, portion_tokens=50)
    assert (second.appended_tokens, second.found_tokens) == (0, first.appended_tokens)
    assert (second.appended_characters, second.characters) == (0, first.characters)
    assert contents(tree) == EXPECTED


class Interrupted(Exception):
    pass


def test_a_partly_appended_document_is_continued_with_other_portions(files: TextFiles, tree: GistTree) -> None:
    def stop_within_b(progress: Progress) -> None:
        if progress.document == "books/b.txt" and progress.appended_tokens > 500:
            raise Interrupted

    with pytest.raises(Interrupted):
        compress_files(files, tree, ENCODER, portion_tokens=50, progress=stop_within_b)
    assert 0 < tree.document("books/b.txt").n_tokens < 480, "the test interrupts within the document"
    done = compress_files(files, tree, ENCODER, portion_tokens=64)
    assert done.found_tokens > 500
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
    differs = r"^The text of 'books/a\.txt' differs from token 200 on from the one that the tree holds under that name"
    with pytest.raises(DataError, match=rf"{differs}; expected"):
        compress_files(files, tree, ENCODER, portion_tokens=portion_tokens)
    expected = EXPECTED | expected_contents({"books/e.txt": "a new one"})
    assert contents(tree) == expected
    (books / "b.txt").write_text("and")
    with pytest.raises(DataError, match=rf"{differs} \(as do 1 others under theirs\); expected"):
        compress_files(files, tree, ENCODER, portion_tokens=portion_tokens)
    (books / "a.txt").write_text(TEXTS["a.txt"])
    with pytest.raises(DataError, match=r"^The text of 'books/b\.txt' differs from token 3 on"):
        compress_files(files, tree, ENCODER, portion_tokens=portion_tokens)
    assert contents(tree) == expected


def test_short_documents_share_acknowledgements(tree: GistTree, tmp_path: Path) -> None:
    """Documents of 10, 14 and 18 tokens in turn, so that 36 of them are the first with 500: 200 take 6 portions."""
    texts = {f"d{n}": "word" * (n % 3 + 2) + "!!" for n in range(200)}
    lines = [json.dumps({"id": name, "text": text}) for name, text in texts.items()]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    told: list[Progress] = []
    files = TextFiles(paths=(str(tmp_path / "x.jsonl"),))
    done = compress_files(files, tree, ENCODER, portion_tokens=500, progress=told.append)
    assert contents(tree) == expected_contents(texts)
    assert [progress.documents for progress in told] == [36, 72, 108, 144, 180, 200]
    assert told[-1] == done


def test_unusable_input_is_refused_before_anything_is_appended(
    files: TextFiles, tree: GistTree, tmp_path: Path
) -> None:
    (tmp_path / "books" / "z.txt").write_bytes(b"good until \xff")
    with pytest.raises(DataError, match=r"z\.txt is not UTF-8: .* at byte 11\."):
        compress_files(files, tree, ENCODER)
    assert tree.documents() == []


COMPRESS = """
import sys
from gistnet.tree.compress import compress_files
from gistnet.tree.texts import TextFiles
from gistnet.tree.tree import GistTree
from tests.tree.test_compress import ENCODER

with GistTree.open(sys.argv[1], ENCODER, writable=True) as tree:
    say = lambda progress: print(progress.appended_tokens, flush=True)
    compress_files(TextFiles(paths=(sys.argv[2],)), tree, ENCODER, portion_tokens=16, progress=say)
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
        acknowledged = [int(process.stdout.readline()) for _ in range(portions)][-1]
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with GistTree.open(uri, ENCODER) as reader:
            held = sum(reader.document(name).n_tokens for name in reader.documents())
        assert held >= acknowledged
    with GistTree.open(uri, ENCODER, writable=True) as again:
        assert compress_files(files, again, ENCODER).appended_tokens > 0, "the kills came before the end"
        assert contents(again) == EXPECTED


def test_an_unwritable_folder_is_refused(files: TextFiles, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError):
        GistTree.create(str(tmp_path / "file" / "tree"), ENCODER)
