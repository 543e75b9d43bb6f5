"""A compressed document made of random numbers: tokens, and float16 gists of two levels."""

import numpy as np

from gistnet.tree.in_memory import InMemoryHistory


def random_history(n_tokens: int, dim: int, span: int = 8, vocabulary: int = 97) -> InMemoryHistory:
    """The same at every call; gists have the size of the tiny teachers' embeddings."""
    draw = np.random.default_rng(0)
    counts = n_tokens // span, n_tokens // span**2
    gists = tuple(draw.normal(0, 0.5, (count, dim)).astype(np.float16) for count in counts)
    return InMemoryHistory(draw.integers(3, vocabulary, n_tokens), gists, span)
