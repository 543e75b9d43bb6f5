"""A GistNet, with all levels below it, as the encoder of a tree."""

import hashlib
import sys
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from gistnet import terminal
from gistnet.errors import DataError, TeacherError
from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.tree.encoder import EncoderInfo

BATCH_SPANS = 64
BATCH_SPANS_IN_CONTEXT, CONTEXT_SPANS = 32, 16
"""A batch, and how many spans before it are read with it, of a GistNet that reads spans where they stand: short, since
the attention of a CPU is slow over long windows."""
MANY_BATCHES = 16
"""Batches that a progress bar is shown for: some ten seconds of a CPU."""


class GistEncoder:
    """Makes gists in batches of a fixed size, so that a gist has the same bits however many are asked for at once.

    A product over few rows may differ in the last bit from the same rows in a larger one, and rows at the edge of a
    batch from rows within. So every batch has `batch_spans` rows, padded with zeros, and span i is always in row
    `i % batch_spans`. (The same machine, library versions and number of threads are taken for granted.)

    Where the GistNet reads spans where they stand, the teacher reads each batch of level 0 in a window of its own,
    behind the tokenizer's prefix and the `context_spans` before it; batches and contexts are shorter where the teacher
    has too few positions.

    Args:
        teacher: whose embeddings level 0 reads.
        gistnet: of the highest level; it holds those below.
        batch_spans: rows of a batch; None: `BATCH_SPANS`, or `BATCH_SPANS_IN_CONTEXT`.
        context_spans: read before a batch; none are for a GistNet that reads its spans alone.

    Raises:
        CheckpointError: the GistNet belongs to another teacher.
    """

    def __init__(
        self,
        teacher: Teacher,
        gistnet: GistNet,
        batch_spans: int | None = None,
        context_spans: int = CONTEXT_SPANS,
    ) -> None:
        self._teacher = teacher
        self.tokenizer = teacher.tokenizer
        self._encoders = [SpanEncoder(teacher, level) for level in gistnet.eval().levels]
        self._prefix = torch.tensor(self.tokenizer.window_prefix if self.tokenizer else (), dtype=torch.long)
        span = gistnet.branchings[0]
        # The fingerprint covers all that decides a gist: weights, number format, and what is read with a span.
        described = f"{gistnet.fingerprint} {teacher.dtype}"
        if gistnet.hidden_state_layer is None:
            self._batch_spans, together, before = batch_spans or BATCH_SPANS, 1, 0
        else:
            room = (teacher.max_positions - len(self._prefix)) // span
            before = min(context_spans, room // 2)
            self._batch_spans = together = min(batch_spans or BATCH_SPANS_IN_CONTEXT, room - before)
            described += f" {together} after {before}"
        self.info = EncoderInfo(
            fingerprint=hashlib.sha256(described.encode()).hexdigest()[:16],
            branchings=gistnet.branchings,
            dim=teacher.hidden_size,
            positions=gistnet.positions,
            longest_row=gistnet.longest_row,
            teacher=teacher.fingerprint,
            vocabulary_size=teacher.vocabulary_size,
            read_together=together,
            read_before=before,
        )

    def tokenize(self, text: str, *, continued: bool = False) -> NDArray[np.int64]:
        """Token ids of a text, which may continue another one, without BOS and EOS.

        Raises:
            DataError: the text is not valid Unicode.
            TeacherError: the teacher has no tokenizer.
        """
        if self.tokenizer is None:
            raise TeacherError(f"{self._teacher.name} has no tokenizer, expected one to read text.")
        return self.tokenizer.encode(text, continued=continued)

    @torch.no_grad()
    def encode(self, level: int, spans: NDArray[np.generic], first: int) -> NDArray[np.float16]:
        """Gists of consecutive spans, see `Encoder.encode`: float16 `[n, dim]`, from that of span `first` on.

        Args:
            level: of the gists to make.
            spans: token ids `[spans, K]`, or gists of the level below `[spans, K, dim]`; the first of them is span
                `info.reads_from(level, first)`, which is before `first` where spans are read in context.
            first: the index in its document of the first gist to make.

        Raises:
            DataError: there is no such level, or a gist is beyond the range of float16.
            TeacherError: a token is outside the vocabulary.
        """
        if not 0 <= level < self.info.levels:
            raise DataError(f"Got level {level}, expected one of 0 to {self.info.levels - 1}.")
        given = self.info.reads_from(level, first)
        stop = given + len(spans)
        gists = np.empty((stop - first, self.info.dim), dtype=np.float16)
        for start in _with_progress(range(first - first % self._batch_spans, stop, self._batch_spans)):
            done = max(first, start)
            read_from = self.info.reads_from(level, start)
            rows = np.zeros((start + self._batch_spans - read_from, *spans.shape[1:]), dtype=spans.dtype)
            begin, end = max(given, read_from), min(stop, start + self._batch_spans)
            rows[begin - read_from : end - read_from] = spans[begin - given : end - given]
            made = self._encode_batch(level, rows, start - read_from)
            gists[done - first : end - first] = made[done - start : end - start]
        return gists

    def _encode_batch(self, level: int, rows: NDArray[np.generic], before: int) -> NDArray[np.float16]:
        """Gists of the rows after the first `before`, which are only read."""
        encoder, context = self._encoders[level], None
        vectors = torch.from_numpy(rows).to(self._teacher.device)
        if level == 0:
            # The prefix, and the spans that precede the batch, are in the window for what they say of those after them.
            window = torch.cat([self._prefix.to(vectors.device), vectors.flatten()])
            spans = torch.arange(before, len(rows), device=vectors.device)
            context = encoder.context(window[None], len(self._prefix) + self.info.branchings[0] * spans)
            vectors = self._teacher.embed(vectors[before:])
        gists = encoder.encode_vectors(vectors, context=context).half()
        if not bool(torch.isfinite(gists).all()):
            raise DataError(f"A gist of level {level} is not a finite float16 vector, expected entries below 65504.")
        return gists.cpu().numpy()


def _with_progress(batches: range) -> Iterable[int]:
    """The batches, with a bar on the standard error where there are many and it is a terminal."""
    if len(batches) < MANY_BATCHES or not sys.stderr.isatty():
        return batches
    return track(batches, "making gists", console=terminal.err, transient=True)
