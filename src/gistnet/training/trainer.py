"""Training: from a prepared corpus and a frozen teacher to a GistNet, resumable at any step.

`fit` is the loop. A step samples windows as a function of (seed, step), adds up the gradient of their branches, and
moves GistNet; a stage ends when its validations say so, and the next begins with its best network. The state between
steps is GistNet, the optimiser and a `TrainState`: a run that was interrupted and resumed, wherever that was, ends with
the same bits as one that was not.
"""

import hashlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, WindowSample, sample_batch
from gistnet.errors import CheckpointError, ProcessError, TrainingError
from gistnet.model.encoder import SpanEncoder
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import SegmentBatch, of_similar_length
from gistnet.objective.config import ObjectiveConfig
from gistnet.objective.losses import SegmentLosses, segment_losses
from gistnet.training.checkpoint import (
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
from gistnet.training.curriculum import (
    COLLAPSED_BELOW,
    is_best,
    is_due,
    raised_weight,
    reason_to_end,
    with_validation,
)
from gistnet.training.micro_batch import MicroBatch, run_halving
from gistnet.training.optimiser import learning_rate
from gistnet.training.parallel import losing_processes
from gistnet.training.recording import Recorder
from gistnet.training.run import Run, StageRun, TrainState

GRADIENT_CLIP = 1.0
"""Largest norm of the whole gradient (spec, Optimization Settings); a longer one is scaled down to it."""
KEPT_CHECKPOINTS = 2
"""Newest checkpoints that are kept, besides the best of each stage."""
SECONDS_TO_SAVE = 5.0
"""Longest wait of a process that lost another for the main one to save, before it names the last checkpoint."""


# The loop -------------------------------------------------------------------------------------------------------------


def fit(
    run: Run,
    *,
    resume: bool = False,
    trackers: Sequence[Tracker] = (),
    after_validation: Callable[[], object] = lambda: None,
) -> TrainState:
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
    state, optimiser = restore(run) if resume else begin(run)
    with Recorder(run, state, trackers, after_validation) as recorder, stop_requests() as stop:
        while True:
            stage = run.stages[state.stage - 1]
            with keeping_the_last_good_state(run, stage, state, optimiser):
                interrupted = _fit_stage(run, stage, state, optimiser, recorder, stop)
                if interrupted or run.is_finished(state):
                    return state
                optimiser = enter_next_stage(run, state)


def _fit_stage(
    run: Run, stage: StageRun, state: TrainState, optimiser: Optimizer, recorder: Recorder, stop: "StopRequest"
) -> bool:
    """Train to the end of a stage; returns whether a signal asked to stop meanwhile."""
    train = stage.train
    recorder.enter_stage(run, stage, state)
    if state.ended is None and _validation_is_due(stage, state):
        _validate(run, stage, state, recorder)
    save(run, stage, state, optimiser)  # where it exists, this only finishes what a kill may have cut short
    while state.ended is None:
        with run.processes.failing_together():
            sums = add_up_gradient(run, stage, state, optimiser)
        # Asked before the weights move: from there to the checkpoint no process waits for another.
        interrupted = run.processes.any(stop.requested)
        metrics = take_step(run, stage, state, optimiser, sums)
        recorder.record(stage, state, metrics, interrupted)
        # An interrupted run leaves a validation that is due to the one that resumes it, except at the very end.
        at_end = state.stage_step == train.steps
        validate = _validation_is_due(stage, state) and (at_end or not interrupted)
        if validate:
            _validate(run, stage, state, recorder)
        if validate or interrupted or is_due(state.stage_step, train.checkpoint_every_steps, last_step=train.steps):
            save(run, stage, state, optimiser)
        if interrupted:
            return True
    return False


def begin(run: Run) -> tuple[TrainState, Optimizer]:
    """State of a run before its first step."""
    stage = run.stages[0]
    return TrainState.at_start_of(stage), stage.optimiser()


def enter_next_stage(run: Run, state: TrainState) -> Optimizer:
    """Go on to the next stage from the best network of the one that ended, with a new optimiser.

    Only what the checkpoint of the ended stage holds decides, so that a run killed meanwhile does the same again.

    Raises:
        CheckpointError: the best checkpoint of the stage is gone or damaged.
    """
    run.processes.wait()  # until the main process has saved
    if state.best_step is None:
        raise CheckpointError("The stage that ended has no best checkpoint, expected one from its validations.")
    run.gistnet.load_saved(load_checkpoint(checkpoint_folder(run.folder, state.best_step)).gistnet_folder)
    stage = run.stages[state.stage]
    state.enter(stage)
    return stage.optimiser()


# A validation and what follows from it --------------------------------------------------------------------------------


def _validation_is_due(stage: StageRun, state: TrainState) -> bool:
    """True if a validation is still to be made here: one is due before a stage's first step and after its last."""
    train = stage.train
    due = is_due(state.stage_step, train.validation.every_steps, last_step=train.steps, first=True)
    return due and not (state.validations and state.validations[-1].step == state.stage_step)


def _validate(run: Run, stage: StageRun, state: TrainState, recorder: Recorder) -> None:
    """Measure GistNet on the stage's held-out spans, draw the consequences, and record both."""
    result = recorder.measure(run, stage)
    events = update_after_validation(stage, state, result)
    recorder.report(state, result | {"moving_average": state.validations[-1].average}, events)


def update_after_validation(stage: StageRun, state: TrainState, result: dict[str, float]) -> list[dict[str, Any]]:
    """Note in `state` what follows from a validation: the best so far, λ, and whether the stage ends.

    Returns:
        Events for the metrics: an alarm, a change of λ, the end of the stage.

    Raises:
        TrainingError: the watched loss is not a number.
    """
    train = stage.train
    events: list[dict[str, Any]] = []
    state.validations = with_validation(state.validations, state.stage_step, result[train.stop.watch], train.stop)
    if is_best(state.validations):
        # The network a stage begins with is in the checkpoint of the stage before.
        if state.stage_step > 0 or state.stage == 1:
            state.best_step = state.step
        state.best = result
    if (distance := result["gist_diversity"]) < COLLAPSED_BELOW:
        alarm = f"Gists collapse: their mean cosine distance is {distance:.3f}, expected {COLLAPSED_BELOW} or more."
        events.append({"alarm": alarm})
    before = state.contrastive_weight
    after = raised_weight(before, result["cosine_std"], result["gist_diversity"])
    if train.raise_contrastive_weight and after != before:
        state.contrastive_weight = after
        events.append({"contrastive_weight_raised": {"from": before, "to": after}})
    state.ended = reason_to_end(state.validations, train.steps, train.stop)
    if state.ended is not None:
        targets = [
            {"name": name, "value": state.best.get(name), "above": target.above, "below": target.below}
            | {"met": target.is_met_by(state.best[name]) if name in state.best else None}
            for name, target in stage.targets.items()
        ]
        best = {"best_step": state.best_step, "best_value": state.best[train.stop.watch]}
        events.append({"stage_end": {"name": stage.name, "reason": state.ended, **best, "targets": targets}})
    return events


# A step ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BatchSums:
    """Sums over a step's batches, beside their gradient.

    Attributes:
        losses: of each of `SegmentLosses`' fields over the branches of this process, float64 `[fields]`.
        branches: of all processes.
        spans: replaced in the branches of all processes.
    """

    losses: Tensor
    branches: int
    spans: int


def train_step(run: Run, stage: StageRun, state: TrainState, optimiser: Optimizer) -> dict[str, float]:
    """One optimiser step; advances `state` and returns the batch's mean losses (nats per token) and its gradient.

    Raises:
        TrainingError: a loss or the gradient is not finite; neither GistNet nor `state` has changed.
    """
    return take_step(run, stage, state, optimiser, add_up_gradient(run, stage, state, optimiser))


def add_up_gradient(run: Run, stage: StageRun, state: TrainState, optimiser: Optimizer) -> BatchSums:
    """Add up the gradient of this process's share of the step's batches in GistNet.

    Raises:
        TrainingError: a loss is not finite; neither GistNet's weights nor `state` have changed.
    """
    train = stage.train
    batches = [
        range(first, first + train.windows_per_batch)
        for first in range(0, train.windows_per_batch * train.accumulation_steps, train.windows_per_batch)
    ]
    everything = [
        sample_batch(
            run.pool,
            stage.layout,
            train.segments,
            train.probabilities,
            seed=run.seed,
            step=state.step,
            items=items,
        )
        for items in batches
    ]
    n_spans = np.concatenate([sample.n_spans for samples in everything for sample in samples])
    objective = stage.objective.model_copy(update={"contrastive_weight": state.contrastive_weight})

    def accumulate(sizes: MicroBatch) -> Tensor:
        optimiser.zero_grad(set_to_none=False)
        sums = torch.zeros(len(SegmentLosses._fields), dtype=torch.float64, device=run.teacher.device)
        for items, samples in zip(batches, everything, strict=True):
            sums += accumulate_gradient(
                run.teacher,
                run.dataset,
                stage,
                objective,
                [samples[item - items.start] for item in run.processes.share(items)],
                branches_in_step=len(n_spans),
                sizes=sizes,
                dropout_seed=(run.seed, state.step),
            )
        return sums

    # The sizes that fit are kept for later steps, and for a resumed run, which then rounds alike.
    sums, state.micro_batch = run_halving(accumulate, state.micro_batch or stage.micro_batch)
    state.processes = run.processes.count
    return BatchSums(sums, branches=len(n_spans), spans=int(n_spans.sum()))


def accumulate_gradient(
    teacher: Teacher,
    dataset: PreparedDataset,
    stage: StageRun,
    objective: ObjectiveConfig,
    samples: Sequence[WindowSample],
    *,
    branches_in_step: int,
    sizes: MicroBatch,
    dropout_seed: tuple[int, int],
) -> Tensor:
    """Add the gradient of windows that are read together to the parameters of the stage's GistNet.

    Args:
        objective: the stage's, with λ as it has become.
        samples: the windows and their segments.
        branches_in_step: of all windows and processes; each counts alike.
        sizes: how many windows and vectors run through the teacher at once; bounds memory.
        dropout_seed: (seed, step).

    Returns:
        `BatchSums.losses`.

    Raises:
        TrainingError: a loss is not finite; names the windows.
    """
    layout, encoder = stage.layout, SpanEncoder(teacher, stage.gistnet)
    sums = torch.zeros(len(SegmentLosses._fields), dtype=torch.float64, device=teacher.device)
    for first in range(0, len(samples), sizes.windows):
        group = samples[first : first + sizes.windows]
        tokens = prefill_tokens(teacher, dataset, group, layout.window_tokens)
        prefill = encoder.prefill(tokens)
        keys = torch.tensor([_dropout_key(*dropout_seed, sample.item) for sample in group], device=teacher.device)
        for segments, compact in segment_micro_batches(tokens, group, sizes.vectors, layout):
            losses = segment_losses(
                encoder,
                prefill,
                segments,
                objective,
                compact=compact,
                train_below=stage.train.train_below,
                dropout_rate=stage.train.dropout,
                dropout_keys=keys,
            )
            if not bool(torch.isfinite(losses.total).all()):
                infos = [dataset.describe(group[row].window) for row in segments.windows.unique().tolist()]
                where = (f"{info.document_id} at token {info.offset}" for info in infos)
                raise TrainingError(f"The loss is not finite (documents: {', '.join(where)})")
            (losses.total.sum() / branches_in_step).backward()
            sums += torch.stack([field.detach().double().sum() for field in losses])
        del prefill, losses  # or they would be held while the next windows are read
    return sums


def take_step(run: Run, stage: StageRun, state: TrainState, optimiser: Optimizer, batch: BatchSums) -> dict[str, float]:
    """Sum the gradient over all processes and move GistNet by it; returns what `train_step` does.

    Raises:
        TrainingError: the gradient is not finite; neither GistNet nor `state` has changed.
    """
    run.processes.sum_in_place([batch.losses])
    norm = _clipped_gradient_norm(run, optimiser, state.step, GRADIENT_CLIP)
    rate = learning_rate(state.stage_step, stage.train.steps, stage.train.optimiser)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.step()
    state.step += 1
    state.stage_step += 1
    state.spans_seen += batch.spans
    names, means = ("loss", *SegmentLosses._fields[1:]), (batch.losses / batch.branches).tolist()
    return {
        **dict(zip(names, means, strict=True)),
        "contrastive_weight": state.contrastive_weight,
        "spans_seen": state.spans_seen,
        "learning_rate": rate,
        "gradient_norm": norm,
    }


def _clipped_gradient_norm(run: Run, optimiser: Optimizer, step: int, longest: float) -> float:
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    run.processes.sum_in_place([p.grad for p in parameters if p.grad is not None])
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, longest))
    if not norm < float("inf"):
        raise TrainingError(f"The gradient of step {step + 1} has norm {norm}, expected a finite one")
    return norm


def prefill_tokens(
    teacher: Teacher, dataset: PreparedDataset, samples: Sequence[WindowSample], window_tokens: int | None
) -> Tensor:
    """Token ids of windows on the teacher's device, `[windows, tokens]`.

    Shorter windows end in zeros, which no branch sees.

    Args:
        window_tokens: tokens taken of each window, from its first on; None takes all.

    Raises:
        TeacherError: a token id is outside the vocabulary.
    """
    windows = [torch.from_numpy(dataset.read(sample.window)[:window_tokens]) for sample in samples]
    tokens = pad_sequence(windows, batch_first=True)
    teacher.require_in_vocabulary(tokens)
    if teacher.device.type == "cuda":
        tokens = tokens.pin_memory()
    return tokens.to(teacher.device, non_blocking=True)


def segment_micro_batches(
    tokens: Tensor, samples: Sequence[WindowSample], vectors_at_once: int, layout: SpanLayout
) -> Iterator[tuple[SegmentBatch, Tensor]]:
    """Segments of windows in micro-batches of similar length, each with those that are compact, bool `[branches]`.

    Args:
        tokens: of the windows, `[windows, tokens]`.
    """
    starts, n_spans, compact = (
        np.concatenate([getattr(sample, name) for sample in samples]) for name in ("starts", "n_spans", "compact")
    )
    windows = np.repeat(np.arange(len(samples)), [len(sample.starts) for sample in samples])
    vectors = (n_spans + layout.horizon_tokens - 1).tolist()
    for branches in of_similar_length(vectors, vectors_at_once):
        columns = (torch.from_numpy(column[branches]).to(tokens.device) for column in (windows, starts, n_spans))
        window, start, count = columns
        segments = SegmentBatch(tokens, window, start, layout.tokens_per_gist, count, layout.horizon_tokens)
        yield segments, torch.from_numpy(compact[branches]).to(tokens.device)


def _dropout_key(seed: int, step: int, item: int) -> int:
    """A signed 64-bit number that no other window of the run shares."""
    digest = hashlib.blake2b(f"{seed}:{step}:{item}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


# Saving and stopping --------------------------------------------------------------------------------------------------


def restore(run: Run) -> tuple[TrainState, Optimizer]:
    """State of the newest checkpoint of the run's folder, where there is one; loads its weights into GistNet.

    Raises:
        CheckpointError: it is damaged, or of another run.
    """
    folder = latest_checkpoint(run.folder)
    if folder is None:
        return begin(run)
    checkpoint = load_checkpoint(folder)
    state = TrainState.read(checkpoint.train_state)
    if state.stage > len(run.stages):
        raise CheckpointError(f"{folder} is of stage {state.stage}, but the configuration has {len(run.stages)}.")
    require_same_run(checkpoint, run.identity(state.stage))
    run.gistnet.load_saved(checkpoint.gistnet_folder)
    stage = run.stages[state.stage - 1]
    optimiser = stage.optimiser()
    restore_optimiser(optimiser, checkpoint)
    if state.ended == "step limit" and state.stage_step < stage.train.steps:
        state.ended = None  # the limit was raised since
    state.micro_batch = stage.resumed_micro_batch(state, run.processes.count)
    return state, optimiser


def save(run: Run, stage: StageRun, state: TrainState, optimiser: Optimizer) -> None:
    """Write a checkpoint, mark it where it is the best, and delete those no longer wanted; the main process does."""
    if not run.processes.is_main:
        return
    save_checkpoint(
        run.folder,
        step=state.step,
        gistnet=run.gistnet,
        optimiser=optimiser,
        train_state=vars(state),
        identity=run.identity(state.stage),
    )
    if state.best_step is not None and state.best:
        mark_best(run.folder, stage.name, state.best_step, state.best[stage.train.stop.watch])
    prune_checkpoints(run.folder, KEPT_CHECKPOINTS)


@dataclass
class StopRequest:
    """True if a signal asked to stop; no `threading.Event`, whose lock a second signal would wait for in vain."""

    requested: bool = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT instead of dying, so that the step under way ends in a checkpoint.

    SIGTERM stays noted where the block ends in a `ProcessError`: the launcher, which misses the same process, sends it
    to those that are left, and it must not cut off the sentence that they end with.
    """
    stop = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        stop.requested = True

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    except ProcessError:
        del before[signal.SIGTERM]
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def keeping_the_last_good_state(run: Run, stage: StageRun, state: TrainState, optimiser: Optimizer) -> Iterator[None]:
    """Save the state before a step that fails, if it is sound, and name the last good checkpoint in the error.

    Raises:
        TrainingError: what ended the block, with that added.
        ProcessError: the same, where another process is gone or cannot be reached.
    """
    try:
        with losing_processes():
            yield
    except TrainingError as error:
        sound = all(bool(torch.isfinite(tensor).all()) for tensor in run.gistnet.trainable_state().values())
        if sound and state.step > 0:
            save(run, stage, state, optimiser)
            _await_checkpoint(run, state.step)
        last = latest_checkpoint(run.folder)
        kept = "there is no checkpoint yet"
        if last is not None:
            kept = f"the last good checkpoint is {last}"
            if isinstance(error, ProcessError):
                kept += "; --resume continues from it on any number of processes"
        raise type(error)(f"{str(error).rstrip('.')}; {kept}.") from error


def _await_checkpoint(run: Run, step: int) -> None:
    """Give the main process the time to save, where it still can: what is gone may be just that one."""
    until = time.monotonic() + SECONDS_TO_SAVE
    while not checkpoint_folder(run.folder, step).is_dir() and time.monotonic() < until:
        time.sleep(0.1)
