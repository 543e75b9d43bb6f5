"""The program that measures trees: what it measures adds up, and it notices when bits differ."""

from pathlib import Path

import pytest

from benchmarks import tree as benchmark
from gistnet.tree.tree import GistTree
from tests.stub_encoder import StubEncoder


@pytest.fixture(autouse=True)
def few_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "PIECES", 12)


def test_figures_add_up_and_pieces_give_the_same_bits(tmp_path: Path) -> None:
    """3000 bytes are 3000 tokens, 750 gists of level 0 and 187 of level 1."""
    (tmp_path / benchmark.BOOK).write_text("a book, " * 375)
    encoder = StubEncoder()
    figures = benchmark.compress(tmp_path, encoder)
    assert figures["tokens"] == figures["text_bytes"] == 3000
    assert [level["gists"] for level in figures["levels"]] == [750, 187]
    assert figures["tokens_per_second"] == pytest.approx(3000 / figures["seconds"])
    parts = figures["token_bytes"] + sum(level["bytes"] for level in figures["levels"])
    assert 3000 * 4 < parts < figures["disk_bytes"]
    assert benchmark.append_pieces(tmp_path, encoder)["identical"]


def test_bits_that_differ_are_noticed(tmp_path: Path) -> None:
    (tmp_path / benchmark.BOOK).write_text("a book, " * 375)
    benchmark.compress(tmp_path, StubEncoder(1))
    assert not benchmark.append_pieces(tmp_path, StubEncoder(2))["identical"]


def test_a_library_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "DOCUMENTS_OF_A_LIBRARY", 4)
    (tmp_path / benchmark.LIBRARY).write_text("Ada Quill kept the lighthouse. Nobody crossed the bridge. " * 99)
    figures = benchmark.library(tmp_path, 40_000, repeats=2)
    with GistTree.open(tmp_path / "library-40000") as tree:
        info = tree.info()
    assert (info.documents, info.tokens, info.unindexed) == (4, 40_000 + 3 * 1000, figures["unindexed_after"])
    timed = [value for name, value in figures.items() if name.endswith("milliseconds")]
    assert len(timed) == 5
    assert all(0 < value["p50"] <= value["p99"] for value in timed)


def test_a_book_is_the_first_texts_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut behind so many tokens, of which a letter is one here."""

    class Letters:
        def encode(self, text: str, *, continued: bool = False) -> list[int]:
            return [0] * len(text)

    monkeypatch.setattr(benchmark, "load_tokenizer", lambda config: Letters())
    texts = [("a", "one " * 1000), ("b", "two " * 2000)]
    monkeypatch.setattr(benchmark, "read_installation", lambda domain: texts)
    benchmark.write_book(tmp_path / "book", 9000)
    book = (tmp_path / "book").read_text()
    assert book.startswith("one " * 1000 + "\n\ntwo")
    assert 9000 <= len(book) <= 11_000
