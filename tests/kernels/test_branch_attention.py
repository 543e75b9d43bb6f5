"""The attention kernels compute what plain attention does, in values and in all three gradients.

They run in Triton's interpreter, which computes with NumPy, so that float16 stands for half precision.
"""

from dataclasses import replace

import pytest
import torch

from gistnet.model import prefix_attention
from gistnet.model.prefix_attention import (
    BranchPass,
    Intervals,
    PrefixCache,
    largest_difference_of_kernels,
    plain_branch_attention,
)

pytest.importorskip("triton", reason="the kernels need Triton")
from gistnet.kernels.branch_attention import blocks_for, schedule

CPU = torch.device("cpu")


@pytest.mark.parametrize("head_dim", [64, 48])  # 48 is padded to 64 inside
def test_kernels_equal_plain_attention_in_float32(head_dim):
    """Several windows, prefixes of 3 to 170 tokens in no order, heads in groups of three, a sliding window."""
    assert largest_difference_of_kernels(torch.float32, head_dim, CPU) < 2e-6


def test_kernels_equal_plain_attention_in_half_precision():
    assert largest_difference_of_kernels(torch.float16, 64, CPU) < 4e-3


@pytest.mark.parametrize("mutation", ["a key too many", "a key too few", "no causality", "order of branches"])
def test_a_wrong_interval_or_tile_is_noticed(mutation, monkeypatch):
    exact_prefix, exact_own, exact_schedule = BranchPass.prefix_intervals, BranchPass.own_intervals, schedule

    def prefix_intervals(self, reach):
        seen = exact_prefix(self, reach)
        change = {"a key too many": 1, "a key too few": -1}.get(mutation, 0)
        return Intervals(seen.low, (seen.high + change).clamp(max=170))

    def own_intervals(self, reach):
        seen = exact_own(self, reach)
        return Intervals(seen.low, torch.full_like(seen.high, 23)) if mutation == "no causality" else seen

    def schedule_(*arguments):
        plan = exact_schedule(*arguments)
        if mutation != "order of branches":
            return plan
        return replace(plan, prefix=replace(plan.prefix, order=plan.prefix.order.flip(0)))

    monkeypatch.setattr(BranchPass, "prefix_intervals", prefix_intervals)
    monkeypatch.setattr(BranchPass, "own_intervals", own_intervals)
    monkeypatch.setattr("gistnet.kernels.branch_attention.schedule", schedule_)
    assert largest_difference_of_kernels(torch.float16, 64, CPU) > 2e-2


def test_a_prefix_out_of_reach_is_not_seen_and_makes_no_nan():
    """A branch that begins 460 positions behind its prefix, in a layer that reaches 8 back, sees only itself."""
    random = torch.Generator().manual_seed(3)
    own = [torch.randn(2, heads, 20, 16, generator=random) for heads in (2, 1, 1)]
    document = [torch.randn(1, 1, 40, 16, generator=random) for _ in "kv"]
    positions = torch.tensor([[500], [30]]) + torch.arange(20)
    results = []
    for attend in (prefix_attention._by_kernels, plain_branch_attention):
        branches = BranchPass(PrefixCache(), (0, 0), (40, 30), positions)
        results.append(attend(*own, *document, branches, 8, 0.25))
    assert torch.isfinite(results[0]).all()
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_every_row_is_in_one_tile_of_its_own_window_and_long_prefixes_come_first():
    windows, prefixes, rows, block = (1, 0, 1, 0, 1), (50, 7, 20, 90, 300), 96, 128
    plan = schedule(windows, prefixes, rows, block, CPU)
    order = plan.prefix.order.tolist()
    assert [windows[branch] for branch in order] == [0, 0, 1, 1, 1]
    assert [prefixes[branch] for branch in order] == [7, 90, 20, 50, 300]
    covered, longest = [], []
    for window, first, count in plan.prefix.tile_rows.tolist():
        assert 0 < count <= block
        covered += range(first, first + count)
        branches = {order[row // rows] for row in range(first, first + count)}
        assert {windows[branch] for branch in branches} == {window}
        longest.append(max(prefixes[branch] for branch in branches))
    assert sorted(covered) == list(range(5 * rows))
    assert longest == sorted(longest, reverse=True)
    for window, first, count in plan.own.tile_rows.tolist():  # each branch by itself
        assert first // rows == (first + count - 1) // rows == window


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("head_dim", [32, 64, 80, 128, 256])
def test_blocks_are_powers_of_two_that_a_tensor_core_takes(head_dim, itemsize):
    blocks = blocks_for(head_dim, itemsize)
    assert blocks.rows >= 16 and blocks.keys >= 16
    assert blocks.rows & (blocks.rows - 1) == blocks.keys & (blocks.keys - 1) == 0
