"""The index of passages: as up to date as the tree after appends, kills and compactions."""

import logging
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistnet.context.selectors import by_words, word_scores
from gistnet.errors import DataError
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
