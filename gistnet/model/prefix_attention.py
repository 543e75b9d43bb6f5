"""Attention of many short branches over shared prefixes, exactly.

A branch is a short sequence of vectors (gists, then horizon tokens) that continues a window of the document after its
first `s` tokens. By causality the keys and values of those tokens do not depend on the branch, so one pass over the
window serves all of its branches: each branch attends to the window's keys before `s` and, causally, to itself, and to
nothing else. No key is copied and nothing is masked that could have been left out.

The frozen language model reaches this module through the attention interface of transformers, under
`ATTENTION_NAME`: its layers call `attention`, which dispatches on the pass that is running.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION_NAME = "gistnet_shared_prefix"


@dataclass
class DocumentPass:
    """What the attention keeps of whole windows while the model reads them.

    `keys[layer]` and `values[layer]` are `[windows, key_value_heads, tokens, head_dim]`, keys after RoPE.
    """

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class BranchPass:
    """Which keys each branch of a pass may see.

    Attributes:
        document: the keys and values of the windows.
        windows: the window each branch continues, one per branch.
        prefix_lengths: how many of the window's first tokens each branch sees, one per branch, at least 1.
        positions: `[branches, length]`, the positions of the branches' own vectors; a window's token i has position i.
    """

    document: DocumentPass
    windows: tuple[int, ...]
    prefix_lengths: tuple[int, ...]
    positions: Tensor

    @property
    def longest_distance(self) -> int:
        """The largest difference of positions between a query and a key that it may see."""
        return int(self.positions.max())


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    running_pass: DocumentPass | BranchPass | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that every attention layer of a teacher calls.

    Without a running pass this is transformers' own SDPA attention with transformers' own mask, so that the model
    serves for anything else (generation, the plain forward of a test) unchanged.

    Shapes: query `[batch, heads, length, head_dim]`, key and value `[batch, key_value_heads, length, head_dim]`;
    returns `[batch, length, heads, head_dim]`.
    """
    if running_pass is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if isinstance(running_pass, DocumentPass):
        running_pass.keys[layer], running_pass.values[layer] = key, value
        out = _causal_attention(query, key, value, scale, sliding_window)
    else:
        out = _branch_attention(query, key, value, running_pass, layer, scale, sliding_window)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION_NAME, attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def _causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, sliding_window: int | None) -> Tensor:
    """Plain causal attention over whole windows; returns `[windows, heads, length, head_dim]`."""
    length = query.shape[2]
    windowed = sliding_window is not None and length > sliding_window
    if not windowed:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
    index = torch.arange(length, device=query.device)
    return _dense_attention(query, key, value, _visible(index, index, sliding_window), scale)


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
    prefix_keys, prefix_values = branches.document.keys[layer], branches.document.values[layer]
    windowed = sliding_window is not None and branches.longest_distance >= sliding_window
    if not windowed and query.device.type == "cpu":
        return _TwoPartAttention.apply(query, key, value, prefix_keys, prefix_values, branches, scale)
    outputs = []
    for branch, (window, prefix) in enumerate(zip(branches.windows, branches.prefix_lengths, strict=True)):
        own = branches.positions[branch]
        positions = torch.cat([torch.arange(prefix, device=own.device), own])
        keys = torch.cat([prefix_keys[window, :, :prefix], key[branch]], dim=1)
        values = torch.cat([prefix_values[window, :, :prefix], value[branch]], dim=1)
        visible = _visible(own, positions, sliding_window)
        outputs.append(_dense_attention(query[branch][None], keys[None], values[None], visible, scale))
    return torch.cat(outputs)


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
    scores = _widened(query @ key.transpose(-1, -2)) * scale
    probabilities = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return probabilities.to(value.dtype) @ value


class _TwoPartAttention(torch.autograd.Function):
    """Attention over a prefix that needs no gradient and over the branch itself, computed apart and merged exactly.

    Each part gives its output and the logarithm of its softmax denominator; the merged output is their average
    weighted by those denominators. Backward, the probabilities of a part are `exp(score - merged log denominator)`, so
    that the parts need no knowledge of each other (the decomposition of Dao et al., 2022, and of ring attention, Liu
    et al., 2023). The heads that share a key head are folded into the rows of one product, so no key is repeated; each
    prefix is a view of its window's keys, so none is copied, and memory does not grow with the prefix.

    Shapes: as in `_branch_attention`; prefix keys and values `[windows, key_value_heads, tokens, head_dim]`.
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
        scale: float,
    ) -> Tensor:
        rows = _fold_heads(query, key.shape[1])
        own_scores = _own_scores(rows, key, query.shape[2], scale)
        own_denominator = own_scores.logsumexp(dim=-1)
        own_out = (own_scores - own_denominator[..., None]).exp().to(value.dtype) @ value
        prefix_out, prefix_denominator = torch.empty_like(own_out), torch.empty_like(own_denominator)
        for branch, (window, prefix) in enumerate(zip(branches.windows, branches.prefix_lengths, strict=True)):
            prefix_out[branch], prefix_denominator[branch] = (
                part[0]
                for part in torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    rows[branch][None],
                    prefix_keys[window : window + 1, :, :prefix],
                    prefix_values[window : window + 1, :, :prefix],
                    scale=scale,
                )
            )
        denominator = torch.logaddexp(own_denominator, prefix_denominator)
        out = own_out * (own_denominator - denominator).exp()[..., None]
        out = (out + prefix_out * (prefix_denominator - denominator).exp()[..., None]).to(query.dtype)
        ctx.save_for_backward(rows, key, value, prefix_keys, prefix_values, out, denominator)
        ctx.branches, ctx.scale, ctx.heads = branches, scale, query.shape[1]
        return _unfold_heads(out, query.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, key, value, prefix_keys, prefix_values, out, denominator = ctx.saved_tensors
        scale, branches = ctx.scale, ctx.branches
        d_out = _fold_heads(gradients[0], key.shape[1])
        d_mean = (_widened(d_out) * out).sum(dim=-1, keepdim=True)

        length = rows.shape[2] * key.shape[1] // ctx.heads
        probabilities = _own_scores(rows, key, length, scale).sub_(denominator[..., None]).exp_()
        d_value = probabilities.to(value.dtype).transpose(-1, -2) @ d_out
        d_scores = _score_gradient(probabilities, d_out, value, d_mean)
        d_key = (d_scores.transpose(-1, -2) @ rows) * scale
        d_rows = d_scores @ key
        for branch, (window, prefix) in enumerate(zip(branches.windows, branches.prefix_lengths, strict=True)):
            keys, values = prefix_keys[window, :, :prefix], prefix_values[window, :, :prefix]
            scores = _widened(rows[branch] @ keys.transpose(-1, -2)).mul_(scale)
            probabilities = scores.sub_(denominator[branch][..., None]).exp_()
            d_rows[branch] += _score_gradient(probabilities, d_out[branch], values, d_mean[branch]) @ keys
        return _unfold_heads(d_rows * scale, ctx.heads), d_key, d_value, None, None, None, None


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


def _own_scores(rows: Tensor, key: Tensor, length: int, scale: float) -> Tensor:
    """Causal scores of the branches' own keys, `[branches, key_value_heads, groups * length, length]`."""
    scores = _widened(rows @ key.transpose(-1, -2)).mul_(scale)
    later = torch.ones(length, length, dtype=torch.bool, device=rows.device).triu_(1)
    return scores.masked_fill_(later.repeat(rows.shape[2] // length, 1), float("-inf"))


def _score_gradient(probabilities: Tensor, d_out: Tensor, value: Tensor, d_mean: Tensor) -> Tensor:
    """The gradient of attention scores; `d_mean` is the sum over head_dim of output times its gradient."""
    return _widened(d_out @ value.transpose(-1, -2)).sub_(d_mean).mul_(probabilities).to(d_out.dtype)
