"""Attention of branches over shared prefixes and over themselves, on a GPU: the autograd function.

What the kernels compute, and in what parts, is said in `branch_attention_kernels`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from gistnet.kernels.branch_attention_kernels import forward_kernel, key_gradient_kernel, query_gradient_kernel
from gistnet.model.attention_passes import Intervals


@dataclass(frozen=True)
class Blocks:
    """How the kernels are cut: rows of queries and keys per block, warps per program, stages of the pipeline."""

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
    """Which rows run together.

    Attributes:
        places: int32 `[tiles, 3]`: the window, the first row (counted over all branches in `order`), how many rows.
        order: int32 `[branches]`.
    """

    places: Tensor
    order: Tensor


@dataclass(frozen=True)
class Schedule:
    """What every layer of a pass over branches shares.

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
        prefix_seen: Intervals,
        own_seen: Intervals,
        scale: float,
    ) -> Tensor:
        rows = query.reshape(len(query), key.shape[1], plan.rows, query.shape[3])
        key, value = _last_contiguous(key), _last_contiguous(value)
        ctx.prefix = _Part(_last_contiguous(prefix_keys), _last_contiguous(prefix_values), plan.prefix, prefix_seen)
        ctx.own = _Part(key, value, plan.own, own_seen)
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
        arguments = (own.key, own.value, own.seen.low, own.seen.high, out, d_out, log, d_key, d_value, scale)
        key_gradient_kernel[grid](rows, *arguments, *_strides(rows, own), **constants)
        return d_rows.view(ctx.shape), d_key, d_value, None, None, None, None, None, None


@dataclass(frozen=True)
class _Part:
    """Keys and values `[windows, key_value_heads, tokens, head_dim]`, the tiles that read them, and who sees what."""

    key: Tensor
    value: Tensor
    tiles: Tiles
    seen: Intervals


def _launch(kernel: Any, rows: Tensor, part: _Part, *tensors: Tensor, scale: float, goes_on: bool) -> None:
    """Run a kernel on all tiles of a part, for each key head."""
    grid = (len(part.tiles.places), rows.shape[1])
    where = (part.tiles.places, part.tiles.order, part.seen.low, part.seen.high)
    arguments = (part.key, part.value, *where, *tensors, part.key.shape[2], scale, *_strides(rows, part))
    kernel[grid](rows, *arguments, GOES_ON=goes_on, **_constants(rows, part))


def _constants(rows: Tensor, part: _Part) -> dict[str, Any]:
    blocks = blocks_for(rows.shape[3], rows.element_size())
    return {
        "ROWS": rows.shape[2],
        "LENGTH": part.seen.low.shape[1],
        "HEAD_DIM": rows.shape[3],
        "BLOCK_D": max(16, triton.next_power_of_2(rows.shape[3])),
        "BLOCK_M": blocks.rows,
        "BLOCK_N": blocks.keys,
        "PRECISION": "ieee",  # float32 means float32, and not TF32; half precision is not concerned
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
    }


def _strides(rows: Tensor, part: _Part) -> tuple[int, ...]:
    """Of branches or windows, heads, and rows or tokens; the last dimension is contiguous."""
    return (*rows.stride()[:3], *part.key.stride()[:3], *part.value.stride()[:3])


def _last_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor of the same shape."""
    return torch.empty(like.shape, dtype=dtype, device=like.device)
