"""Losses of the gists of a tree, measured on the document itself, so that one knows which gists to expand.

A span of the document is replaced by its stored gist, alone, in a window that the teacher can read, and KL and ΔNLL
over the next H tokens are taken (D3), with the engine that training and evaluation use. Windows follow each other so
that every span is measured once, with `context_tokens` of the document before it, or all there is. A gist without
anything before it, or with fewer than H tokens after it, cannot be measured; a span that no window holds neither.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gistnet.errors import ConfigError, TeacherError
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import SegmentBatch, gist_replacements, replaced_hidden
from gistnet.objective.losses import token_losses
from gistnet.positions import Positions
from gistnet.tree.compress import LOG_SECONDS
from gistnet.tree.document import CompressedDocument
from gistnet.tree.encoder import count_gists, tokens_per_gist
from gistnet.tree.tree import GistTree

logger = logging.getLogger(__name__)

BRANCHES_PER_PASS = 64


@dataclass(frozen=True)
class QualityOptions:
    """Options of measuring gists.

    Attributes:
        horizon_tokens: H, the tokens after a span whose prediction is compared.
        positions: where the gist stands, as the GistNet was trained.
        window_tokens: read at once, the tokenizer's prefix included; the teacher's positions where those are fewer.
        context_tokens: of the document before a span, where there are so many and they fit into the window.
    """

    horizon_tokens: int = 32
    positions: Positions = "end"
    window_tokens: int = 2048
    context_tokens: int = 512

    def __post_init__(self) -> None:
        if self.horizon_tokens < 1 or self.context_tokens < 1:
            raise ConfigError(
                f"Got a horizon of {self.horizon_tokens} and a context of {self.context_tokens} tokens, expected 1 or "
                "more of each."
            )


class Measurement(NamedTuple):
    """Losses of consecutive gists of a level, in nats per token."""

    first: int
    """The index of the first gist."""
    kl: NDArray[np.float32]
    """KL@H, `[n]`."""
    delta_nll: NDArray[np.float32]
    """ΔNLL@H, `[n]`."""


class _Window(NamedTuple):
    """Tokens `begin` to `end` of a document, in which the gists `first` to `last` of a level are measured."""

    begin: int
    end: int
    first: int
    last: int


def measure_quality(
    document: CompressedDocument,
    teacher: Teacher,
    level: int = 0,
    options: QualityOptions = QualityOptions(),
    *,
    first: int = 0,
) -> Iterator[Measurement]:
    """Measure the gists of a level that can be measured, in order, from gist `first` on, window by window.

    Raises:
        DataError: there is no such level.
        TeacherError: a token of the document is outside the vocabulary.
    """
    prefix = teacher.tokenizer.window_prefix if teacher.tokenizer is not None else ()
    span = tokens_per_gist(document.branchings, level)
    body = min(options.window_tokens, teacher.max_positions) - len(prefix)
    for window in _windows(document.n_tokens, span, body, bool(prefix), options, first):
        tokens = np.concatenate([np.array(prefix, np.int64), document.tokens(window.begin, window.end)])
        gists = document.gists(level, window.first, window.last)
        starts = np.arange(window.first, window.last) * span - window.begin + len(prefix)
        yield Measurement(window.first, *_measure_window(teacher, tokens, gists, starts, span, options))


def _windows(
    n_tokens: int, span: int, body: int, has_prefix: bool, options: QualityOptions, first: int
) -> Iterator[_Window]:
    """Windows of at most `body` tokens in which gists from `first` on have what they need, each in one of them."""
    horizon = options.horizon_tokens
    context = min(options.context_tokens, body - span - horizon)
    if context < (0 if has_prefix else 1):
        return
    first = max(first, 0 if has_prefix else 1)
    while (first + 1) * span + horizon <= n_tokens:
        begin = max(0, first * span - context)
        last = (min(n_tokens, begin + body) - horizon) // span
        yield _Window(begin, last * span + horizon, first, last)
        first = last


@torch.no_grad()
def _measure_window(
    teacher: Teacher,
    tokens: NDArray[np.int64],
    gists: NDArray[np.float16],
    starts: NDArray[np.int64],
    span: int,
    options: QualityOptions,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """KL and ΔNLL, `[n]` each, of gists `[n, dim]` that each replace `span` tokens of a window from its start on."""
    window = torch.from_numpy(tokens).to(teacher.device)[None]
    read = teacher.prefill(window)
    parts = []
    for first in range(0, len(starts), BRANCHES_PER_PASS):
        chunk = slice(first, first + BRANCHES_PER_PASS)
        begins = torch.from_numpy(starts[chunk]).to(teacher.device)
        segments = SegmentBatch(window, torch.zeros_like(begins), begins, span, 1, options.horizon_tokens)
        vectors = torch.tensor(gists[chunk], device=teacher.device)[:, None]  # a copy: what a tree gives is read-only
        replacements = gist_replacements(segments, vectors, options.positions)
        hidden = replaced_hidden(teacher, read, segments, replacements)
        losses = token_losses(teacher, segments.original_hidden(read), hidden, segments.targets)
        parts.append(torch.stack([losses.kl.mean(dim=1), losses.delta_nll.mean(dim=1)]))
    kl, delta_nll = torch.cat(parts, dim=1).float().cpu().numpy()
    return kl, delta_nll


def add_quality(tree: GistTree, teacher: Teacher, options: QualityOptions = QualityOptions()) -> int:
    """Measure the gists of a tree, level by level, and keep their losses with them; what is measured stays.

    Args:
        tree: open for writing.

    Returns:
        How many gists were measured now.

    Raises:
        TeacherError: the tree is another teacher's.
        StorageError: the tree cannot be written; what was written before stays.
    """
    made_for = tree.info().teacher
    if not made_for.same_model(teacher.fingerprint):
        raise TeacherError(f"The tree is of {made_for.describe()}; got the teacher {teacher.fingerprint.describe()}.")
    total, logged = 0, time.monotonic()
    for name in tree.documents():
        document = tree.document(name)
        for level in range(document.levels):
            count = count_gists(document.n_tokens, document.branchings, level)
            known = np.flatnonzero(~np.isnan(document.quality(level, 0, count).kl))
            first = int(known[-1]) + 1 if len(known) else 0  # they are measured in order
            for measured in measure_quality(document, teacher, level, options, first=first):
                tree.set_quality(name, level, measured.first, measured.kl, measured.delta_nll)
                total += len(measured.kl)
                if time.monotonic() - logged >= LOG_SECONDS:
                    logged = time.monotonic()
                    logger.info("measuring %s, level %d, gist %d", name, level, measured.first)
    return total
