"""Passages of long documents to test contexts on: which ones, how long, from where."""

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gistnet.data.dataset import PreparedDataset
from gistnet.errors import DataError


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


def held_out_passages(
    dataset: PreparedDataset, domain: str, *, documents: int, min_tokens: int, max_tokens: int, seed: int
) -> list[LongDocument]:
    """Passages of held-out documents of one domain, as many as there are, `documents` at most; see `long_passages`.

    Raises:
        DataError: fewer than two held-out documents are long enough.
    """
    whole = dataset.whole_documents("held_out", domain, min_tokens=min_tokens)
    found = list(islice(long_passages(whole, min_tokens=min_tokens, max_tokens=max_tokens, seed=seed), documents))
    if len(found) < 2:
        raise DataError(
            f"The corpus has {len(found)} held-out documents of {domain} with {min_tokens} tokens or more, expected 2."
        )
    return found
