"""Replaced contexts: what stands in for a stretch of tokens, where, and what the teacher then predicts.

A stretch is `k` consecutive spans of a window, from token `s` on. In the original context the hidden states at
`s + kK - 1 … s + kK + H - 2` predict the `H` tokens of the horizon (logits at index p predict token p + 1). In the
replaced context a branch `[vectors, horizon tokens but the last]` follows the window's first `s` tokens, and its last
vector predicts the first token of the horizon. Where nothing stands in (the `drop` baseline), that prediction comes
from the original hidden state at `s - 1`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gistnet.errors import DataError
from gistnet.model.prefix_attention import BranchPass
from gistnet.model.teacher import ReadWindows, Teacher

Positions = Literal["center", "end", "compact"]
"""Where gists stand: in the middle of their span, on its last token (both leave the horizon where it was), or packed
without gaps, as inference servers number them."""


@dataclass(frozen=True)
class Stretches:
    """The stretches of a batch of windows that branches replace.

    Attributes:
        tokens: `[windows, tokens]`, token ids.
        windows: `[branches]`, the window of each branch.
        starts: `[branches]`, the index `s` of the first token replaced, at least 1.
        span_tokens: how many tokens one gist stands for (K at level 0).
        gists: how many consecutive spans are replaced (k).
        horizon: how many tokens after the stretch are predicted (H).

    Raises:
        DataError: a stretch and its horizon do not fit into the window, or nothing precedes the stretch.
    """

    tokens: Tensor
    windows: Tensor
    starts: Tensor
    span_tokens: int
    gists: int
    horizon: int

    def __post_init__(self) -> None:
        length = self.tokens.shape[1]
        last = int(self.starts.max()) + self.replaced_tokens + self.horizon
        if int(self.starts.min()) < 1 or last > length:
            raise DataError(
                f"A stretch of {self.replaced_tokens} tokens with a horizon of {self.horizon} must start at token 1 "
                f"or later and end within the window's {length} tokens; the starts run from {int(self.starts.min())} "
                f"to {int(self.starts.max())}."
            )

    @property
    def replaced_tokens(self) -> int:
        """How many tokens a branch replaces: k times K."""
        return self.gists * self.span_tokens

    @property
    def replaced(self) -> Tensor:
        """The replaced tokens, `[branches, k * K]`."""
        return self._slice(0, self.replaced_tokens)

    @property
    def replaced_and_next(self) -> Tensor:
        """The replaced tokens and the span that follows them, `[branches, (k + 1) * K]`."""
        return self._slice(0, self.replaced_tokens + self.span_tokens)

    @property
    def targets(self) -> Tensor:
        """The horizon's tokens, `[branches, H]`."""
        return self._slice(self.replaced_tokens, self.horizon)

    def original_hidden(self, read: ReadWindows) -> Tensor:
        """The original hidden states that predict the horizon, `[branches, H, dim]`."""
        index = self.starts[:, None] + self.replaced_tokens - 1 + torch.arange(self.horizon, device=self.starts.device)
        return read.hidden[self.windows[:, None], index]

    def _slice(self, offset: int, length: int) -> Tensor:
        index = self.starts[:, None] + offset + torch.arange(length, device=self.starts.device)
        return self.tokens[self.windows[:, None], index]


@dataclass(frozen=True)
class StandIns:
    """Vectors that stand in for stretches, and the positions of everything a branch holds.

    Attributes:
        vectors: `[branches, n, dim]`; n = 0 drops the stretch.
        positions: `[branches, n]`, the vectors' positions.
        continuation: `[branches]`, the position of the first token after the stretch.
    """

    vectors: Tensor
    positions: Tensor
    continuation: Tensor


def gist_stand_ins(stretches: Stretches, gists: Tensor, policy: Positions) -> StandIns:
    """Place gists, `[branches, k, dim]`, by a position policy (`Positions`)."""
    order = torch.arange(stretches.gists, device=stretches.starts.device)
    starts, span = stretches.starts[:, None], stretches.span_tokens
    if policy == "compact":
        return StandIns(gists, starts + order, stretches.starts + stretches.gists)
    within = span // 2 if policy == "center" else span - 1
    return StandIns(gists, starts + order * span + within, stretches.starts + stretches.replaced_tokens)


def replaced_hidden(
    teacher: Teacher, read: ReadWindows, stretches: Stretches, stand_ins: StandIns, tokens: Tensor | None = None
) -> Tensor:
    """The hidden states that predict what follows the stand-ins, `[branches, H, dim]`.

    Args:
        teacher: the frozen language model; gradient flows through it into `stand_ins.vectors`.
        read: the pass over the windows that the stretches are cut from.
        stretches: what is replaced.
        stand_ins: what stands in for it.
        tokens: `[branches, H]`, what follows; None is the horizon. (Reconstruction lets the span itself follow.)
    """
    following = stretches.targets if tokens is None else tokens
    # The last token is predicted, never read.
    fed = teacher.embed(following[:, :-1])
    steps = torch.arange(fed.shape[1], device=fed.device)
    vectors = torch.cat([stand_ins.vectors.to(fed.dtype), fed], dim=1)
    positions = torch.cat([stand_ins.positions, stand_ins.continuation[:, None] + steps], dim=1)
    n = stand_ins.vectors.shape[1]
    before = read.hidden[stretches.windows, stretches.starts - 1][:, None]
    if vectors.shape[1] == 0:  # nothing stands in, and the only target is predicted by the prefix
        return before
    branches = BranchPass(
        document=read.document,
        windows=tuple(stretches.windows.tolist()),
        prefix_lengths=tuple(stretches.starts.tolist()),
        positions=positions,
    )
    hidden = teacher.read_branches(vectors, branches)
    return hidden[:, n - 1 :] if n else torch.cat([before, hidden], dim=1)
