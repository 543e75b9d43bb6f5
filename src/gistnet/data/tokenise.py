"""Documents to tokens, in batches that keep a tokenizer's cores busy and memory bounded; and tokens to windows.

Fast tokenizers share a batch out over their own threads, unless the environment sets `TOKENIZERS_PARALLELISM=false`.
Nothing here forks, so their warning about threads before a fork does not arise.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from gistnet.data.sources import Document
from gistnet.errors import DataError

BATCH_CHARACTERS = 2_000_000
PIECE_CHARACTERS = 200_000
CUT_TRIES, CUT_CONTEXT = 100, 64
"""Number of cuts of a long text that are tried, and of characters on both sides of one that are tokenised to try it."""

Item = TypeVar("Item")


class WindowTokenizer(Protocol):
    """Interface that preparing a corpus needs of a tokenizer."""

    @property
    def fingerprint(self) -> str:
        """Changes when the tokens of any text change."""

    @property
    def vocabulary_size(self) -> int:
        """Every token id is below it."""

    @property
    def window_prefix(self) -> tuple[int, ...]:
        """Tokens that begin every window, such as BOS; may be empty."""

    def encode_batch(
        self, texts: list[str], *, continued: bool = False, control: bool = False
    ) -> Sequence[Sequence[int]]:
        """Token ids of each text, without BOS and EOS.

        Args:
            continued: each text continues another one.
            control: the strings of control tokens become control tokens.
        """


class Tokenize(Protocol):
    """Text to token ids."""

    def __call__(self, text: str, *, continued: bool = False) -> NDArray[np.int64]:
        """Token ids `[n]` of a text, which may continue another one."""


def tokenise(
    documents: Iterable[Document], tokenizer: WindowTokenizer, *, control: bool = False
) -> Iterator[tuple[Document, NDArray[np.int64]]]:
    """Yield each document with its tokens, int64 [n_tokens], in order.

    Texts above 200,000 characters are encoded in pieces, so that a book does not keep a single core busy for long.

    Args:
        control: whether strings of control tokens become control tokens (see `gistnet.model.tokenizer`).

    Raises:
        DataError: the tokenizer gives a token outside its vocabulary.
    """
    tokenize = _tokenize(tokenizer, control)
    for batch in _grouped(documents, lambda document: len(document.text)):
        pieces = [
            (index, number > 0, piece)
            for index, document in enumerate(batch)
            for number, piece in enumerate(pieces_of(document.text, tokenize))
        ]
        encoded: list[list[NDArray[np.int64]]] = [[] for _ in batch]
        for group in _grouped(pieces, lambda piece: len(piece[2])):
            for later in (False, True):  # of every document, its first piece comes before the others
                chosen = [(index, piece) for index, is_later, piece in group if is_later == later]
                results = tokenizer.encode_batch([piece for _, piece in chosen], continued=later, control=control)
                for (index, _), result in zip(chosen, results, strict=True):
                    encoded[index].append(np.array(result, dtype=np.int64))
        for document, parts in zip(batch, encoded, strict=True):
            tokens = np.concatenate(parts)
            if tokens.max(initial=0) >= tokenizer.vocabulary_size:
                raise DataError(
                    f"The tokenizer gave token {tokens.max()} for document {document.id!r}, "
                    f"but its vocabulary has {tokenizer.vocabulary_size} tokens."
                )
            yield document, tokens


def tokenise_text(text: str, tokenizer: WindowTokenizer, *, continued: bool = False) -> NDArray[np.int64]:
    """The tokens of one text, int64 [n_tokens], as `tokenise` makes them."""
    tokenize = _tokenize(tokenizer, control=False)
    pieces = enumerate(pieces_of(text, tokenize))
    return np.concatenate([tokenize(piece, continued=continued or number > 0) for number, piece in pieces])


def pieces_of(text: str, tokenize: Tokenize, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a text into pieces of at most `limit` characters, whose tokens, joined, are the tokens of the text.

    All but the first are to be tokenised as `continued`. A cut is between words where it can be, and where tokenising
    the 64 characters on either side of it apart gives the same tokens as together; only where no such cut is found
    near the limit are tokens cut.
    """
    return pieces_of_blocks((text,), tokenize, limit)


def pieces_of_blocks(blocks: Iterable[str], tokenize: Tokenize, limit: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Pieces, as of `pieces_of`, of the text that blocks join to; no more than a block and a piece is held."""
    rest = ""
    for block in blocks:
        rest += block
        start = 0
        while len(rest) - start > limit:
            end = start + _cut(rest[start : start + limit], tokenize)
            yield rest[start:end]
            start = end
        rest = rest[start:]
    yield rest


def _cut(text: str, tokenize: Tokenize) -> int:
    """Last good index to cut a text at, so far from its end that what follows does not matter."""
    around = min(CUT_CONTEXT, len(text) // 4)
    last = len(text) - around
    anywhere = range(last, len(text) // 2, -1)
    # Nearly every tokenizer attaches a space to the word after it.
    words = (cut for cut in anywhere if text[cut : cut + 1].isspace() and not text[cut - 1].isspace())
    for cut in chain(islice(words, CUT_TRIES), islice(anywhere, CUT_TRIES)):
        sides = text[cut - around : cut], text[cut : cut + around]
        apart = [token for side in sides for token in tokenize(side, continued=True)]
        if apart == list(tokenize("".join(sides), continued=True)):
            return cut
    return last


def _tokenize(tokenizer: WindowTokenizer, control: bool) -> Tokenize:
    def tokenize(text: str, *, continued: bool = False) -> NDArray[np.int64]:
        (tokens,) = tokenizer.encode_batch([text], continued=continued, control=control)
        return np.array(tokens, dtype=np.int64)

    return tokenize


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
