"""A GistNet, with all levels below it, as the encoder of a tree."""

import hashlib
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from gistnet.errors import CheckpointError, DataError, TeacherError
from gistnet.model.fingerprint import TeacherFingerprint
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.objective import encoding_precision

BATCH_SPANS = 64


class GistEncoder:
    """Makes gists in batches of a fixed size, so that a gist has the same bits however many are asked for at once.

    A product over few rows may differ in the last bit from the same rows in a larger one, and rows at the edge of a
    batch from rows within. So every batch has `batch_spans` rows, padded with zeros, and span i is always in row
    `i % batch_spans`. (The same machine, library versions and number of threads are taken for granted.)

    Args:
        teacher: whose embeddings level 0 reads.
        gistnet: of the highest level; it holds those below.
        batch_spans: rows of a batch.

    Raises:
        CheckpointError: the GistNet belongs to another teacher, or reads more than its spans.
    """

    def __init__(self, teacher: Teacher, gistnet: GistNet, batch_spans: int = BATCH_SPANS) -> None:
        if not gistnet.teacher_fingerprint.same_model(teacher.fingerprint):
            raise CheckpointError(
                f"The GistNet was trained with {gistnet.teacher_fingerprint.describe()}; "
                f"got the teacher {teacher.fingerprint.describe()}."
            )
        if gistnet.states_after is not None:
            raise CheckpointError(
                "The GistNet reads spans where they stand in a text, and a tree has gists of spans by themselves; "
                "expected one with reads=span."
            )
        self._teacher = teacher
        self._gistnet = gistnet.eval()
        self._batch_spans = batch_spans

    @cached_property
    def fingerprint(self) -> str:
        """Names the weights of all levels, and the number format that they are applied in."""
        described = f"{self._gistnet.fingerprint} {self._teacher.dtype}"
        return hashlib.sha256(described.encode()).hexdigest()[:16]

    @property
    def teacher(self) -> TeacherFingerprint:
        """The language model whose tokens it reads."""
        return self._teacher.fingerprint

    @property
    def vocabulary_size(self) -> int:
        """Every token id is below it."""
        return self._teacher.vocabulary_size

    @property
    def span_tokens(self) -> int:
        """K, of all levels."""
        return int(self._gistnet.config.span_tokens)

    @property
    def levels(self) -> int:
        """How many levels the GistNet has."""
        return self._gistnet.level + 1

    @property
    def dim(self) -> int:
        """The teacher's hidden size."""
        return self._teacher.hidden_size

    @property
    def positions(self) -> str:
        """The position policy that the GistNet was trained for."""
        return self._gistnet.positions

    def tokenize(self, text: str) -> NDArray[np.int64]:
        """Token ids of a text, without special tokens.

        Raises:
            TeacherError: the teacher has no tokenizer.
        """
        if self._teacher.tokenizer is None:
            raise TeacherError(f"{self._teacher.name} has no tokenizer, expected one to read text.")
        (tokens,) = self._teacher.tokenizer.encode_batch([text])
        return np.array(tokens, dtype=np.int64)

    @torch.no_grad()
    def encode(self, level: int, spans: NDArray[np.generic], first: int) -> NDArray[np.float16]:
        """Gists `[n, dim]` of spans `[n, K]` of tokens, or `[n, K, dim]` of gists of the level below.

        Raises:
            DataError: there is no such level, or a gist is beyond the range of float16.
            TeacherError: a token is outside the vocabulary.
        """
        if not 0 <= level < self.levels:
            raise DataError(f"Got level {level}, expected one of 0 to {self.levels - 1}.")
        gists = np.empty((len(spans), self.dim), dtype=np.float16)
        done = 0
        while done < len(spans):
            row = (first + done) % self._batch_spans
            taken = spans[done : done + self._batch_spans - row]
            batch = np.zeros((self._batch_spans, *spans.shape[1:]), dtype=spans.dtype)
            batch[row : row + len(taken)] = taken
            gists[done : done + len(taken)] = self._encode_batch(level, batch)[row : row + len(taken)]
            done += len(taken)
        return gists

    def _encode_batch(self, level: int, batch: NDArray[np.generic]) -> NDArray[np.float16]:
        vectors = torch.from_numpy(batch).to(self._teacher.device)
        if level == 0:
            vectors = self._teacher.embed(vectors)
        with encoding_precision(self._teacher):
            gists = self._gistnet.levels[level](vectors).half()
        if not bool(torch.isfinite(gists).all()):
            raise DataError(f"A gist of level {level} is not a finite float16 vector, expected entries below 65504.")
        return gists.cpu().numpy()
