"""The teacher's tokenizer, with the little that preparing data and showing text need of it."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

_INCOMPLETE = "\ufffd"
"""What decoding makes of bytes that are no whole character."""


class TeacherTokenizer:
    """A tokenizer of transformers, without special tokens in the middle of text."""

    def __init__(self, tokenizer: Any) -> None:
        self.inner = tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides which tokens a text becomes."""
        backend = getattr(self.inner, "backend_tokenizer", None)
        described = backend.to_str() if backend is not None else json.dumps(self.inner.get_vocab(), sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()

    @cached_property
    def vocabulary_size(self) -> int:
        """One more than the largest token id."""
        return max(self.inner.get_vocab().values()) + 1

    @cached_property
    def window_prefix(self) -> tuple[int, ...]:
        """What the tokenizer puts before any text: BOS, where the teacher was trained with one."""
        return tuple(self.inner("")["input_ids"])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without special tokens."""
        encoded = self.inner(list(texts), add_special_tokens=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]

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
        if (first := next((place for place, text in enumerate(texts) if text), None)) is not None:
            texts[first] = texts[first].lstrip(_INCOMPLETE)
            texts[-1] = texts[-1].rstrip(_INCOMPLETE)
        return texts
