"""The learning rate against hand computations and torch's own cosine; when work is due."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from gistnet.training.schedule import OptimiserConfig, is_due, learning_rate, warmup_length

SIMPLE = OptimiserConfig(learning_rate=1.0, final_learning_rate=0.0, warmup_steps=4)


def test_the_defaults_are_those_of_the_spec_but_for_the_rate_that_taught_more() -> None:
    config = OptimiserConfig()
    assert (config.learning_rate, config.final_learning_rate, config.warmup_steps) == (2e-3, 1e-6, 1000)
    assert (config.betas, config.epsilon, config.weight_decay) == ((0.9, 0.999), 1e-8, 0.01)
    assert config.gradient_clip == 1.0


@pytest.mark.parametrize(
    ("total_steps", "expected"), [(100_000, 1000), (20_000, 1000), (19_980, 999), (2000, 100), (19, 0), (1, 0)]
)
def test_warmup_is_a_thousand_steps_or_a_twentieth_of_a_shorter_stage(total_steps: int, expected: int) -> None:
    assert warmup_length(total_steps, OptimiserConfig()) == expected


def test_learning_rate_rises_linearly_and_falls_along_a_cosine() -> None:
    """100 steps, 4 of warm-up: quarters up, then cos at 0, 1/4, 1/3, 1/2, 2/3 and 1 of the remaining 96."""
    expected = {
        0: 0.25,
        1: 0.5,
        2: 0.75,
        3: 1.0,
        4: 1.0,
        28: 0.8535533906,
        36: 0.75,
        52: 0.5,
        68: 0.25,
        100: 0.0,
        150: 0.0,
    }
    assert {step: learning_rate(step, 100, SIMPLE) for step in expected} == pytest.approx(expected, abs=1e-9)


def test_without_warmup_it_is_the_cosine_annealing_of_torch() -> None:
    config = OptimiserConfig(learning_rate=1e-4, warmup_steps=0)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=50, eta_min=1e-6)
    for step in range(50):
        assert learning_rate(step, 50, config) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimiser.step()
        scheduler.step()
    assert learning_rate(50, 50, config) == pytest.approx(1e-6, rel=1e-12)


def test_learning_rate_is_never_zero_nor_above_the_peak_and_a_stage_of_one_step_runs_at_the_peak() -> None:
    config = OptimiserConfig(learning_rate=1e-4)
    assert all(0 < learning_rate(step, 3000, config) <= 1e-4 for step in range(3001))
    assert learning_rate(0, 1, config) == 1e-4


@pytest.mark.parametrize(
    "wrong", [{"final_learning_rate": 1.0}, {"betas": (0.9, 1.0)}, {"warmup_steps": -1}, {"learning_rat": 1.0}]
)
def test_a_contradictory_or_unknown_setting_is_refused_by_name(wrong: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        OptimiserConfig(**wrong)


def test_work_is_due_at_multiples_and_at_the_last_step() -> None:
    assert [step for step in range(11) if is_due(step, 4, last_step=10)] == [4, 8, 10]


def test_work_is_due_once_where_the_last_step_is_a_multiple() -> None:
    assert [step for step in range(9) if is_due(step, 4, last_step=8)] == [4, 8]


def test_work_is_due_before_the_first_step_only_where_asked_for() -> None:
    assert [step for step in range(5) if is_due(step, 4, last_step=10, first=True)] == [0, 4]
    assert not is_due(0, 4, last_step=0)


def test_work_is_due_when_interrupted_unless_nothing_has_happened_yet() -> None:
    assert is_due(5, 4, last_step=10, interrupted=True)
    assert not is_due(0, 4, last_step=10, interrupted=True)


def test_a_resumed_run_does_what_an_uninterrupted_one_would_have_done() -> None:
    """Interrupted after 6 of 10 steps: the work of 1…6 and of 7…10 together is that of 1…10."""
    whole = [step for step in range(1, 11) if is_due(step, 3, last_step=10)]
    before = [step for step in range(1, 7) if is_due(step, 3, last_step=10)]
    after = [step for step in range(7, 11) if is_due(step, 3, last_step=10)]
    assert before + after == whole == [3, 6, 9, 10]
