"""Drawing documents anew: what the intervals of evaluations rest on (Davison & Hinkley, 1997, section 3.8).

Spans of a document resemble each other, so that documents are drawn, and not spans.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


class DocumentDraws:
    """Documents drawn anew, as many as there are, each with all of its spans.

    Args:
        documents: which document each span is from, [spans], of any type that sorts.
        resamples: how many times.
        seed: decides the draws; a sequence of numbers is one seed, too.

    Attributes:
        documents: how many there are.
        document_of_span: the number of each span's document, [spans].
        counts: how often each document is drawn, [resamples, documents].
    """

    def __init__(self, documents: ArrayLike, resamples: int, seed: int | Sequence[int]) -> None:
        names, self.document_of_span = np.unique(np.asarray(documents), return_inverse=True)
        self.documents = len(names)
        equal = np.full(self.documents, 1 / self.documents)
        drawn = np.random.default_rng(seed).multinomial(self.documents, equal, size=resamples)
        self.counts: Floats = drawn.astype(np.float64)

    def sums(self, values: ArrayLike) -> Floats:
        """The sum of `values` [spans] over the spans of each resample: [resamples]."""
        return self.counts @ np.bincount(self.document_of_span, weights=np.asarray(values), minlength=self.documents)

    def means(self, values: ArrayLike) -> Floats:
        """The mean of `values` [spans] over the spans of each resample: [resamples]."""
        return self.sums(values) / self.sums(np.ones(len(self.document_of_span)))
