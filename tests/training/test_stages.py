"""Several stages in one run: when they change, what they begin with, and resuming anywhere, inside a change too."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from gistnet.config import RunConfig, load_config
from gistnet.errors import CheckpointError, ConfigError, DataError, TrainingError
from gistnet.evaluation.validation import Validator
from gistnet.session import open_run
from gistnet.training import trainer
from gistnet.training.checkpoint import best_checkpoint, checkpoint_folder, latest_checkpoint, load_checkpoint
from gistnet.training.run import Run, TrainState
from gistnet.training.trainer import fit
from tests.conftest import tiny_values
from tests.training.runs import assert_same, newest_weights, records, run_of

STAGES = [
    {"name": "short", "train": {"steps": 4, "validation": {"every_steps": 2}}},
    {
        "name": "stable",
        "train": {
            "steps": 8,
            "dropout": 0.3,
            "validation": {"every_steps": 2},
            "stop": {"average_checks": 2, "over_steps": 2, "min_improvement": 0.999, "rises": None},
        },
        "objective": {"horizon_tokens": 8, "contrastive_weight": 0.05},
        "targets": {"delta_nll": {"below": 100.0}, "gist_diversity": {"above": 3.0}},
    },
    {
        "name": "last",
        "train": {"steps": 3, "optimiser": {"learning_rate": 0.002}},
        "objective": {"horizon_tokens": 16, "contrastive_weight": 0.08},
    },
]
"""Three stages of at most four steps, validated every second one; the second ends as soon as it may."""


@pytest.fixture
def staged(tmp_path: Path, tiny_config: dict[str, Any]) -> Path:
    """Configuration of a run of these stages."""
    path = tmp_path / "staged.yaml"
    path.write_text(yaml.safe_dump(tiny_config | {"stages": STAGES}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, corpus_file: Path) -> Run:
    """The finished run that nothing stopped, with all its checkpoints."""
    values = tiny_values(tmp_path_factory.mktemp("whole"), teacher_folder, corpus_file)
    run = open_run(RunConfig.model_validate(values | {"stages": STAGES}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "KEPT_CHECKPOINTS", 99)
        fit(run)
    return run


@pytest.fixture
def copied(whole: Run, tmp_path: Path) -> Path:
    """A copy of it in the run folder of `staged`."""
    return shutil.copytree(whole.folder, tmp_path / "run")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "gistnet" / "model.safetensors")


def ends(run: Run) -> list[dict]:
    return [record["stage_end"] for record in records(run.folder) if "stage_end" in record]


def test_the_stages_follow_each_other_each_by_its_own_settings(whole):
    assert [end["name"] for end in ends(whole)] == ["short", "stable", "last"]
    assert [end["reason"] for end in ends(whole)] == ["step limit", "stabilised", "step limit"]
    # Two checks are needed, at steps 0 and 2 of the second stage: it ends after two of its eight steps.
    steps = [(r["stage"], r["stage_step"], r["step"]) for r in records(whole.folder) if "loss" in r]
    assert steps == [(1, 1, 1), (1, 2, 2), (1, 3, 3), (1, 4, 4), (2, 1, 5), (2, 2, 6), (3, 1, 7), (3, 2, 8), (3, 3, 9)]
    by_stage = {r["stage"]: r for r in records(whole.folder) if "loss" in r}
    assert [by_stage[n]["contrastive_weight"] for n in (1, 2, 3)] == [0.0, 0.05, 0.08]
    # Each stage follows half a cosine of its own, from its own peak: in steps of π/4, π/8 and π/3, without a warm-up.
    heights = [1, 0.853553, 0.5, 0.146447, 1, 0.961940, 1, 0.75, 0.25]
    peaks, final = 6 * [0.01] + 3 * [0.002], 1e-6
    expected = [final + height * (peak - final) for height, peak in zip(heights, peaks, strict=True)]
    assert [r["learning_rate"] for r in records(whole.folder) if "loss" in r] == pytest.approx(expected, rel=1e-5)


def test_targets_are_reported_met_or_not(whole):
    short, stable, _ = ends(whole)
    assert short["targets"] == []
    loss, diversity = stable["targets"]
    assert (loss["name"], loss["below"], loss["met"]) == ("delta_nll", 100.0, True)
    assert (diversity["name"], diversity["above"], diversity["met"]) == ("gist_diversity", 3.0, False)
    assert loss["value"] == stable["best_value"]


def test_a_stage_begins_with_the_best_network_of_the_one_before(staged, monkeypatch):
    """Validations are made to say that the first stage was best after two of its four steps."""
    metrics = Validator.metrics
    values = iter([0.9, 0.5, 0.7])

    def told(self: Validator, shares: Any) -> dict[str, float]:
        return metrics(self, shares) | {"delta_nll": next(values, 0.4)}

    monkeypatch.setattr(Validator, "metrics", told)
    monkeypatch.setattr(trainer, "KEPT_CHECKPOINTS", 9)
    run = run_of(staged)
    begun: dict[int, dict[str, torch.Tensor]] = {}
    enter = trainer.enter_next_stage

    def noting(run: Run, state: TrainState) -> Any:
        optimiser = enter(run, state)
        begun[state.stage] = {name: tensor.clone() for name, tensor in run.gistnet.trainable_state().items()}
        assert optimiser.state == {}
        assert state.micro_batch is None  # sizes are chosen anew for a stage
        return optimiser

    monkeypatch.setattr(trainer, "enter_next_stage", noting)
    fit(run)
    assert_same(begun[2], weights(checkpoint_folder(run.folder, 2)))
    assert not torch.equal(begun[2]["w_out.weight"], weights(checkpoint_folder(run.folder, 4))["w_out.weight"])
    # The second and third stage tie at 0.4 from their start on, so that what they began with stays their best.
    assert [end["best_step"] for end in ends(run)] == [2, 2, 2]
    assert best_checkpoint(run.folder) == checkpoint_folder(run.folder, 2)


def test_the_bests_of_all_stages_are_kept(staged, monkeypatch):
    monkeypatch.setattr(trainer, "KEPT_CHECKPOINTS", 1)
    run = run_of(staged)
    fit(run)
    for end in ends(run):
        assert load_checkpoint(checkpoint_folder(run.folder, end["best_step"])).step == end["best_step"]


class Killed(Exception):
    """Stands for `kill -9`: nothing of the run runs afterwards."""


@pytest.mark.parametrize("moment", ["before the stage's start is read", "after it", "after its first validation"])
@pytest.mark.parametrize("change", [2, 3])
def test_a_run_killed_inside_a_stage_change_resumes_to_the_same_bits(staged, whole, monkeypatch, moment, change):
    enter, report = trainer.enter_next_stage, trainer.Recorder.report

    def entering(run: Run, state: TrainState) -> Any:
        if state.stage == change - 1 and moment.startswith("before"):
            raise Killed
        optimiser = enter(run, state)
        if state.stage == change and moment == "after it":
            raise Killed
        return optimiser

    def reporting(self: Any, state: TrainState, *arguments: Any) -> None:
        report(self, state, *arguments)
        if state.stage == change and moment == "after its first validation":
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "enter_next_stage", entering)
        patched.setattr(trainer.Recorder, "report", reporting)
        with pytest.raises(Killed):
            fit(run_of(staged))
    resumed = run_of(staged)
    fit(resumed, resume=True)
    assert_same(newest_weights(whole.folder), newest_weights(resumed.folder))
    assert records(whole.folder) == records(resumed.folder)
    assert (whole.folder / "checkpoints" / "best.json").read_text() == (
        resumed.folder / "checkpoints" / "best.json"
    ).read_text()


@pytest.mark.usefixtures("copied")
def test_a_finished_run_resumes_to_itself(staged, whole):
    again = run_of(staged)
    assert fit(again, resume=True).step == 9
    assert_same(again.gistnet.trainable_state(), whole.gistnet.trainable_state())
    assert records(again.folder) == records(whole.folder)


@pytest.mark.usefixtures("copied")
def test_a_raised_limit_lets_the_last_stage_go_on(staged):
    assert fit(run_of(staged, "stages.last.train.steps=5"), resume=True).stage_step == 5


def test_stages_to_come_may_change_and_those_begun_may_not(staged, copied):
    for step in (5, 6, 7, 8, 9):
        shutil.rmtree(checkpoint_folder(copied, step), ignore_errors=True)
    assert latest_checkpoint(copied) == checkpoint_folder(copied, 4)
    with pytest.raises(CheckpointError, match=r"stages\.short\.horizon_tokens is 12, expected 10"):
        fit(run_of(staged, "stages.short.objective.horizon_tokens=10"), resume=True)
    other = run_of(staged, "stages.stable.objective.horizon_tokens=9")
    fit(other, resume=True)
    assert ends(other)[1]["name"] == "stable"


def test_lambda_rises_where_gists_are_alike_and_stays_so_after_a_resume(staged, monkeypatch):
    """Validations are made to say that all gists are one; λ goes from 0.08 to 0.12 and 0.18, and is trained with."""
    metrics = Validator.metrics
    alike = {"cosine_std": 0.01, "gist_diversity": 0.05}
    monkeypatch.setattr(Validator, "metrics", lambda self, shares: metrics(self, shares) | alike)
    settings = ("stages.last.train.steps=4", "train.stop.rises=null")
    run = run_of(staged, *settings)
    fit(run)
    last = [record for record in records(run.folder) if record["stage"] == 3]
    rises = [record["contrastive_weight_raised"] for record in last if "contrastive_weight_raised" in record]
    assert [(rise["from"], pytest.approx(rise["to"])) for rise in rises] == [(0.08, 0.12), (0.12, 0.18), (0.18, 0.27)]
    used = [record["contrastive_weight"] for record in last if "loss" in record]
    assert used == pytest.approx([0.12, 0.12, 0.12, 0.18])
    assert sum("alarm" in r for r in records(run.folder)) == sum("validation" in r for r in records(run.folder))
    # The same from a checkpoint in the middle of the last stage.
    expected = records(run.folder)
    for folder in (run.folder / "checkpoints").glob("step-*"):
        if int(folder.name[5:]) > 8:
            shutil.rmtree(folder)
    again = run_of(staged, *settings)
    fit(again, resume=True)
    assert records(again.folder) == expected


def test_a_validation_that_is_no_number_names_the_document_and_what_is_left(staged, monkeypatch):
    measured = Validator.measure

    def broken(self: Validator, gistnet: Any) -> Any:
        if torch.count_nonzero(gistnet.w_out.weight):
            with torch.no_grad():
                gistnet.gain.fill_(float("nan"))
        return measured(self, gistnet)

    monkeypatch.setattr(Validator, "measure", broken)
    run = run_of(staged)
    with pytest.raises(
        TrainingError, match=r"validation loss is not finite \(documents: .*story-\d+.*last good checkpoint"
    ):
        fit(run)


@pytest.mark.parametrize(
    ("setting", "error", "words"),
    [
        ("stages.stable.train.probabilities={code: 1.0}", DataError, "Stage 'stable': .*'code'.* no training windows"),
        ("stages.stable.train.probabilities={narrative: 0.9}", ConfigError, "Stage 'stable': .*sum to 1"),
        ("data.held_out_fraction=0.0", DataError, "Stage 'short': .*no held-out document"),
    ],
)
def test_a_stage_that_cannot_be_trained_is_named_before_the_first_step(staged, setting, error, words):
    with pytest.raises(error, match=words):
        run_of(staged, setting)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("stages.last.objective.positions=end", "positions is center and end, expected one for all stages"),
        ("stages.last.name=short", "names of the stages must differ"),
        ("stages.last.objective.horizon_tokens=4", r"horizon_tokens is 4 with a contrastive_weight.*stage 'last'"),
        ("data.window_tokens=27", r"window_tokens is 27, expected at least 28: .*stage 'last'"),
        ("stages.last.train.step=3", "unknown key 'stages.last.train.step'"),
        ("stages.first.train.steps=3", "'first' is none of short, stable, last"),
        ("stages.last=3", "'last' names a whole group"),
        ("stages.last.targets={speed: {above: 1}}", "stages.last.targets.speed"),
        ("stages=3", "stages"),
    ],
)
def test_a_wrong_stage_is_refused_in_one_sentence(staged, setting, words):
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(staged, (setting,))
    assert "\n" not in str(caught.value)


def test_what_stages_share_is_said_once_and_a_setting_reaches_them_all(staged):
    config = load_config(staged, ("train.windows_per_batch=4", "train.steps=2", "stages.last.train.steps=1"))
    assert [stage.train.windows_per_batch for stage in config.stages] == [4, 4, 4]
    assert [stage.train.steps for stage in config.stages] == [2, 2, 1]
    assert [stage.train.optimiser.learning_rate for stage in config.stages] == [0.01, 0.01, 0.002]
    assert [stage.train.optimiser.warmup_steps for stage in config.stages] == [2, 2, 2]
    assert [stage.objective.horizon_tokens for stage in config.stages] == [12, 8, 16]
    mix = load_config(staged, ("stages.last.train.probabilities={code: 1.0}",)).stages[2].train.probabilities
    assert mix == {"code": 1.0}  # takes the place of the shared mix
