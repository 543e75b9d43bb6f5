"""How clean the held-out documents of a release are: what share of their text its training documents have."""

from collections.abc import Callable

import numpy as np

from gistnet.data.dataset import PreparedDataset
from gistnet.data.duplicates import MOST_SHARED, Overlap
from gistnet.settings import Section


class DomainOverlap(Section):
    """Shares of word 10-grams of the held-out documents of a domain that are in training documents."""

    documents: int
    above_a_tenth: int
    """Documents of which training documents have more than a tenth."""
    largest: float
    """Share of the document that has most, 0 to 1."""


def measure_overlap(
    held_out: PreparedDataset, trained_on: PreparedDataset, decode: Callable[[list[int]], str]
) -> dict[str, DomainOverlap]:
    """Compare the held-out documents of a release with the training documents of its run, by domain.

    All word 10-grams count; `decode` makes text of tokens.

    Raises:
        OSError: the 10-grams cannot be spooled to a temporary folder.
    """
    domains = held_out.domains("held_out")
    counts: list[int] = []
    with Overlap(sampled=1) as overlap:
        for domain in domains:
            texts = [decode(tokens.tolist()) for _, tokens in held_out.whole_documents("held_out", domain)]
            counts.append(len(texts))
            for text in texts:
                overlap.add_held_out(text)
        for _, tokens in trained_on.whole_documents("train"):
            overlap.add_training(decode(tokens.tolist()))
        shares = np.split(overlap.shares(), np.cumsum(counts)[:-1])
    return {
        domain: DomainOverlap(
            documents=len(found), above_a_tenth=int((found > MOST_SHARED).sum()), largest=round(float(found.max()), 3)
        )
        for domain, found in zip(domains, shares, strict=True)
    }
