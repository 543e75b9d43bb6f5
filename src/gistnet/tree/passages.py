"""Passages: a document cut at the ends of paragraphs, lines and sentences, as what a selector ranks and opens.

Spans of 32 tokens end in the middle of words; what a reader needs is a sentence, a row or a paragraph. Passages follow
each other without gaps, and are made from the left, so that text that is appended changes the last one only, and the
paragraph that it is of. A tree keeps them in an index.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gistnet.model.tokenizer import TextEnd

SHORTEST, USUAL, LONGEST = 16, 32, 64
"""Tokens of a passage: a paragraph that is shorter is joined with the next; a line or sentence ends one of at least the
usual length; a sentence that is longer than the longest is cut."""
LONGEST_PARAGRAPH = 1024
"""Tokens; passages of a longer one are their own paragraphs, so that an append changes a bounded part of a text."""


class Detokenizer(Protocol):
    """Part of a tokenizer that splitting needs; `TeacherTokenizer` has it."""

    @property
    def text_ends(self) -> NDArray[np.int8]:
        """The `TextEnd` of each token id by its own text alone, `[vocabulary_size]`."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""


class Passage(NamedTuple):
    """Tokens `start` to `stop - 1` of a document, and the paragraph that they are of."""

    start: int
    stop: int
    paragraph_start: int
    paragraph_stop: int


def split_passages(tokens: NDArray[np.int64], tokenizer: Detokenizer) -> list[Passage]:
    """The passages of a document, or of the part of one from the beginning of a passage on.

    Args:
        tokens: token ids, `[n]`.
        tokenizer: whose tokens they are; says which of them end a sentence, a line or a paragraph.
    """
    ends = _ends(tokens, tokenizer)
    cuts = [0, *_cuts(ends), len(tokens)] if len(tokens) else [0]
    found: list[Passage] = []
    first = begin = 0  # of the paragraph: its first passage, its first token
    bounds = list(pairwise(cuts))
    for number, (start, stop) in enumerate(bounds):
        if start - begin > LONGEST_PARAGRAPH:  # decided by a start, since the last stop is not final
            found += [Passage(*bound, *bound) for bound in bounds[first:number]]
            first, begin = number, start
        if stop == len(tokens) or ends[stop - 1] == TextEnd.PARAGRAPH:
            found += [Passage(*bound, begin, stop) for bound in bounds[first : number + 1]]
            first, begin = number + 1, stop
    return found


def _ends(tokens: NDArray[np.int64], tokenizer: Detokenizer) -> NDArray[np.int8]:
    """The part of the text that each token ends, `[n]`, as `TextEnd`; of ends that follow each other the last one."""
    known = tokenizer.text_ends
    # A teacher may have more ids than its tokenizer knows; those are no text.
    ends = np.where(tokens < len(known), known[np.minimum(tokens, len(known) - 1)], np.int8(TextEnd.NOTHING))
    for index in np.flatnonzero(ends[1:]):  # the index before each that ends something
        before, here = ends[index], ends[index + 1]
        if here == TextEnd.CLOSING and before != TextEnd.SENTENCE:
            ends[index + 1] = 0  # of nothing, or it opens the next line
        elif before:
            ends[index], ends[index + 1] = 0, max(before, here)
            if before == here == TextEnd.LINE:
                ends[index + 1] = TextEnd.PARAGRAPH
    return ends


def _cuts(ends: NDArray[np.int8]) -> Iterator[int]:
    """The first token of each passage but the first."""
    start = 0
    for stop in (np.flatnonzero(ends) + 1).tolist():
        while stop - start > LONGEST:  # no end within reach
            start += LONGEST
            yield start
        if stop - start >= (SHORTEST if ends[stop - 1] == TextEnd.PARAGRAPH else USUAL) and stop < len(ends):
            start = stop
            yield start
    while len(ends) - start > LONGEST:
        start += LONGEST
        yield start
