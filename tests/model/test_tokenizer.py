"""The text of each token, for tokenizers whose tokens are bytes and for those whose tokens are pieces of words."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gistnet.model.tokenizer import TeacherTokenizer


@pytest.fixture(scope="module")
def byte_tokens() -> TeacherTokenizer:
    """Every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return TeacherTokenizer(PreTrainedTokenizerFast(tokenizer_object=inner))


def test_a_character_of_several_tokens_is_the_text_of_the_last(byte_tokens):
    (tokens,) = byte_tokens.encode_batch(["aé 😀\n日"])
    assert byte_tokens.texts(tokens) == ["a", "", "é", " ", "", "", "", "😀", "\n", "", "", "日"]


def test_characters_cut_at_the_ends_are_left_out(byte_tokens):
    (tokens,) = byte_tokens.encode_batch(["😀 ok 😀"])
    assert byte_tokens.texts(tokens[2:-1]) == ["", "", " ", "o", "k", " ", "", "", ""]
    assert byte_tokens.texts(tokens[1:3]) == ["", ""]
    assert byte_tokens.texts([]) == []


@pytest.mark.parametrize(
    "text", ["plain", "naïve “quotes”…\tÆ\r\n", "a replacement \ufffd of its own\n", "𝒳é日本 🏳️‍🌈!"]
)
def test_joined_texts_are_the_text(byte_tokens, text):
    (tokens,) = byte_tokens.encode_batch([text])
    assert "".join(byte_tokens.texts(tokens)) == text


def test_spaces_of_tokenizers_that_drop_the_first_one_are_kept():
    """Decoded alone, each of these tokens would lose its space."""
    inner = Tokenizer(models.WordLevel({"▁the": 0, "▁cat": 1, "s": 2, "?": 3}, unk_token="?"))
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = TeacherTokenizer(PreTrainedTokenizerFast(tokenizer_object=inner))
    assert tokenizer.decode([1]) == "cat"
    assert tokenizer.texts([0, 1, 2, 1]) == ["the", " cat", "s", " cat"]
