"""Training: exact resumption, sums over batches and processes, and stopping before harm is done."""

import copy
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gistnet.data.sampling import sample_batch
from gistnet.errors import CheckpointError, ProcessError, TrainingError
from gistnet.metrics_log import read_metrics
from gistnet.model.encoder import SpanEncoder
from gistnet.objective.reference import _plain_forward
from gistnet.training import trainer
from gistnet.training.checkpoint import best_checkpoint, latest_checkpoint
from gistnet.training.micro_batch import MicroBatch
from gistnet.training.recording import Recorder
from gistnet.training.run import Run, StageRun, TrainState
from gistnet.training.trainer import (
    add_up_gradient,
    fit,
    keeping_the_last_good_state,
    save,
    train_step,
    update_after_validation,
)
from tests.training.runs import MIXED, assert_same, records, run_of, stop_after


def woken_run(config_file: Path, *settings: str) -> Run:
    """A run whose GistNet is not at its beginning, where only W_out has a gradient."""
    run = run_of(config_file, *settings)
    torch.nn.init.normal_(run.gistnet.w_out.weight, generator=torch.Generator().manual_seed(0))
    return run


def one_step(run: Run, sizes: MicroBatch | None = None) -> dict[str, float]:
    (stage,) = run.stages
    return train_step(run, stage, TrainState(0.0, micro_batch=sizes), stage.optimiser())


def gradient_in(run: Run) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in run.gistnet.named_parameters() if p.grad is not None}


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.gistnet.trainable_state().items()}


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(config_file, tmp_path, monkeypatch):
    """Weights bit for bit and every logged figure, with segments of several lengths, dropout and accumulation.

    SIGTERM stops it in step 4.
    """
    settings = ("gistnet.architecture=teacher_lora", "gistnet.teacher_layers=2", MIXED)
    before = signal.getsignal(signal.SIGTERM)  # Ray's, where it ran in this process
    whole = run_of(config_file, f"run_folder={tmp_path / 'whole'}", *settings)
    fit(whole)
    with monkeypatch.context() as patched:
        stop_after(4, patched)
        assert fit(run_of(config_file, *settings)).step == 4
    resumed = run_of(config_file, *settings)
    assert fit(resumed, resume=True).step == 6
    assert_same(weights_of(whole), weights_of(resumed))
    assert records(whole.folder) == records(resumed.folder)
    assert signal.getsignal(signal.SIGTERM) == before


def test_training_lowers_the_held_out_kl_and_keeps_the_best(config_file):
    """The random teacher's continuations depend on the span; 300 steps recover a little of that on unseen documents."""
    run = run_of(
        config_file, "train.steps=300", "train.validation.every_steps=50", "train.validation.documents=99",
        "train.dropout=0.0", "gistnet.architecture=full", "gistnet.heads=4", "train.optimiser.learning_rate=0.01",
    )  # fmt: skip
    state = fit(run)
    validations = [r["validation"] for r in read_metrics(run.folder / "metrics.jsonl") if "validation" in r]
    assert validations[-1]["kl"] < 0.995 * validations[0]["kl"]
    assert state.best == validations[-1] or state.best["delta_nll"] == min(v["delta_nll"] for v in validations)
    assert best_checkpoint(run.folder).name == f"step-{state.best_step:08d}"


@pytest.mark.parametrize("architecture", ["full", "teacher_lora"])
def test_the_teacher_and_its_copy_are_bit_identical_after_training(config_file, architecture):
    run = run_of(config_file, f"gistnet.architecture={architecture}", "gistnet.heads=4", "gistnet.teacher_layers=2")
    frozen = [*run.teacher.model.parameters(), *(p for p in run.gistnet.parameters() if not p.requires_grad)]
    before, trained = copy.deepcopy(frozen), weights_of(run)
    fit(run)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
    assert not torch.equal(trained["w_out.weight"], weights_of(run)["w_out.weight"])


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        (("train.windows_per_batch=4", "train.accumulation_steps=1"), None),
        (("train.windows_per_batch=1", "train.accumulation_steps=4"), None),
        ((), MicroBatch(2, 1)),
        ((), MicroBatch(1, 72)),
        (("teacher.gradient_checkpointing=true",), None),
    ],
)
@pytest.mark.parametrize("runs", [(), (MIXED,)])
def test_how_a_batch_is_cut_up_does_not_change_its_gradient(config_file, runs, settings, sizes):
    """Four windows of three segments each, single ones or longer: in one batch, two or four, in passes of any size."""
    gradients = []
    for changes, micro_batch in (((), None), (settings, sizes)):
        run = woken_run(config_file, *runs, *changes)
        metrics = one_step(run, micro_batch)
        gradients.append(gradient_in(run))
    assert metrics["spans_seen"] > 24 if runs else metrics["spans_seen"] == 12
    assert_same(*gradients, rtol=1e-4, atol=1e-6)


def predictions(
    run: Run, tokens: torch.Tensor, start: int, count: int, compact: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of a horizon's 12 tokens by plain forwards, after the original text and after gists, and the tokens.

    Gists are encoded one by one; they stand in the middle of their 8 tokens, or what there is without gaps.
    """
    end, spans = start + 8 * count, range(start, start + 8 * count, 8)
    gists = [SpanEncoder(run.teacher, run.gistnet).encode(tokens[None, first : first + 8])[0] for first in spans]
    parts = [run.teacher.embed(tokens[:start]), *gists, run.teacher.embed(tokens[end : end + 12])]
    indices = [*range(start), *(first + 4 for first in spans), *range(end, end + 12)]
    positions = torch.arange(len(indices)) if compact else torch.tensor(indices)
    own = _plain_forward(run.teacher, torch.cat(parts), positions)[-13:-1]
    with torch.no_grad():
        original = _plain_forward(run.teacher, run.teacher.embed(tokens), torch.arange(len(tokens)))
    return run.teacher.logits(original[end - 1 : end + 11]), run.teacher.logits(own), tokens[end : end + 12]


def test_a_step_has_the_gradient_of_the_mean_loss_of_its_predicted_tokens_up_to_a_length(config_file, monkeypatch):
    """Written out for four windows of three segments each; then with half the gradient's length as the limit."""
    settings = ("train.dropout=0.0", MIXED)
    run = woken_run(config_file, *settings)
    (stage,) = run.stages
    kls, deltas, lengths = [], [], set()
    for sample in sample_batch(
        run.pool, stage.layout, stage.train.segments, stage.train.probabilities, seed=run.seed, step=0, items=range(4)
    ):
        tokens = torch.from_numpy(run.dataset.read(sample.window)).long()
        for start, count, compact in zip(*map(list, (sample.starts, sample.n_spans, sample.compact)), strict=True):
            original, own, targets = predictions(run, tokens, int(start), int(count), bool(compact))
            lengths.add((int(count), bool(compact)))
            nll = torch.nn.functional.cross_entropy(own, targets, reduction="none")
            log_p, log_q = original.log_softmax(-1), own.log_softmax(-1)
            kls.append((log_p.exp() * (log_p - log_q)).sum(-1))
            deltas.append(nll - torch.nn.functional.cross_entropy(original, targets, reduction="none"))
    kl, delta = torch.cat(kls), torch.cat(deltas)
    assert len(kls) == 12
    assert len(lengths) > 3
    kl.mean().backward()
    expected = gradient_in(run)
    norm = float(torch.cat([gradient.flatten() for gradient in expected.values()]).norm())
    means = {"loss": kl.mean(), "kl": kl.mean(), "delta_nll": delta.mean()}
    for limit, share in ((1e9, 1.0), (norm / 2, 0.5)):
        monkeypatch.setattr(trainer, "GRADIENT_CLIP", limit)
        again = woken_run(config_file, *settings)
        metrics = one_step(again)
        assert {name: metrics[name] for name in means} == pytest.approx(
            {name: value.item() for name, value in means.items()}, rel=1e-4
        )
        assert metrics["gradient_norm"] == pytest.approx(norm, rel=1e-4)
        shortened = {name: share * gradient for name, gradient in expected.items()}
        assert_same(shortened, gradient_in(again), rtol=1e-3, atol=1e-5)


def test_dropout_draws_other_masks_at_every_step(config_file, monkeypatch):
    """On the windows of step 0 all along: with dropout each step has a gradient of its own, without it the same."""
    draw = trainer.sample_batch
    monkeypatch.setattr(trainer, "sample_batch", lambda *parts, **named: draw(*parts, **(named | {"step": 0})))
    for rate, alike in ((0.0, True), (0.3, False)):
        run = woken_run(config_file, f"train.dropout={rate}")
        gradients = []
        for step in (0, 1, 0):
            (stage,) = run.stages
            add_up_gradient(run, stage, TrainState(0.0, step=step), stage.optimiser())
            gradients.append(gradient_in(run)["w_out.weight"])
        assert torch.equal(gradients[0], gradients[1]) == alike
        assert torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize(("setting", "weight"), [("true", 0.075), ("false", 0.05)])
def test_lambda_rises_where_gists_are_alike_unless_told_otherwise(config_file, setting, weight):
    (stage,) = run_of(config_file, f"train.raise_contrastive_weight={setting}").stages
    state = TrainState(0.05)
    events = update_after_validation(stage, state, {"delta_nll": 1.0, "gist_diversity": 0.2, "cosine_std": 0.05})
    assert state.contrastive_weight == pytest.approx(weight)
    assert any("contrastive_weight_raised" in event for event in events) == (setting == "true")


@pytest.mark.parametrize(("watch", "best", "end"), [("kl", (1, 0.5), 3), ("delta_nll", (2, 0.4), 4)])
def test_the_watched_loss_says_which_checkpoint_is_the_best_and_when_the_stage_ends(config_file, watch, best, end):
    """Validations made up, one a step: KL rises twice after step 1, ΔNLL after step 2."""
    run = run_of(config_file, f"train.stop.watch={watch}", "train.stop.rises=2")
    (stage,) = run.stages
    state = TrainState(0.0)
    made_up = zip([0.9, 0.5, 0.6, 0.7, 0.8], [0.9, 0.8, 0.4, 0.5, 0.6], strict=True)
    for step, (kl, delta_nll) in enumerate(made_up):
        state.step = state.stage_step = step
        events = update_after_validation(
            stage, state, {"kl": kl, "delta_nll": delta_nll, "gist_diversity": 1.0, "cosine_std": 1.0}
        )
        save(run, stage, state, stage.optimiser())
        if state.ended:
            break
    assert (state.ended, state.step) == ("early stop", end)
    (event,) = events
    assert (event["stage_end"]["best_step"], event["stage_end"]["best_value"]) == best
    marked = json.loads((run.folder / "checkpoints" / "best.json").read_text(encoding="utf-8"))
    assert marked == {"training": {"checkpoint": f"step-{best[0]:08d}", "value": best[1]}}


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_documents(config_file, monkeypatch):
    """The network breaks after step 3, when no checkpoint was due: the message names documents and a good state."""
    run = run_of(config_file, "train.validation.every_steps=100")
    record = Recorder.record

    def breaking(self: Recorder, stage: StageRun, state: TrainState, metrics: dict, interrupted: bool) -> None:
        record(self, stage, state, metrics, interrupted)
        if state.step == 3:
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


def test_a_lost_process_before_the_first_checkpoint_leaves_nothing_to_name(tmp_path):
    network = SimpleNamespace(trainable_state=lambda: {"w": torch.ones(1)})
    run: Any = SimpleNamespace(folder=tmp_path, gistnet=network)
    with (
        pytest.raises(ProcessError, match=r"\(Connection closed by peer\); there is no checkpoint yet\.$"),
        keeping_the_last_good_state(run, stage=None, state=TrainState(0.0), optimiser=None),  # type: ignore[arg-type]
    ):
        raise RuntimeError("[/third_party/gloo/tcp/pair.cc:553] Connection closed by peer")
