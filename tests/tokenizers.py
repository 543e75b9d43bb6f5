"""Small tokenizers of every kind that texts are treated differently by; the same at every call."""

import string
from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from gistnet.model.tokenizer import TeacherTokenizer

BOS, EOS = "<s>", "</s>"
TURN, END = "<|turn|>", "<|end|>"
"""Special tokens."""
THINK = "<think>"
"""An added token that is not marked special, and that the chat template writes."""
SPACES = "    "
"""An added token that is not marked special, and that no template writes."""
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>bot\n<think>{% endif %}"
)
LINES = [
    "an apple a bee. a bee ate: an apple",
    "the captain of the ship sat near. the bee ate. the apple: an end",
    "be a bee. be an apple",
] * 4


def _made(backend: Any, around: str = f"{BOS} $A", template: str | None = TEMPLATE) -> TeacherTokenizer:
    """The tokenizer of a backend that has the special tokens, and puts them around a text."""
    special = [BOS, EOS, TURN, END]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in (THINK, SPACES)])
    ids = [(text, backend.token_to_id(text)) for text in special]
    backend.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    inner = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS)
    inner.chat_template = template
    return TeacherTokenizer(inner)


@cache
def merging(around: str = f"{BOS} $A", template: str | None = TEMPLATE) -> TeacherTokenizer:
    """Byte-level BPE with merges, as of GPT-2 and most since; `around` says what it puts around a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    # Runs of line breaks are tokens, too.
    lines = [*LINES, *["a\n\nb\n\n\nc\n"] * 8]
    backend.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    return _made(backend, around, template)


def _subwords(vocab_size: int) -> Any:
    """A BPE without pre-tokeniser, trained where spaces are "▁", so that it merges across them."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, max_token_length=6)
    backend.train_from_iterator([line.replace(" ", "▁") for line in LINES], trainer)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


@cache
def sentencepiece_like() -> TeacherTokenizer:
    """Puts "▁" before every text, by its normaliser: Llama 2, Mistral 0.1."""
    backend = _subwords(360)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _made(backend)


@cache
def metaspace() -> TeacherTokenizer:
    """Puts "▁" before every text, by its pre-tokeniser, which ends words at spaces: Llama 2 as it is saved now."""
    backend = _subwords(360)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    return _made(backend)


@cache
def unigram() -> TeacherTokenizer:
    """Finds its pieces in any text, those of special tokens too, which are in its vocabulary: XGLM."""
    letters = sorted({"▁", *string.printable} - {" "})
    pieces = [("<unk>", 0.0), (BOS, 0.0), (EOS, 0.0), *((letter, -5.0) for letter in letters), ("▁bee", -3.0)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return _made(backend)


@cache
def slow() -> TeacherTokenizer:
    """In Python, over bytes; ends every text with EOS."""
    return TeacherTokenizer(ByT5Tokenizer())


FAST: tuple[Callable[[], TeacherTokenizer], ...] = (merging, sentencepiece_like, metaspace, unigram)
