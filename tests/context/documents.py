"""A compressed document made of random numbers: tokens, and float16 gists of two levels."""

import numpy as np

from gistnet.model.teacher import Teacher
from gistnet.tree.document import InMemoryDocument


def random_document(n_tokens: int, teacher: Teacher, span: int = 8) -> InMemoryDocument:
    """The same at every call; for a tiny teacher of 97 tokens."""
    draw = np.random.default_rng(0)
    counts = n_tokens // span, n_tokens // span**2
    gists = tuple(draw.normal(0, 0.5, (count, teacher.hidden_size)).astype(np.float16) for count in counts)
    return InMemoryDocument(draw.integers(3, 97, n_tokens), gists, (span, span), "center", teacher.fingerprint)
