"""Floating-point operations of the engine, against other ways to count them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.flops import TeacherSize, engine_flops, loop_flops
from benchmarks.workload import SPAN, Branches, all_starts, build_gistnet, build_teacher, engine, loop
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher

WINDOW, HORIZON = 160, 24


class LinearFlops(TorchDispatchMode):
    """Counts the products of two matrices that run: linear layers and head, but not attention, which is batched."""

    total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            left, right = args[-2:]
            self.total += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        return function(*args, **(kwargs or {}))


def linear_flops(action: Callable[[], object]) -> int:
    with LinearFlops() as counter:
        action()
    return counter.total


def gistnet_attention(gistnet: GistNet, spans: int) -> int:
    """Forward and twice as much backward: self-attentions, two reads by a slot, one expansion over slot and tokens."""
    width = gistnet.w_out.in_features
    return 3 * spans * (gistnet.depth * 4 * SPAN * SPAN * width + 4 * width * (2 * SPAN + SPAN * (SPAN + 1)))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return build_teacher("tiny-shape", "float32", "cpu")


@pytest.fixture(scope="module")
def linear_size(teacher: Teacher) -> TeacherSize:
    size = TeacherSize.of(teacher)
    return TeacherSize(size.layers, size.weights, 0, size.hidden, size.vocabulary)


def test_by_hand() -> None:
    """A teacher of 2 layers with 100 weights, attention 3 wide, hidden size 5 and 7 words, over 4 tokens."""
    size = TeacherSize(layers=2, weights=100, attention_width=3, hidden=5, vocabulary=7)
    assert size.read(4) == 2 * 100 * 4 + 2 * 4 * 3 * (1 + 2 + 3 + 4)
    assert size.read(4, prefix=10) == 2 * 100 * 4 + 2 * 4 * 3 * (11 + 12 + 13 + 14)
    assert size.read_backward(4, prefix=10) == 2 * 100 * 4 + 2 * 3 * (4 * 4 * 10 + 8 * 10)
    assert size.head(4) == 2 * 5 * 7 * 4


def test_a_prefix_read_apart_costs_what_it_costs_read_together() -> None:
    size = TeacherSize(layers=3, weights=1000, attention_width=8, hidden=4, vocabulary=9)
    assert size.read(20) + size.read(12, prefix=20) == size.read(32)


@pytest.mark.parametrize("architecture", ["full", "bottleneck"])
def test_linear_layers_of_the_engine_as_they_run(teacher: Teacher, linear_size: TeacherSize, architecture: str) -> None:
    gistnet = build_gistnet(teacher, architecture)
    starts = all_starts(WINDOW, HORIZON)
    branches = Branches(torch.arange(WINDOW)[None] % 251, starts, HORIZON)
    expected = sum(engine_flops(linear_size, gistnet, WINDOW, starts, HORIZON).values())
    ran = linear_flops(lambda: engine(teacher, gistnet, branches, branches_per_pass=2))
    assert ran == expected - gistnet_attention(gistnet, len(starts))


def test_linear_layers_of_the_loop_as_they_run(teacher: Teacher, linear_size: TeacherSize) -> None:
    gistnet = build_gistnet(teacher)
    branches = Branches(torch.arange(WINDOW)[None] % 251, [36], HORIZON)
    expected = loop_flops(linear_size, gistnet, window=WINDOW, horizon=HORIZON)
    ran = linear_flops(lambda: list(loop(teacher, gistnet, branches, cached=False)))
    assert ran == expected - gistnet_attention(gistnet, 1)
