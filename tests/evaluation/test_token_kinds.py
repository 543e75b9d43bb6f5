"""Kinds of tokens against sentences sorted by hand."""

import pytest

from gistnet.evaluation.token_kinds import COMMON_WORDS, KINDS, token_kinds

LETTERS = dict(zip("#NP=.", ("numbers", "names", "punctuation", "common words", "other words"), strict=True))


def kinds(tokens: list[str]) -> str:
    """One letter a token: # number, N name, P punctuation, = common word, . other word."""
    letters = {kind: letter for letter, kind in LETTERS.items()}
    return "".join(letters[kind] for kind in token_kinds(tokens))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        # A sentence's first word is no name, "I" is a common word, and "seven" is written out.
        (["Seven", " men", " and", " I", " met", " Alice", "."], "..==.NP"),
        (["He", " said", ",", ' "', "Come", " in", '."', " Then", " Paris", "."], "=.PP.=P=NP"),
        (["It", " rained", ".", " Boats", " left", "!", " London", " slept"], "=.P..P.."),
        (["The", " end", "\n\n", "Chapter", " Two"], "=.P.N"),
        (["the", "\n", "Thames"], "=PN"),  # a line's end is no sentence's
        # A full stop after a title or an initial ends no sentence.
        (["with", " Mr", ".", " Smith", " of", " J", ".", " S", ".", " Bach"], "=NPN=NPNPN"),
        # What continues a word is of the word's kind, wherever it is cut.
        ([" the", "rm", "al"], "..."),
        (["saw", " Lon", "don", "'s", " dog"], ".NNN."),
        (["do", "n't", " it", "'s", " can", "’t", " dog", "'s"], "======.."),
        # Digits one by one, with what stands between them; the space before them is white space.
        ([" ", "3", ".", "1", "4", " ", "1", ",", "0", "0", "0", ","], "P####P#####P"),
        (["the", " ", "2", "0", "th", " x", "1"], "=P###.."),
        (["see", " snake", "_", "case", "=", "1", "\n", "    ", "return"], "....P#PP."),
        (["UNDER", " THE", " NASA"], "==N"),
        (["école", " à", " Émile"], "..N"),
    ],
)
def test_sentences_sorted_by_hand(tokens: list[str], expected: str) -> None:
    assert kinds(tokens) == expected


def test_a_token_without_text_is_of_the_kind_of_the_character_it_begins() -> None:
    """The bytes of one character are spread over tokens, and the last of them has its text."""
    assert kinds(["see", "", "", " Émile", "", "😀", " x", ""]) == ".NNNPP.P"


def test_a_token_is_of_the_kind_of_its_first_visible_character() -> None:
    assert kinds([" (the", " 7)", "\n\n  Boats", ").\n"]) == "P#.P"


def test_no_tokens_have_no_kinds() -> None:
    assert token_kinds([]) == []
    assert token_kinds(["", ""]) == ["punctuation", "punctuation"]


def test_the_list_of_common_words_is_lower_case_and_the_kinds_are_five() -> None:
    assert all(word == word.lower() and word.isalpha() for word in COMMON_WORDS)
    assert set(LETTERS.values()) == set(KINDS)
