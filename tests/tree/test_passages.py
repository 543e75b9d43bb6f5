"""The index of passages: as up to date as the tree after appends, kills and compactions."""

import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistnet.context.selectors import by_words, word_scores
from gistnet.errors import DataError, GistNetError, TeacherError
from gistnet.tree.passages import LONGEST_PARAGRAPH, Passage, split_passages
from gistnet.tree.storage import tables
from gistnet.tree.tree import GistTree
from tests.stub_encoder import StubEncoder, StubTokenizer

TEXT = "The harbour was quiet that night. A lantern burned on the pier, and Ada Quill counted boats.\n\n" * 3
TOKENIZER = StubTokenizer()


class MuteEncoder(StubEncoder):
    """Knows no text of its tokens."""

    tokenizer = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = None


def passages_of(tree: GistTree, name: str) -> list[tuple[Passage, str]]:
    """All rows of a document in the index: every passage holds the word that is looked for."""
    return sorted((hit.passage, hit.text) for hit in tree.find("needle", 10_000, name))


def expected(text: str) -> list[tuple[Passage, str]]:
    tokens = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
    found = [(of, TOKENIZER.decode(tokens[of.start : of.stop].tolist())) for of in split_passages(tokens, TOKENIZER)]
    return [each for each in found if "needle" in each[1].replace(".", " ").split()]


WORDS = ["needle ", "needle. ", "\n", "\n\n", "needle " * 60]


@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map("".join), min_size=1, max_size=6))
def test_passages_before_the_last_paragraph_stay_as_they_are(pieces: list[str]) -> None:
    text, settled, kept = "", 0, list[Passage]()
    for piece in pieces:
        text += piece
        tokens = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
        added = [Passage(*(settled + at for at in of)) for of in split_passages(tokens[settled:], TOKENIZER)]
        kept = [of for of in kept if of.start < settled] + added
        settled = kept[-1].paragraph_start
    assert kept == split_passages(tokens, TOKENIZER)


@pytest.mark.parametrize("seed", range(4))
def test_appending_in_pieces_indexes_the_passages_of_the_whole(tree: GistTree, seed: int) -> None:
    draw = random.Random(seed)
    pieces = ["".join(draw.choices(WORDS, k=draw.randint(1, 6))) for _ in range(5)]
    tree.append("needle of another", "other")
    for piece in pieces:
        tree.append(piece)
        if draw.random() < 0.3:
            tree.compact()
    assert passages_of(tree, "main") == expected("".join(pieces))
    assert tree.info().unindexed == 0
    assert tree.verify().ok
    assert len(tree.find("another")) == 1


def test_a_long_paragraph_is_replaced_in_part_only(tree: GistTree) -> None:
    """So that an append costs what it adds, in a text without paragraphs too."""
    tree.append("needle. " * 1000)
    settled = tree._current.catalog.documents["main"].settled
    assert 8000 - LONGEST_PARAGRAPH - 64 <= settled <= 8000
    assert passages_of(tree, "main") == expected("needle. " * 1000)


def test_words_are_found_best_first_in_all_documents_or_one(tree: GistTree) -> None:
    tree.append("A boat. " * 9, "it's")
    tree.append(TEXT)
    hits = tree.find("Who counted the BOATS, Ada?")
    assert {hit.document for hit in hits} == {"main"}
    assert "Ada" in hits[0].text and hits[0].score >= hits[-1].score > 0
    assert {hit.document for hit in tree.find("boat", document="it's")} == {"it's"}
    assert tree.find("boat", document="main") == tree.find("zebra") == tree.find("the of was that") == []
    assert len(tree.find("boat", k=1)) == 1


def test_a_tree_document_is_ranked_like_one_in_memory_up_to_statistics(tree: GistTree) -> None:
    tree.append(TEXT)
    document = tree.document()
    query = "lantern on a pier"
    hits = by_words(document, query, TOKENIZER)  # type: ignore[arg-type]
    of_all = split_passages(document.tokens(0, document.n_tokens), TOKENIZER)
    scores = word_scores([TOKENIZER.decode(document.tokens(*of[:2]).tolist()) for of in of_all], query)
    assert {hit.passage for hit in hits} == {of for of, score in zip(of_all, scores, strict=True) if score > 0}


def test_a_reader_finds_what_was_there_when_it_looked(tree: GistTree, tmp_path: Path) -> None:
    tree.append("needle in the hay. ")
    with GistTree.open(tmp_path / "tree") as reader:
        tree.append("needle again", "main")
        tree.append("needle", "other")
        tree.compact()
        tree.compact()
        assert passages_of(reader, "main") == expected("needle in the hay. ")
        reader.refresh()
        assert passages_of(reader, "main") == expected("needle in the hay. needle again")


def test_what_was_appended_without_a_tokenizer_is_indexed_when_it_can_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gistnet")
    with GistTree.create(tmp_path / "tree", MuteEncoder()) as tree:
        tree.append(TEXT)
        assert tree.info().unindexed == len(TEXT)
        assert by_words(tree.document(), "Ada", TOKENIZER)  # type: ignore[arg-type]
    assert "not in the tree's index" in caplog.text
    with GistTree.open(tmp_path / "tree", StubEncoder(), writable=True) as tree:
        assert tree.info().unindexed == 0
        assert tree.find("Ada")
    assert "Indexing" in caplog.text
    with GistTree.open(tmp_path / "tree", writable=True) as tree:
        tree.append([65, 100, 97], gists=False)
        tree.append([65, 100, 97], "other", gists=False)
        tree.index(TOKENIZER)
        assert tree.find("Ada", document="other")
        assert tree.verify().ok


def test_many_rows_are_taken_into_the_index_at_once(tree: GistTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_UNINDEXED", 8)
    for _ in range(5):
        tree.append("needle. " * 40)
    assert passages_of(tree, "main") == expected("needle. " * 200)


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    """A tree of two documents whose passages are in Lance's index."""
    with GistTree.create(tmp_path / "tree", StubEncoder()) as tree:
        tree.append(TEXT * 4)
        tree.append("Lanterns and harbours. " * 20, "other")
        tree.compact()
        tree.compact()
    return tmp_path / "tree"


def found(tree: GistTree) -> list[list[tuple[str, Passage]]]:
    return [sorted((hit.document, hit.passage) for hit in tree.find(word, 1000)) for word in ("harbour", "Lanterns")]


def test_an_index_that_loses_words_is_noticed_and_made_anew(indexed: Path) -> None:
    with GistTree.open(indexed) as tree:
        whole, report = found(tree), tree.verify()
    assert report.ok and all(whole)
    (documents,) = indexed.glob("passages.lance/_indices/*/part_0_docs.lance")
    (words,) = indexed.glob("passages.lance/_indices/*/part_0_tokens.lance")
    original, random_ = documents.read_bytes(), np.random.default_rng(0)
    silent = 0
    for index in random_.integers(0, len(original), 60).tolist():
        changed = bytearray(original)
        changed[index] ^= 4
        documents.write_bytes(changed)
        with GistTree.open(indexed) as tree:
            problems = tree.verify().problems
            try:
                lost = found(tree) != whole
            except GistNetError:
                lost = True
            assert problems or not lost, index
            silent += any("does not find" in problem for problem in problems)
    assert silent, "Lance notices some damage by itself, and this not"
    words.unlink()
    with GistTree.open(indexed, writable=True) as tree, GistTree.open(indexed) as reader:
        assert any("--rebuild" in problem for problem in tree.verify().problems)
        tree.index(TOKENIZER, rebuild=True)
        assert found(tree) == whole and tree.verify().ok and tree.info().unindexed == 0
        reader.refresh()
        assert found(reader) == whole
    with GistTree.open(indexed, StubEncoder(), writable=True) as tree:
        tree.append("A harbour again.")
        tree.compact()
        assert tree.verify().ok


def test_a_rebuild_that_was_interrupted_is_continued(indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with GistTree.open(indexed, writable=True) as tree:
        whole = found(tree)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(StubTokenizer, "decode", interrupted_after(3))
            tree.index(TOKENIZER, rebuild=True)
    with GistTree.open(indexed, writable=True) as tree:
        assert tree.info().unindexed > 0
        tree.index(TOKENIZER)
        assert found(tree) == whole and tree.verify().ok


def interrupted_after(calls: int) -> Callable[[StubTokenizer, Sequence[int]], str]:
    decode, left = StubTokenizer.decode, iter(range(calls))

    def interrupted(self: StubTokenizer, tokens: Sequence[int]) -> str:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return decode(self, tokens)

    return interrupted


@pytest.mark.parametrize("rebuild", [False, True])
def test_another_tokenizer_is_refused(indexed: Path, rebuild: bool) -> None:
    class Other(StubTokenizer):
        def decode(self, tokens: Sequence[int]) -> str:
            return super().decode(tokens).swapcase()

    with GistTree.open(indexed, writable=True) as tree:
        tree.append([65, 100, 97], gists=False)
        with pytest.raises(TeacherError, match="tokenizer"):
            tree.index(Other(), rebuild=rebuild)
        assert tree.info().unindexed == 3


def test_bad_queries_are_refused(tree: GistTree) -> None:
    tree.append(TEXT, "harbour.txt")
    for query, document, words in (
        (" ", None, "empty query"),
        ("\ud800", None, "Unicode"),
        ("a", "harbor.txt", "did you mean 'harbour.txt'"),
    ):
        with pytest.raises(DataError, match=words):
            tree.find(query, document=document)
    with pytest.raises(DataError, match="k = 0"):
        tree.find("Ada", 0)
