"""Replaced contexts: vectors in place of a segment of tokens, and what the teacher then predicts.

A segment is `k` consecutive spans of a window, from token `s` on. In the original context the hidden states at `s + kK
- 1 … s + kK + H - 2` predict the `H` tokens of the horizon (logits at index p predict token p + 1). In the replaced
context a branch `[vectors, horizon tokens but the last]` follows the window's first `s` tokens, and its last vector
predicts the first token of the horizon. Where nothing takes its place (the `drop` baseline), that prediction comes from
the original hidden state at `s - 1`.

Branches of different `k` share one pass: the shorter ones are padded at their end, where by causality nothing sees it.
What is kept per span or per vector is padded likewise, `[branches, longest, …]`, and only the first `k` count.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gistnet.errors import DataError
from gistnet.model.prefix_attention import BranchPass
from gistnet.model.teacher import PrefillOutput, Teacher
from gistnet.positions import Positions

LONGEST_TO_SHORTEST = 1.25
"""Largest ratio of the longest branch of a pass to its shortest: all of them are padded to it."""


@dataclass(frozen=True)
class SegmentBatch:
    """The segments of a batch of windows that branches replace.

    Attributes:
        tokens: `[windows, tokens]`, token ids.
        windows: `[branches]`, the window of each branch.
        starts: `[branches]`, the index `s` of the first token replaced, at least 1.
        span_tokens: how many tokens one gist stands for (K at level 0).
        n_spans: consecutive spans that are replaced (k), `[branches]`, or one number for all; 0 replaces nothing.
        horizon: how many tokens after the segment are predicted (H).

    Raises:
        DataError: a segment and its horizon do not fit into the window, or nothing precedes the segment.
    """

    tokens: Tensor
    windows: Tensor
    starts: Tensor
    span_tokens: int
    n_spans: Tensor | int
    horizon: int

    def __post_init__(self) -> None:
        length = self.tokens.shape[1]
        ends = self.starts + self.replaced_tokens + self.horizon
        wrong = torch.nonzero((self.starts < 1) | (self.counts < 0) | (ends > length))
        if len(wrong):
            start, count = int(self.starts[wrong[0]]), int(self.counts[wrong[0]])
            raise DataError(
                f"A segment must replace no less than nothing, start at token 1 or later, and with a horizon of "
                f"{self.horizon} end within the window's {length} tokens; got {count} spans of {self.span_tokens} "
                f"tokens from token {start} on."
            )

    @property
    def counts(self) -> Tensor:
        """Number of spans that each branch replaces (k), `[branches]`."""
        return torch.as_tensor(self.n_spans, device=self.starts.device).expand(len(self.starts))

    @property
    def longest(self) -> int:
        """The largest k."""
        return int(self.counts.max())

    @property
    def replaced_tokens(self) -> Tensor:
        """Number of tokens that each branch replaces, k times K, `[branches]`."""
        return self.counts * self.span_tokens

    @property
    def replaced(self) -> Tensor:
        """The replaced tokens, `[branches, longest * K]`; in shorter segments, what follows them pads."""
        return self._take(self.tokens, 0, self.longest * self.span_tokens)

    @property
    def targets(self) -> Tensor:
        """The horizon's tokens, `[branches, H]`."""
        return self._take(self.tokens, self.replaced_tokens, self.horizon)

    def original_hidden(self, read: PrefillOutput) -> Tensor:
        """The original hidden states that predict the horizon, `[branches, H, dim]`."""
        return self._take(read.hidden, self.replaced_tokens - 1, self.horizon)

    def hidden_before_replaced(self, read: PrefillOutput) -> Tensor:
        """The original hidden states that predict `replaced`, `[branches, longest * K, dim]`."""
        return self._take(read.hidden, -1, self.longest * self.span_tokens)

    def _take(self, values: Tensor, offset: Tensor | int, length: int) -> Tensor:
        """From `[windows, tokens, …]` what begins `offset` after each start, `[branches, length, …]`.

        Behind the window's end its last token is repeated; only what pads can lie there.
        """
        index = (self.starts + offset)[:, None] + torch.arange(length, device=self.starts.device)
        return values[self.windows[:, None], index.clamp(max=self.tokens.shape[1] - 1)]


@dataclass(frozen=True)
class Replacements:
    """Vectors that replace segments, and the positions of everything a branch holds.

    Attributes:
        vectors: `[branches, n, dim]`; n = 0 drops the segment.
        positions: `[branches, n]`, the vectors' positions.
        continuation: `[branches]`, the position of the first token after the segment.
        counts: `[branches]`, how many of a branch's vectors count, from the first on; None is all n of each.
    """

    vectors: Tensor
    positions: Tensor
    continuation: Tensor
    counts: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """Number of vectors of each replacement, `[branches]`."""
        return torch.full_like(self.continuation, self.vectors.shape[1]) if self.counts is None else self.counts


def no_replacements(teacher: Teacher, segments: SegmentBatch) -> Replacements:
    """Nothing: segments are left out, and what follows keeps its positions."""
    none = torch.zeros(len(segments.starts), 0, teacher.hidden_size, device=teacher.device)
    positions = torch.zeros(len(segments.starts), 0, dtype=torch.long, device=teacher.device)
    return Replacements(none, positions, segments.starts + segments.replaced_tokens)


def gist_replacements(
    segments: SegmentBatch, gists: Tensor, policy: Positions, compact: Tensor | None = None
) -> Replacements:
    """Place gists, `[branches, longest, dim]`, by a position policy (`Positions`).

    Args:
        compact: bool `[branches]`, those that are placed by the policy "compact" instead.
    """
    starts, span, counts = segments.starts, segments.span_tokens, segments.counts
    gapless = torch.full_like(counts, policy == "compact", dtype=torch.bool)
    if compact is not None:
        gapless = gapless | compact
    order = torch.arange(segments.longest, device=starts.device)
    within = span // 2 if policy == "center" else span - 1
    positions = starts[:, None] + torch.where(gapless[:, None], order, order * span + within)
    return Replacements(gists, positions, starts + torch.where(gapless, counts, segments.replaced_tokens), counts)


def replaced_hidden(
    teacher: Teacher,
    read: PrefillOutput,
    segments: SegmentBatch,
    replacements: Replacements,
    tokens: Tensor | None = None,
) -> Tensor:
    """The hidden states that predict what follows the replacements, `[branches, H, dim]`.

    Args:
        teacher: the frozen language model; gradient flows through it into `replacements.vectors`.
        read: the pass over the windows that the segments are cut from.
        segments: what is replaced.
        replacements: what takes its place.
        tokens: `[branches, H]`, what follows; None is the horizon.
    """
    following = segments.targets if tokens is None else tokens
    hidden = read.hidden[segments.windows, segments.starts - 1][:, None]
    # The last token is predicted, never read.
    vectors, positions = _pack(replacements, teacher.embed(following[:, :-1]))
    if vectors.shape[1]:  # otherwise nothing replaces it, and the only target is predicted by the prefix
        branches = BranchPass(
            cache=read.cache,
            windows=tuple(segments.windows.tolist()),
            prefix_lengths=tuple(segments.starts.tolist()),
            positions=positions,
        )
        hidden = torch.cat([hidden, teacher.read_branches(vectors, branches)], dim=1)
    return _each_row(hidden, replacements.lengths[:, None] + torch.arange(following.shape[1], device=hidden.device))


def replaced_hidden_of_each(
    teacher: Teacher, read: PrefillOutput, segments: SegmentBatch, replacements: Mapping[str, Replacements]
) -> dict[str, Tensor]:
    """`replaced_hidden` of several kinds of replacements of the same segments, by name, without gradient.

    Kinds whose branches are of similar length go through the teacher together: few branches do not fill it.
    """
    hidden: dict[str, Tensor] = {}
    lengths = [segments.horizon + made.vectors.shape[1] for made in replacements.values()]
    for together in of_similar_length(lengths):
        names = [list(replacements)[index] for index in together]
        kinds, n = [replacements[name] for name in names], len(names)
        repeated = replace(
            segments,
            windows=segments.windows.repeat(n),
            starts=segments.starts.repeat(n),
            n_spans=segments.counts.repeat(n),
        )
        most = max(kind.vectors.shape[1] for kind in kinds)
        combined = Replacements(
            torch.cat([_padded(kind.vectors.to(teacher.dtype), most) for kind in kinds]),
            torch.cat([_padded(kind.positions, most) for kind in kinds]),
            torch.cat([kind.continuation for kind in kinds]),
            torch.cat([kind.lengths for kind in kinds]),
        )
        with torch.no_grad():
            parts = replaced_hidden(teacher, read, repeated, combined).split(len(segments.starts))
        hidden |= zip(names, parts, strict=True)
    return {name: hidden[name] for name in replacements}


def of_similar_length(lengths: Sequence[int], vectors_at_once: int | None = None) -> Iterator[list[int]]:
    """Passes of branches of these lengths in vectors, as their indices, shortest first.

    All branches of a pass are padded to its longest, which is at most a quarter longer than its shortest.

    Args:
        vectors_at_once: most vectors of a pass, padding counted; a longer branch goes by itself. None: any number.
    """
    together: list[int] = []
    for branch in sorted(range(len(lengths)), key=lambda branch: lengths[branch]):
        if together:
            fits = vectors_at_once is None or (len(together) + 1) * lengths[branch] <= vectors_at_once
            if not fits or lengths[branch] > LONGEST_TO_SHORTEST * lengths[together[0]]:
                yield together
                together = []
        together.append(branch)
    yield together


def _padded(values: Tensor, length: int) -> Tensor:
    """`[branches, n, …]` with zeros up to `[branches, length, …]`."""
    padding = values.new_zeros(len(values), length - values.shape[1], *values.shape[2:])
    return torch.cat([values, padding], dim=1)


def _pack(replacements: Replacements, fed: Tensor) -> tuple[Tensor, Tensor]:
    """Branches `[vectors that count, fed, padding]`, `[branches, length, dim]`, and their positions.

    Args:
        fed: `[branches, n, dim]`, embeddings of the tokens that follow the replacements.
    """
    lengths, longest = replacements.lengths[:, None], replacements.vectors.shape[1]
    slots = torch.arange(int(lengths.max()) + fed.shape[1], device=fed.device)
    source = torch.where(slots < lengths, slots, longest + slots - lengths)
    # Positions go on through the padding: what has a later position is not seen.
    positions = torch.cat([replacements.positions, replacements.continuation[:, None] + slots], dim=1)
    vectors = torch.cat([replacements.vectors.to(fed.dtype), fed], dim=1)
    return _each_row(vectors, source.clamp(max=vectors.shape[1] - 1)), _each_row(positions, source)


def _each_row(values: Tensor, index: Tensor) -> Tensor:
    """In each row of `[branches, n, …]` the entries that `[branches, m]` names, `[branches, m, …]`."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]
