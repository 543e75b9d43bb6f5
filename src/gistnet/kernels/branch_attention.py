"""Attention of branches over shared prefixes and over themselves, on a GPU: Triton kernels and their autograd function.

One kernel reads keys for rows of queries, the *prefix part* with a window's keys and the *own part* with a branch's;
each row sees an interval of them. The own part runs first and leaves output and logarithm of the softmax denominator,
from which the prefix part goes on, so that nothing is merged afterwards and no key is copied or repeated: query heads
that share a key head are rows of one product. Backward, the probabilities of either part are `exp(score − logarithm of
the denominator of both)`. A prefix gets no gradient, so its backward pass has three products and not five, or the seven
of a kernel that makes the gradients of queries and keys apart (the online softmax of Milakov and Gimelshein, 2018; the
tiles of Dao et al., 2022).

Tiles of queries hold the rows of branches of one window that end close to each other, so that a block of keys, once
loaded, serves many branches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows_of_tile(tile, tiles, order, ROWS: tl.constexpr, BLOCK_M: tl.constexpr):
    """The window of a tile; of each of its rows: branch, row in the branch, and whether there is such a row."""
    window = tl.load(tiles + 3 * tile).to(tl.int64)
    first = tl.load(tiles + 3 * tile + 1)
    count = tl.load(tiles + 3 * tile + 2)
    tile_rows = tl.arange(0, BLOCK_M)
    real = tile_rows < count
    row = tl.where(real, first + tile_rows, first)
    branch = tl.load(order + row // ROWS).to(tl.int64)
    return window, branch, row % ROWS, real


@triton.jit
def _visible_interval(low, high, branch, row_in_branch, real, LENGTH: tl.constexpr):
    """The keys that each row sees: from `lo` to before `hi`; a row that does not exist sees none."""
    token = row_in_branch % LENGTH
    lo = tl.load(low + branch * LENGTH + token)
    hi = tl.load(high + branch * LENGTH + token)
    return lo, tl.where(real, hi, 0)


@triton.jit
def _block_bounds(lo, hi, real, BLOCK_N: tl.constexpr):
    """Bounds of the loop over keys, and of the blocks in which every row sees every key."""
    begin = tl.min(tl.where(real & (hi > lo), lo, 2147483647), 0) // BLOCK_N * BLOCK_N
    end = tl.max(tl.where(hi > lo, hi, 0), 0)
    begin = tl.minimum(begin, end)
    full_begin = (tl.max(tl.where(real, lo, 0), 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    full_end = tl.min(tl.where(real, hi, 2147483647), 0) // BLOCK_N * BLOCK_N
    full_begin = tl.minimum(tl.maximum(full_begin, begin), end)
    full_end = tl.maximum(tl.minimum(full_end, end), full_begin)
    return begin, full_begin, full_end, end


@triton.jit
def _absorb_keys(
    accumulated, denominator, maximum, q, k_base, v_base, k_stride, v_stride, lo, hi, begin, end, n_keys, scale,
    MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Go on with the online softmax over the keys from `begin` to `end`; scores are in units of log 2."""
    dims = tl.arange(0, BLOCK_D)
    for block in range(begin, end, BLOCK_N):
        keys = block + tl.arange(0, BLOCK_N)
        inside = (keys[:, None] < n_keys) & (dims[None, :] < HEAD_DIM)
        k = tl.load(k_base + keys[:, None] * k_stride + dims[None, :], mask=inside, other=0.0)
        v = tl.load(v_base + keys[:, None] * v_stride + dims[None, :], mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * _LOG2_E)
        if MASKED:
            visible = (keys[None, :] >= lo[:, None]) & (keys[None, :] < hi[:, None])
            scores = tl.where(visible, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, 1))
        # A row that has seen no key yet has no maximum; any finite number serves instead.
        finite = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        probabilities = tl.exp2(scores - finite[:, None])
        shrink = tl.exp2(maximum - finite)
        denominator = denominator * shrink + tl.sum(probabilities, 1)
        accumulated = accumulated * shrink[:, None]
        accumulated += tl.dot(probabilities.to(v.dtype), v, input_precision=PRECISION)
        maximum = new_maximum
    return accumulated, denominator, maximum


@triton.jit
def forward_kernel(
    query, key, value, tiles, order, low, high, out_before, log_before, out, log_denominator, n_keys, scale,
    q_branch, q_head, q_row, k_window, k_head, k_token, v_window, v_head, v_token,
    GOES_ON: tl.constexpr, ROWS: tl.constexpr, LENGTH: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of rows of one key head; what is written is contiguous, `[branches, key_value_heads, rows(, dim)]`."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    window, branch, row_in_branch, real = _rows_of_tile(tl.program_id(0), tiles, order, ROWS, BLOCK_M)
    lo, hi = _visible_interval(low, high, branch, row_in_branch, real, LENGTH)
    dims = tl.arange(0, BLOCK_D)
    inside = real[:, None] & (dims[None, :] < HEAD_DIM)
    q_rows = query + branch * q_branch + head * q_head + row_in_branch * q_row
    q = tl.load(q_rows[:, None] + dims[None, :], mask=inside, other=0.0)
    flat = (branch * heads + head) * ROWS + row_in_branch
    where = flat[:, None] * HEAD_DIM + dims[None, :]
    if GOES_ON:
        accumulated = tl.load(out_before + where, mask=inside, other=0.0).to(tl.float32)
        maximum = tl.load(log_before + flat, mask=real, other=float("-inf")) * _LOG2_E
        denominator = tl.where(maximum == float("-inf"), 0.0, 1.0)
    else:
        accumulated = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
        maximum = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
        denominator = tl.zeros([BLOCK_M], dtype=tl.float32)
    k_base, v_base = key + window * k_window + head * k_head, value + window * v_window + head * v_head
    begin, full_begin, full_end, end = _block_bounds(lo, hi, real, BLOCK_N)
    accumulated, denominator, maximum = _absorb_keys(
        accumulated, denominator, maximum, q, k_base, v_base, k_token, v_token, lo, hi, begin, full_begin, n_keys,
        scale, True, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION,
    )  # fmt: skip
    accumulated, denominator, maximum = _absorb_keys(
        accumulated, denominator, maximum, q, k_base, v_base, k_token, v_token, lo, hi, full_begin, full_end, n_keys,
        scale, False, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION,
    )  # fmt: skip
    accumulated, denominator, maximum = _absorb_keys(
        accumulated, denominator, maximum, q, k_base, v_base, k_token, v_token, lo, hi, full_end, end, n_keys,
        scale, True, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION,
    )  # fmt: skip
    seen = denominator > 0
    accumulated = accumulated / tl.where(seen, denominator, 1.0)[:, None]
    logarithm = tl.where(seen, maximum + tl.log2(tl.where(seen, denominator, 1.0)), float("-inf")) / _LOG2_E
    tl.store(out + where, accumulated.to(out.dtype.element_ty), mask=inside)
    tl.store(log_denominator + flat, logarithm, mask=real)


@triton.jit
def _query_gradient_over_keys(
    gradient, q, d_out, d_mean, log_denominator, k_base, v_base, k_stride, v_stride, lo, hi, begin, end, n_keys, scale,
    MASKED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what the keys from `begin` to `end` contribute to the gradient of the queries, without the scale."""
    dims = tl.arange(0, BLOCK_D)
    for block in range(begin, end, BLOCK_N):
        keys = block + tl.arange(0, BLOCK_N)
        inside = (keys[:, None] < n_keys) & (dims[None, :] < HEAD_DIM)
        k = tl.load(k_base + keys[:, None] * k_stride + dims[None, :], mask=inside, other=0.0)
        v = tl.load(v_base + keys[:, None] * v_stride + dims[None, :], mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * _LOG2_E)
        probabilities = tl.exp2(scores - log_denominator[:, None])
        if MASKED:
            visible = (keys[None, :] >= lo[:, None]) & (keys[None, :] < hi[:, None])
            probabilities = tl.where(visible, probabilities, 0.0)
        d_probabilities = tl.dot(d_out, tl.trans(v), input_precision=PRECISION)
        d_scores = probabilities * (d_probabilities - d_mean[:, None])
        gradient += tl.dot(d_scores.to(k.dtype), k, input_precision=PRECISION)
    return gradient


@triton.jit
def query_gradient_kernel(
    query, key, value, tiles, order, low, high, out, d_out, log_denominator, before, gradient, n_keys, scale,
    q_branch, q_head, q_row, k_window, k_head, k_token, v_window, v_head, v_token,
    GOES_ON: tl.constexpr, ROWS: tl.constexpr, LENGTH: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of one tile of queries; `out`, `d_out`, `before` and `gradient` are contiguous."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    window, branch, row_in_branch, real = _rows_of_tile(tl.program_id(0), tiles, order, ROWS, BLOCK_M)
    lo, hi = _visible_interval(low, high, branch, row_in_branch, real, LENGTH)
    dims = tl.arange(0, BLOCK_D)
    inside = real[:, None] & (dims[None, :] < HEAD_DIM)
    q_rows = query + branch * q_branch + head * q_head + row_in_branch * q_row
    q = tl.load(q_rows[:, None] + dims[None, :], mask=inside, other=0.0)
    flat = (branch * heads + head) * ROWS + row_in_branch
    where = flat[:, None] * HEAD_DIM + dims[None, :]
    outer = tl.load(d_out + where, mask=inside, other=0.0)
    d_mean = tl.sum(outer.to(tl.float32) * tl.load(out + where, mask=inside, other=0.0).to(tl.float32), 1)
    logarithm = tl.load(log_denominator + flat, mask=real, other=0.0) * _LOG2_E
    total = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    k_base, v_base = key + window * k_window + head * k_head, value + window * v_window + head * v_head
    begin, full_begin, full_end, end = _block_bounds(lo, hi, real, BLOCK_N)
    total = _query_gradient_over_keys(
        total, q, outer, d_mean, logarithm, k_base, v_base, k_token, v_token, lo, hi, begin, full_begin, n_keys, scale,
        True, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION,
    )  # fmt: skip
    total = _query_gradient_over_keys(
        total, q, outer, d_mean, logarithm, k_base, v_base, k_token, v_token, lo, hi, full_begin, full_end, n_keys,
        scale, False, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION,
    )  # fmt: skip
    total = _query_gradient_over_keys(
        total, q, outer, d_mean, logarithm, k_base, v_base, k_token, v_token, lo, hi, full_end, end, n_keys, scale,
        True, HEAD_DIM, BLOCK_D, BLOCK_N, PRECISION,
    )  # fmt: skip
    total = total * scale
    if GOES_ON:
        total += tl.load(before + where, mask=inside, other=0.0).to(tl.float32)
    tl.store(gradient + where, total.to(gradient.dtype.element_ty), mask=inside)


@triton.jit
def key_gradient_kernel(
    query, key, value, low, high, out, d_out, log_denominator, d_key, d_value, scale,
    q_branch, q_head, q_row, k_window, k_head, k_token, v_window, v_head, v_token,
    ROWS: tl.constexpr, LENGTH: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of one block of a branch's own keys and values, `[branches, key_value_heads, length, head_dim]`."""
    branch, head, heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    keys = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    dims = tl.arange(0, BLOCK_D)
    own = (keys[:, None] < LENGTH) & (dims[None, :] < HEAD_DIM)
    k_base, v_base = key + branch * k_window + head * k_head, value + branch * v_window + head * v_head
    k = tl.load(k_base + keys[:, None] * k_token + dims[None, :], mask=own, other=0.0)
    v = tl.load(v_base + keys[:, None] * v_token + dims[None, :], mask=own, other=0.0)
    d_k = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    d_v = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    for first in range(0, ROWS, BLOCK_M):
        row_in_branch = first + tl.arange(0, BLOCK_M)
        real = row_in_branch < ROWS
        lo, hi = _visible_interval(low, high, branch, row_in_branch, real, LENGTH)
        inside = real[:, None] & (dims[None, :] < HEAD_DIM)
        q_rows = query + branch * q_branch + head * q_head + row_in_branch * q_row
        q = tl.load(q_rows[:, None] + dims[None, :], mask=inside, other=0.0)
        flat = (branch * heads + head) * ROWS + row_in_branch
        where = flat[:, None] * HEAD_DIM + dims[None, :]
        outer = tl.load(d_out + where, mask=inside, other=0.0)
        d_mean = tl.sum(outer.to(tl.float32) * tl.load(out + where, mask=inside, other=0.0).to(tl.float32), 1)
        logarithm = tl.load(log_denominator + flat, mask=real, other=0.0) * _LOG2_E
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * _LOG2_E)
        visible = (keys[None, :] >= lo[:, None]) & (keys[None, :] < hi[:, None])
        probabilities = tl.where(visible, tl.exp2(scores - logarithm[:, None]), 0.0)
        d_v += tl.dot(tl.trans(probabilities.to(outer.dtype)), outer, input_precision=PRECISION)
        d_probabilities = tl.dot(outer, tl.trans(v), input_precision=PRECISION)
        d_scores = probabilities * (d_probabilities - d_mean[:, None])
        d_k += tl.dot(tl.trans(d_scores.to(q.dtype)), q, input_precision=PRECISION)
    where = ((branch * heads + head) * LENGTH + keys)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(d_key + where, (d_k * scale).to(d_key.dtype.element_ty), mask=own)
    tl.store(d_value + where, d_v.to(d_value.dtype.element_ty), mask=own)


@dataclass(frozen=True)
class Blocks:
    """Block sizes of the kernels: rows of queries and keys per block, warps per program, stages of the pipeline."""

    rows: int
    keys: int
    warps: int
    stages: int


def blocks_for(head_dim: int, itemsize: int) -> Blocks:
    """Blocks that fit registers and shared memory of GPUs from compute capability 8.0 on (99 kB of it on 8.6 and 8.9).

    Chosen by what the compiler says of registers and shared memory, not by timing. float32 is for comparisons: without
    TF32 it has no tensor cores, and large blocks would not fit.
    """
    if itemsize > 2:
        return Blocks(rows=16, keys=16, warps=4, stages=1)
    if head_dim <= 64:
        return Blocks(rows=128, keys=64, warps=8, stages=3)
    return Blocks(rows=128, keys=64, warps=8, stages=2) if head_dim <= 128 else Blocks(32, 32, warps=4, stages=1)


@dataclass(frozen=True)
class Tiles:
    """Rows that run together.

    Attributes:
        tile_rows: int32 `[tiles, 3]`: the window, the first row (counted over all branches in `order`), how many rows.
        order: int32 `[branches]`.
    """

    tile_rows: Tensor
    order: Tensor


@dataclass(frozen=True)
class Schedule:
    """Tiles that every layer of a pass over branches shares.

    Attributes:
        rows: of a branch for one key head: the heads that share it, times the branch's length.
        prefix: tiles of neighbouring branches of one window.
        own: tiles of one branch each, which is its own window.
    """

    rows: int
    prefix: Tiles
    own: Tiles


def schedule(
    windows: Sequence[int], prefix_lengths: Sequence[int], rows: int, block_rows: int, device: torch.device
) -> Schedule:
    """Cut the rows of all branches into tiles of at most `block_rows`; see `Schedule`."""
    order = sorted(range(len(windows)), key=lambda branch: (windows[branch], prefix_lengths[branch]))
    tiles: list[tuple[int, int, int]] = []
    first = 0
    while first < len(order):
        window, last = windows[order[first]], first
        while last < len(order) and windows[order[last]] == window:
            last += 1
        tiles += _cut(window, first * rows, last * rows, block_rows)
        first = last
    # Long prefixes first: the last tiles to start are short, so that no multiprocessor is left with a long one.
    tiles.sort(key=lambda tile: -prefix_lengths[order[(tile[1] + tile[2] - 1) // rows]])
    own = [tile for b in range(len(order)) for tile in _cut(b, b * rows, (b + 1) * rows, block_rows)]
    host = (tiles, order, own, list(range(len(order))))
    parts = [torch.tensor(part, dtype=torch.int32).to(device, non_blocking=True) for part in host]
    return Schedule(rows, Tiles(parts[0], parts[1]), Tiles(parts[2], parts[3]))


def _cut(window: int, first: int, last: int, block_rows: int) -> list[tuple[int, int, int]]:
    return [(window, row, min(block_rows, last - row)) for row in range(first, last, block_rows)]


class BranchAttention(torch.autograd.Function):
    """Attention of branches, `[branches, heads, length, head_dim]` queries and own keys, over prefixes and themselves.

    The prefix's keys and values, `[windows, key_value_heads, tokens, head_dim]`, get no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        prefix_keys: Tensor,
        prefix_values: Tensor,
        plan: Schedule,
        prefix_seen: tuple[Tensor, Tensor],
        own_seen: tuple[Tensor, Tensor],
        scale: float,
    ) -> Tensor:
        rows = query.reshape(len(query), key.shape[1], plan.rows, query.shape[3])
        key, value = _last_contiguous(key), _last_contiguous(value)
        ctx.prefix = _Part(_last_contiguous(prefix_keys), _last_contiguous(prefix_values), plan.prefix, *prefix_seen)
        ctx.own = _Part(key, value, plan.own, *own_seen)
        own_out, own_log = _empty(rows, torch.float32), _empty(rows[..., 0], torch.float32)
        out, log = _empty(rows, rows.dtype), torch.empty_like(own_log)
        _launch(forward_kernel, rows, ctx.own, own_out, own_log, own_out, own_log, scale=scale, goes_on=False)
        _launch(forward_kernel, rows, ctx.prefix, own_out, own_log, out, log, scale=scale, goes_on=True)
        ctx.save_for_backward(rows, out, log)
        ctx.scale, ctx.shape = scale, query.shape
        return out.view(query.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, out, log = ctx.saved_tensors
        own, prefix, scale = ctx.own, ctx.prefix, ctx.scale
        d_out = gradients[0].contiguous().view(rows.shape)
        before, d_rows = _empty(rows, torch.float32), _empty(rows, rows.dtype)
        d_key, d_value = _empty(own.key, own.key.dtype), _empty(own.value, own.value.dtype)
        _launch(query_gradient_kernel, rows, own, out, d_out, log, before, before, scale=scale, goes_on=False)
        _launch(query_gradient_kernel, rows, prefix, out, d_out, log, before, d_rows, scale=scale, goes_on=True)
        constants = _constants(rows, own)
        grid = (*rows.shape[:2], triton.cdiv(own.key.shape[2], constants["BLOCK_N"]))
        arguments = (own.key, own.value, own.low, own.high, out, d_out, log, d_key, d_value, scale)
        key_gradient_kernel[grid](rows, *arguments, *_strides(rows, own), **constants)
        return d_rows.view(ctx.shape), d_key, d_value, None, None, None, None, None, None


@dataclass(frozen=True)
class _Part:
    """Keys and values `[windows, key_value_heads, tokens, head_dim]`, the tiles that read them, and who sees what."""

    key: Tensor
    value: Tensor
    tiles: Tiles
    low: Tensor
    high: Tensor


def _launch(kernel: Any, rows: Tensor, part: _Part, *tensors: Tensor, scale: float, goes_on: bool) -> None:
    """Run a kernel on all tiles of a part, for each key head."""
    grid = (len(part.tiles.tile_rows), rows.shape[1])
    where = (part.tiles.tile_rows, part.tiles.order, part.low, part.high)
    arguments = (part.key, part.value, *where, *tensors, part.key.shape[2], scale, *_strides(rows, part))
    kernel[grid](rows, *arguments, GOES_ON=goes_on, **_constants(rows, part))


def _constants(rows: Tensor, part: _Part) -> dict[str, Any]:
    blocks = blocks_for(rows.shape[3], rows.element_size())
    return {
        "ROWS": rows.shape[2],
        "LENGTH": part.low.shape[1],
        "HEAD_DIM": rows.shape[3],
        "BLOCK_D": max(16, triton.next_power_of_2(rows.shape[3])),
        "BLOCK_M": blocks.rows,
        "BLOCK_N": blocks.keys,
        "PRECISION": "ieee",  # float32 means float32, and not TF32; half precision is not concerned
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


def _strides(rows: Tensor, part: _Part) -> tuple[int, ...]:
    """Strides of branches or windows, heads, and rows or tokens; the last dimension is contiguous."""
    return (*rows.stride()[:3], *part.key.stride()[:3], *part.value.stride()[:3])


def _last_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of the same shape."""
    return torch.empty(like.shape, dtype=dtype, device=like.device)
