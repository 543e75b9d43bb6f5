"""Encoder without a network, for tests and benchmarks of trees: cheap, exact, and of any size."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistnet.errors import DataError
from gistnet.model.fingerprint import TeacherFingerprint
from gistnet.model.tokenizer import TextEnd
from gistnet.tree.encoder import EncoderInfo
from gistnet.tree.passages import Detokenizer

TEACHER = TeacherFingerprint(
    name="stub", revision=None, precision="float32", config_hash="c" * 16, weights_hash="e" * 16
)
INFO = EncoderInfo(
    fingerprint="stub", branchings=(4, 4), dim=8, positions="center", teacher=TEACHER, vocabulary_size=1000
)


class StubTokenizer:
    """`Detokenizer` of the tokens of `StubEncoder`: bytes are ASCII characters, others words of their own."""

    text_ends = np.zeros(1 << 16, dtype=np.int8)
    text_ends[ord(".")], text_ends[ord("\n")] = TextEnd.SENTENCE, TextEnd.LINE

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return "".join(chr(token) if token < 128 else f" w{token} " for token in tokens)


class StubEncoder:
    """`Encoder` whose gists tell which weights, span and index made them.

    Entry 0 of a gist is the seed, entry 1 its index modulo 2048; the others are a hash of the span and the seed, so
    that a gist of another version, index or span has other bits. Where spans are read together, a gist of level 0 also
    depends on all spans before it that are read with it.

    Args:
        seed: of the weights.
        changes: fields of `INFO` that are to differ.
    """

    def __init__(self, seed: int = 1, **changes: Any) -> None:
        self.seed = seed
        self.tokenizer: Detokenizer = StubTokenizer()
        self.info = INFO.model_copy(update={"fingerprint": f"stub{seed:04d}", **changes})

    def tokenize(self, text: str, *, continued: bool = False) -> NDArray[np.int64]:
        """Bytes of the text as token ids."""
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)

    def encode(self, level: int, spans: NDArray[np.generic], first: int) -> NDArray[np.float16]:
        """Gists `[n, dim]` of integers below 2048, which float16 holds exactly."""
        numbers = spans if level == 0 else spans.view(np.uint16)
        mixed = numbers.reshape(len(spans), -1).astype(np.int64)
        weights = np.arange(1, mixed.shape[1] + 1) * 7919 + self.seed
        digest = (mixed * weights % 1_000_003).sum(axis=1)
        reads_from = self.info.reads_from
        given = reads_from(level, first)
        indices = range(first, given + len(spans))
        if level == 0 and self.info.read_together > 1:
            digest = np.array([digest[reads_from(0, n) - given : n - given + 1].sum() for n in indices], np.int64)
        columns = np.arange(3, self.info.dim + 3) * 104_729
        gists = ((digest[:, None] + level) * columns % 2039 - 1019).astype(np.float16)
        gists[:, 0] = self.seed
        gists[:, 1] = np.array(indices) % 2048
        return gists


class FailingEncoder(StubEncoder):
    """Fails at spans that begin with token 13."""

    def encode(self, level: int, spans: NDArray[np.generic], first: int) -> NDArray[np.float16]:
        if level == 0 and (spans[:, 0] == 13).any():
            raise DataError("A gist of level 0 is not a finite float16 vector.")
        return super().encode(level, spans, first)
