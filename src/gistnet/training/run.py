"""Parts of a training run: its stages, and the state between steps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch.optim import Optimizer

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, TrainingPool, check_sampling, fixed_windows, training_pool
from gistnet.errors import ConfigError, DataError
from gistnet.machine import free_bytes
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.config import ObjectiveConfig
from gistnet.settings import Target
from gistnet.training.config import Stage, TargetName, TrainConfig
from gistnet.training.curriculum import Reason, ValidationPoint
from gistnet.training.micro_batch import USABLE, MicroBatch, choose_micro_batch
from gistnet.training.optimiser import build_optimiser
from gistnet.training.parallel import Processes


@dataclass(frozen=True)
class StageRun:
    """A stage, the network that it trains, and where its spans may lie."""

    name: str
    train: TrainConfig
    objective: ObjectiveConfig
    """Objective as configured; λ may have been raised since, see `TrainState.contrastive_weight`."""
    targets: Mapping[TargetName, Target]
    gistnet: GistNet
    """GistNet of the level that the stage trains."""
    layout: SpanLayout
    micro_batch: MicroBatch
    """Sizes that fit into the memory that this process has left."""

    def optimiser(self) -> Optimizer:
        """A new optimiser: what earlier stages did is in the weights."""
        trained = self.gistnet.trained_parameters(with_below=self.train.train_below)
        return build_optimiser(trained.items(), self.train.optimiser)

    def resumed_micro_batch(self, state: "TrainState", processes: int) -> MicroBatch | None:
        """Micro-batch sizes of a resumed run: as before, for the same rounding, as far as they fit now.

        None, so that they are chosen anew, where no step was made yet or the number of processes has changed. Vectors
        that the configuration states go first.
        """
        windows, vectors = self.micro_batch
        before = state.micro_batch
        if before is None or state.processes != processes:
            return None
        return MicroBatch(
            min(windows, before.windows),
            vectors if self.train.micro_batch_vectors else min(vectors, before.vectors),
        )


@dataclass
class TrainState:
    """State of a run between steps, besides weights and optimiser state; a checkpoint holds all of it."""

    contrastive_weight: float
    """λ of the present stage: the configured one, until a validation raises it."""
    step: int = 0
    """Completed optimiser steps, over all stages."""
    spans_seen: int = 0
    stage: int = 1
    """Number of the present stage, from 1."""
    stage_step: int = 0
    """Completed steps of that stage."""
    validations: list[ValidationPoint] = field(default_factory=list)
    """Those of the stage."""
    best_step: int | None = None
    """The step whose checkpoint validated best in this stage."""
    best: dict[str, float] = field(default_factory=dict)
    """Metrics of that validation."""
    ended: Reason | None = None
    """Why the stage ended, once it has."""
    micro_batch: MicroBatch | None = None
    """Micro-batch sizes of the stage, once a step was made: a resumed run takes the same, for the same rounding."""
    processes: int = 0
    """Number of processes that shared the batches then."""

    @classmethod
    def at_start_of(cls, stage: StageRun) -> "TrainState":
        """State of a run that begins with this stage."""
        return cls(stage.objective.contrastive_weight)

    @classmethod
    def read(cls, saved: dict[str, Any]) -> "TrainState":
        """State that a checkpoint holds, as JSON has it."""
        sizes = saved["micro_batch"]
        validations = [ValidationPoint(*point) for point in saved["validations"]]
        return cls(**saved | {"validations": validations, "micro_batch": sizes and MicroBatch(*sizes)})

    def enter(self, stage: StageRun) -> None:
        """Begin the next stage."""
        self.stage += 1
        self.stage_step = 0
        self.validations, self.best, self.ended, self.micro_batch = [], {}, None, None
        self.contrastive_weight = stage.objective.contrastive_weight


class StageValidator(Protocol):
    """Measures a GistNet on a stage's held-out spans, which the processes of the run share out."""

    def measure(self, gistnet: GistNet) -> Any:
        """Measure this process's share."""

    def metrics(self, shares: Sequence[Any]) -> dict[str, float]:
        """Means over what all processes measured, given by rank.

        Raises:
            TrainingError: a loss is not finite.
        """


@dataclass(frozen=True)
class Run:
    """Parts of a training run, all of them fixed before the first step."""

    folder: Path
    teacher: Teacher
    gistnet: GistNet
    """GistNet of the highest level; it holds those below."""
    dataset: PreparedDataset
    pool: TrainingPool
    stages: tuple[StageRun, ...]
    seed: int
    processes: Processes
    make_validator: Callable[["Run", StageRun], StageValidator]
    """Makes a stage's validator; handed in, since training imports nothing of evaluation."""

    def is_finished(self, state: TrainState) -> bool:
        """True if the last stage has ended."""
        return state.ended is not None and state.stage == len(self.stages)

    def identity(self, stages: int) -> dict[str, Any]:
        """Identity that a checkpoint must have to be resumed; covers the first `stages`, those to come may change."""
        return {
            # Neither its name nor where it was found.
            "teacher": self.teacher.fingerprint.model_dump(mode="json", exclude={"name", "revision"}),
            "gistnet": self.gistnet.config.model_dump(mode="json"),
            "levels": list(self.gistnet.branchings),
            "dataset": self.dataset.identity,
            "seed": self.seed,
            "stages": {stage.name: stage.objective.model_dump(mode="json") for stage in self.stages[:stages]},
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
) -> Run:
    """Put a run together, and refuse one that could not finish.

    Args:
        make_validator: makes a stage's validator.
        gradient_checkpointing: as in `TeacherConfig`.

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
            trained = gistnet.levels[stage.train.level]
            prepared.append(StageRun(stage.name, stage.train, stage.objective, stage.targets, trained, layout, sizes))
        except (ConfigError, DataError) as error:
            where = f"Stage '{stage.name}': " if len(stages) > 1 else ""
            raise type(error)(f"{where}{error}") from error
    return Run(folder, teacher, gistnet, dataset, pool, tuple(prepared), seed, processes, make_validator)


def _layout(stage: Stage, gistnet: GistNet, dataset: PreparedDataset, pool: TrainingPool, seed: int) -> SpanLayout:
    """Layout of a stage's spans, checked to have room for some in every domain."""
    train = stage.train
    layout = SpanLayout(
        gistnet.levels[train.level].branchings,
        horizon_tokens=stage.objective.horizon_tokens,
        segments_per_window=train.segments_per_window,
        window_tokens=train.window_tokens,
    )
    check_sampling(pool, layout, train.probabilities, train.segments)
    domains = [domain for domain, share in train.probabilities.items() if share > 0]
    in_a_row = train.validation.spans_per_segment
    fixed_windows(dataset, layout, documents=1, segments_per_window=1, seed=seed, n_spans=in_a_row, domains=domains)
    return layout


def _micro_batch(
    stage: Stage, teacher: Teacher, gistnet: GistNet, window_tokens: int, processes: Processes, *, recompute: bool
) -> MicroBatch:
    """Micro-batch of this process in a stage whose longest window has so many tokens."""
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
