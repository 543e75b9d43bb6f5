"""Attention of many short branches over shared prefixes, exactly.

A branch is a short sequence of vectors (gists, then horizon tokens) that continues a window of the document after its
first `s` tokens. By causality the keys and values of those tokens do not depend on the branch, so one pass over the
window serves all of its branches: each branch attends to the window's keys before `s` and, causally, to itself, and to
nothing else. No key is copied and nothing is masked that could have been left out.

The frozen language model reaches this module through the attention interface of transformers, under
`ATTENTION_NAME`: its layers call `attention`, which dispatches on the pass that is running and on the device. On a CPU
and on a GPU fused code computes what `plain_branch_attention` defines.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gistnet.kernels.gate import shown_exact

ATTENTION_NAME = "gistnet_shared_prefix"


@dataclass
class PrefixCache:
    """KV cache of whole windows, filled while the model reads them.

    `keys[layer]` and `values[layer]` are `[windows, key_value_heads, tokens, head_dim]`, keys after RoPE.
    """

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


class KeysAndValues(Exception):
    """Ends a layer's forward pass at its attention, with what that was to attend to.

    Attributes:
        keys: `[spans, key_value_heads, tokens, head_dim]`, after RoPE.
        values: `[spans, key_value_heads, tokens, head_dim]`.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values


@dataclass(frozen=True)
class KeysPass:
    """Tokens of which a layer is to make keys and values and nothing else; its attention raises `KeysAndValues`."""


@dataclass(frozen=True)
class LastTokenPass:
    """Each span's last token alone, which sees the tokens before it by keys and values that are given.

    `keys` and `values` are `[spans, key_value_heads, tokens, head_dim]`, keys after RoPE.
    """

    keys: Tensor
    values: Tensor


class Intervals(NamedTuple):
    """Keys that each query sees, from `low` to before `high`: int32 `[branches, length]` each, contiguous."""

    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class BranchPass:
    """Keys that each branch of a pass may see.

    Attributes:
        cache: the keys and values of the windows.
        windows: the window each branch continues, one per branch.
        prefix_lengths: how many of the window's first tokens each branch sees, one per branch, at least 1.
        positions: `[branches, length]`, the positions of the branches' own vectors, which increase along a branch; a
            window's token i has position i.
        prepared: what the first layer of the pass works out for all others.
    """

    cache: PrefixCache
    windows: tuple[int, ...]
    prefix_lengths: tuple[int, ...]
    positions: Tensor
    prepared: dict[object, object] = field(default_factory=dict, compare=False, repr=False)

    def reach(self, sliding_window: int | None) -> int | None:
        """The sliding window of a layer, in positions; None where it hides nothing from any branch."""
        if sliding_window is None:
            return None
        if "longest distance" not in self.prepared:
            self.prepared["longest distance"] = int(self.positions.max())
        return sliding_window if self.prepared["longest distance"] >= sliding_window else None  # type: ignore[operator]

    def prefix_intervals(self, reach: int | None) -> Intervals:
        """Keys of its window that each vector sees; none where the whole prefix is out of reach."""
        key = ("prefix", reach)
        if key not in self.prepared:
            positions = self.positions.to(torch.int32)
            lengths = torch.tensor(self.prefix_lengths, dtype=torch.int32).to(positions.device)
            low = torch.zeros_like(positions) if reach is None else (positions - (reach - 1)).clamp(min=0)
            self.prepared[key] = Intervals(low.contiguous(), lengths[:, None].expand_as(low).contiguous())
        return self.prepared[key]  # type: ignore[return-value]

    def own_intervals(self, reach: int | None) -> Intervals:
        """Vectors of its own branch that each vector sees: those up to itself that are near enough."""
        key = ("own", reach)
        if key not in self.prepared:
            branches, length = self.positions.shape
            device = self.positions.device
            high = torch.arange(1, length + 1, dtype=torch.int32, device=device).expand(branches, length)
            low = torch.zeros_like(high)
            if reach is not None:
                too_far = self.positions[:, None, :] <= self.positions[:, :, None] - reach
                low = too_far.sum(dim=-1, dtype=torch.int32)
            self.prepared[key] = Intervals(low.contiguous(), high.contiguous())
        return self.prepared[key]  # type: ignore[return-value]


@torch.compiler.disable
def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    attention_input: PrefixCache | BranchPass | KeysPass | LastTokenPass | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that every attention layer of a teacher calls.

    Without a running pass this is transformers' own SDPA attention with transformers' own mask, so that the model
    serves for anything else (generation, the plain forward of a test) unchanged.

    Shapes: query `[batch, heads, length, head_dim]`, key and value `[batch, key_value_heads, length, head_dim]`;
    returns `[batch, length, heads, head_dim]`. The head_dim of values, and of what is returned, may be another one.

    Raises:
        KeysAndValues: in a `KeysPass`.
    """
    if attention_input is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    value_dim = value.shape[-1]
    query, key, value = equally_wide(query, key, value)
    if isinstance(attention_input, KeysPass):
        raise KeysAndValues(key, value)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if isinstance(attention_input, PrefixCache):
        attention_input.keys[layer], attention_input.values[layer] = key, value
        out = _causal_attention(query, key, value, scale, sliding_window)
    elif isinstance(attention_input, LastTokenPass):
        key, value = torch.cat([attention_input.keys, key], dim=2), torch.cat([attention_input.values, value], dim=2)
        many = query.shape[1] != key.shape[1]
        out = nn.functional.scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=many)
    else:
        out = _branch_attention(query, key, value, attention_input, layer, scale, sliding_window)
    return out[..., :value_dim].transpose(1, 2).contiguous(), None


def equally_wide(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three with one head_dim: zeros fill up the narrower, as the values of DeepSeek are, and change no product."""
    widest = max(query.shape[-1], value.shape[-1])
    if query.shape[-1] == value.shape[-1]:
        return query, key, value
    query, key, value = (nn.functional.pad(part, (0, widest - part.shape[-1])) for part in (query, key, value))
    return query, key, value


AttentionInterface.register(ATTENTION_NAME, attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def _causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, sliding_window: int | None) -> Tensor:
    """Plain causal attention over whole windows; returns `[windows, heads, length, head_dim]`."""
    length = query.shape[2]
    if sliding_window is None or length <= sliding_window:
        if query.dtype == torch.bfloat16 and query.device.type == "cpu":
            return _causal_by_products(query, key, value, scale)
        return nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
    index, blocks = torch.arange(length, device=query.device), []
    for first in range(0, length, sliding_window):
        # A block of queries as long as the sliding window sees itself and the block before.
        queries, keys = (
            slice(first, first + sliding_window),
            slice(max(0, first - sliding_window), first + sliding_window),
        )
        visible = _visible(index[queries], index[keys], sliding_window)
        blocks.append(_dense_attention(query[:, :, queries], key[:, :, keys], value[:, :, keys], visible, scale))
    return torch.cat(blocks, dim=2)


QUERY_BLOCK = 128
"""Queries of a block of the causal pass: more of them compute more scores that are then hidden."""


def _causal_by_products(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention in bfloat16 on a CPU, by blocks of queries, each with the keys up to its last query.

    Two plain products and a softmax take two thirds of the time of PyTorch's flash attention. A product gives its
    scores in bfloat16, which is coarse for large ones. So the product itself subtracts from all scores of a query the
    larger of two that tend to be near its largest, those of the first key and of its own: softmax is the same, and what
    is rounded is small where it counts. The heads that share a key head are rows of one product.
    """
    windows, _, length, head_dim = query.shape
    query = query.view(windows, key.shape[1], -1, length, head_dim)
    first, own = query @ key[:, :, None, :1].transpose(-1, -2), torch.linalg.vecdot(query, key[:, :, None])[..., None]
    query = torch.cat([query * scale, torch.maximum(first, own) * -scale], dim=-1)
    keys = nn.functional.pad(key, (0, 1), value=1.0).transpose(-1, -2)
    future = torch.full((QUERY_BLOCK, QUERY_BLOCK), float("-inf"), dtype=query.dtype).triu(1)
    out = torch.empty_like(query[..., :-1])
    for start in range(0, length, QUERY_BLOCK):
        block = query[..., start : start + QUERY_BLOCK, :]
        end = start + block.shape[-2]
        scores = block.flatten(2, 3) @ keys[..., :end]
        scores.unflatten(2, block.shape[2:4])[..., start:] += future[: end - start, : end - start]
        mixed = torch.softmax(scores, dim=-1) @ value[:, :, :end]
        out[..., start:end, :] = mixed.unflatten(2, block.shape[2:4])
    return out.flatten(1, 2)


def _branch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    branches: BranchPass,
    layer: int,
    scale: float,
    sliding_window: int | None,
) -> Tensor:
    """Attention of branches over their prefixes and themselves; returns `[branches, heads, length, head_dim]`."""
    prefix_keys, prefix_values = branches.cache.keys[layer], branches.cache.values[layer]
    reach = branches.reach(sliding_window)
    if query.device.type == "cpu":
        return TwoPartAttention.apply(query, key, value, prefix_keys, prefix_values, branches, reach, scale)
    if query.device.type == "cuda" and kernels_are_exact(query.dtype, query.shape[-1], query.device):
        return _by_kernels(query, key, value, prefix_keys, prefix_values, branches, reach, scale)
    return plain_branch_attention(query, key, value, prefix_keys, prefix_values, branches, reach, scale)


def _by_kernels(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_keys: Tensor,
    prefix_values: Tensor,
    branches: BranchPass,
    reach: int | None,
    scale: float,
) -> Tensor:
    """`plain_branch_attention` by Triton kernels, in a few launches for all branches."""
    from gistnet.kernels.branch_attention import BranchAttention, blocks_for, schedule

    rows = query.shape[1] // key.shape[1] * query.shape[2]
    if ("schedule", rows) not in branches.prepared:
        block_rows = blocks_for(query.shape[3], query.element_size()).rows
        made = schedule(branches.windows, branches.prefix_lengths, rows, block_rows, query.device)
        branches.prepared["schedule", rows] = made
    return BranchAttention.apply(
        query,
        key,
        value,
        prefix_keys,
        prefix_values,
        branches.prepared["schedule", rows],
        branches.prefix_intervals(reach),
        branches.own_intervals(reach),
        scale,
    )


def plain_branch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_keys: Tensor,
    prefix_values: Tensor,
    branches: BranchPass,
    reach: int | None,
    scale: float,
) -> Tensor:
    """The definition: each branch by itself over the keys of its prefix and its own, with a mask written out.

    Shapes: query `[branches, heads, length, head_dim]`, key and value `[branches, key_value_heads, length, head_dim]`,
    the prefix's `[windows, key_value_heads, tokens, head_dim]`. What is `reach` positions away or more is not seen.
    """
    outputs = []
    for branch, (window, prefix) in enumerate(zip(branches.windows, branches.prefix_lengths, strict=True)):
        own = branches.positions[branch]
        positions = torch.cat([torch.arange(prefix, device=own.device), own])
        keys = torch.cat([prefix_keys[window, :, :prefix], key[branch]], dim=1)
        values = torch.cat([prefix_values[window, :, :prefix], value[branch]], dim=1)
        visible = _visible(own, positions, reach)
        outputs.append(_dense_attention(query[branch][None], keys[None], values[None], visible, scale))
    return torch.cat(outputs)


@cache
def kernels_are_exact(dtype: torch.dtype, head_dim: int, device: torch.device) -> bool:
    """True if the GPU kernels compute what `plain_branch_attention` does here, in values and gradients.

    Asked once for each number format and head width, on a small random case with several windows and a sliding window.
    """
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return False
    name = f"branch attention in {str(dtype).removeprefix('torch.')} with heads of {head_dim} on {device}"
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    return shown_exact(name, partial(largest_difference_of_kernels, dtype, head_dim, device), tolerance)


def largest_difference_of_kernels(dtype: torch.dtype, head_dim: int, device: torch.device) -> float:
    """Largest difference of kernels and plain attention, as a share of the largest entry of each result."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    heads, key_value_heads, length, tokens = 6, 2, 23, 170
    prefixes = (90, 3, 170, 91, 40, 75)
    positions = torch.tensor(prefixes, device=device)[:, None] + 15 + torch.arange(length, device=device)
    document = random(2, key_value_heads, tokens, head_dim), random(2, key_value_heads, tokens, head_dim)
    own = [random(len(prefixes), n, length, head_dim) for n in (heads, key_value_heads, key_value_heads)]
    outer = random(len(prefixes), heads, length, head_dim)
    largest = 0.0
    for reach in (None, 30):
        results = []
        for attend in (_by_kernels, plain_branch_attention):
            inputs = [tensor.clone().requires_grad_() for tensor in own]
            branches = BranchPass(PrefixCache(), (0, 0, 1, 1, 0, 0), prefixes, positions)
            with torch.enable_grad():
                out = attend(inputs[0], inputs[1], inputs[2], *document, branches, reach, head_dim**-0.5)
                results.append([out.detach(), *torch.autograd.grad(out, inputs, outer)])
        for got, expected in zip(*results, strict=True):
            largest = max(largest, float((got - expected).abs().max() / expected.abs().max()))
    return largest


def _visible(query_positions: Tensor, key_positions: Tensor, sliding_window: int | None) -> Tensor:
    """Mask of the keys that a query may see, `[queries, keys]`: none after it and, in a sliding layer, none too far.

    Distance is measured in positions; positions increase along a context, so that order is order of positions too.
    """
    distance = query_positions[:, None] - key_positions[None, :]
    visible = distance >= 0
    return visible if sliding_window is None else visible & (distance < sliding_window)


def _dense_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Attention written out, for what no fused kernel serves; `visible` is `[queries, keys]`."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2)
    scores = (scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores) * scale
    probabilities = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return probabilities.to(value.dtype) @ value


BLOCK_ROWS, BLOCK_KEYS = 768, 512
"""Rows for one key head, and keys, of a block of scores: 2.4 MB in bfloat16 for three key heads."""
OVERFLOW_STEP = 64.0
"""Subtracted besides from the scores of a row whose weights overflow; these hold up to e⁸⁸."""


class TwoPartAttention(torch.autograd.Function):
    """Attention of branches over shared prefixes and themselves on a CPU, by products over blocks of rows and keys.

    Softmax does not change when a number is subtracted from all scores of a row. With one that is near the largest
    score, weights `exp(score − number)` and their sums add up over blocks of keys, in any order and without a largest
    score that is corrected on the way; the sums are divided at the end. Backward, the number is the logarithm of the
    softmax denominator, and the weights are probabilities (as in Dao et al., 2022).

    Products subtract the number themselves, by two more columns (`_less`). So in half precision it is the difference
    that is rounded, which is small where it counts, and no pass over the scores in float32 is needed.

    Branches of one window go through blocks of keys together. The heads that share a key head are rows of one product,
    so no key is repeated; prefixes need no gradient.

    Shapes are those of `plain_branch_attention`.
    """

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
        rows = _fold_heads(query * scale, key.shape[1])
        hidden = _hidden_own(branches, reach, rows)
        near_largest = _widened(rows @ key.transpose(-1, -2)).add_(hidden).amax(dim=-1)
        if reach is None:
            # The first token of a window often draws most of the attention.
            first = prefix_keys[list(branches.windows), :, :1]
            near_largest = near_largest.maximum(_widened(rows @ first.transpose(-1, -2))[..., 0])
        groups = _groups(branches, reach, rows)
        document = _with_ones(prefix_keys).transpose(-1, -2), prefix_values
        while True:
            shifted = _less(rows, near_largest)
            weights = _scores(shifted, _with_ones(key).transpose(-1, -2), hidden).exp_()
            out, total = _widened(weights @ value), _sum(weights)
            for group in groups:
                out_, total_ = _prefix_sums(_join(shifted[group.branches]), *document, group)
                out[group.branches] += _split(out_, group)
                total[group.branches] += _split(total_, group)
            overflown = total.isposinf()
            if not overflown.any():
                break
            near_largest = near_largest + OVERFLOW_STEP * overflown
        out = (out / total[..., None]).to(query.dtype)
        ctx.save_for_backward(rows, key, value, prefix_keys, prefix_values, out, near_largest + total.log())
        ctx.branches, ctx.reach, ctx.scale, ctx.heads = branches, reach, scale, query.shape[1]
        return _unfold_heads(out, query.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, key, value, prefix_keys, prefix_values, out, log = ctx.saved_tensors
        branches = ctx.branches
        d_out = _fold_heads(gradients[0], key.shape[1])
        shifted, d_less = _less(rows, log), _less(d_out, _sum(_widened(d_out) * out))
        keys, values = (_with_ones(part).transpose(-1, -2) for part in (key, value))

        probabilities = _scores(shifted, keys, _hidden_own(branches, ctx.reach, rows)).exp_()
        d_value = probabilities.transpose(-1, -2) @ d_out
        d_scores = probabilities.mul_(d_less @ values)
        d_key = d_scores.transpose(-1, -2) @ rows
        d_rows = d_scores @ key
        keys, values = (_with_ones(part).transpose(-1, -2) for part in (prefix_keys, prefix_values))
        for group in _groups(branches, ctx.reach, rows):
            q, outer = _join(shifted[group.branches]), _join(d_less[group.branches])
            d_q = _prefix_gradient(q, outer, prefix_keys, keys, values, group)
            d_rows[group.branches] += _split(d_q, group)
        return _unfold_heads(d_rows * ctx.scale, ctx.heads), d_key, d_value, None, None, None, None, None


class _Block(NamedTuple):
    """Keys that a group goes through at once."""

    first_row: int
    """The rows before it belong to branches that end before this block, and have no part in it."""
    keys: slice
    hidden: Tensor | None
    """`[rows, keys]`: minus infinity where a row must not see a key, else zero; None where each sees all."""


class _Group(NamedTuple):
    """Branches of one window, by length of prefix, that go through blocks of keys together."""

    window: int
    branches: list[int]
    blocks: list[_Block]


def _groups(branches: BranchPass, reach: int | None, rows: Tensor) -> list[_Group]:
    """Groups of neighbouring branches, together about `BLOCK_ROWS` of the `rows` for one key head."""
    key = ("groups", reach, rows.shape[2], rows.dtype)
    if key not in branches.prepared:
        by_window: dict[int, list[int]] = {}
        for branch, window in enumerate(branches.windows):
            by_window.setdefault(window, []).append(branch)
        size, groups = max(1, BLOCK_ROWS // rows.shape[2]), []
        for window, members in by_window.items():
            members.sort(key=lambda branch: branches.prefix_lengths[branch])
            for first in range(0, len(members), size):
                group = members[first : first + size]
                groups.append(_Group(window, group, list(_blocks(branches, reach, group, rows))))
        branches.prepared[key] = groups
    return branches.prepared[key]  # type: ignore[return-value]


def _blocks(branches: BranchPass, reach: int | None, group: list[int], rows: Tensor) -> Iterator[_Block]:
    """Blocks of the keys that any branch of a group sees."""
    seen, lengths = branches.prefix_intervals(reach), [branches.prefix_lengths[branch] for branch in group]
    low, high = (_rows_of(bound[group], rows.shape[2]) for bound in seen)
    for first in range(int(low.min()), lengths[-1], BLOCK_KEYS):
        last = min(first + BLOCK_KEYS, lengths[-1])
        begin = rows.shape[2] * sum(length <= first for length in lengths)
        low_, high_, hidden = low[begin:], high[begin:], None
        if int(high_.min()) < last or int(low_.max()) > first:
            hidden = _hidden(torch.arange(first, last), low_, high_, rows.dtype)
        yield _Block(begin, slice(first, last), hidden)


def _prefix_sums(q: Tensor, keys: Tensor, values: Tensor, group: _Group) -> tuple[Tensor, Tensor]:
    """Sums over a group's prefixes: of weighted values, `[key_value_heads, branches * rows, head_dim]`, and of weights.

    Args:
        q: the group's rows, less their numbers, `[key_value_heads, branches * rows, head_dim + 2]`.
        keys: of all windows, `[windows, key_value_heads, head_dim + 2, tokens]`, the last two being ones.
        values: `[windows, key_value_heads, tokens, head_dim]`.
    """
    keys, values = keys[group.window], values[group.window]
    total = _widened(q.new_zeros(q.shape[:2]))
    out = total.new_zeros(*q.shape[:2], values.shape[-1])
    for begin, seen, hidden in group.blocks:
        weights = _scores(q[:, begin:], keys[..., seen], hidden).exp_()
        out[:, begin:] += weights @ values[:, seen]
        total[:, begin:] += _sum(weights)
    return out, total


def _prefix_gradient(
    q: Tensor,
    d_out: Tensor,
    plain_keys: Tensor,
    keys: Tensor,
    values: Tensor,
    group: _Group,
) -> Tensor:
    """The gradient of a group's rows, `[key_value_heads, branches * rows, head_dim]`.

    Args:
        q, d_out: `[key_value_heads, branches * rows, head_dim + 2]`, the rows less the logarithm of their denominators,
            and the gradient of the output less its mean.
        plain_keys: of all windows, `[windows, key_value_heads, tokens, head_dim]`.
        keys, values: `[windows, key_value_heads, head_dim + 2, tokens]`, the last two being ones.
    """
    plain_keys, keys, values = plain_keys[group.window], keys[group.window], values[group.window]
    gradient = _widened(q.new_zeros(*q.shape[:2], plain_keys.shape[-1]))
    for begin, seen, hidden in group.blocks:
        probabilities = _scores(q[:, begin:], keys[..., seen], hidden).exp_()
        gradient[:, begin:] += probabilities.mul_(d_out[:, begin:] @ values[..., seen]) @ plain_keys[:, seen]
    return gradient


def _less(rows: Tensor, number: Tensor) -> Tensor:
    """Two more columns for `rows`, `[…, rows, n]`: a product with `_with_ones` of something is less by `number`."""
    high = number.to(rows.dtype)
    return torch.cat([rows, -high[..., None], (high - number).to(rows.dtype)[..., None]], dim=-1)


def _with_ones(tensor: Tensor) -> Tensor:
    """Two more columns of ones, for the product with `_less` of something."""
    return nn.functional.pad(tensor, (0, 2), value=1.0)


def _scores(rows: Tensor, keys: Tensor, hidden: Tensor | None) -> Tensor:
    """`rows @ keys + hidden`, rounded once; `[…, rows, n]` by `[…, n, keys]`."""
    scores = rows @ keys
    return scores if hidden is None else scores.add_(hidden)


def _hidden(index: Tensor, low: Tensor, high: Tensor, dtype: torch.dtype) -> Tensor:
    """Minus infinity where an index is not from `low` to before `high`, else zero: `[…, rows, indices]`."""
    outside = (index < low[..., None]) | (index >= high[..., None])
    return torch.zeros(outside.shape, dtype=dtype).masked_fill_(outside, float("-inf"))


def _hidden_own(branches: BranchPass, reach: int | None, rows: Tensor) -> Tensor:
    """Mask of a branch's own keys, `[branches, 1, rows, length]`: minus infinity where a row must not see one."""
    key = ("hidden own", reach, rows.shape[2], rows.dtype)
    if key not in branches.prepared:
        low, high = (bound.repeat(1, rows.shape[2] // bound.shape[1]) for bound in branches.own_intervals(reach))
        branches.prepared[key] = _hidden(torch.arange(branches.positions.shape[1]), low, high, rows.dtype)[:, None]
    return branches.prepared[key]  # type: ignore[return-value]


def _sum(tensor: Tensor) -> Tensor:
    """The sum over the last dimension, never in half precision."""
    return tensor.sum(dim=-1, dtype=torch.promote_types(tensor.dtype, torch.float32))


def _split(rows: Tensor, group: _Group) -> Tensor:
    """The inverse of `_join` for a group."""
    return rows.unflatten(1, (len(group.branches), -1)).transpose(0, 1)


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
