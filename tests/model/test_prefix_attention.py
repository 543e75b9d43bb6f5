"""Attention in bfloat16 on a CPU against the same in float64, beside what PyTorch's flash attention makes of it."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gistnet.model.prefix_attention import (
    BranchPass,
    PrefixCache,
    TwoPartAttention,
    _causal_by_products,
    plain_branch_attention,
)


def random_parts(length: int, heads: int, key_value_heads: int, *, sharpness: float = 0) -> list[Tensor]:
    """Queries, keys and values in bfloat16, laid out as a model's layers make them.

    Args:
        sharpness: how much of its own key a query has, which raises that score by eight times as much.
    """
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, length, n, 64, generator=generator).transpose(1, 2)
        for n in (heads, key_value_heads, key_value_heads)
    )
    query = query + sharpness * key.repeat_interleave(heads // key_value_heads, dim=1)
    return [part.bfloat16() for part in (query, key, value)]


@pytest.mark.parametrize("sharpness", [0, 4], ids=["flat", "sharp"])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("length", [1, 5, 128, 300])
def test_causal_products_are_about_as_near_to_float64_as_flash_attention(length, heads, sharpness):
    parts = random_parts(length, *heads, sharpness=sharpness)
    exact = scaled_dot_product_attention(*(part.double() for part in parts), is_causal=True, enable_gqa=True)
    flash = scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True)
    products = _causal_by_products(*parts, 64**-0.5)
    ours, theirs = ((found.double() - exact).norm() / exact.norm() for found in (products, flash))
    assert ours < max(1.5 * theirs, 0.004)


def test_causal_products_do_not_read_what_follows():
    query, key, value = random_parts(200, 6, 2)
    before = _causal_by_products(query, key, value, 0.125)
    for part in (query, key, value):
        part[:, :, 150:] = 7
    torch.testing.assert_close(_causal_by_products(query, key, value, 0.125)[:, :, :150], before[:, :, :150])


def branch_case(dtype: torch.dtype, reach: int | None, *, sharpness: float = 0.0) -> list[Tensor]:
    """Output and gradients of eight branches over two windows, by `TwoPartAttention` and by the definition."""
    prefixes, windows = (900, 3, 600, 601, 599, 1, 700, 640), (0, 0, 1, 1, 1, 1, 0, 0)
    positions = torch.tensor(prefixes)[:, None] + 15 + torch.arange(23)
    _, keys, values = random_parts(900, 2, 2)
    parts = [part.repeat(4, 1, 1, 1)[:, :, :23] for part in random_parts(23, 6, 2, sharpness=sharpness)]
    parts[0] = parts[0] + sharpness * keys[list(windows), :, :1].repeat_interleave(3, dim=1)
    query, key, value = (part.to(dtype).requires_grad_() for part in parts)
    branches = BranchPass(PrefixCache(), windows, prefixes, positions)
    attend = plain_branch_attention if dtype == torch.float64 else TwoPartAttention.apply
    out = attend(query, key, value, keys.to(dtype), values.to(dtype), branches, reach, 0.125)
    outer = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, (query, key, value), outer)]


@pytest.mark.parametrize("reach", [None, 620, 30])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)])
def test_branches_in_blocks_equal_the_definition(dtype, tolerance, reach):
    for found, exact in zip(branch_case(dtype, reach), branch_case(torch.float64, reach), strict=True):
        assert (found.double() - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_overflow_are_scaled_down(dtype):
    """One key in the middle of the prefix scores far above all that are looked at beforehand."""
    query, keys = torch.ones(1, 2, 3, 64), torch.zeros(1, 1, 10, 64)
    keys[:, :, 5] = 40
    values = torch.arange(10.0)[:, None].expand(1, 1, 10, 64)
    own = torch.zeros(1, 1, 3, 64)
    branches = BranchPass(PrefixCache(), (0,), (10,), torch.tensor([[10, 11, 12]]))
    inputs = [part.to(dtype) for part in (query, own, own, keys, values)]
    out = TwoPartAttention.apply(*inputs, branches, None, 0.125)
    assert torch.equal(out, torch.full_like(out, 5))
