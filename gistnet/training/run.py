"""What a training run is made of: its parts, its stages, and what it knows between steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch.optim import Optimizer

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, TrainingPool, check_sampling, training_pool, validation_windows
from gistnet.devices import free_bytes
from gistnet.errors import ConfigError, DataError
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.config import ObjectiveConfig
from gistnet.settings import Target
from gistnet.training.config import Stage, TargetName, TrainConfig
from gistnet.training.curriculum import Check, Reason
from gistnet.training.micro_batch import USABLE, MicroBatch, choose_micro_batch
from gistnet.training.optimiser import build_optimiser
from gistnet.training.parallel import Processes


@dataclass
class Progress:
    """What a run knows besides weights and optimiser state."""

    step: int = 0
    """Completed optimiser steps, over all stages."""
    spans_seen: int = 0
    stage: int = 1
    """The stage the run is in, from 1."""
    stage_step: int = 0
    """Completed steps of that stage."""
    checks: list[Check] = field(default_factory=list)
    """The stage's validations."""
    best_step: int | None = None
    """The step whose checkpoint validated best in this stage."""
    best: dict[str, float] = field(default_factory=dict)
    """What that validation measured."""
    contrastive_weight: float | None = None
    """λ, where it was raised in this stage; None while it is the configured one."""
    ended: Reason | None = None
    """Why the stage ended, once it has."""
    micro_batch: MicroBatch | None = None
    """Micro-batch sizes of the stage, once a step was made: a resumed run takes the same, for the same rounding."""
    processes: int = 0
    """The processes among which the batches were shared then."""

    @classmethod
    def read(cls, saved: dict[str, Any]) -> "Progress":
        """From what a checkpoint holds."""
        sizes = saved["micro_batch"]
        checks = [Check(*check) for check in saved["checks"]]
        return cls(**saved | {"checks": checks, "micro_batch": sizes and MicroBatch(*sizes)})


@dataclass(frozen=True)
class StageRun:
    """A stage with the places that its spans may take."""

    name: str
    train: TrainConfig
    objective: ObjectiveConfig
    targets: Mapping[TargetName, Target]
    layout: SpanLayout
    micro_batch: MicroBatch
    """What this process runs at once, by the memory that it has left."""


class StageValidator(Protocol):
    """Measures a GistNet on a stage's held-out spans, which the processes of the run share out."""

    def measure(self, gistnet: GistNet) -> Any:
        """Measure this process's share."""

    def figures(self, shares: Sequence[Any]) -> dict[str, float]:
        """What was measured in all processes, by rank, as one set of means.

        Raises:
            TrainingError: a loss is not finite.
        """


@dataclass(frozen=True)
class Run:
    """What a training run works with, all of it fixed before the first step."""

    folder: Path
    teacher: Teacher
    gistnet: GistNet
    """Of the highest level; it holds those below."""
    dataset: PreparedDataset
    pool: TrainingPool
    stages: tuple[StageRun, ...]
    seed: int
    processes: Processes
    make_validator: Callable[["Run", StageRun], StageValidator]
    """Makes what a stage is validated with; handed in, since training imports nothing of evaluation."""
    say: Callable[[str], None] = lambda message: None
    """Told, in a sentence, what a user should know."""

    def stage(self, progress: Progress) -> StageRun:
        """The stage that the run is in, with λ as it has become."""
        stage = self.stages[progress.stage - 1]
        if progress.contrastive_weight is None:
            return stage
        raised = stage.objective.model_copy(update={"contrastive_weight": progress.contrastive_weight})
        return replace(stage, objective=raised)

    def trained_gistnet(self, progress: Progress) -> GistNet:
        """The GistNet of the level that the stage trains."""
        return self.gistnet.levels[self.stage(progress).train.level]

    def resumed_micro_batch(self, progress: Progress) -> MicroBatch | None:
        """Micro-batch sizes of a resumed run: as before, for the same rounding, as far as they fit now.

        None, so that they are chosen anew, where no step was made yet or the number of processes has changed. Sizes
        that the configuration states go first.
        """
        stage, before = self.stage(progress), progress.micro_batch
        windows, branches = stage.micro_batch
        if before is None or progress.processes != self.processes.count:
            return None
        return MicroBatch(
            windows if stage.train.micro_batch_windows else min(windows, before.windows),
            branches if stage.train.micro_batch_branches else min(branches, before.branches),
        )

    def optimiser(self, progress: Progress) -> Optimizer:
        """A new optimiser for the stage: what earlier ones did is in the weights."""
        train = self.stage(progress).train
        trained = self.trained_gistnet(progress).trained_parameters(with_below=train.train_below)
        return build_optimiser(trained.items(), train.optimiser)

    def is_finished(self, progress: Progress) -> bool:
        """Whether the last stage has ended."""
        return progress.ended is not None and progress.stage == len(self.stages)

    def identity(self, progress: Progress) -> dict[str, Any]:
        """What a checkpoint must agree with to be resumed; stages that are still to come may change."""
        return {
            # Neither its name nor where it was found.
            "teacher": self.teacher.fingerprint.model_dump(mode="json", exclude={"name", "revision"}),
            "gistnet": self.gistnet.config.model_dump(mode="json"),
            "levels": len(self.gistnet.levels),
            "dataset": self.dataset.identity,
            "seed": self.seed,
            "stages": {
                stage.name: stage.objective.model_dump(mode="json", exclude={"chunk_tokens"})
                for stage in self.stages[: progress.stage]
            },
        }


def build_run(
    folder: Path,
    teacher: Teacher,
    gistnet: GistNet,
    dataset: PreparedDataset,
    stages: Sequence[Stage],
    *,
    seed: int,
    processes: Processes,
    make_validator: Callable[[Run, StageRun], StageValidator],
    source_weights: dict[str, float] | None = None,
    gradient_checkpointing: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> Run:
    """Put a run together, and refuse one that could not finish.

    Args:
        make_validator: makes what a stage is validated with.
        gradient_checkpointing: as in `TeacherConfig`.
        say: is called with a sentence about what happens.

    Raises:
        ConfigError: probabilities do not sum to 1, or a batch has fewer windows than there are processes.
        DataError: a domain of a stage has no training or no held-out windows, or they are too short for a segment and
            its horizon.
    """
    pool = training_pool(dataset, source_weights)
    prepared = []
    for stage in stages:
        try:
            layout = _layout(stage, gistnet, dataset, pool, seed)
            longest = layout.used(int(dataset.lengths.max()))
            sizes = _micro_batch(stage, teacher, gistnet, longest, processes, recompute=gradient_checkpointing)
            prepared.append(StageRun(stage.name, stage.train, stage.objective, stage.targets, layout, sizes))
        except (ConfigError, DataError) as error:
            where = f"Stage '{stage.name}': " if len(stages) > 1 else ""
            raise type(error)(f"{where}{error}") from error
    return Run(folder, teacher, gistnet, dataset, pool, tuple(prepared), seed, processes, make_validator, say)


def _layout(stage: Stage, gistnet: GistNet, dataset: PreparedDataset, pool: TrainingPool, seed: int) -> SpanLayout:
    """Where a stage's spans may lie, once it is certain that there are some."""
    train = stage.train
    layout = SpanLayout(
        span_tokens=gistnet.config.span_tokens,
        level=train.level,
        horizon_tokens=stage.objective.horizon_tokens,
        spans_per_window=train.spans_per_window,
        sink_tokens=train.sink_tokens,
        window_tokens=train.window_tokens,
    )
    check_sampling(pool, layout, train.probabilities)
    domains = [domain for domain, share in train.probabilities.items() if share > 0]
    in_a_row = train.validation.gists_in_a_row
    validation_windows(dataset, layout, documents=1, spans_per_document=1, seed=seed, gists=in_a_row, domains=domains)
    return layout


def _micro_batch(
    stage: Stage, teacher: Teacher, gistnet: GistNet, window_tokens: int, processes: Processes, *, recompute: bool
) -> MicroBatch:
    """What this process runs at once in a stage whose longest window has so many tokens."""
    processes.require_work(stage.train.windows_per_batch)
    weights = sum(parameter.nbytes for module in (teacher.model, gistnet) for parameter in module.parameters())
    sizes, _ = choose_micro_batch(
        teacher,
        gistnet,
        stage,
        window_tokens=window_tokens,
        processes=processes.count,
        device_type=teacher.device.type,
        recompute=recompute,
        room_bytes=USABLE * (free_bytes(teacher.device) + weights),
    )
    return sizes
