"""What contexts cost: bytes by hand, and that what is timed is what was asked for."""

import pytest
import torch

from gistnet.context.assembly import assemble
from gistnet.context.cost import measure_cost
from gistnet.context.plan import Gists, Plan, Raw
from gistnet.errors import ConfigError
from tests.context.histories import random_history
from tests.teachers import FAMILIES, tiny_teacher

LAYERS = {"llama": 3, "qwen3": 3, "smollm3": 4}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("family", LAYERS)
def test_bytes_of_keys_and_values_by_hand(family: str, dtype: torch.dtype) -> None:
    teacher = tiny_teacher(family, dtype)
    history = random_history(120, teacher)
    per_vector = 2 * LAYERS[family] * 2 * 8 * dtype.itemsize  # keys and values, layers, heads, dimensions of a head
    for plan, vectors in ((Plan([Raw(0, 120)], 8), 120), (Plan([Gists(0, 0, 10), Raw(80, 90)], 8), 20)):
        cost = measure_cost(teacher, assemble(history, plan, teacher), new_tokens=5)
        assert cost.vectors == vectors
        assert cost.kv_bytes == vectors * per_vector
        assert cost.first_token_seconds > 0
        assert cost.tokens_per_second > 0


def test_sliding_layers_keep_less_where_positions_have_no_gaps() -> None:
    teacher = tiny_teacher("gemma3")  # two sliding layers, which need the 19 positions before the next token; one full
    context = assemble(random_history(100, teacher), Plan([Raw(0, 100)], 8), teacher, positions="compact")
    assert measure_cost(teacher, context, new_tokens=2).kv_bytes == (2 * 19 + 100) * 2 * 2 * 8 * 8


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_so_many_tokens_are_written(family: str) -> None:
    teacher = tiny_teacher(family)
    context = assemble(random_history(40, teacher), Plan([Raw(0, 40)], 8), teacher)
    passes = []
    teacher.model.register_forward_pre_hook(lambda *_: passes.append(1))
    measure_cost(teacher, context, new_tokens=30, warm_up=False)
    assert len(passes) == 30
    measure_cost(teacher, context, new_tokens=3)
    assert len(passes) == 30 + 2 + 3


def test_one_token_has_no_speed() -> None:
    teacher = tiny_teacher("llama")
    context = assemble(random_history(40, teacher), Plan([Raw(0, 40)], 8), teacher)
    with pytest.raises(ConfigError, match="1 new tokens to time, expected 2"):
        measure_cost(teacher, context, new_tokens=1)
