"""Finding near-duplicate documents by MinHash over word 5-grams (Broder, 1997), before the corpus is split.

A licence text or a vendored copy on both sides of the split would make the held-out documents too easy. Words are
runs of letters, digits and non-ASCII characters, without case; so a script written without spaces is compared by
whole phrases.
"""

from collections import defaultdict
from zlib import crc32

import numpy as np
import rensa
from numpy.typing import NDArray

SHINGLE_WORDS = 5
HASHES = 128
# 32 bands of 4 hashes: a pair of similarity s becomes a candidate with probability 1 - (1 - s⁴)³², which is 0.87 at
# 0.5 and above 0.9999 at 0.75; candidates are then compared by all 128 hashes.
BANDS = 32
SEED = 1

_SEPARATED = bytes(byte if byte >= 128 or chr(byte).isalnum() else ord(" ") for byte in range(256)).lower()


class NearDuplicates:
    """The documents kept so far, to be asked whether a new one is nearly one of them.

    Two documents are near-duplicates when the Jaccard similarity of their sets of word 5-grams, estimated from 128
    hashes (standard error 0.035 at 0.8), is at least `similarity` (0.5 to 1).
    """

    def __init__(self, similarity: float) -> None:
        self.similarity = similarity
        self._signatures: list[NDArray[np.uint32]] = []
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def keep(self, text: str) -> bool:
        """Remember `text` and return True, unless it is a near-duplicate of one remembered before."""
        signature = signature_of(text)
        bands = [(band, part.tobytes()) for band, part in enumerate(signature.reshape(BANDS, -1))]
        candidates = {index for band in bands for index in self._buckets.get(band, ())}
        if any(np.mean(self._signatures[index] == signature) >= self.similarity for index in candidates):
            return False
        for band in bands:
            self._buckets[band].append(len(self._signatures))
        self._signatures.append(signature)
        return True


def signature_of(text: str) -> NDArray[np.uint32]:
    """MinHash signature of the text's set of word 5-grams: [128]."""
    shingles = _shingle_hashes(text)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(shingles, [0, len(shingles)], HASHES, SEED)
    return np.array(matrix.to_rows()[0], dtype=np.uint32)


def _shingle_hashes(text: str) -> NDArray[np.uint64]:
    """A 64-bit hash of each word 5-gram, in order: [max(1, words - 4)]."""
    words = text.encode("utf-8").translate(_SEPARATED).split()
    hashes = np.fromiter(map(crc32, words), dtype=np.uint64, count=len(words))
    length = min(SHINGLE_WORDS, max(1, len(words)))  # a text of fewer words is a single shingle
    hashes = hashes if len(hashes) else np.zeros(1, dtype=np.uint64)
    mixed = np.zeros(len(hashes) - length + 1, dtype=np.uint64)
    for offset in range(length):
        mixed = _mix(mixed + hashes[offset : offset + len(mixed)])
    return mixed


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection in which each bit of the input moves all bits of the output (splitmix64; Steele et al., 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
