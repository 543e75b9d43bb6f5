"""Words that a text repeats from far back: the tokens that a model can hardly know without its far context.

A word is a run of letters, lower-cased; a token belongs to the word that its first visible character is in, as in
`gistnet.evaluation.token_kinds`.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MIN_LETTERS = 4
_WORD = re.compile(r"[^\W\d_]+")


def words_of_tokens(texts: Sequence[str]) -> list[str]:
    """The word each token belongs to, given the text of each; empty where it has fewer than `MIN_LETTERS` or is none.

    A token without text of its own is a part of the next one's first character.
    """
    text = "".join(texts)
    of_character = [""] * len(text)
    for word in _WORD.finditer(text):
        if len(word[0]) >= MIN_LETTERS:
            of_character[word.start() : word.end()] = [word[0].lower()] * len(word[0])
    words, start = [], 0
    for token in texts:
        visible = start + len(token) - len(token.lstrip())
        words.append(of_character[visible] if token.strip() else "")
        start += len(token)
    for place in reversed(range(len(texts) - 1)):
        if not texts[place]:
            words[place] = words[place + 1]
    return words


def repeated_from_far(words: Sequence[str], *, sink: int, recent: int, scored: int) -> NDArray[np.bool_]:
    """Which of the last `scored` tokens belong to a word that only the far part of the text has had: `[scored]`.

    Args:
        words: of all tokens, see `words_of_tokens`.
        sink: so many first tokens are near: a truncated context keeps them.
        recent: the first token of its recent part; those between are far.
        scored: the text that is judged is near too, up to the word in question: it counts where it comes first.
    """
    first = len(words) - scored
    known = set(words[:sink]) | set(words[recent:first])
    far = set(words[sink:recent]) - known - {""}
    found, before = np.zeros(scored, dtype=bool), ""
    for place, word in enumerate(words[first:]):
        if before in far and word != before:
            far.remove(before)  # from here on, it has been said nearby
        found[place] = word in far
        before = word
    return found
