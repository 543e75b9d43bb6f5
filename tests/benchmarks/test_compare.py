"""Comparison of GistNets, and the weights between two; with a tiny teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.compare import differences, weights_between
from gistnet.errors import ConfigError
from gistnet.model.config import GistNetConfig, TeacherConfig
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher

CONFIG = GistNetConfig(architecture="bottleneck", width=16, heads=2)


@pytest.fixture
def teacher(teacher_folder: Path) -> Teacher:
    return Teacher.from_pretrained(TeacherConfig(name=str(teacher_folder), precision="float32"))


def two_levels(teacher: Teacher, value: float) -> GistNet:
    gistnet = GistNet.build(CONFIG, teacher, 4, below=GistNet.build(CONFIG, teacher, 8))
    gistnet.load_trainable_state(
        {name: torch.full_like(weights, value) for name, weights in gistnet.trainable_state().items()}
    )
    return gistnet


def test_weights_between_two_are_so_much_of_the_second_at_every_level(teacher: Teacher) -> None:
    first, second = two_levels(teacher, 1.0), two_levels(teacher, 3.0)

    between = weights_between(first, second, 0.25)

    for level in between.levels:
        assert all((weights == 1.5).all() for weights in level.trainable_state().values())
    for gistnet, value in ((first, 1.0), (second, 3.0)):  # these stay as they were
        assert all((weights == value).all() for weights in gistnet.trainable_state().values())


def test_weights_between_gistnets_of_another_shape_are_refused(teacher: Teacher) -> None:
    narrow, wide = (GistNet.build(CONFIG.model_copy(update={"width": n}), teacher, 8) for n in (16, 32))

    with pytest.raises(ConfigError, match="expected two of the same configuration"):
        weights_between(narrow, wide, 0.5)


def test_differences_are_paired_and_in_points_of_what_dropping_costs() -> None:
    """Of four documents each costs 2 to drop; the second GistNet leaves 0.2 less of every one: 10 points, for sure."""
    first = np.array([0.4, 0.8, 1.2, 1.6])
    kl = {"drop": np.full(4, 2.0), "last_token": np.full(4, 1.9), "a": first, "b": first - 0.2}

    last_token, ours, theirs = differences("single", kl, np.arange(4), ["a", "b"])

    assert last_token == {"what": "single", "name": "last_token", "recovered": pytest.approx(5)}
    assert ours == {"what": "single", "name": "a", "recovered": pytest.approx(50)}
    assert theirs == {
        "what": "single",
        "name": "b",
        "recovered": pytest.approx(60),
        **{name: pytest.approx(10) for name in ("more", "low", "high")},
    }
