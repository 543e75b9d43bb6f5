"""Passages by what they mean: the selector that compares states of the teacher's middle layer, token by token.

A query is compared as ColBERT does (Khattab and Zaharia, 2020): for each of its tokens the nearest token of a passage
counts, by cosine, and a passage has their mean. What all states have in common, their mean over the document, is taken
out first, or all of them would be near each other. Nothing is trained for it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from gistnet.context.selectors import Hit, Selector, by_words, fuse
from gistnet.errors import TeacherError
from gistnet.model.teacher import Teacher
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.tree.document import CompressedDocument
from gistnet.tree.passages import split_passages

if TYPE_CHECKING:  # a tree needs packages that a document in memory does not
    from gistnet.tree.storage.snapshot import Found
    from gistnet.tree.tree import GistTree

READ_TOGETHER = 1024
"""Tokens of a document that the teacher reads at once."""
RERANKED = 32
"""Passages that words find in a tree, and states rank again."""


class ByStates:
    """Ranks all passages of a document by states of the teacher; keeps those of the last document it was asked about.

    The first question about a document costs the passes of half of the teacher's layers over it, and the states
    2 · dim bytes a token.
    """

    def __init__(self, teacher: Teacher, layer: int | None = None) -> None:
        """A selector for documents of this teacher.

        Args:
            teacher: whose states are compared.
            layer: number of layers that the states are behind; about half of them by default, which found most
                (docs/ablations.md).
        """
        self._teacher = teacher
        self._layer = (teacher.n_layers + 1) // 2 if layer is None else layer
        self._document: CompressedDocument | None = None
        self._states, self._common = torch.empty(0), torch.empty(0)

    def __call__(self, document: CompressedDocument, query: str, tokenizer: TeacherTokenizer) -> list[Hit]:
        """The passages of a document, nearest to the query first."""
        asked = tokenizer.encode(query)
        if not len(asked) or not document.n_tokens:
            return []
        if document is not self._document:
            states = self._read(document.tokens(0, document.n_tokens))
            self._common = states.mean(dim=0)
            self._states, self._document = self._centred(states, self._common), document
        wanted = self._centred(self._read(asked), self._common)
        # Before the first token of a text stands nothing: its state is like no other's, and says nothing of it.
        nearness = wanted[1 if len(asked) > 1 else 0 :] @ self._states.T
        passages = split_passages(document.tokens(0, document.n_tokens), tokenizer)
        scores = [float(nearness[:, of.start : of.stop].amax(dim=1).float().mean()) for of in passages]
        return sorted(map(Hit, passages, scores), key=lambda hit: -hit.score)

    def scores(self, query: NDArray[np.int64], passages: Sequence[NDArray[np.int64]]) -> list[float]:
        """Nearness of each passage to a query, all of them read alone: token ids `[n]` of either, none without."""
        # The first state of a passage, like that of a query, is that of a beginning.
        states = [self._read(tokens)[1 if len(tokens) > 1 else 0 :] for tokens in passages]
        common = torch.cat(states).mean(dim=0)
        wanted = self._centred(self._read(query), common)[1 if len(query) > 1 else 0 :]
        return [float((wanted @ self._centred(of, common).T).amax(dim=1).float().mean()) for of in states]

    def _read(self, tokens: NDArray[np.int64]) -> Tensor:
        """States `[n, dim]` of unit length."""
        ids = torch.from_numpy(tokens).to(self._teacher.device)
        windows = [
            self._teacher.prefill(window[None], hidden_state_layer=self._layer, to_the_end=False).hidden[0]
            for window in ids.split(READ_TOGETHER)
        ]
        return normalize(torch.cat(windows).float(), dim=-1)

    def _centred(self, states: Tensor, common: Tensor) -> Tensor:
        return normalize(states - common, dim=-1).to(self._teacher.dtype)


def find_by_meaning(
    tree: "GistTree", query: str, teacher: Teacher, k: int = 10, document: str | None = None
) -> "list[Found]":
    """The k passages of a tree that fit a query best, by words and by meaning.

    The first `RERANKED` passages by words are ranked again by states, and both ranks fused: the teacher reads some
    hundred tokens, however large the tree. A passage that shares no word with the query is not found.

    Raises:
        DataError: as `GistTree.find`.
        TeacherError: the teacher has no tokenizer.
    """
    if teacher.tokenizer is None:
        raise TeacherError(f"{teacher.name} has no tokenizer, expected one to read a query.")
    by_words = tree.find(query, max(k, RERANKED), document)
    if not by_words:
        return []
    documents = {name: tree.document(name) for name in {found.document for found in by_words}}
    passages = [documents[found.document].tokens(*found.passage[:2]) for found in by_words]
    ranked = rerank(teacher, teacher.tokenizer.encode(query), passages)
    return [by_words[index]._replace(score=score) for index, score in ranked[:k]]


def by_words_and_meaning(teacher: Teacher) -> Selector:
    """A selector that ranks the first `RERANKED` passages by words again, by states; see `find_by_meaning`."""

    def search(document: CompressedDocument, query: str, tokenizer: TeacherTokenizer) -> list[Hit]:
        hits = by_words(document, query, tokenizer)[:RERANKED]
        if not hits:
            return []
        passages = [document.tokens(*hit.passage[:2]) for hit in hits]
        ranked = rerank(teacher, tokenizer.encode(query), passages)
        return [Hit(hits[index].passage, score) for index, score in ranked]

    return search


def rerank(
    teacher: Teacher, query: NDArray[np.int64], passages: Sequence[NDArray[np.int64]]
) -> list[tuple[int, float]]:
    """Indices of ranked passages by that rank and by states, fused; best first, with their scores.

    Args:
        teacher: reads each passage alone.
        query: token ids `[n]`.
        passages: token ids of each, best first by another selector.
    """
    scores = ByStates(teacher).scores(query, passages)
    return fuse(range(len(scores)), sorted(range(len(scores)), key=lambda index: -scores[index]))
