"""Attention of branches over shared prefixes and themselves on a CPU, in two parts that are merged exactly.

Each part gives its output and the logarithm of its softmax denominator; the merged output is their average weighted by
those denominators. Backward, the probabilities of a part are `exp(score − logarithm of the merged denominator)`, so
that the parts need no knowledge of each other (as in Dao et al., 2022, and in ring attention, Liu et al., 2023). The
heads that share a key head are folded into the rows of one product, so no key is repeated; prefixes are views of their
window's keys, so none is copied, and they need no gradient.

Forward, a prefix is read by PyTorch's flash attention, which keeps scores in float32. Backward, branches of one window
go together through blocks of keys: products large enough to be fast, blocks small enough to stay in the cache.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gistnet.model.attention_passes import BranchPass, Intervals

BLOCK_ROWS, BLOCK_KEYS = 384, 512
"""Rows for one key head, and keys, of a block of scores in the backward pass: 2.4 MB in float32 for three key heads."""


class TwoPartAttention(torch.autograd.Function):
    """Queries `[branches, heads, length, head_dim]`; prefixes `[windows, key_value_heads, tokens, head_dim]`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prefix_keys: Tensor,
        prefix_values: Tensor,
        branches: BranchPass,
        reach: int | None,
        scale: float,
    ) -> Tensor:
        rows = _fold_heads(query, key.shape[1])
        own_scores = _own_scores(rows, key, branches.own_intervals(reach), scale)
        own_log = own_scores.logsumexp(dim=-1)
        own_out = (own_scores - own_log[..., None]).exp().to(value.dtype) @ value
        prefix_out, prefix_log = torch.empty_like(own_out), torch.empty_like(own_log)
        seen = branches.prefix_intervals(reach)
        for branch, (window, prefix) in enumerate(zip(branches.windows, branches.prefix_lengths, strict=True)):
            keys, values = prefix_keys[window, :, :prefix], prefix_values[window, :, :prefix]
            if reach is None:
                part, log = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    rows[branch][None], keys[None], values[None], scale=scale
                )
                prefix_out[branch], prefix_log[branch] = part[0], log[0]
            else:
                prefix_out[branch], prefix_log[branch] = _masked_part(
                    rows[branch], keys, values, seen.low[branch], scale
                )
        log = torch.logaddexp(own_log, prefix_log)
        out = own_out * (own_log - log).exp()[..., None]
        out = (out + prefix_out * (prefix_log - log).exp()[..., None]).to(query.dtype)
        ctx.save_for_backward(rows, key, value, prefix_keys, prefix_values, out, log)
        ctx.branches, ctx.reach, ctx.scale, ctx.heads = branches, reach, scale, query.shape[1]
        return _unfold_heads(out, query.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, key, value, prefix_keys, prefix_values, out, log = ctx.saved_tensors
        scale, branches = ctx.scale, ctx.branches
        d_out = _fold_heads(gradients[0], key.shape[1])
        d_mean = (_widened(d_out) * out).sum(dim=-1, keepdim=True)

        probabilities = _own_scores(rows, key, branches.own_intervals(ctx.reach), scale).sub_(log[..., None]).exp_()
        d_value = probabilities.to(value.dtype).transpose(-1, -2) @ d_out
        d_scores = _score_gradient(probabilities, d_out @ value.transpose(-1, -2), d_mean)
        d_key = (d_scores.transpose(-1, -2) @ rows) * scale
        d_rows = d_scores @ key
        seen = branches.prefix_intervals(ctx.reach)
        for group in _groups(branches, rows.shape[2]):
            # `[key_value_heads, rows of all branches of the group, …]`
            q, outer, mean, logs = (_join(part[group.branches]) for part in (rows, d_out, d_mean, log[..., None]))
            low = _rows_of(seen.low[group.branches], rows.shape[2])
            keys, values = prefix_keys[group.window], prefix_values[group.window]
            d_q = _prefix_gradient(q, outer, mean, logs, keys, values, group, low, rows.shape[2], scale)
            d_rows[group.branches] += d_q.unflatten(1, (len(group.branches), -1)).transpose(0, 1)
        return _unfold_heads(d_rows * scale, ctx.heads), d_key, d_value, None, None, None, None, None


class _Group(NamedTuple):
    """Branches of one window, by length of prefix, that go through blocks of keys together."""

    window: int
    branches: list[int]
    prefix_lengths: list[int]


def _groups(branches: BranchPass, rows: int) -> Iterator[_Group]:
    """Neighbouring branches, together about `BLOCK_ROWS` rows; `rows` is what one branch has for one key head."""
    by_window: dict[int, list[int]] = {}
    for branch, window in enumerate(branches.windows):
        by_window.setdefault(window, []).append(branch)
    size = max(1, BLOCK_ROWS // rows)
    for window, members in by_window.items():
        members.sort(key=lambda branch: branches.prefix_lengths[branch])
        for first in range(0, len(members), size):
            group = members[first : first + size]
            yield _Group(window, group, [branches.prefix_lengths[branch] for branch in group])


def _prefix_gradient(
    q: Tensor,
    d_out: Tensor,
    d_mean: Tensor,
    log: Tensor,
    keys: Tensor,
    values: Tensor,
    group: _Group,
    low: Tensor,
    rows: int,
    scale: float,
) -> Tensor:
    """The gradient of a group's queries without the scale, `[key_value_heads, branches * rows, head_dim]`.

    Args:
        q, d_out: `[key_value_heads, branches * rows, head_dim]`; d_mean, log: the same, with one entry each.
        keys, values: of the window, `[key_value_heads, tokens, head_dim]`.
        low: the first key that each row sees, `[branches * rows]`.
        rows: of one branch.
    """
    gradient = torch.zeros_like(_widened(q))
    ends = torch.tensor(group.prefix_lengths).repeat_interleave(rows)
    for first in range(int(low.min()), group.prefix_lengths[-1], BLOCK_KEYS):
        last = min(first + BLOCK_KEYS, group.prefix_lengths[-1])
        # The branches that end before this block are the first of the group: they have no part in it.
        begin = rows * sum(length <= first for length in group.prefix_lengths)
        q_, d_out_, ends_, low_ = q[:, begin:], d_out[:, begin:], ends[begin:], low[begin:]
        k, v = keys[:, first:last], values[:, first:last]
        probabilities = _widened(q_ @ k.transpose(-1, -2)).mul_(scale).sub_(log[:, begin:]).exp_()
        if int(ends_[0]) < last or int(low_.max()) > first:
            index = torch.arange(first, last)
            hidden = (index >= ends_[:, None]) | (index < low_[:, None])
            probabilities.masked_fill_(hidden, 0.0)
        gradient[:, begin:] += _score_gradient(probabilities, d_out_ @ v.transpose(-1, -2), d_mean[:, begin:]) @ k
    return gradient.to(q.dtype)


def _masked_part(rows: Tensor, keys: Tensor, values: Tensor, low: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """One branch over the keys from `low` on, `[length]`; a row that sees none has output 0 and logarithm -inf."""
    first = int(low.min())
    keys, values = keys[:, first:], values[:, first:]
    if not keys.shape[1]:
        return torch.zeros_like(rows), rows.new_full(rows.shape[:2], float("-inf"))
    scores = _widened(rows @ keys.transpose(-1, -2)) * scale
    hidden = torch.arange(first, first + keys.shape[1]) < _rows_of(low[None], rows.shape[1])[:, None]
    scores = scores.masked_fill_(hidden, float("-inf"))
    log = scores.logsumexp(dim=-1)
    probabilities = (scores - log.masked_fill(log.isneginf(), 0.0)[..., None]).exp_()
    return probabilities.to(values.dtype) @ values, log


def _rows_of(per_token: Tensor, rows: int) -> Tensor:
    """`[branches, length]` as one entry per row of a branch's folded heads, `[branches * rows]`."""
    return per_token.repeat(1, rows // per_token.shape[1]).flatten()


def _join(parts: Tensor) -> Tensor:
    """`[branches, key_value_heads, rows, n]` as `[key_value_heads, branches * rows, n]`."""
    return parts.transpose(0, 1).flatten(1, 2)


def _widened(tensor: Tensor) -> Tensor:
    """Half precision as float32, anything else as it is: softmax is never computed in half precision."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _fold_heads(tensor: Tensor, key_value_heads: int) -> Tensor:
    """`[branches, heads, length, head_dim]` as `[branches, key_value_heads, groups * length, head_dim]`."""
    branches, heads, length, head_dim = tensor.shape
    return tensor.reshape(branches, key_value_heads, heads // key_value_heads * length, head_dim)


def _unfold_heads(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `_fold_heads`."""
    branches, key_value_heads, folded, head_dim = rows.shape
    return rows.reshape(branches, heads, folded * key_value_heads // heads, head_dim)


def _own_scores(rows: Tensor, key: Tensor, seen: Intervals, scale: float) -> Tensor:
    """Scores of the branches' own keys that are seen, `[branches, key_value_heads, groups * length, length]`."""
    scores = _widened(rows @ key.transpose(-1, -2)).mul_(scale)
    index, groups = torch.arange(key.shape[2]), rows.shape[2] // key.shape[2]
    hidden = (index >= seen.high[..., None]) | (index < seen.low[..., None])
    return scores.masked_fill_(hidden.repeat(1, groups, 1)[:, None], float("-inf"))


def _score_gradient(probabilities: Tensor, d_probabilities: Tensor, d_mean: Tensor) -> Tensor:
    """The gradient of attention scores; `d_mean` is the sum over head_dim of output times its gradient."""
    return _widened(d_probabilities).sub_(d_mean).mul_(probabilities).to(d_probabilities.dtype)
