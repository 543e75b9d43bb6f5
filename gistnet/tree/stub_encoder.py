"""Encoder without a network, for tests and benchmarks of trees: cheap, exact, and of any size."""

import numpy as np
from numpy.typing import NDArray

from gistnet.model.fingerprint import TeacherFingerprint

TEACHER = TeacherFingerprint(
    name="stub", revision=None, precision="float32", config_hash="c" * 16, weights_hash="e" * 16
)


class StubEncoder:
    """`Encoder` whose gists tell which weights, span and index made them.

    Entry 0 of a gist is the seed, entry 1 its index modulo 2048; the others are a hash of the span and the seed, so
    that a gist of another version, index or span has other bits. With `context_spans`, a gist of level 0 also depends
    on the spans before it: from so many before its batch of six on.
    """

    positions = "center"

    def __init__(
        self,
        seed: int = 1,
        *,
        dim: int = 8,
        span_tokens: int = 4,
        levels: int = 2,
        vocabulary_size: int = 1000,
        teacher: TeacherFingerprint = TEACHER,
        context_spans: int = 0,
    ) -> None:
        self.seed, self.dim, self.span_tokens, self.levels = seed, dim, span_tokens, levels
        self.vocabulary_size, self.teacher, self.context_spans = vocabulary_size, teacher, context_spans

    @property
    def fingerprint(self) -> str:
        """One per seed."""
        return f"stub{self.seed:04d}"

    def tokenize(self, text: str, *, continued: bool = False) -> NDArray[np.int64]:
        """Bytes of the text as token ids."""
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)

    def reads_from(self, level: int, first: int) -> int:
        """See `Encoder`."""
        return max(0, first - first % 6 - self.context_spans) if self.context_spans and level == 0 else first

    def encode(self, level: int, spans: NDArray[np.generic], first: int) -> NDArray[np.float16]:
        """Gists `[n, dim]` of integers below 2048, which float16 holds exactly."""
        numbers = spans if level == 0 else spans.view(np.uint16)
        mixed = numbers.reshape(len(spans), -1).astype(np.int64)
        weights = np.arange(1, mixed.shape[1] + 1) * 7919 + self.seed
        digest = (mixed * weights % 1_000_003).sum(axis=1)
        given = self.reads_from(level, first)
        indices = range(first, given + len(spans))
        if self.context_spans and level == 0:
            digest = np.array([digest[self.reads_from(0, n) - given : n - given + 1].sum() for n in indices], np.int64)
        columns = np.arange(3, self.dim + 3) * 104_729
        gists = ((digest[:, None] + level) * columns % 2039 - 1019).astype(np.float16)
        gists[:, 0] = self.seed
        gists[:, 1] = np.array(indices) % 2048
        return gists
