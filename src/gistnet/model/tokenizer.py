"""The teacher's tokenizer: text to tokens, for documents, prompts, and what continues them.

Text is text: a string such as `<|im_end|>` in a document or a prompt becomes the tokens of its characters, never the
control token that a chat template writes with it. Control tokens are the tokenizer's special tokens, and those added
tokens that its chat template contains (`<think>`, `<tool_call>`, the roles of DeepSeek are not marked special), except
white space. Other added tokens, such as runs of spaces, are words like any other. transformers draws the same line
(`sanitize_control_tokens` of `apply_chat_template`).

A text that continues another is not the beginning of a text: `continued` leaves out what a tokenizer puts at a
beginning only, such as the space of SentencePiece. BOS and EOS are in no text; `window_prefix` is what precedes one.
"""

import hashlib
import json
import secrets
from collections.abc import Sequence
from enum import IntEnum
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistnet.data.tokenise import tokenise_text
from gistnet.errors import DataError, TeacherError

_INCOMPLETE = "\ufffd"
"""Character that decoding makes of bytes that are no whole one."""
_RULE = "2: control tokens are text, pieces continue each other"
"""Part of the fingerprint; another number means other tokens of some text."""

_ENDS_A_SENTENCE, _CLOSES = ".!?…。！？", "\"')]}”’»›」』）"


class TextEnd(IntEnum):
    """Part of a text that ends with a token; the stronger the higher."""

    NOTHING = 0
    CLOSING = 1
    """Only closes quotes or brackets, and so belongs to what it follows."""
    SENTENCE = 2
    LINE = 3
    PARAGRAPH = 4
    """An empty line follows."""


class TeacherTokenizer:
    """A tokenizer of transformers, fast or slow, whose control tokens no text can spell."""

    def __init__(self, tokenizer: Any) -> None:
        self.inner = tokenizer
        self._backends: dict[tuple[bool, bool], Any] = {}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides which tokens a text becomes."""
        described = self._description or self.inner.get_vocab()
        rule = [_RULE, sorted(self._control_strings), described]
        return hashlib.sha256(json.dumps(rule, sort_keys=True).encode()).hexdigest()

    @cached_property
    def vocabulary_size(self) -> int:
        """One more than the largest token id."""
        return max(self.inner.get_vocab().values()) + 1

    @cached_property
    def window_prefix(self) -> tuple[int, ...]:
        """Tokens that the tokenizer puts before any text: BOS, where the teacher was trained with one.

        Raises:
            TeacherError: the tokenizer does not leave a text in one piece.
        """
        (text,) = self.encode_batch(["a"])
        whole = list(self.inner("a")["input_ids"])
        for start in range(len(whole) - len(text) + 1):
            if whole[start : start + len(text)] == text:
                return tuple(whole[:start])
        raise TeacherError(f"The tokenizer makes {whole} of 'a', expected its own tokens, {text}, in a row.")

    def encode_batch(self, texts: Sequence[str], *, continued: bool = False, control: bool = False) -> list[list[int]]:
        """The token ids of each text, without BOS and EOS.

        Args:
            continued: each text follows another one, so that nothing is put at its beginning.
            control: the strings of control tokens become control tokens: for what a template has rendered.

        Raises:
            DataError: a text is not valid Unicode.
        """
        for text in texts:
            require_unicode(text, "a text")
        if self._description is None:
            return self._encode_slowly(texts, continued, control)
        encoded = self._backend(continued, control).encode_batch_fast(list(texts), add_special_tokens=False)
        return [list(of_text.ids) for of_text in encoded]

    def encode(self, text: str, *, continued: bool = False) -> NDArray[np.int64]:
        """The token ids `[n]` of a text of any length, as of a document of a prepared corpus."""
        return tokenise_text(text, self, continued=continued)

    def encode_alternatives(
        self, context: str, alternatives: Sequence[str], *, continued: bool = False
    ) -> tuple[list[int], list[list[int]]]:
        """The token ids of a context, and of what may follow it; joined, they are those of the joined text.

        The cut is where the tokens of all joined texts, and of the context alone, are no longer the same: at the end of
        the context, or before its last token where a tokenizer merges that with what follows.

        Args:
            continued: as for `encode_batch`, of the context.
        """
        alone, *joined = self.encode_batch([context, *(context + text for text in alternatives)], continued=continued)
        shared = min(shared_beginning(alone, tokens) for tokens in joined)
        return alone[:shared], [tokens[shared:] for tokens in joined]

    def encode_head(self, head: str, document: str) -> list[int]:
        """The token ids of a template's text before a document whose tokens are those of a text of its own.

        A space at the head's end is left out where the document's first token brings it.
        """
        whole, own, *heads = self.encode_batch([head + document, document, head, head[:-1]], control=True)
        wanted = self.decode(whole)
        return next((tokens for tokens in heads if self.decode([*tokens, *own]) == wanted), heads[0])

    def split_at_control(self, text: str) -> tuple[str, str]:
        """A rendered text, cut before the first of its control tokens."""
        found = [text.find(control) for control in self._control_strings]
        cut = min((index for index in found if index >= 0), default=len(text))
        return text[:cut], text[cut:]

    def split_after_control(self, text: str) -> tuple[str, str]:
        """A rendered text, cut behind the last of its control tokens."""
        ends = [found + len(control) for control in self._control_strings if (found := text.rfind(control)) >= 0]
        cut = max(ends, default=0)
        return text[:cut], text[cut:]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self.inner.decode(list(tokens), clean_up_tokenization_spaces=False))

    def texts(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token; joined, they are the text of all of them.

        A character that is spread over several tokens is the text of the last of them, and the others have none. A
        character that begins before the first token, or ends after the last, is left out.
        """
        texts = [""] * len(tokens)
        context = pending = 0  # tokens from `pending` on have no text yet; those from `context` on decide about spaces
        for end in range(1, len(tokens) + 1):
            known = self.decode(tokens[context:pending])
            text = self.decode(tokens[context:end])[len(known) :]
            if text.endswith(_INCOMPLETE) and end < len(tokens):
                continue
            texts[end - 1] = text
            context, pending = pending, end
        if (first := next((index for index, text in enumerate(texts) if text), None)) is not None:
            texts[first] = texts[first].lstrip(_INCOMPLETE)
            texts[-1] = texts[-1].rstrip(_INCOMPLETE)
        return texts

    @cached_property
    def text_ends(self) -> NDArray[np.int8]:
        """The `TextEnd` of each token id by its own text alone, `[vocabulary_size]`."""
        texts = self.inner.batch_decode([[token] for token in range(self.vocabulary_size)])
        return np.array([_text_end(text) for text in texts], dtype=np.int8)

    @cached_property
    def _description(self) -> dict[str, Any] | None:
        """A fast tokenizer as the JSON of its file, without what a caller sets; None of a slow one."""
        backend = getattr(self.inner, "backend_tokenizer", None)
        if backend is None:
            return None
        return {**json.loads(backend.to_str()), "truncation": None, "padding": None}

    @cached_property
    def _control_strings(self) -> frozenset[str]:
        """Strings of the control tokens."""
        template = str(getattr(self.inner, "chat_template", None) or "")
        declared = getattr(self.inner, "chat_control_tokens", None) or ()
        return frozenset(
            token.content
            for token in getattr(self.inner, "added_tokens_decoder", {}).values()
            if token.special or token.content in declared or (token.content in template and not token.content.isspace())
        )

    def _backend(self, continued: bool, control: bool) -> Any:
        """A copy of a fast tokenizer's backend, for one way of encoding."""
        if (continued, control) not in self._backends:
            from tokenizers import Tokenizer

            assert self._description is not None
            described = self._description
            if not control:
                described = _without_control(described, self._control_strings)
            if continued:
                stages = {name: _without_beginning(described[name]) for name in ("normalizer", "pre_tokenizer")}
                if stages.items() <= described.items():
                    return self._backends.setdefault((True, control), self._backend(False, control))
                described = {**described, **stages}
            backend = Tokenizer.from_str(json.dumps(described))
            backend.encode_special_tokens = not control
            self._backends[continued, control] = backend
        return self._backends[continued, control]

    def _encode_slowly(self, texts: Sequence[str], continued: bool, control: bool) -> list[list[int]]:
        options: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        if not control and hasattr(self.inner, "tokens_trie"):  # what has none never looks for control tokens
            options["split_special_tokens"] = True

        def encode(text: str) -> list[int]:
            return list(self.inner(text, **options)["input_ids"])

        line = encode("\n") if continued else []
        encoded = []
        for text in texts:
            # As transformers does for the parts of a chat: what is put at a beginning is put before the line break.
            tokens = encode(f"\n{text}") if continued else encode(text)
            encoded.append(tokens[len(line) :] if tokens[: len(line)] == line else encode(text))
        return encoded


def require_unicode(text: str, what: str) -> None:
    """Refuse a text with half a surrogate pair, which no tokenizer and no file takes.

    Raises:
        DataError: it is not valid Unicode; names `what`.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"Got {what} with {text[error.start]!a} at character {error.start}, expected valid Unicode."
        ) from error


def shared_beginning(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of tokens that two texts begin with alike."""
    return sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(first, second, strict=False)))


def _without_control(described: dict[str, Any], control: frozenset[str]) -> dict[str, Any]:
    """A fast tokenizer, as JSON, whose special tokens are the control tokens, which its model cannot make of text."""
    names: dict[str, str] = {}
    model = described["model"]
    if model["type"] == "Unigram":  # finds its pieces in any text; so those of control tokens get names of no text
        names = {text: f"{secrets.token_hex(16)}{text}" for text in control}
        model = {**model, "vocab": [[names.get(piece, piece), score] for piece, score in model["vocab"]]}
    added = [
        {**token, "special": token["content"] in control, "content": names.get(token["content"], token["content"])}
        for token in described["added_tokens"]
    ]
    return {**described, "model": model, "added_tokens": added}


def _without_beginning(stage: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normaliser or pre-tokeniser, as JSON, that neither adds to the beginning of a text nor takes from it."""
    if stage is None or stage["type"] == "Prepend":
        return None
    if stage["type"] == "Sequence":
        parts = "normalizers" if "normalizers" in stage else "pretokenizers"
        return {**stage, parts: [part for part in map(_without_beginning, stage[parts]) if part is not None]}
    settings = {"prepend_scheme": "never", "add_prefix_space": False, "strip_left": False}
    return {name: settings.get(name, value) for name, value in stage.items()}


def _text_end(text: str) -> TextEnd:
    """The part of a text that its last characters end."""
    after = text[len(text.rstrip()) :]
    if "\n" in after:
        return TextEnd.PARAGRAPH if after.count("\n") > 1 else TextEnd.LINE
    said = text.strip()
    if said and not said.strip(_CLOSES):
        return TextEnd.CLOSING
    return TextEnd.SENTENCE if said.rstrip(_CLOSES).endswith(tuple(_ENDS_A_SENTENCE)) else TextEnd.NOTHING
