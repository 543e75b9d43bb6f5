"""Who is moved by what, and how far, against hand computations; one optimiser made of two."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from gistnet.errors import ConfigError
from gistnet.training.optimiser import build_optimiser
from gistnet.training.schedule import OptimiserConfig


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


def test_first_update_of_the_optimiser_by_hand() -> None:
    """Adam's first step is lr · g/(|g| + ε); a matrix also loses lr · decay of itself, a vector does not."""
    matrix, vector = nn.Parameter(torch.full((1, 1), 2.0).double()), nn.Parameter(torch.full((1,), 2.0).double())
    config = OptimiserConfig(learning_rate=0.1, weight_decay=0.5, epsilon=1.0)
    optimiser = build_optimiser([("matrix", matrix), ("vector", vector)], config)
    (3 * matrix.sum() + 3 * vector.sum()).backward()
    optimiser.step()
    assert vector.item() == pytest.approx(2.0 - 0.1 * 3 / (3 + 1))
    assert matrix.item() == pytest.approx(2.0 - 0.1 * 0.5 * 2.0 - 0.1 * 3 / (3 + 1))


def test_betas_are_those_configured() -> None:
    """A second gradient of zero leaves the mean at β₁(1-β₁)·g of the first, the mean square at β₂(1-β₂)·g²."""
    parameter = nn.Parameter(torch.ones(1).double())
    optimiser = build_optimiser([("p", parameter)], OptimiserConfig(betas=(0.5, 0.75)))
    for gradient in (4.0, 0.0):
        parameter.grad = torch.tensor([gradient]).double()
        optimiser.step()
    assert optimiser.state[parameter]["exp_avg"].item() == pytest.approx(0.5 * 0.5 * 4)
    assert optimiser.state[parameter]["exp_avg_sq"].item() == pytest.approx(0.75 * 0.25 * 16)


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
