"""Optimiser and learning rate against hand computations and torch's own cosine; one optimiser made of two."""

from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.optim import Optimizer

from gistnet.errors import ConfigError
from gistnet.training.config import OptimiserConfig
from gistnet.training.optimiser import build_optimiser, learning_rate, warmup_length


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.slot = nn.Parameter(torch.ones(3))
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)


def test_only_matrices_decay_and_frozen_parameters_are_left_out() -> None:
    optimiser = build_optimiser(_Network().named_parameters(), OptimiserConfig(weight_decay=0.1))
    decay_by_name = {name: group["weight_decay"] for group in optimiser.param_groups for name in group["param_names"]}
    assert decay_by_name == {
        "projection.weight": 0.1,
        "projection.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "slot": 0.0,
        "gain": 0.0,
    }


def test_first_two_updates_by_hand() -> None:
    """Adam's first step is lr · sign(g); after a second gradient of zero it is lr · 0.9/1.9 · √1.999/√0.999.

    A matrix also loses lr · decay of itself at each step, a vector does not.
    """
    matrix, vector = nn.Parameter(torch.full((1, 1), 2.0).double()), nn.Parameter(torch.full((1,), 2.0).double())
    config = OptimiserConfig(learning_rate=0.1, weight_decay=0.5)
    optimiser = build_optimiser([("matrix", matrix), ("vector", vector)], config)
    second = 0.1 * (0.9 * 0.1 / (1 - 0.9**2)) / (0.999 * 0.001 / (1 - 0.999**2)) ** 0.5
    for gradient, moved in ((3.0, 0.1), (0.0, second)):
        before = matrix.item(), vector.item()
        matrix.grad, vector.grad = torch.full((1, 1), gradient).double(), torch.full((1,), gradient).double()
        optimiser.step()
        assert vector.item() == pytest.approx(before[1] - moved)
        assert matrix.item() == pytest.approx(before[0] * (1 - 0.1 * 0.5) - moved)


def test_a_network_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_optimiser([("frozen", nn.Parameter(torch.ones(1), requires_grad=False))], OptimiserConfig())


def _parameters() -> Iterator[tuple[str, nn.Parameter]]:
    random = torch.Generator().manual_seed(3)
    yield "wide", nn.Parameter(torch.randn(2, 5, generator=random))
    yield "vector", nn.Parameter(torch.randn(5, generator=random))
    yield "tall", nn.Parameter(torch.randn(6, 3, generator=random))


def _train(optimiser: Optimizer, steps: range) -> None:
    for step in steps:
        random = torch.Generator().manual_seed(step)
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=random)
        optimiser.step()


def test_muon_moves_a_matrix_by_an_orthogonal_one_of_the_length_of_adams_steps_and_adamw_the_vectors() -> None:
    """The singular values of the update are near 1 before scaling (Newton-Schulz leaves them between 0.6 and 1.3), and
    0.2 · √(longer side) · lr after it, which makes its root mean square 0.2 · lr.
    """
    config = OptimiserConfig(kind="muon", learning_rate=0.1, weight_decay=0.0)
    parameters = dict(_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimiser = build_optimiser(parameters.items(), config)
    parameters["wide"].grad = torch.diag_embed(torch.tensor([100.0, 1.0])) @ torch.eye(2, 5)
    parameters["tall"].grad = torch.zeros(6, 3)
    parameters["vector"].grad = torch.full((5,), 3.0)
    optimiser.step()
    moved = (before["wide"] - parameters["wide"]).detach() / (0.1 * 0.2 * 5**0.5)
    singular = torch.linalg.svdvals(moved)
    assert bool(((singular > 0.6) & (singular < 1.3)).all()), "both directions count alike, though one gradient is weak"
    torch.testing.assert_close(moved[:, 2:], torch.zeros(2, 3))
    torch.testing.assert_close((before["vector"] - parameters["vector"]).detach(), torch.full((5,), 0.1))


def test_muon_decays_matrices_only() -> None:
    parameters = dict(_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimiser = build_optimiser(parameters.items(), OptimiserConfig(kind="muon", learning_rate=0.1, weight_decay=0.5))
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    assert {name for name, value in before.items() if not torch.equal(value, parameters[name])} == {"wide", "tall"}
    torch.testing.assert_close(parameters["wide"].detach(), before["wide"] * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("names", [("wide", "tall"), ("vector",)])
def test_muon_does_without_vectors_or_without_matrices(names: tuple[str, ...]) -> None:
    parameters = {name: parameter for name, parameter in _parameters() if name in names}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    _train(build_optimiser(parameters.items(), OptimiserConfig(kind="muon")), range(1))
    assert all(not torch.equal(before[name], parameter) for name, parameter in parameters.items())


SIMPLE = OptimiserConfig(learning_rate=1.0, final_learning_rate=0.0, warmup_steps=4)


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


@pytest.mark.parametrize("wrong", [{"final_learning_rate": 1.0}, {"warmup_steps": -1}, {"learning_rat": 1.0}])
def test_a_contradictory_or_unknown_setting_is_refused_by_name(wrong: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        OptimiserConfig(**wrong)
