import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gistnet.data.sources import Document
from gistnet.data.tokenise import cut_windows, pieces_of, tokenise, tokenise_text
from gistnet.errors import DataError
from tests.data.byte_tokenizer import ByteTokenizer
from tests.tokenizers import FAST, merging, sentencepiece_like


@pytest.mark.parametrize(
    ("n_tokens", "prefix", "window", "minimum", "expected"),
    [
        (25, 1, 16, 8, [(0, 16), (15, 11)]),  # 15 tokens of text a window, a rest of 10 + BOS
        (25, 1, 16, 11, [(0, 16), (15, 11)]),
        (25, 1, 16, 12, [(0, 16)]),  # the rest is too short
        (25, 1, 16, 20, [(0, 16)]),  # a minimum above the window is about the document only
        (30, 1, 16, 20, [(0, 16), (15, 16)]),
        (48, 0, 16, 16, [(0, 16), (16, 16), (32, 16)]),
        (10, 2, 16, 4, [(0, 12)]),
    ],
)
def test_windows_by_hand(
    n_tokens: int, prefix: int, window: int, minimum: int, expected: list[tuple[int, int]]
) -> None:
    assert cut_windows(n_tokens, prefix, window, minimum).tolist() == [list(pair) for pair in expected]


@given(st.integers(1, 500), st.integers(0, 3), st.integers(16, 80), st.integers(1, 120))
def test_windows_cover_a_kept_document_from_its_start_without_gap_or_overlap(
    n_tokens: int, prefix: int, window: int, minimum: int
) -> None:
    if n_tokens + prefix < minimum:
        return
    windows = cut_windows(n_tokens, prefix, window, minimum)
    covered = [token for offset, length in windows.tolist() for token in range(offset, offset + length - prefix)]
    assert covered == list(range(len(covered)))
    assert len(windows) >= 1
    assert all(min(minimum, window) <= length <= window for length in windows[:, 1])
    rest = n_tokens - len(covered)
    assert rest == 0 or rest + prefix < min(minimum, window), "only a rest that is no window is left out"


def tokenize_bytes(text: str, *, continued: bool = False) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)


@given(st.text(alphabet="ab \n", max_size=300), st.integers(2, 40))
def test_pieces_join_to_the_text_and_respect_the_limit(text: str, limit: int) -> None:
    pieces = list(pieces_of(text, tokenize_bytes, limit))
    assert "".join(pieces) == text
    assert all(len(piece) <= limit for piece in pieces)


def test_pieces_end_before_the_space_of_the_last_word_that_is_far_enough_from_the_limit() -> None:
    """Of 12 characters, three are left to see what follows: a cut is at the ninth at the latest."""
    text = "one two\n\nthree\nfour six seven"
    assert list(pieces_of(text, tokenize_bytes, 12)) == ["one two", "\n\nthree", "\nfour six", " seven"]
    assert list(pieces_of("x" * 25, tokenize_bytes, 12)) == ["x" * 9, "x" * 9, "x" * 7]


SPACED = st.text(alphabet="abe .\n", max_size=400)


@pytest.mark.parametrize("make", FAST)
@given(SPACED)
def test_pieces_have_the_tokens_of_the_text_in_one(make, text: str) -> None:
    """Whatever a tokenizer merges across words and lines, or puts at the beginning of a text."""
    tokenizer = make()
    (whole,) = tokenizer.encode_batch([text])
    pieces = list(pieces_of(text, tokenizer.encode, 60))
    parts = [tokenizer.encode_batch([piece], continued=number > 0)[0] for number, piece in enumerate(pieces)]
    assert [token for part in parts for token in part] == whole


@pytest.mark.parametrize("make", [merging, sentencepiece_like])
def test_a_long_document_has_the_tokens_of_one_text_in_a_corpus_and_alone(make) -> None:
    tokenizer = make()
    text = "".join(f"a bee ate {'an apple' * (n % 3)}.\n\n" for n in range(16_000))
    assert len(text) > 250_000
    (whole,) = tokenizer.encode_batch([text])
    ((_, tokens),) = tokenise([Document("d", "s", "code", text)], tokenizer)
    assert tokens.tolist() == tokenise_text(text, tokenizer).tolist() == whole


def test_what_a_cut_would_change_moves_the_cut() -> None:
    """A tokenizer with a token for "b c" and none for its parts is not cut there, though it is between words."""

    def tokenize(text: str, *, continued: bool = False) -> np.ndarray:
        return np.array([ord(letter) for letter in text.replace("b c", "B")])

    assert next(pieces_of("aaaaaab caaaaaaaaa", tokenize, 10)) == "aaaaaa"
    assert next(pieces_of("aaaaaaa caaaaaaaaa", tokenize, 10)) == "aaaaaaa"


def test_tokens_of_a_huge_text_are_those_of_its_pieces_and_batches_are_bounded() -> None:
    texts = ["short", "", "word " * 1_000_000, "end"]
    documents = [Document(str(place), "s", "code", text) for place, text in enumerate(texts)]
    tokenizer = ByteTokenizer()
    result = list(tokenise(documents, tokenizer))
    assert [document.id for document, _ in result] == ["0", "1", "2", "3"]
    for text, (_, tokens) in zip(texts, result, strict=True):
        assert tokens.dtype == np.int64
        assert bytes(tokens.astype(np.uint8).tolist()) == text.encode()
    assert all(sum(map(len, batch)) <= 2_200_000 for batch in tokenizer.batches)
    # 5 million characters in batches of 2 million, the beginning of the document apart.
    assert sum(sum(map(len, batch)) > 1000 for batch in tokenizer.batches) == 4


def test_token_outside_the_vocabulary_is_refused_and_not_wrapped() -> None:
    tokenizer = ByteTokenizer()
    tokenizer.vocabulary_size = 100
    with pytest.raises(DataError, match="token 122 for document 'd', but its vocabulary has 100"):
        list(tokenise([Document("d", "s", "code", "az")], tokenizer))
