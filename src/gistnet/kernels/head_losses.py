"""KL, both negative log-likelihoods, and their gradients of the logits, from two tables of logits, on a GPU.

Written with PyTorch's operations this is some fifteen passes over a table of tokens × vocabulary in float32. Here it
is four readings and one writing of what the products with the head left, in their own number format: one program per
token goes over the vocabulary once for both denominators (online, Milakov and Gimelshein, 2018) and once more for the
losses and gradients, which take the places of the logits they were made from.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK, _WARPS = 4096, 8


@triton.jit
def losses_kernel(
    original, replaced, targets, kl, nll_original, nll_replaced, d_kl, d_nll, vocabulary, softcap,
    original_stride, replaced_stride, KL_WANTED: tl.constexpr, NLL_WANTED: tl.constexpr, CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One token: row `program_id` of `original` and `replaced`, `[tokens, vocabulary]`."""
    token = tl.program_id(0).to(tl.int64)
    p_row, q_row = original + token * original_stride, replaced + token * replaced_stride
    columns = tl.arange(0, BLOCK)
    p_maximum = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    q_maximum = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    p_sum, q_sum = tl.zeros([BLOCK], dtype=tl.float32), tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, vocabulary, BLOCK):
        inside = first + columns < vocabulary
        p = tl.load(p_row + first + columns, mask=inside, other=float("-inf")).to(tl.float32)
        q = tl.load(q_row + first + columns, mask=inside, other=float("-inf")).to(tl.float32)
        p_larger, q_larger = tl.maximum(p_maximum, p), tl.maximum(q_maximum, q)
        p_base = tl.where(p_larger == float("-inf"), 0.0, p_larger)
        q_base = tl.where(q_larger == float("-inf"), 0.0, q_larger)
        p_sum = p_sum * tl.exp(p_maximum - p_base) + tl.exp(p - p_base)
        q_sum = q_sum * tl.exp(q_maximum - q_base) + tl.exp(q - q_base)
        p_maximum, q_maximum = p_larger, q_larger
    p_top, q_top = tl.max(p_maximum, 0), tl.max(q_maximum, 0)
    p_log = p_top + tl.log(tl.sum(p_sum * tl.exp(p_maximum - p_top), 0))
    q_log = q_top + tl.log(tl.sum(q_sum * tl.exp(q_maximum - q_top), 0))
    target = tl.load(targets + token)
    tl.store(nll_original + token, p_log - tl.load(p_row + target).to(tl.float32))
    tl.store(nll_replaced + token, q_log - tl.load(q_row + target).to(tl.float32))
    divergence = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, vocabulary, BLOCK):
        inside = first + columns < vocabulary
        z = tl.load(q_row + first + columns, mask=inside, other=0.0).to(tl.float32)
        p_ = tl.load(p_row + first + columns, mask=inside, other=0.0).to(tl.float32) - p_log
        q_ = z - q_log
        divergence += tl.where(inside, tl.exp(p_) * (p_ - q_), 0.0)
        slope = 1.0
        if CAPPED:
            slope = 1.0 - (z / softcap) * (z / softcap)
        if NLL_WANTED:
            d = (tl.exp(q_) - tl.where(first + columns == target, 1.0, 0.0)) * slope
            tl.store(d_nll + token * original_stride + first + columns, d.to(d_nll.dtype.element_ty), mask=inside)
        if KL_WANTED:
            d = (tl.exp(q_) - tl.exp(p_)) * slope
            tl.store(d_kl + token * replaced_stride + first + columns, d.to(d_kl.dtype.element_ty), mask=inside)
    tl.store(kl + token, tl.sum(divergence, 0))


class Compared(NamedTuple):
    """Results of `compare_logits`: losses `[tokens]`, float32, and gradients of the replaced logits where wanted."""

    kl: Tensor
    nll_original: Tensor
    nll_replaced: Tensor
    d_kl: Tensor | None
    d_nll: Tensor | None


def compare_logits(
    original: Tensor, replaced: Tensor, targets: Tensor, softcap: float | None, *, kl_wanted: bool, nll_wanted: bool
) -> Compared:
    """Losses of two tables of logits, `[tokens, vocabulary]` each, for the same targets, `[tokens]`.

    A gradient that is wanted overwrites a table: that of the KL the replaced one, that of the NLL the original one.
    """
    kl, nll_original, nll_replaced = torch.empty(3, len(targets), dtype=torch.float32, device=replaced.device)
    losses_kernel[(len(targets),)](
        original, replaced, targets, kl, nll_original, nll_replaced, replaced, original, replaced.shape[1],
        1.0 if softcap is None else softcap, original.stride(0), replaced.stride(0),
        KL_WANTED=kl_wanted, NLL_WANTED=nll_wanted, CAPPED=softcap is not None, BLOCK=_BLOCK, num_warps=_WARPS,
    )  # fmt: skip
    return Compared(kl, nll_original, nll_replaced, replaced if kl_wanted else None, original if nll_wanted else None)
