"""Comparison of GistNets, and the mean of several; with a tiny teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.compare import differences, read
from gistnet.errors import ConfigError
from gistnet.model.config import GistNetConfig, TeacherConfig
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher


@pytest.fixture
def teacher(teacher_folder: Path) -> Teacher:
    return Teacher.from_pretrained(TeacherConfig(name=str(teacher_folder), precision="float32"))


def saved(teacher: Teacher, folder: Path, value: float, width: int = 16) -> str:
    config = GistNetConfig(architecture="bottleneck", width=width, heads=2)
    gistnet = GistNet.build(config, teacher, 4, below=GistNet.build(config, teacher, 8))
    gistnet.load_trainable_state(
        {name: torch.full_like(weights, value) for name, weights in gistnet.trainable_state().items()}
    )
    gistnet.save_pretrained(folder)
    return str(folder)


def test_names_joined_by_plus_are_the_mean_of_their_weights_at_every_level(teacher: Teacher, tmp_path: Path) -> None:
    ones, fours = saved(teacher, tmp_path / "a", 1.0), saved(teacher, tmp_path / "b", 4.0)

    _, mean = read(f"{ones}+{ones}+{fours}")

    assert len(mean.levels) == 2
    for level in mean.levels:
        assert all((weights == 2.0).all() for weights in level.trainable_state().values())


def test_the_mean_of_gistnets_of_another_shape_is_refused(teacher: Teacher, tmp_path: Path) -> None:
    narrow, wide = saved(teacher, tmp_path / "a", 1.0), saved(teacher, tmp_path / "b", 1.0, width=32)

    with pytest.raises(ConfigError, match="expected those of one configuration"):
        read(f"{narrow}+{wide}")


def test_differences_are_paired_and_in_points_of_what_dropping_costs() -> None:
    """Differences of 0.2 nats of 2 that dropping costs, in each of four documents: 10 points, without spread."""
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
