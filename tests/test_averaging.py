"""The mean of GistNets as a run: what it holds, what can be done with it, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from gistnet.averaging import average
from gistnet.config import load_config
from gistnet.errors import CheckpointError, ConfigError
from gistnet.release.make import make_release
from gistnet.session import open_gistnet, open_trained, train
from gistnet.training.checkpoint import best_checkpoint
from tests.conftest import Command, tiny_values

TRAINING = {"command": "gistnet train --config tiny.yaml", "hardware": "an abacus"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, corpus_file: Path) -> Path:
    """A run with checkpoints after one step and after two."""
    folder = tmp_path_factory.mktemp("run")
    values = tiny_values(folder, teacher_folder, corpus_file)
    values["train"] |= {"steps": 2, "checkpoint_every_steps": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    config = load_config(folder / "run.yaml")
    assert train(config)
    return config.run_folder


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def test_it_is_a_run_with_the_mean_of_all_weights(run: Path, tmp_path: Path) -> None:
    one, two = (open_gistnet(checkpoint(run, step))[1].trainable_state() for step in (1, 2))
    assert any(not torch.equal(one[name], two[name]) for name in one)

    made = average(checkpoint(run, 2), [checkpoint(run, 1), str(checkpoint(run, 1))], tmp_path / "mean")

    assert made == [checkpoint(run, 2), checkpoint(run, 1), checkpoint(run, 1)]
    trained = open_trained(tmp_path / "mean")
    for name, tensor in trained.gistnet.trainable_state().items():
        torch.testing.assert_close(tensor, (2 * one[name] + two[name]) / 3)
    assert trained.dataset().content_fingerprint in trained.gistnet.trained_on
    assert (tmp_path / "mean" / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_it_can_be_released_and_not_resumed(run: Path, tmp_path: Path) -> None:
    average(checkpoint(run, 2), [checkpoint(run, 1)], tmp_path / "mean")

    assert make_release(tmp_path / "mean", tmp_path / "tiny-8", **TRAINING)
    config = load_config(tmp_path / "mean" / "config.yaml", [f"run_folder={tmp_path / 'mean'}", "train.steps=3"])
    with pytest.raises(CheckpointError, match=r"has no optimiser\.safetensors: expected a checkpoint of a training"):
        train(config, start="resume")


def test_what_cannot_be_averaged_is_refused_and_nothing_is_written(
    run: Path, tmp_path: Path, teacher_folder: Path, corpus_file: Path
) -> None:
    shutil.copytree(run, tmp_path / "other")
    wide = tiny_values(tmp_path, teacher_folder, corpus_file)
    wide["gistnet"]["width"] *= 2
    wide["run_folder"] = str(tmp_path / "wide")
    wide["train"] |= {"steps": 1}
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(wide), encoding="utf-8")
    assert train(load_config(tmp_path / "wide.yaml"))
    before = sorted(tmp_path.iterdir())

    with pytest.raises(ConfigError, match="expected at least one other"):
        average(run, [], tmp_path / "mean")
    with pytest.raises(ConfigError, match=r"wide has the levels .* expected those of .*run"):
        average(run, [tmp_path / "wide"], tmp_path / "mean")
    with pytest.raises(CheckpointError, match="nothing-here"):
        average(run, [tmp_path / "nothing-here"], tmp_path / "mean")
    with pytest.raises(ConfigError, match="is there already, expected a new folder"):
        average(run, [tmp_path / "other"], tmp_path / "other")
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_says_where_the_run_is(gistnet: Command, run: Path, tmp_path: Path) -> None:
    outcome = gistnet("average", run, checkpoint(run, 1), "--out", tmp_path / "mean")

    assert outcome.status == 0, outcome.err
    best = best_checkpoint(run)
    assert outcome.out.startswith(f"Read {best}\nRead {checkpoint(run, 1)}\n")
    assert f"The mean of 2 GistNets is in {tmp_path / 'mean'}." in outcome.out
    assert f"gistnet evaluate {tmp_path / 'mean'}" in outcome.out + outcome.err
    assert gistnet("average", run, "--out", tmp_path / "alone").status == 2
