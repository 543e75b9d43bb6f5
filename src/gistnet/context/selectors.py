"""Selectors: which passages of a document a query needs. A selector is a function; `select` takes any.

`by_words` ranks by the words that a passage shares with the query: BM25 (Robertson and Zaragoza, 2009), by the index of
a tree, or of the library bm25s for a document in memory. `gistnet.context.states.ByStates` compares what was meant.
`fused` joins the ranks of several, and finds more than each (docs/ablations.md):

    select(document, query, 512, tokenizer=teacher.tokenizer, selector=fused(by_words, ByStates(teacher)))
"""

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.tree.document import CompressedDocument
from gistnet.tree.passages import Passage, split_passages

Item = TypeVar("Item", bound=Hashable)

MOST_FOUND = 64
"""Passages that are taken from an index."""

FUSED_FROM = 5
"""Ranks below it differ little when they are fused. 60, as published, found less among some hundred passages."""


class Hit(NamedTuple):
    """A passage that a selector found, and how well it fits; scores of one selector compare, those of two do not."""

    passage: Passage
    score: float


Selector = Callable[[CompressedDocument, str, TeacherTokenizer], Sequence[Hit]]
"""Finds the passages of a document that a query needs, best first; none where it knows of none."""


def by_words(document: CompressedDocument, query: str, tokenizer: TeacherTokenizer) -> list[Hit]:
    """Passages that share words with the query, by BM25: the selector of `select`.

    A document of a tree has an index; any other is read, and its passages are ranked among each other.
    """
    if (indexed := document.find(query, MOST_FOUND)) is not None:
        return [Hit(*found) for found in indexed]
    passages = split_passages(document.tokens(0, document.n_tokens), tokenizer)
    texts = [tokenizer.decode(document.tokens(of.start, of.stop).tolist()) for of in passages]
    found = zip(passages, word_scores(texts, query).tolist(), strict=True)
    return sorted((Hit(*hit) for hit in found if hit[1] > 0), key=lambda hit: -hit.score)


def word_scores(texts: Sequence[str], query: str) -> NDArray[np.float32]:
    """The BM25 score of each text, `[texts]`; zero where it shares no word with the query but for stop words."""
    import bm25s  # takes a moment, and only a question needs it

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it tells of every index it builds

    (words,) = bm25s.tokenize([query], stopwords="en", return_ids=False, show_progress=False)
    corpus = bm25s.tokenize(list(texts), stopwords="en", show_progress=False)
    if not words or not corpus.vocab:
        return np.zeros(len(texts), dtype=np.float32)
    ranker = bm25s.BM25()
    ranker.index(corpus, show_progress=False)
    scores: NDArray[np.float32] = ranker.get_scores(words)
    return scores


def fused(*selectors: Selector) -> Selector:
    """A selector by the ranks of others: reciprocal rank fusion (Cormack, Clarke and Büttcher, 2009).

    A passage has the sum of 1 / (`FUSED_FROM` + rank) over the selectors that found it.
    """

    def selector(document: CompressedDocument, query: str, tokenizer: TeacherTokenizer) -> list[Hit]:
        found = (part(document, query, tokenizer) for part in selectors)
        return [Hit(*scored) for scored in fuse(*([hit.passage for hit in hits] for hits in found))]

    return selector


def fuse(*rankings: Iterable[Item]) -> list[tuple[Item, float]]:
    """Reciprocal rank fusion: the items of several rankings, best first, by the sum of 1 / (`FUSED_FROM` + rank)."""
    scores: dict[Item, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            scores[item] = scores.get(item, 0.0) + 1 / (FUSED_FROM + rank)
    return sorted(scores.items(), key=lambda scored: -scored[1])
