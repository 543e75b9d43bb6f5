"""Passages by what they mean: the selector that compares states of the teacher's middle layer, token by token.

A query is compared as ColBERT does (Khattab and Zaharia, 2020): for each of its tokens the nearest token of a passage
counts, by cosine, and a passage has their mean. What all states have in common, their mean over the document, is taken
out first, or all of them would be near each other. Nothing is trained for it.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from gistnet.context.selectors import Hit
from gistnet.model.teacher import Teacher
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.tree.document import CompressedDocument
from gistnet.tree.passages import split_passages

READ_TOGETHER = 1024
"""Tokens of a document that the teacher reads at once."""


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
            self._states, self._document = self._centred(states), document
        wanted = self._centred(self._read(asked))
        # Before the first token of a text stands nothing: its state is like no other's, and says nothing of it.
        nearness = wanted[1 if len(asked) > 1 else 0 :] @ self._states.T
        passages = split_passages(document.tokens(0, document.n_tokens), tokenizer)
        scores = [float(nearness[:, of.start : of.stop].amax(dim=1).float().mean()) for of in passages]
        return sorted(map(Hit, passages, scores), key=lambda hit: -hit.score)

    def _read(self, tokens: NDArray[np.int64]) -> Tensor:
        """States `[n, dim]` of unit length."""
        ids = torch.from_numpy(tokens).to(self._teacher.device)
        windows = [
            self._teacher.prefill(window[None], hidden_state_layer=self._layer, to_the_end=False).hidden[0]
            for window in ids.split(READ_TOGETHER)
        ]
        return normalize(torch.cat(windows).float(), dim=-1)

    def _centred(self, states: Tensor) -> Tensor:
        return normalize(states - self._common, dim=-1).to(self._teacher.dtype)
