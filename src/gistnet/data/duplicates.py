"""Documents that say the same: near-duplicates of whole documents, and held-out text that is in training documents.

A licence text or a vendored copy on both sides of the split would make the held-out documents too easy. Texts are
compared by hashes of their word n-grams, in any script and whatever their format. Words are runs of letters and
digits, without case and in the same Unicode form (NFKC); what separates them does not count, so that a table has the
same n-grams as CSV and as Markdown. In scripts that are written without spaces each character is a word.

- `NearDuplicates`: MinHash over word 5-grams (Broder, 1997), document by document, before the corpus is split.
- `Overlap`: shares of word 10-grams (contamination). MinHash compares whole documents: it sees neither a chapter within
  a book nor a table among others.
"""

import re
import sqlite3
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Self
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from gistnet.extras import needing

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

SIMILARITY = 0.8
"""Jaccard similarity of the sets of word 5-grams from which a document counts as a copy."""
SHINGLE_WORDS = 5
HASHES = 128
# 32 bands of 4 hashes: a pair of similarity s becomes a candidate with probability 1 - (1 - s⁴)³², which is above
# 0.9999 at 0.75; candidates are then compared by all 128 hashes.
BANDS = 32
SEED = 1

GRAM_WORDS = 10
MOST_SHARED = 0.1
"""Share of a held-out document's word 10-grams (0 to 1) above which it is not clean."""
SAMPLED = 4
"""One n-gram in so many is compared while a corpus is prepared, chosen by its hash."""

_PARTS = 64
_HELD_OUT = np.dtype([("gram", np.uint64), ("document", np.uint32)])


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


class NearDuplicates:
    """The documents kept so far, to be asked whether a new one is nearly one of them.

    Two documents are near-duplicates when the Jaccard similarity of their sets of word 5-grams, estimated from 128
    hashes (standard error 0.035), is at least 0.8. The hashes lie in an SQLite database on the disk, so that memory
    does not grow with the documents.

    Args:
        file: where the database goes; a temporary file of SQLite's own where none is given.

    Raises:
        OSError: the database cannot be written; so does `keep`.
    """

    def __init__(self, file: Path | None = None) -> None:
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
        if any(np.mean(np.frombuffer(other, np.uint32) == signature) >= SIMILARITY for (other,) in candidates):
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
    with needing("data", "Finding near duplicates"):
        import rensa
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


class Overlap:
    """The word 10-grams of training documents and of held-out documents, to be compared once all are known.

    They are spooled to disk, in parts by their hashes, and compared part by part: memory holds 1/64 of them.

    Args:
        folder: takes the temporary files: 8 bytes of each n-gram that is sampled in a training document, 12 in others.
        sampled: one n-gram in so many counts; 1 counts all.

    Raises:
        OSError: the files cannot be written; so do the methods.
    """

    def __init__(self, folder: Path | None = None, sampled: int = SAMPLED) -> None:
        self._sampled = np.uint64(sampled)
        self._files = ExitStack()
        self._training, self._held_out = (
            [self._files.enter_context(TemporaryFile(dir=folder)) for _ in range(_PARTS)]  # noqa: SIM115
            for _ in range(2)
        )
        self._counts: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def add_training(self, text: str) -> None:
        """Take in a document that is trained on."""
        for file, grams in self._parts(self._training, text):
            file.write(grams.tobytes())

    def add_held_out(self, text: str) -> None:
        """Take in a document that is not."""
        count = 0
        for file, grams in self._parts(self._held_out, text):
            rows = np.empty(len(grams), dtype=_HELD_OUT)
            rows["gram"], rows["document"] = grams, len(self._counts)
            file.write(rows.tobytes())
            count += len(grams)
        self._counts.append(count)

    def shares(self) -> NDArray[np.float64]:
        """Share of the distinct n-grams of each held-out document that training documents have: [documents], 0 to 1."""
        shared = np.zeros(len(self._counts), dtype=np.int64)
        for training, held_out in zip(self._training, self._held_out, strict=True):
            rows = _content(held_out, _HELD_OUT)
            if len(rows):
                known = np.isin(rows["gram"], np.unique(_content(training, np.dtype(np.uint64))))
                shared += np.bincount(rows["document"][known], minlength=len(shared))
        return shared / np.maximum(1, self._counts)

    def _parts(self, files: Sequence[IO[bytes]], text: str) -> Iterator[tuple[IO[bytes], NDArray[np.uint64]]]:
        """The distinct n-grams of a text that count, ascending, with the file where those of their part belong."""
        grams = np.unique(shingle_hashes(text, GRAM_WORDS))
        grams = grams[grams % self._sampled == 0]
        parts = (grams >> np.uint64(58)).astype(np.int64)
        bounds = np.searchsorted(parts, np.arange(_PARTS + 1))
        for part in np.flatnonzero(np.diff(bounds)):
            yield files[int(part)], grams[bounds[part] : bounds[part + 1]]


def _content(file: IO[bytes], kind: np.dtype[Any]) -> NDArray[Any]:
    file.seek(0)
    return np.frombuffer(file.read(), dtype=kind)
