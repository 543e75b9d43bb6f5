"""Documents to tokens, in batches that keep a tokenizer's cores busy and memory bounded; and tokens to windows.

Fast tokenizers share a batch out over their own threads, unless the environment sets `TOKENIZERS_PARALLELISM=false`.
Nothing here forks, so their warning about threads before a fork does not arise.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gistnet.data.sources import Document
from gistnet.errors import DataError

BATCH_CHARACTERS = 2_000_000
PIECE_CHARACTERS = 200_000

Item = TypeVar("Item")


class WindowTokenizer(Protocol):
    """What preparing a corpus needs of a tokenizer; any object that has these will do."""

    @property
    def fingerprint(self) -> str:
        """Changes when the tokens of any text change."""

    @property
    def vocabulary_size(self) -> int:
        """Every token id is below it."""

    @property
    def window_prefix(self) -> tuple[int, ...]:
        """Tokens that begin every window, such as BOS; may be empty."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""


def tokenise(documents: Iterable[Document], tokenizer: WindowTokenizer) -> Iterator[tuple[Document, NDArray[np.int64]]]:
    """Yield each document with its tokens, int64 [n_tokens], in order.

    Texts above 200,000 characters are encoded in pieces, so that a book does not keep a single core busy for long.

    Raises:
        DataError: the tokenizer gives a token outside its vocabulary.
    """
    for batch in _grouped(documents, lambda document: len(document.text)):
        pieces = [(index, piece) for index, document in enumerate(batch) for piece in pieces_of(document.text)]
        encoded: list[list[NDArray[np.int64]]] = [[] for _ in batch]
        for group in _grouped(pieces, lambda piece: len(piece[1])):
            results = tokenizer.encode_batch([text for _, text in group])
            for (index, _), result in zip(group, results, strict=True):
                encoded[index].append(np.array(result, dtype=np.int64))
        for document, parts in zip(batch, encoded, strict=True):
            tokens = np.concatenate(parts)
            if tokens.max(initial=0) >= tokenizer.vocabulary_size:
                raise DataError(
                    f"The tokenizer gave token {tokens.max()} for document {document.id!r}, "
                    f"but its vocabulary has {tokenizer.vocabulary_size} tokens."
                )
            yield document, tokens


def pieces_of(text: str, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a text into pieces of at most `limit` characters, at a paragraph, line or word where there is one."""
    return pieces_of_blocks((text,), limit)


def pieces_of_blocks(blocks: Iterable[str], limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """As `pieces_of` cuts the text that the blocks join to, holding no more of it than a block and a piece."""
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > limit:
            end = start + limit
            # Most tokenizers attach a space to the word after it, and a line break to the line before it.
            for boundary, stays_behind in (("\n\n", 2), ("\n", 1), (" ", 0)):
                found = rest.rfind(boundary, start + limit // 2, end)
                if found >= 0:
                    end = found + stays_behind
                    break
            yield rest[start:end]
            start = end
        rest = rest[start:]
    yield rest


def cut_windows(n_tokens: int, prefix_tokens: int, window_tokens: int, min_tokens: int) -> NDArray[np.int64]:
    """Cut a document into consecutive windows: [windows, 2], the offset in the document and the window's length.

    Each window takes `window_tokens - prefix_tokens` tokens of the document. The rest becomes a shorter last window if
    that has at least `min(min_tokens, window_tokens)` tokens, prefix included; else it is in no window.
    """
    body = window_tokens - prefix_tokens
    offsets = np.arange(0, n_tokens, body, dtype=np.int64)
    lengths = np.minimum(n_tokens - offsets, body) + prefix_tokens
    long_enough = lengths >= min(min_tokens, window_tokens)
    return np.stack([offsets[long_enough], lengths[long_enough]], axis=1)


def _grouped(items: Iterable[Item], characters: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Collect items into lists of `BATCH_CHARACTERS` characters or a little more."""
    group: list[Item] = []
    total = 0
    for item in items:
        group.append(item)
        total += characters(item)
        if total >= BATCH_CHARACTERS:
            yield group
            group, total = [], 0
    if group:
        yield group
