"""Comparison of GistNets, and the mean of several; with a tiny teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.compare import differences, read
from gistnet.errors import ConfigError
from gistnet.evaluation.held_out import Measured
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

    with pytest.raises(ConfigError, match=r"width=32.*expected those of .*width=16"):
        read(f"{narrow}+{wide}")


def test_differences_are_paired_and_in_points_of_what_dropping_costs() -> None:
    """KL: 0.2 nats of 2 that dropping costs, in each of four documents, are 10 points, without spread; ΔNLL: half."""
    first = np.array([0.4, 0.8, 1.2, 1.6])
    means = {"drop": np.full(4, 2.0), "recent_tokens": first - 0.1, "a": first, "b": first - 0.2}
    losses = {name: Measured(kl[:, None] + [-0.1, 0.1], kl[:, None] / 2 + 1) for name, kl in means.items()}

    found = list(differences("row", losses, np.arange(4), ["a", "b"], beside=["recent_tokens"]))

    for measure, part, half in (("kl", found[:3], 1.0), ("delta_nll", found[3:], 0.5)):
        recent, ours, theirs = part
        of_all = {"what": "row", "measure": measure}
        points = {
            number: {name: pytest.approx(half * number) for name in ("points", "low", "high")} for number in (-5, 5, 10)
        }
        assert recent == {**of_all, "name": "recent_tokens", "recovered": pytest.approx(half * 55)}
        assert ours == {**of_all, "name": "a", "recovered": pytest.approx(half * 50), "above recent_tokens": points[-5]}
        assert theirs.pop("above a") == points[10]
        assert theirs == {
            **of_all,
            "name": "b",
            "recovered": pytest.approx(half * 60),
            "above recent_tokens": points[5],
        }
