"""Finding near-duplicate documents by MinHash over word 5-grams (Broder, 1997), before the corpus is split.

A licence text or a vendored copy on both sides of the split would make the held-out documents too easy.
"""

import sqlite3
from pathlib import Path

import numpy as np
import rensa
from numpy.typing import NDArray

from gistnet.data.shingles import mix, shingle_hashes

SHINGLE_WORDS = 5
HASHES = 128
# 32 bands of 4 hashes: a pair of similarity s becomes a candidate with probability 1 - (1 - s⁴)³², which is 0.87 at
# 0.5 and above 0.9999 at 0.75; candidates are then compared by all 128 hashes.
BANDS = 32
SEED = 1


class NearDuplicates:
    """The documents kept so far, to be asked whether a new one is nearly one of them.

    Two documents are near-duplicates when the Jaccard similarity of their sets of word 5-grams, estimated from 128
    hashes (standard error 0.035 at 0.8), is at least `similarity` (0.5 to 1). The hashes lie in an SQLite database on
    the disk, so that memory does not grow with the documents.

    Args:
        similarity: 0.5 to 1.
        file: where the database goes; a temporary file of SQLite's own where none is given.

    Raises:
        OSError: the database cannot be written; so does `keep`.
    """

    def __init__(self, similarity: float, file: Path | None = None) -> None:
        self.similarity = similarity
        self._database = sqlite3.connect("" if file is None else file, isolation_level=None)
        # Nothing of it outlives the process: no journal, no waiting for the disk.
        for statement in (
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "PRAGMA cache_size = -8000",  # 8 MB
            "CREATE TABLE signatures (document INTEGER PRIMARY KEY, signature BLOB)",
            "CREATE TABLE bands (band INTEGER, document INTEGER, PRIMARY KEY (band, document)) WITHOUT ROWID",
            "BEGIN",
        ):
            self._do(statement)

    def keep(self, text: str) -> bool:
        """Remember `text` and return True, unless it is a near-duplicate of one remembered before."""
        signature = signature_of(text)
        bands = _band_hashes(signature)
        candidates = self._do(
            "SELECT signature FROM signatures WHERE document IN "
            f"(SELECT document FROM bands WHERE band IN ({', '.join('?' * BANDS)}))",
            bands,
        )
        if any(np.mean(np.frombuffer(other, np.uint32) == signature) >= self.similarity for (other,) in candidates):
            return False
        document = self._do("INSERT INTO signatures (signature) VALUES (?)", [signature.tobytes()]).lastrowid
        rows = ", ".join(f"(?, {document})" for _ in bands)
        self._do(f"INSERT OR IGNORE INTO bands VALUES {rows}", bands)
        return True

    def _do(self, statement: str, values: list[int] | list[bytes] | tuple[()] = ()) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.Error as error:
            raise OSError(str(error)) from error


def signature_of(text: str) -> NDArray[np.uint32]:
    """MinHash signature of the text's set of word 5-grams: [128]."""
    shingles = shingle_hashes(text, SHINGLE_WORDS)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(shingles, [0, len(shingles)], HASHES, SEED)
    return np.array(matrix.to_rows()[0], dtype=np.uint32)


def _band_hashes(signature: NDArray[np.uint32]) -> list[int]:
    """A signed 64-bit hash of each band, which differs between bands of the same hashes."""
    parts = signature.astype(np.uint64).reshape(BANDS, -1)
    hashes = np.arange(BANDS, dtype=np.uint64)
    for column in parts.T:
        hashes = mix(hashes ^ column)
    return hashes.view(np.int64).tolist()
