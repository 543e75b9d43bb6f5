"""Training: from a prepared corpus and a frozen teacher to a GistNet, resumable at any step.

`fit` is the whole story. A step samples windows as a function of (seed, step), adds up the gradient of their branches,
and moves GistNet. The state between steps is GistNet, the optimiser and a few numbers; a run that was interrupted and
resumed ends with the same bits as one that was not.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pydantic import Field
from torch.optim import AdamW

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import (
    SpanLayout,
    TrainingPool,
    check_sampling,
    sample_batch,
    training_pool,
    validation_windows,
)
from gistnet.errors import TrainingError
from gistnet.evaluation.validation import ValidationConfig
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.objective import BranchLosses, ObjectiveConfig
from gistnet.settings import Section
from gistnet.train.checkpoint import (
    best_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    mark_best,
    prune_checkpoints,
    require_same_run,
    restore_optimiser,
    save_checkpoint,
)
from gistnet.train.parallel import Processes
from gistnet.train.recorder import Recorder
from gistnet.train.schedule import OptimiserConfig, build_optimiser, is_due, learning_rate
from gistnet.train.step import accumulate_gradient


class TrainConfig(Section):
    """How long, on how much, and what is kept. A step's batch is counted in branches: batches × windows × spans."""

    steps: int = Field(default=10_000, ge=1)
    """Optimiser steps."""
    probabilities: dict[str, float] = Field(default={"narrative": 1.0})
    """The probability with which a window is of each domain; they sum to 1."""
    windows_per_batch: int = Field(default=8, ge=1)
    """Windows read at once, over all processes; each process reads its share."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Batches whose gradients are added up before a step."""
    spans_per_window: int = Field(default=8, ge=1)
    """Stretches drawn from each window."""
    gists_in_a_row: int = Field(default=1, ge=1)
    """k, the consecutive spans that a branch replaces."""
    sink_tokens: int = Field(default=4, ge=1)
    """First tokens of a window that are never replaced, since attention rests on them."""
    branches_per_pass: int = Field(default=64, ge=1)
    """Branches that run through the teacher at once; only memory and speed depend on it."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations dropped inside GistNet."""
    optimiser: OptimiserConfig = OptimiserConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint_every_steps: int = Field(default=1000, ge=1)
    """Steps between checkpoints; there is also one at each validation, at the end, and when interrupted."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the newest checkpoints are kept; the best is kept besides."""
    log_every_steps: int = Field(default=10, ge=1)
    """Steps between lines of metrics."""


@dataclass
class Progress:
    """What a run knows besides weights and optimiser state."""

    step: int = 0
    spans_seen: int = 0
    best_score: float | None = None
    """The lowest validated KL@H, nats per token."""
    best_step: int | None = None
    """The step at which it was measured."""
    validated_step: int | None = None
    """The step after which the last validation was made."""


@dataclass(frozen=True)
class Run:
    """What a training run works with, all of it fixed before the first step."""

    folder: Path
    teacher: Teacher
    gistnet: GistNet
    optimiser: AdamW
    dataset: PreparedDataset
    pool: TrainingPool
    layout: SpanLayout
    objective: ObjectiveConfig
    config: TrainConfig
    seed: int
    processes: Processes

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be resumed."""
        return {
            "teacher": self.teacher.fingerprint.model_dump(mode="json", include={"config_hash", "embedding_hash"}),
            "gistnet": self.gistnet.config.model_dump(mode="json"),
            "objective": self.objective.model_dump(mode="json", exclude={"chunk_tokens"}),
            "dataset": self.dataset.fingerprint,
            "seed": self.seed,
        }


def build_run(
    folder: Path,
    teacher: Teacher,
    gistnet: GistNet,
    dataset: PreparedDataset,
    objective: ObjectiveConfig,
    config: TrainConfig,
    *,
    seed: int,
    processes: Processes,
    source_weights: dict[str, float] | None = None,
) -> Run:
    """Put a run together, and refuse one that could not finish.

    Raises:
        ConfigError: the probabilities do not sum to 1, or a batch cannot be shared among the processes.
        DataError: a domain has no training or no held-out windows, or they are too short for a stretch and its
            horizon.
    """
    layout = SpanLayout(
        span_tokens=gistnet.config.span_tokens,
        horizon_tokens=objective.horizon_tokens,
        spans_per_window=config.spans_per_window,
        gists_in_a_row=config.gists_in_a_row,
        sink_tokens=config.sink_tokens,
    )
    pool = training_pool(dataset, source_weights)
    check_sampling(pool, layout, config.probabilities)
    domains = [domain for domain, share in config.probabilities.items() if share > 0]
    validation_windows(dataset, layout, documents=1, spans_per_document=1, seed=seed, domains=domains)
    processes.share(range(config.windows_per_batch))
    optimiser = build_optimiser(gistnet.named_parameters(), config.optimiser)
    return Run(folder, teacher, gistnet, optimiser, dataset, pool, layout, objective, config, seed, processes)


def fit(run: Run, *, resume: bool = False) -> Progress:
    """Train until the last step, or until SIGTERM or SIGINT asks to stop; either way a checkpoint holds the end.

    Args:
        resume: continue from the newest checkpoint of the run's folder, where there is one.

    Raises:
        TrainingError: a loss or the gradient is not finite; the state before that step is saved.
        CheckpointError: the checkpoint to resume from is damaged or of another run.
        StorageError: the disk is full; earlier checkpoints are untouched.
    """
    steps = run.config.steps
    progress = restore(run) if resume else Progress()
    with Recorder(run, progress) as recorder, _stop_requests() as stop:
        if _validation_is_due(run, progress):
            recorder.validate(run, progress)
        if progress.step > 0:
            save(run, progress)  # finishes what a kill may have cut short: the mark of the best, the pruning
        while progress.step < steps:
            try:
                metrics = train_step(run, progress)
            except TrainingError as error:
                raise TrainingError(f"{error}; {_kept_after_failure(run, progress)}.") from error
            interrupted = run.processes.any(stop.requested)
            recorder.record(run, progress, metrics, interrupted)
            validate = _validation_is_due(run, progress) and (not interrupted or progress.step == steps)
            if validate:
                recorder.validate(run, progress)
            checkpoint = is_due(
                progress.step, run.config.checkpoint_every_steps, last_step=steps, interrupted=interrupted
            )
            if validate or checkpoint:
                save(run, progress)
            if interrupted:
                break
    return progress


def train_step(run: Run, progress: Progress) -> dict[str, float]:
    """One optimiser step; advances `progress` and returns the batch's mean losses (nats per token) and its gradient.

    Raises:
        TrainingError: a loss or the gradient is not finite; neither GistNet nor `progress` has changed.
    """
    config, step = run.config, progress.step
    batches = [
        range(first, first + config.windows_per_batch)
        for first in range(0, config.windows_per_batch * config.accumulation_steps, config.windows_per_batch)
    ]
    everything = [
        sample_batch(run.pool, run.layout, config.probabilities, seed=run.seed, step=step, items=items)
        for items in batches
    ]
    branches = sum(len(sample.starts) for samples in everything for sample in samples)
    rate = learning_rate(step, config.steps, config.optimiser)
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    run.optimiser.zero_grad(set_to_none=False)
    run.gistnet.train()
    sums = torch.zeros(len(BranchLosses._fields), dtype=torch.float64, device=run.teacher.device)
    for items, samples in zip(batches, everything, strict=True):
        sums += accumulate_gradient(
            run.teacher,
            run.gistnet,
            run.dataset,
            [samples[item - items.start] for item in run.processes.share(items)],
            run.layout,
            run.objective,
            branches_in_batch=branches,
            branches_per_pass=config.branches_per_pass,
            dropout_rate=config.dropout,
            dropout_seed=(run.seed, step),
        )
    run.processes.sum_in_place([sums])
    norm = _clipped_gradient_norm(run, step)
    run.optimiser.step()
    progress.step += 1
    progress.spans_seen += branches * run.layout.gists_in_a_row
    means = dict(zip(("loss", *BranchLosses._fields[1:]), (sums / branches).tolist(), strict=True))
    return {**means, "spans_seen": progress.spans_seen, "learning_rate": rate, "gradient_norm": norm}


def restore(run: Run) -> Progress:
    """Load the newest checkpoint of the run's folder, where there is one, into GistNet and optimiser.

    Raises:
        CheckpointError: it is damaged, or of another run.
    """
    folder = latest_checkpoint(run.folder)
    if folder is None:
        return Progress()
    checkpoint = load_checkpoint(folder)
    require_same_run(checkpoint, run.identity)
    saved = GistNet.from_pretrained(checkpoint.gistnet_folder, run.teacher)
    run.gistnet.load_trainable_state(saved.trainable_state())
    restore_optimiser(run.optimiser, checkpoint)
    return Progress(**checkpoint.progress)


def save(run: Run, progress: Progress) -> None:
    """Write a checkpoint, mark it where it is the best, and delete those no longer wanted; the main process does."""
    if not run.processes.is_main:
        return
    folder = save_checkpoint(
        run.folder,
        step=progress.step,
        gistnet=run.gistnet,
        optimiser=run.optimiser,
        progress=vars(progress),
        identity=run.identity,
    )
    if progress.best_step == progress.step and progress.best_score is not None:
        mark_best(run.folder, folder, progress.best_score)
    prune_checkpoints(run.folder, run.config.keep_checkpoints, best_checkpoint(run.folder))


def _validation_is_due(run: Run, progress: Progress) -> bool:
    """Whether a validation is still to be made here; a run interrupted before the end leaves it to the resumed one."""
    due = is_due(progress.step, run.config.validation.every_steps, last_step=run.config.steps, first=True)
    return due and progress.validated_step != progress.step


def _kept_after_failure(run: Run, progress: Progress) -> str:
    """Save the state before a step that failed, if it is sound, and say where it, or an earlier one, is."""
    sound = all(bool(torch.isfinite(tensor).all()) for tensor in run.gistnet.trainable_state().values())
    if sound and progress.step > 0:
        save(run, progress)
    last = latest_checkpoint(run.folder)
    return f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"


def _clipped_gradient_norm(run: Run, step: int) -> float:
    parameters = [p for p in run.gistnet.parameters() if p.requires_grad]
    run.processes.sum_in_place([p.grad for p in parameters if p.grad is not None])
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, run.config.optimiser.gradient_clip))
    if not norm < float("inf"):
        raise TrainingError(f"The gradient of step {step + 1} has norm {norm}, expected a finite one")
    return norm


@dataclass
class _StopRequest:
    requested: bool = False


@contextmanager
def _stop_requests() -> Iterator[_StopRequest]:
    """Note SIGTERM and SIGINT instead of dying, so that the step under way ends in a checkpoint."""
    stop = _StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        stop.requested = True

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
