"""Training: exact resumption, sums over batches and processes, and stopping before harm is done."""

import copy
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from gistnet.config import load_config
from gistnet.data.sampling import sample_batch
from gistnet.errors import CheckpointError, ConfigError, DataError, TrainingError
from gistnet.metrics_log import read_metrics
from gistnet.objective.branches import SegmentBatch
from gistnet.objective.objective import branch_losses
from gistnet.session import open_run
from gistnet.training import trainer
from gistnet.training.checkpoint import best_checkpoint, latest_checkpoint
from gistnet.training.recorder import Recorder
from gistnet.training.run import Progress, Run
from gistnet.training.trainer import add_up_gradient, fit, judge, save, train_step


def run_of(config_file: Path, *settings: str) -> Run:
    return open_run(load_config(config_file, settings))


def woken_run(config_file: Path, *settings: str) -> Run:
    """A run whose GistNet is not at its beginning, where only W_out has a gradient."""
    run = run_of(config_file, *settings)
    torch.nn.init.normal_(run.gistnet.w_out.weight, generator=torch.Generator().manual_seed(0))
    return run


def gradient_in(run: Run) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in run.gistnet.named_parameters() if p.grad is not None}


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.gistnet.trainable_state().items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], **tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name)


def without_speed(path: Path) -> list[dict]:
    return [{k: v for k, v in record.items() if k != "spans_per_second"} for record in read_metrics(path)]


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process a real SIGTERM while the step before `step` is under way."""
    record = Recorder.record

    def recording(self: Recorder, run: Run, progress: Progress, metrics: dict, interrupted: bool) -> None:
        if progress.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        record(self, run, progress, metrics, interrupted)

    monkeypatch.setattr(Recorder, "record", recording)


@pytest.mark.parametrize("architecture", ["bottleneck", "teacher_lora"])
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(config_file, tmp_path, monkeypatch, architecture):
    """Weights bit for bit and every logged figure, with dropout and accumulation, stopped by SIGTERM in step 4."""
    settings = (f"gistnet.architecture={architecture}", "gistnet.teacher_layers=2")
    whole = run_of(config_file, f"run_folder={tmp_path / 'whole'}", *settings)
    fit(whole)
    with monkeypatch.context() as patched:
        stop_after(4, patched)
        assert fit(run_of(config_file, *settings)).step == 4
    resumed = run_of(config_file, *settings)
    assert fit(resumed, resume=True).step == 6
    assert_same(weights_of(whole), weights_of(resumed))
    assert without_speed(whole.folder / "metrics.jsonl") == without_speed(resumed.folder / "metrics.jsonl")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_resuming_a_finished_run_changes_nothing(config_file):
    run = run_of(config_file)
    fit(run)
    again = run_of(config_file)
    assert fit(again, resume=True).step == 6
    assert_same(weights_of(run), weights_of(again))


def test_training_lowers_the_held_out_kl_and_keeps_the_best(config_file):
    """The random teacher's continuations depend on the span; 150 steps recover a little of that on unseen documents."""
    run = run_of(
        config_file, "train.steps=150", "train.validation.every_steps=50", "train.validation.documents=8",
        "train.dropout=0.0", "gistnet.architecture=full", "gistnet.heads=4", "train.optimiser.learning_rate=0.003",
    )  # fmt: skip
    progress = fit(run)
    validations = [r["validation"] for r in read_metrics(run.folder / "metrics.jsonl") if "validation" in r]
    assert validations[-1]["kl"] < 0.995 * validations[0]["kl"]
    assert progress.best == validations[-1] or progress.best["delta_nll"] == min(v["delta_nll"] for v in validations)
    assert best_checkpoint(run.folder).name == f"step-{progress.best_step:08d}"


@pytest.mark.parametrize("architecture", ["full", "teacher_lora"])
def test_the_teacher_and_its_copy_are_bit_identical_after_training(config_file, architecture):
    run = run_of(config_file, f"gistnet.architecture={architecture}", "gistnet.heads=4", "gistnet.teacher_layers=2")
    frozen = [*run.teacher.model.parameters(), *(p for p in run.gistnet.parameters() if not p.requires_grad)]
    before, trained = copy.deepcopy(frozen), weights_of(run)
    fit(run)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
    assert not torch.equal(trained["w_out.weight"], weights_of(run)["w_out.weight"])


@pytest.mark.parametrize(
    "settings",
    [
        ("train.windows_per_batch=4", "train.accumulation_steps=1"),
        ("train.windows_per_batch=1", "train.accumulation_steps=4"),
        ("train.micro_batch_branches=1",),
        ("train.micro_batch_windows=1",),
        ("teacher.gradient_checkpointing=true",),
    ],
)
@pytest.mark.parametrize("runs", [(), ("train.runs={lengths: {1: 0.5, 2: 0.5}, whole_prefix: 0.5}",)])
def test_how_a_batch_is_cut_up_does_not_change_its_gradient(config_file, runs, settings):
    """Four windows of three segments: in one batch, in two or in four, in passes of any size."""
    gradients = []
    for changes in ((), settings):
        run = woken_run(config_file, *runs, *changes)
        metrics = train_step(run, Progress(), run.optimiser(Progress()))
        gradients.append(gradient_in(run))
    assert metrics["spans_seen"] > 24 if runs else metrics["spans_seen"] == 12
    assert_same(*gradients, rtol=1e-4, atol=1e-6)


def test_a_step_has_the_gradient_of_the_mean_loss_of_its_branches_no_longer_than_asked_for(config_file):
    """Written out for four windows of three branches each; then the same with half its length as the limit."""
    run = woken_run(config_file, "train.dropout=0.0")
    (stage,) = run.stages
    totals = []
    for sample in sample_batch(
        run.pool, stage.layout, stage.train.runs, stage.train.probabilities, seed=run.seed, step=0, items=range(4)
    ):
        tokens, starts = torch.from_numpy(run.dataset.read(sample.window))[None], torch.from_numpy(sample.starts)
        segments = SegmentBatch(tokens, torch.zeros_like(starts), starts, span_tokens=8, gists=1, horizon=12)
        read = run.teacher.prefill(tokens)
        totals.append(branch_losses(run.teacher, run.gistnet, read, segments, stage.objective).total)
    loss = torch.cat(totals).mean()
    loss.backward()
    expected = gradient_in(run)
    norm = float(torch.cat([gradient.flatten() for gradient in expected.values()]).norm())
    for limit, share in ((1e9, 1.0), (norm / 2, 0.5)):
        again = woken_run(config_file, "train.dropout=0.0", f"train.optimiser.gradient_clip={limit}")
        metrics = train_step(again, Progress(), again.optimiser(Progress()))
        assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-4)
        shortened = {name: share * gradient for name, gradient in expected.items()}
        assert_same(shortened, gradient_in(again), rtol=1e-4, atol=1e-6)


def test_dropout_draws_other_masks_at_every_step(config_file, monkeypatch):
    """On the windows of step 0 all along: with dropout each step has a gradient of its own, without it the same."""
    draw = trainer.sample_batch
    monkeypatch.setattr(trainer, "sample_batch", lambda *parts, **named: draw(*parts, **(named | {"step": 0})))
    for rate, alike in ((0.0, True), (0.3, False)):
        run = woken_run(config_file, f"train.dropout={rate}")
        gradients = []
        for step in (0, 1, 0):
            progress = Progress(step=step)
            add_up_gradient(run, progress, run.optimiser(progress))
            gradients.append(gradient_in(run)["w_out.weight"])
        assert torch.equal(gradients[0], gradients[1]) == alike
        assert torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize(("watch", "best", "end"), [("kl", (1, 0.5), 3), ("delta_nll", (2, 0.4), 4)])
def test_the_watched_loss_says_which_checkpoint_is_the_best_and_when_the_stage_ends(config_file, watch, best, end):
    """Validations made up, one a step: KL rises twice after step 1, ΔNLL after step 2."""
    run = run_of(config_file, f"train.stop.watch={watch}", "train.stop.rises=2")
    progress = Progress()
    made_up = zip([0.9, 0.5, 0.6, 0.7, 0.8], [0.9, 0.8, 0.4, 0.5, 0.6], strict=True)
    for step, (kl, delta_nll) in enumerate(made_up):
        progress.step = progress.stage_step = step
        events = judge(run, progress, {"kl": kl, "delta_nll": delta_nll, "gist_diversity": 1.0, "cosine_std": 1.0})
        save(run, progress, run.optimiser(progress))
        if progress.ended:
            break
    assert (progress.ended, progress.step) == ("early stop", end)
    (event,) = events
    assert (event["stage_end"]["best_step"], event["stage_end"]["best_value"]) == best
    marked = json.loads((run.folder / "checkpoints" / "best.json").read_text(encoding="utf-8"))
    assert marked == {"training": {"checkpoint": f"step-{best[0]:08d}", "value": best[1]}}


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_documents(config_file, monkeypatch):
    """The network breaks after step 3, when no checkpoint was due: the message names documents and a good state."""
    run = run_of(config_file, "train.validation.every_steps=100")
    record = Recorder.record

    def breaking(self: Recorder, run: Run, progress: Progress, metrics: dict, interrupted: bool) -> None:
        record(self, run, progress, metrics, interrupted)
        if progress.step == 3:
            with torch.no_grad():
                run.gistnet.gain.fill_(float("nan"))

    monkeypatch.setattr(Recorder, "record", breaking)
    with pytest.raises(TrainingError, match=r"not finite \(documents: .*story-\d+ at token \d+.*step-00000002"):
        fit(run)
    assert latest_checkpoint(run.folder).name == "step-00000002"


def test_a_checkpoint_of_other_data_or_another_network_is_not_resumed(config_file):
    fit(run_of(config_file, "train.steps=2"))
    with pytest.raises(CheckpointError, match=r"gistnet.width is 16, expected 32"):
        fit(run_of(config_file, "gistnet.width=32"), resume=True)
    with pytest.raises(CheckpointError, match=r"stages.training.horizon_tokens is 12, expected 10"):
        fit(run_of(config_file, "objective.horizon_tokens=10"), resume=True)
    with pytest.raises(CheckpointError, match=r"dataset\.content is"):
        fit(run_of(config_file, "data.min_tokens=70"), resume=True)


def test_a_run_goes_on_where_its_corpus_was_copied_to(config_file, corpus_file, tmp_path):
    """The same content at another place and time: what a machine finds that takes the place of one that was lost."""
    fit(run_of(config_file, "train.steps=2"))
    copied = shutil.copy(corpus_file, tmp_path / "copied.jsonl")
    os.utime(copied, (1, 1))
    source = f"{{kind: files, name: stories, domain: narrative, paths: ['{copied}']}}"
    assert fit(run_of(config_file, f"data.sources=[{source}]", f"data.folder={tmp_path}/new"), resume=True).step == 6


def test_data_that_cannot_be_trained_on_is_refused_before_the_first_step(config_file):
    with pytest.raises(DataError, match=r"'code' has probability 0\.5 but no training windows"):
        run_of(config_file, "train.probabilities={narrative: 0.5, code: 0.5}")
    with pytest.raises(ConfigError, match="sum to 1"):
        run_of(config_file, "train.probabilities={narrative: 0.5}")
    with pytest.raises(ConfigError, match="window_tokens is 300, expected at most the 256 positions"):
        run_of(config_file, "data.window_tokens=300", "data.min_tokens=64")
