"""Hashes of the word n-grams of a text in any script, by which texts are compared whatever their format.

Words are runs of letters and digits, without case and in the same Unicode form (NFKC); what separates them does not
count, so that a table has the same n-grams as CSV and as Markdown. In scripts that are written without spaces each
character is a word.
"""

import re
import unicodedata
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

# Letters that a line may be broken between, or only by a dictionary (classes ID and SA of UAX #14): Thai, Lao, Tibetan,
# Myanmar, Khmer, Tai scripts, kana, Bopomofo, and Han.
_ALONE = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u3005-\u3007\u3021-\u3029\u3031-\u312f"
    "\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaadf\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+")
_CHARACTER = re.compile(r"\S")
FEWEST_LETTERS = 0.1
"""In a text with a smaller share of letters and digits (0 to 1, spaces aside) each character is a word."""


def shingle_hashes(text: str, words: int) -> NDArray[np.uint64]:
    """A 64-bit hash of each n-gram of so many words, in order: `[max(1, n_words - words + 1)]`.

    A text of fewer words is a single n-gram.
    """
    found = _words(text)
    hashes = np.fromiter(map(crc32, map(str.encode, found)), dtype=np.uint64, count=len(found))
    length = min(words, max(1, len(hashes)))
    hashes = hashes if len(hashes) else np.zeros(1, dtype=np.uint64)
    mixed = np.zeros(len(hashes) - length + 1, dtype=np.uint64)
    for offset in range(length):
        mixed = mix(mixed + hashes[offset : offset + len(mixed)])
    return mixed


def _words(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).casefold()
    words = _WORD.findall(text)
    if sum(map(len, words)) < FEWEST_LETTERS * sum(map(len, text.split())):
        return _CHARACTER.findall(text)
    return words


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection in which each bit of the input moves all bits of the output (splitmix64; Steele et al., 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
