"""Passages of long documents to test contexts on: which ones, how long, from where."""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class LongDocument(NamedTuple):
    """A document, or a passage of it, as token ids, int64 `[n]`."""

    name: str
    tokens: NDArray[np.int64]


def long_passages(
    documents: Iterable[tuple[str, Sequence[int] | NDArray[np.integer]]], *, min_tokens: int, max_tokens: int, seed: int
) -> Iterator[LongDocument]:
    """One passage of each document that has `min_tokens`, in order; shorter documents are left out.

    A document of up to `max_tokens` is taken whole. Of a longer one a passage is taken, of a length between the two and
    at a place that its name and the seed decide: the first pages of a book would be title and contents.
    """
    for name, tokens in documents:
        ids = np.asarray(tokens, dtype=np.int64)
        if len(ids) < min_tokens:
            continue
        if len(ids) > max_tokens:
            draw = random.Random(f"{seed}:{name}")
            length = draw.randint(min_tokens, max_tokens)
            start = draw.randint(0, len(ids) - length)
            ids = ids[start : start + length]
        yield LongDocument(name, ids)
