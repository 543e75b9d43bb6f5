import gzip
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import parquet
from pydantic import TypeAdapter, ValidationError

from gistnet.data.config import SourceConfig
from gistnet.data.sources import Document, read_documents, read_lines
from gistnet.errors import DataError, MissingPackageError

RECORDS = [{"id": "first", "text": "one\ntwo"}, {"text": "drei"}, {"id": 7, "text": "四", "domain": "code"}]
LINES = "\n".join(json.dumps(record) for record in RECORDS) + "\n"


def source(*paths: Path | str, **fields: Any) -> SourceConfig:
    files = {"kind": "files", "paths": list(map(str, paths))} if paths else {}
    return TypeAdapter(SourceConfig).validate_python({"name": "s", "domain": "narrative", **files, **fields})


def texts(*paths: Path | str, **fields: Any) -> list[tuple[str, str]]:
    return [(document.id, document.text) for document in read_documents(source(*paths, **fields))]


def test_files_are_sorted_named_relative_to_their_pattern_and_read_once(tmp_path: Path) -> None:
    books = tmp_path / "books"
    (books / "deep").mkdir(parents=True)
    (books / "b.txt").write_text("B")
    (books / "deep" / "a.txt").write_text("Ä", encoding="utf-8")
    (books / ".hidden.txt").write_text("no")
    assert list(read_documents(source(books / "**" / "*.txt", books / "b.txt", domain="code"))) == [
        Document("books/b.txt", "s", "code", "B"),
        Document("books/deep/a.txt", "s", "code", "Ä"),
    ]


def test_home_folder_is_expanded_and_brackets_in_an_existing_name_are_literal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a[1].txt").write_text("\ufeffx", encoding="utf-8")
    assert texts("~/a[1].txt") == [(f"{tmp_path.name}/a[1].txt", "x")]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"abc\xffdef", "UTF-8.* 3"), (b"", "empty"), (None, "no file")],
)
def test_unusable_file_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.txt.*{message}|{message}.*x\.txt"):
        texts(tmp_path / "x.txt")


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl_gives_ids_texts_and_the_domain_of_the_configuration(tmp_path: Path, suffix: str) -> None:
    # Two frames or members, cut within a line: what appending to a compressed file makes.
    content, half = LINES.encode(), 25
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    file = tmp_path / f"x.jsonl{suffix}"
    file.write_bytes(compress(content[:half]) + compress(content[half:]))
    documents = list(read_documents(source(file)))
    name = f"{tmp_path.name}/{file.name}:2"
    assert [(d.id, d.text) for d in documents] == [("first", "one\ntwo"), (name, "drei"), ("7", "四")]
    assert {d.domain for d in documents} == {"narrative"}


@pytest.mark.parametrize(
    "line",
    [
        *("{broken", "[1]", "[" * 100_000, '{"id": "x"}', '{"text": 3}', '{"text": "\xff"}'),
        *('{"text": "\\ud800"}', '{"text": "fine", "id": "\\ud800"}'),
    ],
)
def test_bad_jsonl_line_is_named_by_file_and_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"text": "fine"}\n\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match=r"x\.jsonl:3 "):
        texts(file)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [
        (".gz", lambda content: gzip.compress(content)[:-6]),
        (".zst", lambda content: zstandard.compress(content)[:-6]),
        (".zst", lambda content: zstandard.compress(content) + b"garbage"),
    ],
)
def test_a_compressed_file_that_is_cut_off_or_goes_on_is_refused(tmp_path: Path, suffix: str, compress: Any) -> None:
    file = tmp_path / f"x.jsonl{suffix}"
    file.write_bytes(compress(LINES.encode() * 1000))
    with pytest.raises(DataError, match=r"x\.jsonl"):
        texts(file)


def test_reading_is_lazy_so_a_later_bad_line_is_not_reached(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(LINES + "{broken")
    assert len(texts(file, max_documents=3)) == 3


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.json", '{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
        ("x.json", ' \n{"text": "a"}\n', ["a"]),
        ("x.json", '\ufeff{"text": "a"}', ["a"]),
        ("x.json", '{\n"text": "a"}', ['{\n"text": "a"}']),
        ("x.json", '{"title": "a"}', ['{"title": "a"}']),
        ("x.ndjson", '{"text": "a"}', ["a"]),
        ("x.JSONL", '{"text": "a"}', ["a"]),
        ("x.csv", "text\na", ["text\na"]),
    ],
)
def test_the_ending_decides_the_format_and_the_first_line_that_of_json(
    tmp_path: Path, name: str, content: str, expected: list[str]
) -> None:
    (tmp_path / name).write_text(content)
    assert [text for _, text in texts(tmp_path / name)] == expected


def test_files_of_several_formats_in_a_source_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl").write_text(LINES)
    with pytest.raises(DataError, match=r"a\.txt is text.*b\.jsonl is jsonl"):
        texts(tmp_path / "*")


def write_parquet(file: Path) -> None:
    table = pyarrow.table({"name": ["a", None, "c"], "body": ["eins", "zwei", "drei"], "other": [1, 2, 3]})
    parquet.write_table(table, file, row_group_size=2)


def test_parquet_rows_across_row_groups(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet")
    expected = [("a", "eins"), (f"{tmp_path.name}/x.parquet:2", "zwei"), ("c", "drei")]
    assert texts(tmp_path / "*.parquet", text_field="body", id_field="name") == expected


def test_parquet_without_the_column_or_not_parquet_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="'text'"):
        texts(tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"y\.parquet"):
        texts(tmp_path / "y.parquet")


def test_hub_streams_what_datasets_reads(tmp_path: Path) -> None:
    """Local files stand for those of the Hub."""
    pytest.importorskip("datasets", reason="needs gistnet[data]")
    write_parquet(tmp_path / "x.parquet")
    (tmp_path / "x.json").write_text('{"text": "hello"}\n')
    fields = {"kind": "hub", "path": "parquet", "text_field": "body", "id_field": "name"}
    rows = [("a", "eins"), ("parquet:2", "zwei"), ("c", "drei")]
    assert texts(**fields, data_files=str(tmp_path / "x.parquet")) == rows
    assert texts(kind="hub", path="json", data_files=[str(tmp_path / "x.json")]) == [("json:1", "hello")]
    with pytest.raises(DataError, match="'text'"):
        texts(kind="hub", path="parquet", data_files=str(tmp_path / "x.parquet"))
    with pytest.raises(DataError, match="'parquet'"):
        texts(kind="hub", path="parquet", data_files=str(tmp_path / "missing.parquet"))
    for number, meta in enumerate(("null", '{"a": 1}')):  # a column that changes its type
        (tmp_path / f"{number}.jsonl").write_text(f'{{"text": "a", "meta": {meta}}}\n')
    with pytest.raises(DataError, match="'json'"):
        texts(kind="hub", path="json", data_files=[str(tmp_path / f"{n}.jsonl") for n in (0, 1)])


def test_hub_without_the_datasets_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match=r"gistnet\[data\]"):
        texts(kind="hub", path="parquet")


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "unknown"},
        {"kind": "files", "paths": []},
        {"kind": "installation", "weight": 0},
        {"kind": "installation", "domain": "poetry"},
        {"kind": "installation", "max_documents": 0},
        {"kind": "installation", "paths": ["x"]},
        {"kind": "synthetic"},
    ],
)
def test_impossible_configuration_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        source(**fields)


def test_names_do_not_depend_on_how_patterns_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / "lib" / name).mkdir(parents=True)
        (tmp_path / "lib" / name / "x.txt").write_text(name)
    monkeypatch.chdir(tmp_path / "lib" / "a")
    spellings = [["../*/x.txt"], [f"{tmp_path}/lib/**/*.txt"], ["x.txt", "../b/x.txt"], ["x.txt", "../b/./../b/*"]]
    for paths in spellings:
        assert texts(*paths) == [("lib/a/x.txt", "a"), ("lib/b/x.txt", "b")]


def test_a_broken_link_under_a_pattern_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    for pattern in ("*.txt", "b.txt", "**/*"):
        with pytest.raises(DataError, match=r"b\.txt .*gone\.txt"):
            texts(tmp_path / pattern)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.txt").write_text("x")
    with pytest.raises(DataError, match="not UTF-8") as caught:
        texts(tmp_path / "*")
    assert str(caught.value).encode()


@pytest.mark.parametrize("tail", [b"", b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"])
def test_memory_is_bounded_by_a_line_of_a_zstandard_file(tmp_path: Path, tail: bytes) -> None:
    """64 MB of text in a few kilobytes, as lines of a megabyte."""
    line = b'{"text": "' + b"0" * 1_000_000 + b'"}\n'
    packer = zstandard.ZstdCompressor().compressobj()
    packed = b"".join(packer.compress(line) for _ in range(64)) + packer.flush()
    (tmp_path / "x.jsonl.zst").write_bytes(packed + tail)
    assert len(packed) < 50_000
    tracemalloc.start()
    assert [len(line) for line in read_lines(tmp_path / "x.jsonl.zst")] == [len(line)] * 64
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 32e6  # twice 8 MiB while a block is put together, and a line in pieces
