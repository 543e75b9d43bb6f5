"""Attention of many short branches over shared prefixes, exactly.

A branch is a short sequence of vectors (gists, then horizon tokens) that continues a window of the document after its
first `s` tokens. By causality the keys and values of those tokens do not depend on the branch, so one pass over the
window serves all of its branches: each branch attends to the window's keys before `s` and, causally, to itself, and to
nothing else. No key is copied and nothing is masked that could have been left out.

The frozen language model reaches this module through the attention interface of transformers, under
`ATTENTION_NAME`: its layers call `attention`, which dispatches on the pass that is running and on the device. On a CPU
and on a GPU fused code computes what `plain_branch_attention` defines.
"""

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from gistnet.kernels.gate import shown_exact
from gistnet.model.attention_passes import (
    BranchPass,
    KeysAndValues,
    KeysPass,
    LastTokenPass,
    PrefixCache,
)
from gistnet.model.two_part_attention import TwoPartAttention

ATTENTION_NAME = "gistnet_shared_prefix"


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
    """As `plain_branch_attention`, in a few launches for all branches."""
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
    """Whether the GPU kernels compute what `plain_branch_attention` does here, in values and gradients.

    Asked once for each number format and head width, on a small random case with several windows and a sliding window.
    """
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return False
    name = f"branch attention in {str(dtype).removeprefix('torch.')} with heads of {head_dim} on {device}"
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    return shown_exact(name, partial(largest_difference_of_kernels, dtype, head_dim, device), tolerance)


def largest_difference_of_kernels(dtype: torch.dtype, head_dim: int, device: torch.device) -> float:
    """How far kernels and plain attention are apart, as a share of the largest entry of each result."""
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
    """Which keys a query may see, `[queries, keys]`: those not after it and, in a sliding layer, near enough to it.

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
