"""Attention in bfloat16 on a CPU against the same in float64, beside what PyTorch's flash attention makes of it."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from gistnet.model.prefix_attention import _causal_by_products


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
