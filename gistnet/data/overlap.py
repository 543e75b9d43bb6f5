"""How much of the text of held-out documents is in training documents, by word 10-grams (contamination).

MinHash compares whole documents: it sees neither a chapter within a book nor a table among others. The n-grams of all
documents are spooled to disk, in parts by their hashes, and compared part by part: memory holds 1/64 of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from gistnet.data.shingles import shingle_hashes

GRAM_WORDS = 10
MOST_SHARED = 0.1
"""Share of a held-out document's word 10-grams (0 to 1) above which it is not clean."""
SAMPLED = 4
"""One n-gram in so many is compared while a corpus is prepared, chosen by its hash."""

_PARTS = 64
_HELD_OUT = np.dtype([("gram", np.uint64), ("document", np.uint32)])


class Overlap:
    """The word 10-grams of training documents and of held-out documents, to be compared once all are known.

    Args:
        folder: an empty folder for the n-grams: 8 bytes of each that is sampled in a training document, 12 in others.
        sampled: one n-gram in so many counts; 1 counts all.
    """

    def __init__(self, folder: Path, sampled: int = SAMPLED) -> None:
        self._sampled = np.uint64(sampled)
        self._training: list[BinaryIO] = [(folder / f"training-{part}").open("w+b") for part in range(_PARTS)]
        self._held_out: list[BinaryIO] = [(folder / f"held-out-{part}").open("w+b") for part in range(_PARTS)]
        self._counts: list[int] = []

    @classmethod
    @contextmanager
    def spooled(cls, within: Path | None = None, sampled: int = SAMPLED) -> Iterator[Self]:
        """An empty one, whose files lie in a temporary folder while the block lasts.

        Raises:
            OSError: they cannot be written.
        """
        with TemporaryDirectory(dir=within) as folder:
            overlap = cls(Path(folder), sampled)
            try:
                yield overlap
            finally:
                for file in (*overlap._training, *overlap._held_out):
                    file.close()

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

    def _parts(self, files: list[BinaryIO], text: str) -> Iterator[tuple[BinaryIO, NDArray[np.uint64]]]:
        """The distinct n-grams of a text that count, ascending, with the file where those of their part belong."""
        grams = np.unique(shingle_hashes(text, GRAM_WORDS))
        grams = grams[grams % self._sampled == 0]
        parts = (grams >> np.uint64(58)).astype(np.int64)
        bounds = np.searchsorted(parts, np.arange(_PARTS + 1))
        for part in np.flatnonzero(np.diff(bounds)):
            yield files[part], grams[bounds[part] : bounds[part + 1]]


def _content(file: BinaryIO, kind: np.dtype[Any]) -> NDArray[Any]:
    file.seek(0)
    return np.frombuffer(file.read(), dtype=kind)
