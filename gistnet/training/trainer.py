"""Training: from a prepared corpus and a frozen teacher to a GistNet, resumable at any step.

`fit` is the whole story. A step samples windows as a function of (seed, step), adds up the gradient of their branches,
and moves GistNet; a stage ends when its validations say so, and the next begins with its best network. The state
between steps is GistNet, the optimiser and a few numbers; a run that was interrupted and resumed, wherever that was,
ends with the same bits as one that was not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from gistnet.data.sampling import sample_batch
from gistnet.errors import CheckpointError, TrainingError
from gistnet.objective.objective import BranchLosses
from gistnet.training.checkpoint import (
    Checkpoint,
    checkpoint_folder,
    latest_checkpoint,
    load_checkpoint,
    mark_best,
    prune_checkpoints,
    require_same_run,
    restore_optimiser,
    save_checkpoint,
)
from gistnet.training.config import Tracker
from gistnet.training.curriculum import COLLAPSED_BELOW, checked, is_best, raised_weight, reason_to_end
from gistnet.training.micro_batch import MicroBatch, run_halving
from gistnet.training.recorder import Recorder
from gistnet.training.run import Progress, Run
from gistnet.training.schedule import is_due, learning_rate
from gistnet.training.step import accumulate_gradient
from gistnet.training.stopping import StopRequest, keeping_the_last_good_state, stop_requests


@dataclass(frozen=True)
class BatchSums:
    """What a step's batches come to, beside their gradient.

    Attributes:
        losses: the sum of each of `BranchLosses`' fields over the branches of this process, float64.
        branches: of all processes.
        spans: replaced by those branches.
    """

    losses: Tensor
    branches: int
    spans: int


def fit(
    run: Run,
    *,
    resume: bool = False,
    trackers: Sequence[Tracker] = (),
    after_validation: Callable[[], object] = lambda: None,
) -> Progress:
    """Train through all stages, or until SIGTERM or SIGINT asks to stop; either way a checkpoint holds the end.

    Args:
        resume: continue from the newest checkpoint of the run's folder, where there is one.
        trackers: where metrics go besides the run folder.
        after_validation: is called in the main process when a validation is on disk.

    Raises:
        TrainingError: a loss or the gradient is not finite, or another process is gone; the state before that step is
            saved.
        CheckpointError: the checkpoint to resume from is damaged or of another run.
        StorageError: the disk is full; earlier checkpoints are untouched.
    """
    progress, optimiser = restore(run) if resume else begin(run)
    with Recorder(run, progress, trackers, after_validation) as recorder, stop_requests() as stop:
        while True:
            interrupted = _fit_stage(run, progress, optimiser, recorder, stop)
            if interrupted or run.is_finished(progress):
                return progress
            with keeping_the_last_good_state(run, progress, partial(save, run, progress, optimiser)):
                optimiser = enter_next_stage(run, progress)


def _fit_stage(run: Run, progress: Progress, optimiser: Optimizer, recorder: Recorder, stop: StopRequest) -> bool:
    """Train to the end of a stage; returns whether a signal asked to stop meanwhile."""
    train = run.stage(progress).train
    with keeping_the_last_good_state(run, progress, partial(save, run, progress, optimiser)):
        recorder.enter_stage(run, progress)
        if progress.ended is None and _validation_is_due(run, progress):
            _validate(run, progress, recorder)
        save(run, progress, optimiser)  # where it exists, this only finishes what a kill may have cut short
        while progress.ended is None:
            with run.processes.failing_together():
                sums = add_up_gradient(run, progress, optimiser)
            # Asked before the weights move: from there to the checkpoint no process waits for another.
            interrupted = run.processes.any(stop.requested)
            metrics = take_step(run, progress, optimiser, sums)
            recorder.record(run, progress, metrics, interrupted)
            # An interrupted run leaves a validation that is due to the one that resumes it, except at the very end.
            at_end = progress.stage_step == train.steps
            validate = _validation_is_due(run, progress) and (at_end or not interrupted)
            if validate:
                _validate(run, progress, recorder)
            due = is_due(progress.stage_step, train.checkpoint_every_steps, last_step=train.steps)
            if validate or interrupted or due:
                save(run, progress, optimiser)
            if interrupted:
                return True
    return False


def _validate(run: Run, progress: Progress, recorder: Recorder) -> None:
    """Measure GistNet on the stage's held-out spans, draw the consequences, and record both."""
    result = recorder.measure(run, progress)
    events = judge(run, progress, result)
    recorder.report(progress, result | {"moving_average": progress.checks[-1].average}, events)


def judge(run: Run, progress: Progress, result: dict[str, float]) -> list[dict[str, Any]]:
    """Note in `progress` what follows from a validation: the best so far, λ, and whether the stage ends.

    Returns:
        What is worth telling, as it stands in the metrics: an alarm, a change of λ, the end of the stage.

    Raises:
        TrainingError: the watched loss is not a number.
    """
    stage = run.stage(progress)
    events: list[dict[str, Any]] = []
    progress.checks = checked(progress.checks, progress.stage_step, result[stage.train.stop.watch], stage.train.stop)
    if is_best(progress.checks):
        # The network a stage begins with is in the checkpoint of the stage before.
        if progress.stage_step > 0 or progress.stage == 1:
            progress.best_step = progress.step
        progress.best = result
    if (distance := result["gist_diversity"]) < COLLAPSED_BELOW:
        alarm = f"Gists collapse: their mean cosine distance is {distance:.3f}, expected {COLLAPSED_BELOW} or more."
        events.append({"alarm": alarm})
    before = stage.objective.contrastive_weight
    after = raised_weight(before, result["cosine_std"], result["gist_diversity"], stage.train.contrastive_rule)
    if after != before:
        progress.contrastive_weight = after
        events.append({"contrastive_weight_raised": {"from": before, "to": after}})
    progress.ended = reason_to_end(progress.checks, stage.train.steps, stage.train.stop)
    if progress.ended is not None:
        targets = [
            {"name": name, "value": progress.best.get(name), "above": target.above, "below": target.below}
            | {"met": target.is_met_by(progress.best[name]) if name in progress.best else None}
            for name, target in stage.targets.items()
        ]
        best = {"best_step": progress.best_step, "best_value": progress.best[stage.train.stop.watch]}
        events.append({"stage_end": {"name": stage.name, "reason": progress.ended, **best, "targets": targets}})
    return events


def begin(run: Run) -> tuple[Progress, Optimizer]:
    """The state of a run before its first step."""
    progress = Progress()
    return progress, run.optimiser(progress)


def enter_next_stage(run: Run, progress: Progress) -> Optimizer:
    """Go on to the next stage from the best network of the one that ended, with a new optimiser.

    Only what the checkpoint of the ended stage holds decides, so that a run killed meanwhile does the same again.

    Raises:
        CheckpointError: the best checkpoint of the stage is gone or damaged.
    """
    run.processes.wait()  # until the main process has saved
    checkpoint = load_checkpoint(checkpoint_folder(run.folder, _known(progress.best_step)))
    _load_weights(run, checkpoint)
    progress.stage += 1
    progress.stage_step = 0
    progress.checks, progress.best, progress.contrastive_weight, progress.ended = [], {}, None, None
    progress.micro_batch = None
    return run.optimiser(progress)


def train_step(run: Run, progress: Progress, optimiser: Optimizer) -> dict[str, float]:
    """One optimiser step; advances `progress` and returns the batch's mean losses (nats per token) and its gradient.

    Raises:
        TrainingError: a loss or the gradient is not finite; neither GistNet nor `progress` has changed.
    """
    return take_step(run, progress, optimiser, add_up_gradient(run, progress, optimiser))


def add_up_gradient(run: Run, progress: Progress, optimiser: Optimizer) -> BatchSums:
    """Read this process's share of the step's batches, which leaves the gradient of its branches in GistNet.

    Raises:
        TrainingError: a loss is not finite; neither GistNet's weights nor `progress` have changed.
    """
    stage, step = run.stage(progress), progress.step
    config = stage.train
    batches = [
        range(first, first + config.windows_per_batch)
        for first in range(0, config.windows_per_batch * config.accumulation_steps, config.windows_per_batch)
    ]
    everything = [
        sample_batch(run.pool, stage.layout, config.runs, config.probabilities, seed=run.seed, step=step, items=items)
        for items in batches
    ]
    branches = sum(len(sample.starts) for samples in everything for sample in samples)

    def accumulate(sizes: MicroBatch) -> Tensor:
        optimiser.zero_grad(set_to_none=False)
        sums = torch.zeros(len(BranchLosses._fields), dtype=torch.float64, device=run.teacher.device)
        for items, samples in zip(batches, everything, strict=True):
            sums += accumulate_gradient(
                run.teacher,
                run.trained_gistnet(progress),
                run.dataset,
                [samples[item - items.start] for item in run.processes.share(items)],
                stage.layout,
                stage.objective,
                train_below=config.train_below,
                branches_in_batch=branches,
                sizes=sizes,
                dropout_rate=config.dropout,
                dropout_seed=(run.seed, step),
            )
        return sums

    # The sizes that fit are kept for later steps, and for a resumed run, which then rounds alike.
    sums, progress.micro_batch = run_halving(accumulate, progress.micro_batch or stage.micro_batch, run.say)
    progress.processes = run.processes.count
    return BatchSums(sums, branches, spans=sum(int(sample.gists.sum()) for samples in everything for sample in samples))


def take_step(run: Run, progress: Progress, optimiser: Optimizer, batch: BatchSums) -> dict[str, float]:
    """Sum the gradient over all processes and move GistNet by it; returns what `train_step` does.

    Raises:
        TrainingError: the gradient is not finite; neither GistNet nor `progress` has changed.
    """
    stage = run.stage(progress)
    config = stage.train
    run.processes.sum_in_place([batch.losses])
    norm = _clipped_gradient_norm(run, optimiser, progress.step, config.optimiser.gradient_clip)
    rate = learning_rate(progress.stage_step, config.steps, config.optimiser)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    progress.step += 1
    progress.stage_step += 1
    progress.spans_seen += batch.spans
    means = dict(zip(("loss", *BranchLosses._fields[1:]), (batch.losses / batch.branches).tolist(), strict=True))
    return {
        **means,
        "contrastive_weight": stage.objective.contrastive_weight,
        "spans_seen": progress.spans_seen,
        "learning_rate": rate,
        "gradient_norm": norm,
    }


def restore(run: Run) -> tuple[Progress, Optimizer]:
    """The state of the newest checkpoint of the run's folder, where there is one; loads its weights into GistNet.

    Raises:
        CheckpointError: it is damaged, or of another run.
    """
    folder = latest_checkpoint(run.folder)
    if folder is None:
        return begin(run)
    checkpoint = load_checkpoint(folder)
    progress = Progress.read(checkpoint.progress)
    if progress.stage > len(run.stages):
        raise CheckpointError(f"{folder} is of stage {progress.stage}, but the configuration has {len(run.stages)}.")
    require_same_run(checkpoint, run.identity(progress))
    _load_weights(run, checkpoint)
    optimiser = run.optimiser(progress)
    restore_optimiser(optimiser, checkpoint)
    if progress.ended == "step limit" and progress.stage_step < run.stage(progress).train.steps:
        progress.ended = None  # the limit was raised since
    progress.micro_batch = run.resumed_micro_batch(progress)
    return progress, optimiser


def save(run: Run, progress: Progress, optimiser: Optimizer) -> None:
    """Write a checkpoint, mark it where it is the best, and delete those no longer wanted; the main process does."""
    if not run.processes.is_main:
        return
    save_checkpoint(
        run.folder,
        step=progress.step,
        gistnet=run.gistnet,
        optimiser=optimiser,
        progress=vars(progress),
        identity=run.identity(progress),
    )
    stage = run.stage(progress)
    if progress.best_step is not None and progress.best:
        mark_best(run.folder, stage.name, progress.best_step, progress.best[stage.train.stop.watch])
    prune_checkpoints(run.folder, stage.train.keep_checkpoints)


def _load_weights(run: Run, checkpoint: Checkpoint) -> None:
    run.gistnet.load_saved(checkpoint.gistnet_folder)


def _validation_is_due(run: Run, progress: Progress) -> bool:
    """Whether a validation is still to be made here: one is due before a stage's first step and after its last."""
    train = run.stage(progress).train
    due = is_due(progress.stage_step, train.validation.every_steps, last_step=train.steps, first=True)
    return due and not (progress.checks and progress.checks[-1].step == progress.stage_step)


def _clipped_gradient_norm(run: Run, optimiser: Optimizer, step: int, longest: float) -> float:
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    run.processes.sum_in_place([p.grad for p in parameters if p.grad is not None])
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, longest))
    if not norm < float("inf"):
        raise TrainingError(f"The gradient of step {step + 1} has norm {norm}, expected a finite one")
    return norm


def _known(step: int | None) -> int:
    if step is None:
        raise CheckpointError("The stage that ended has no best checkpoint, expected one from its validations.")
    return step
