"""The layers against hand computations, a second implementation of the hash, and the symmetries they must have."""

import math

import pytest
import torch

from gistnet.errors import ConfigError
from gistnet.model.layers import (
    Dropout,
    Expansion,
    Norm,
    SelfAttentionBlock,
    SlotRead,
    StatelessDropout,
    attend,
    attention_flops,
    matmul_flops,
    mix64,
    rotary_table,
    rotate,
)

SPANS, LENGTH, WIDTH, HEADS = 3, 8, 16, 2


@pytest.fixture(autouse=True)
def _float64_from_a_seed():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def tokens(width: int = WIDTH) -> torch.Tensor:
    return torch.randn(SPANS, LENGTH, width)


# --- attention ------------------------------------------------------------------------------------------------------


def test_attention_of_one_query_over_two_keys_by_hand():
    """Scores 1 and 0 at head_dim 1 give weights e/(e+1) and 1/(e+1)."""
    query, keys, values = torch.ones(1, 1, 1, 1), torch.tensor([[[[1.0], [0.0]]]]), torch.tensor([[[[10.0], [20.0]]]])
    mixture, probabilities = attend(query, keys, values)
    first = math.e / (math.e + 1)
    assert probabilities.flatten().tolist() == pytest.approx([first, 1 - first])
    assert mixture.item() == pytest.approx(10 * first + 20 * (1 - first))


def test_attention_divides_scores_by_the_root_of_the_head_dimension():
    query, keys = torch.ones(1, 1, 1, 4), torch.stack([torch.ones(4), torch.zeros(4)])[None, None]
    _, probabilities = attend(query, keys, keys)
    assert (probabilities[0, 0, 0, 0] / probabilities[0, 0, 0, 1]).item() == pytest.approx(math.exp(4 / 2))


def test_attention_agrees_with_torch():
    query, key, value = (torch.randn(SPANS, HEADS, LENGTH, 5) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(attend(query, key, value)[0], expected.transpose(1, 2).flatten(2))


def test_softmax_is_taken_in_float32_for_half_precision_inputs():
    query = torch.randn(1, 1, 2, 4, dtype=torch.bfloat16)
    mixture, probabilities = attend(query, query, query)
    assert probabilities.dtype == torch.float32
    assert mixture.dtype == torch.bfloat16


def test_rotation_by_hand():
    """Dimensions (0, 2) turn by 1 radian per position, (1, 3) by 10000^(-1/2) = 0.01."""
    x = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).expand(4, 4)
    turned = rotate(x, rotary_table(4, 4))[3]
    expected = [math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)]
    assert turned.tolist() == pytest.approx(expected, abs=1e-6)


def test_rotary_scores_depend_on_the_distance_only():
    query, key = torch.randn(4), torch.randn(4)
    table = rotary_table(10, 4)
    scores = rotate(query.expand(10, 4), table) @ rotate(key.expand(10, 4), table).T
    for distance in range(-9, 10):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-6, rtol=0)
    assert (scores[0] - scores[0, 0]).abs()[1:].min() > 1e-3


def test_self_attention_scores_of_equal_tokens_depend_on_the_distance_only():
    """In the block itself: with the same vector everywhere, log-probability ratios along a row are those of RoPE."""
    block = SelfAttentionBlock(WIDTH, HEADS, LENGTH)
    _, probabilities = block.attention(torch.randn(WIDTH).expand(1, LENGTH, WIDTH))
    steps = probabilities.log().diff(dim=-1)[0]  # [heads, query, key]: score(j + 1 - i) - score(j - i)
    torch.testing.assert_close(steps[:, 1:, 1:], steps[:, :-1, :-1], atol=1e-5, rtol=0)
    assert steps.abs().max() > 1e-3


def test_self_attention_knows_the_order_of_tokens():
    """Without positions, permuting the tokens would permute the output and nothing else."""
    block, x, order = SelfAttentionBlock(WIDTH, HEADS, LENGTH), tokens(), torch.randperm(LENGTH)
    assert (block(x[:, order]) - block(x)[:, order]).abs().max() > 1e-3
    block.rotary = rotary_table(1, WIDTH // HEADS).expand(2, LENGTH, -1)  # every token at position 0
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order])


def test_self_attention_looks_both_ways():
    block, x = SelfAttentionBlock(WIDTH, HEADS, LENGTH), tokens().requires_grad_()
    (to_first,) = torch.autograd.grad(block(x)[:, 0].sum(), x, retain_graph=True)
    (to_last,) = torch.autograd.grad(block(x)[:, -1].sum(), x)
    assert (to_first.abs().amax(-1) > 0).all()
    assert (to_last.abs().amax(-1) > 0).all()


# --- slots ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens_width", [WIDTH, 24])
def test_slot_read_does_not_depend_on_the_order_of_tokens(tokens_width):
    read, x, order = SlotRead(tokens_width, WIDTH, HEADS), tokens(tokens_width), torch.randperm(LENGTH)
    slot, probabilities = read(x)
    permuted_slot, permuted_probabilities = read(x[:, order])
    assert slot.shape == (SPANS, WIDTH)
    assert probabilities.shape == (SPANS, HEADS, LENGTH)
    torch.testing.assert_close(permuted_slot, slot)
    torch.testing.assert_close(permuted_probabilities, probabilities[:, :, order])
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(SPANS, HEADS))


def test_slot_read_of_equal_tokens_is_uniform_and_equals_the_read_of_one():
    read, x = SlotRead(WIDTH, WIDTH, HEADS), tokens()[:, :1]
    slot, probabilities = read(x.expand(-1, LENGTH, -1))
    torch.testing.assert_close(probabilities, torch.full_like(probabilities, 1 / LENGTH))
    torch.testing.assert_close(slot, read(x)[0])


def test_slot_follows_its_query():
    """A query along the key of one token makes the slot read that token."""
    read, x = SlotRead(WIDTH, WIDTH, 1), tokens()
    keys = read.key_value(read.tokens_norm(x)).chunk(2, dim=-1)[0]
    read.query.data = 1000 * keys[0, 5]
    best = (keys[0] @ keys[0, 5]).argmax().item()
    assert read(x)[1][0, 0].argmax().item() == best


# --- expansion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens_width", [WIDTH, 24])
def test_expansion_gives_each_token_something_else(tokens_width):
    """Attention over the gist alone would add the same vector to every token."""
    expansion, x, slot = Expansion(tokens_width, WIDTH, HEADS), tokens(tokens_width), torch.randn(SPANS, WIDTH)
    added = expansion(slot, x) - x
    assert added.shape == x.shape
    assert added.std(dim=1).min() > 1e-4
    _, probabilities = expansion.attention(slot, x)
    assert probabilities.shape == (SPANS, HEADS, LENGTH, LENGTH + 1)
    assert probabilities[..., 0].std(dim=-1).min() > 1e-4  # the share of the gist differs from token to token


def test_expansion_carries_the_slot_to_every_token():
    expansion, x = Expansion(WIDTH, WIDTH, HEADS), tokens()
    slot = torch.randn(SPANS, WIDTH, requires_grad=True)
    for position in range(LENGTH):
        (gradient,) = torch.autograd.grad(expansion(slot, x)[:, position].square().sum(), slot)
        assert (gradient.abs().amax(-1) > 0).all()


def test_expansion_with_a_closed_gate_is_the_identity():
    expansion, x = Expansion(WIDTH, WIDTH, HEADS), tokens()
    expansion.gate.data.zero_()
    assert torch.equal(expansion(torch.randn(SPANS, WIDTH), x), x)


def test_norm_keeps_its_own_precision():
    norm = Norm(4).float()
    out = norm(torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.bfloat16))
    assert out.dtype == torch.float32
    expected = torch.tensor([[-1.5, -0.5, 0.5, 1.5]], dtype=torch.float32) / math.sqrt(1.25)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


# --- FLOPs ----------------------------------------------------------------------------------------------------------


def test_flops_by_hand():
    assert matmul_flops(5, torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.Linear(4, 2))) == 2 * 5 * (12 + 8)
    assert attention_flops(2, 3, 4) == 2 * (2 * 2 * 3 * 4)
    block = 2 * LENGTH * 12 * WIDTH**2 + 2 * 2 * LENGTH**2 * WIDTH
    assert SelfAttentionBlock(WIDTH, HEADS, LENGTH).flops(LENGTH) == block


# --- dropout --------------------------------------------------------------------------------------------------------


def mask(key: int, salt: int = 0, rate: float = 0.25, size: int = 4096) -> torch.Tensor:
    """True where the element is kept."""
    return StatelessDropout(salt)(torch.ones(1, size), Dropout(rate, torch.tensor([key])))[0] != 0


def test_mix64_agrees_with_the_published_splitmix64():
    """First outputs of SplitMix64 seeded with 1234567, as published with the reference implementation."""
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + i * golden) % 2**64 for i in range(1, 6)]
    signed = torch.tensor([s - 2**64 if s >= 2**63 else s for s in states])
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [word % 2**64 for word in mix64(signed).tolist()] == expected


def test_dropout_mask_agrees_with_integers_of_any_size():
    """The same definition in Python's unbounded integers, for keys at both ends of int64."""
    golden, modulus = 0x9E3779B97F4A7C15, 2**64

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % modulus
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % modulus
        return x ^ (x >> 31)

    for key, salt in [(0, 0), (1, 7), (-1, 3), (2**63 - 1, 1), (-(2**63), 40)]:
        seed = mix((key + (salt + 1) * golden) % modulus)
        kept = [(mix((seed + i * golden) % modulus) >> 11) >= 0.25 * 2**53 for i in range(1, 201)]
        assert mask(key, salt, size=200).tolist() == kept


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.9])
def test_dropout_rate_is_the_share_dropped(rate):
    """Over 2^19 elements the share is within five standard deviations of the rate."""
    n = 2**19
    x = StatelessDropout(3)(torch.ones(8, n // 8), Dropout(rate, torch.arange(8)))
    dropped = (x == 0).double().mean().item()
    assert abs(dropped - rate) < 5 * math.sqrt(rate * (1 - rate) / n)
    torch.testing.assert_close(x[x != 0], torch.full_like(x[x != 0], 1 / (1 - rate)))


@pytest.mark.parametrize(("first", "second"), [((0, 0), (1, 0)), ((0, 0), (0, 1)), ((5, 2), (2, 5)), ((0, 0), (-1, 1))])
def test_masks_of_other_keys_or_salts_are_independent(first, second):
    """Both drop an element with probability rate², within five standard deviations."""
    n, rate = 2**16, 0.25
    both = (~mask(*first, rate, n) & ~mask(*second, rate, n)).double().mean().item()
    assert abs(both - rate**2) < 5 * math.sqrt(rate**2 * (1 - rate**2) / n)


def test_neighbouring_elements_are_independent():
    n, rate = 2**16, 0.25
    dropped = ~mask(11, 0, rate, n)
    both = (dropped[1:] & dropped[:-1]).double().mean().item()
    assert abs(both - rate**2) < 5 * math.sqrt(rate**2 * (1 - rate**2) / n)


def test_a_span_has_the_same_mask_in_any_batch_and_whatever_the_global_random_state():
    module, keys, x = StatelessDropout(2), torch.tensor([9, 4, 7]), tokens()
    batch = module(x, Dropout(0.5, keys))
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    alone = torch.cat([module(x[i : i + 1], Dropout(0.5, keys[i : i + 1])) for i in (2, 0, 1)])
    assert torch.equal(alone, batch[[2, 0, 1]])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_no_dropout_and_rate_zero_change_nothing():
    x = tokens()
    assert StatelessDropout()(x, None) is x
    assert StatelessDropout()(x, Dropout(0.0, torch.arange(SPANS))) is x


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(ConfigError, match=r"expected 0 ≤ rate < 1"):
        Dropout(rate, torch.arange(2))


@pytest.mark.parametrize("keys", [torch.zeros(2, dtype=torch.int32), torch.zeros(2, 2, dtype=torch.int64)])
def test_keys_of_another_kind_are_refused(keys):
    with pytest.raises(ConfigError, match=r"one torch\.int64 per span"):
        Dropout(0.1, keys)
