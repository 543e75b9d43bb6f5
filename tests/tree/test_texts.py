"""Documents of files in pieces: the same text and tokens as a reader that holds everything, in bounded memory."""

import gzip
import json
import tracemalloc
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyarrow import parquet

from gistnet.data.sources import READ_BYTES, Document
from gistnet.data.tokenise import PIECE_CHARACTERS, pieces_of, pieces_of_blocks, tokenise
from gistnet.errors import DataError
from gistnet.tree.compress import Survey, Text, TextFiles, read_portions, read_texts, survey
from tests.data.byte_tokenizer import ByteTokenizer


def tokenize(text: str, *, continued: bool = False) -> NDArray[np.int64]:
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)


def files(*paths: Path, **fields: str) -> TextFiles:
    return TextFiles(paths=tuple(map(str, paths)), **fields)


def whole(texts: TextFiles) -> dict[str, str]:
    return {name: "".join(blocks) for name, blocks in read_texts(texts)}


def test_files_and_lines_are_documents_with_their_names(tmp_path: Path) -> None:
    lines = [{"id": "first", "text": "one"}, {"text": "zwei"}]
    content = "\n".join(map(json.dumps, lines)).encode()
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content.replace(b"first", b"second")))
    (tmp_path / "c.jsonl.zst").write_bytes(zstandard.compress(content.replace(b'"text"', b'"body"')))
    (tmp_path / "d.md").write_bytes("\ufeffvier\r\n".encode())
    three = files(tmp_path / "d.md", tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz")
    expected = {"d.md": "vier\r\n", "first": "one", "a.jsonl:2": "zwei", "second": "one", "b.jsonl.gz:2": "zwei"}
    assert whole(three.for_tree(tmp_path / "a.tree")) == expected
    assert set(whole(three)) == {name if "." not in name else f"{tmp_path}/{name}" for name in expected}
    assert list(whole(files(tmp_path / "c.jsonl.zst", text_field="body", id_field="body"))) == ["one", "zwei"]
    parquet.write_table(pyarrow.table({"id": ["third", None], "text": ["one", "zwei"]}), tmp_path / "e.parquet")
    rows = files(tmp_path / "e.parquet").for_tree(tmp_path / "a.tree")
    assert whole(rows) == {"third": "one", "e.parquet:2": "zwei"}


@pytest.mark.parametrize("cut", range(1, 5))
def test_a_character_that_lies_across_two_blocks_is_read(tmp_path: Path, cut: int) -> None:
    text = "x" * (READ_BYTES - cut) + "🜂 and é" * 40_000
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    (blocks,) = [list(blocks) for _, blocks in read_texts(files(tmp_path / "x.txt"))]
    assert "".join(blocks) == text
    assert max(map(len, blocks)) <= READ_BYTES


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"x" * (READ_BYTES + 7) + b"\xff", READ_BYTES + 7),
        (b"x" * (READ_BYTES - 1) + b"\xf0\x9f(", READ_BYTES - 1),  # begins in one block, wrong in the next
        (b"x" * 9 + b"\xf0\x9f", 9),  # cut off at the end of the file
    ],
)
def test_what_is_not_utf8_is_named_with_its_place(tmp_path: Path, content: bytes, place: int) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.txt is not UTF-8: .* at byte {place}\.$"):
        survey(files(tmp_path / "x.txt"))


def test_a_survey_counts_and_refuses_before_anything_is_done(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("é" * 10, encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"id": "x", "text": "12345"}\n{"id": "y", "text": ""}\n')
    both = (tmp_path / "a.txt", tmp_path / "b.jsonl")
    assert survey(files(*both)) == Survey(documents=3, characters=15)
    (tmp_path / "c.jsonl").write_text('{"id": "x", "text": "again"}\n')
    (tmp_path / "d.jsonl").write_text('{"id": "x", "text": ""}\n')
    (tmp_path / "e.txt").write_bytes(b"")
    for name, message in [
        ("c.jsonl", "two documents called 'x'"),
        ("e.txt", "e.txt is empty"),
        ("nothing.txt", "no file matches"),
    ]:
        with pytest.raises(DataError, match=message):
            survey(files(*both, tmp_path / name))
    with pytest.raises(DataError, match="1 documents without any text"):
        survey(files(tmp_path / "d.jsonl"))


@given(st.lists(st.text(alphabet="ab \n", max_size=60), max_size=8), st.integers(2, 40))
def test_pieces_do_not_depend_on_the_blocks(blocks: list[str], limit: int) -> None:
    assert list(pieces_of_blocks(blocks, tokenize, limit)) == list(pieces_of("".join(blocks), tokenize, limit))


def test_portions_hold_the_tokens_of_a_prepared_corpus() -> None:
    texts = {"short": "one two", "none": "", "long": "word and word\n" * 40_000, "exact": "x" * 300}
    portions = list(read_portions([Text(name, iter([text])) for name, text in texts.items()], tokenize, 100))
    expected = tokenise([Document(name, "s", "code", text) for name, text in texts.items()], ByteTokenizer())
    for (name, group), (document, tokens) in zip(groupby(portions, lambda p: p.document), expected, strict=True):
        parts = list(group)
        assert name == document.id
        assert np.array_equal(np.concatenate([part.tokens for part in parts]), tokens)
        assert [part.start for part in parts] == list(range(0, max(1, len(tokens)), 100))
        assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
        assert sum(part.characters for part in parts) == len(texts[name])
        assert all(abs(part.characters - len(part.tokens)) <= 1 for part in parts), "one character is one token here"


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    def peak(path: Path) -> int:
        tracemalloc.start()
        total = sum(len(p.tokens) for p in read_portions(read_texts(files(path)), tokenize))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert total == path.stat().st_size
        return most

    sizes = {"small.txt": 3 * PIECE_CHARACTERS, "large.txt": 60 * PIECE_CHARACTERS}
    for name, size in sizes.items():
        (tmp_path / name).write_text("a line of text\n" * (size // 15))
    small, large = (peak(tmp_path / name) for name in sizes)
    assert large < 1.2 * small


def test_a_file_has_one_name_however_its_path_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / "lib" / name).mkdir(parents=True)
        (tmp_path / "lib" / name / "part.txt").write_text(name)
        (tmp_path / "lib" / name / "part.jsonl").write_text('{"text": "x"}')
    (tmp_path / "link").symlink_to(tmp_path / "lib")
    monkeypatch.chdir(tmp_path / "lib")
    typed = ["a/part.txt", "../lib/./a/part.txt", str(tmp_path / "lib" / "**" / "part.txt"), "*/part.*", "../link/a/*"]
    expected = ["lib/a/part.jsonl:1", "lib/a/part.txt", "lib/b/part.jsonl:1", "lib/b/part.txt"]
    assert sorted(whole(TextFiles(paths=tuple(typed)).for_tree(Path("../x.tree")))) == expected
    for path in typed:
        assert set(whole(TextFiles(paths=(path,)).for_tree(tmp_path / "x.tree"))) <= set(expected)


@pytest.mark.parametrize(
    ("name", "content", "documents"),
    [
        ("a.JSONL", b'{"id": "x", "text": "one"}\n{"id": "y", "text": "two"}\n', 2),
        ("a.ndjson", b'{"id": "x", "text": "one"}\n{"id": "y", "text": "two"}\n', 2),
        ("a.json", b'\n{"id": "x", "text": "one"}\n{"id": "y", "text": "two"}\n', 2),
        ("a.json", b'{\n "id": "x",\n "text": "one"\n}\n', 1),
        ("a.json", b'{"name": "x", "value": 3}\n', 1),
        ("a.NDJSON.GZ", gzip.compress(b'{"id": "x", "text": "one"}\n{"id": "y", "text": "two"}\n', mtime=0), 2),
    ],
)
def test_json_lines_are_told_by_name_and_content(tmp_path: Path, name: str, content: bytes, documents: int) -> None:
    (tmp_path / name).write_bytes(content)
    assert survey(files(tmp_path / name)).documents == documents


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_utf16_without_a_mark_is_refused(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.txt").write_bytes("plain English text".encode(encoding))
    with pytest.raises(DataError, match="UTF-16"):
        survey(files(tmp_path / "x.txt"))
    (tmp_path / "x.txt").write_bytes(b"one \x00 in a text")
    assert survey(files(tmp_path / "x.txt")).characters == 15
