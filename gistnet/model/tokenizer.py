"""The teacher's tokenizer, with the little that preparing data and showing text need of it."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any


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
        return str(self.inner.decode(list(tokens)))
