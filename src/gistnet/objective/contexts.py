"""Training contexts: windows in which gists replace segments and the rest stays raw, packed for one pass.

A context keeps the first tokens of its window, whose keys and values the prefill has made. Behind them it holds
vectors slot by slot: gists and raw tokens. The slot before a raw token predicts it, so that every raw token behind the
first gist is compared with what the original context predicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gistnet.data.sampling import ContextSample
from gistnet.errors import DataError
from gistnet.model.prefix_attention import BranchPass
from gistnet.model.teacher import PrefillOutput, Teacher
from gistnet.positions import Positions


@dataclass(frozen=True)
class ContextBatch:
    """Contexts of the windows of a batch, padded at their ends to the longest.

    Attributes:
        tokens: `[windows, tokens]`, token ids.
        span_tokens: how many tokens one gist stands for.
        windows: `[contexts]`, the window of each context.
        prefix_lengths: `[contexts]`, how many first tokens of the window each context keeps, at least 1.
        ends: `[contexts]`, the window's token behind the last one of each context.
        gist_starts: `[gists]`, the first token that each gist replaces; those of a context follow each other.
        gist_contexts: `[gists]`, the context of each gist.
        slots: `[contexts, length]`, the index of a slot's token in the window, or -1 - n for gist n.
        positions: `[contexts, length]`, increasing along a context.
        targets: `[contexts, length]`, the index of the token that a slot predicts; -1 where it predicts none.
    """

    tokens: Tensor
    span_tokens: int
    windows: Tensor
    prefix_lengths: Tensor
    ends: Tensor
    gist_starts: Tensor
    gist_contexts: Tensor
    slots: Tensor
    positions: Tensor
    targets: Tensor

    @property
    def gist_windows(self) -> Tensor:
        """The window of each gist, `[gists]`."""
        return self.windows[self.gist_contexts]

    @property
    def target_contexts(self) -> Tensor:
        """The context of each target, `[targets]`: those of a context follow each other."""
        return torch.nonzero(self.targets >= 0)[:, 0]

    @property
    def target_tokens(self) -> Tensor:
        """The predicted tokens of all contexts, `[targets]`."""
        return self.tokens[self.windows[self.target_contexts], self.targets[self.targets >= 0]]

    def original_hidden(self, prefill: PrefillOutput) -> Tensor:
        """The original hidden states that predict the targets, `[targets, dim]`."""
        return prefill.hidden[self.windows[self.target_contexts], self.targets[self.targets >= 0] - 1]


def pack_contexts(
    tokens: Tensor, contexts: Sequence[tuple[int, ContextSample]], *, span_tokens: int, positions: Positions
) -> ContextBatch:
    """Lay contexts out slot by slot.

    Args:
        tokens: `[windows, tokens]`.
        contexts: the window's row, and the context.
        span_tokens: how many tokens one gist stands for.
        positions: policy of the contexts that are not `compact`.

    Raises:
        DataError: a context does not fit into its window, nothing precedes its first gist or follows its last, or
            segments overlap.
    """
    counts = [_checked(context, tokens.shape[1], span_tokens).n_spans.sum() for _, context in contexts]
    laid_out = [
        _laid_out(context, span_tokens, "compact" if context.compact else positions, first)
        for (_, context), first in zip(contexts, np.cumsum([0, *counts[:-1]]), strict=True)
    ]
    gist_starts = [
        start + np.arange(count) * span_tokens
        for _, context in contexts
        for start, count in zip(context.starts, context.n_spans, strict=True)
    ]

    def on_device(values: Sequence[int] | NDArray[np.int64]) -> Tensor:
        return torch.as_tensor(values, dtype=torch.long).to(tokens.device)

    # The last token is predicted, never read; what comes before a token that counts predicts it.
    lengths = on_device([len(row) - 1 for row, _ in laid_out])
    order = torch.arange(int(lengths.max()), device=tokens.device)
    padding = (order - lengths[:, None] + 1).clamp(min=0)
    slots, following, placed = (
        pad_sequence([on_device(row) for row in rows], batch_first=True)
        for rows in zip(*((row[:-1], row[1:], where[:-1]) for row, where in laid_out), strict=True)
    )
    last = placed.gather(1, lengths[:, None] - 1)
    return ContextBatch(
        tokens,
        span_tokens,
        windows=on_device([window for window, _ in contexts]),
        prefix_lengths=on_device([context.prefix for _, context in contexts]),
        ends=on_device([context.end for _, context in contexts]),
        gist_starts=on_device(np.concatenate(gist_starts)),
        gist_contexts=on_device(np.repeat(np.arange(len(contexts)), counts)),
        slots=slots,
        # Positions go on through the padding: what has a later position is not seen.
        positions=torch.where(padding > 0, last + padding, placed),
        targets=following.clamp(min=-1).masked_fill(padding > 0, -1),
    )


def contexts_hidden(teacher: Teacher, prefill: PrefillOutput, contexts: ContextBatch, vectors: Tensor) -> Tensor:
    """The hidden states that predict the targets, `[targets, dim]`.

    Args:
        teacher: the frozen language model; gradient flows through it into `vectors`.
        prefill: the pass over the windows.
        contexts: what is read behind them.
        vectors: `[gists, dim]`.
    """
    is_vector = contexts.slots < 0
    read = teacher.embed(contexts.tokens[contexts.windows[:, None], contexts.slots.clamp(min=0)])
    read = read.index_put((is_vector,), vectors[-1 - contexts.slots[is_vector]].to(read.dtype))
    branches = BranchPass(
        cache=prefill.cache,
        windows=tuple(contexts.windows.tolist()),
        prefix_lengths=tuple(contexts.prefix_lengths.tolist()),
        positions=contexts.positions,
    )
    return teacher.read_branches(read, branches)[contexts.targets >= 0]


def _checked(context: ContextSample, window_tokens: int, span_tokens: int) -> ContextSample:
    """The context itself, where it is sound.

    Raises:
        DataError: see `pack_contexts`.
    """
    ends = context.starts + context.n_spans * span_tokens
    bounds = np.append(context.starts[1:], context.end)
    sound = (
        len(context.starts) > 0
        and 1 <= context.prefix <= context.starts[0]
        and context.n_spans.min() >= 1
        and context.end <= window_tokens
        and bool((ends < bounds).all())
    )
    if not sound:
        raise DataError(
            f"A context of a window of {window_tokens} tokens must keep a first token, replace spans behind it one "
            f"after the other, with a token behind each segment, and end in the window; got {context} with "
            f"{span_tokens} tokens a gist."
        )
    return context


def _laid_out(
    context: ContextSample, span_tokens: int, policy: Positions, first_gist: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Slots behind the prefix and their positions, as in `ContextBatch`, with the last token at the end."""
    slots, positions = [], []
    for start, count, bound in zip(
        context.starts, context.n_spans, np.append(context.starts[1:], context.end), strict=True
    ):
        order, raw = np.arange(count), np.arange(start + count * span_tokens, bound)
        slots += [-1 - first_gist - order, raw]
        positions += [start + order * span_tokens + (span_tokens // 2 if policy == "center" else span_tokens - 1), raw]
        first_gist += count
    laid_out = np.concatenate(slots)
    if policy == "compact":
        return laid_out, context.prefix + np.arange(len(laid_out))
    return laid_out, np.concatenate(positions)
