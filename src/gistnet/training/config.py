"""Configuration of training; without torch.

A stage of the curriculum has its data mix, its objective, how long it lasts and what it should reach.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from gistnet.data.config import RowsConfig, SegmentLengths
from gistnet.objective.config import ObjectiveConfig
from gistnet.settings import Name, Section, Target

Tracker = Literal["tensorboard", "trackio", "wandb"]
"""An experiment tracker, by the name that accelerate has for it."""


class OptimiserConfig(Section):
    """The optimiser and its schedule (spec, Optimization Settings)."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw: AdamW for all parameters (spec); muon: Muon for matrices and AdamW for vectors. Muon learned a little more
    from the same spans, at a rate three times as large (docs/ablations.md)."""

    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak rate, reached at the end of the warm-up. The spec's 1e-4 taught far less in the same steps, with a teacher
    of 135M parameters (docs/ablations.md); a larger teacher may want less."""

    final_learning_rate: float = Field(default=1e-6, ge=0)
    """Rate at the end of the stage, where the cosine arrives."""

    warmup_steps: int = Field(default=1000, ge=0)
    """Steps of linear warm-up in every stage; a stage that is short warms up for 5 % of its steps instead."""

    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled decay of matrices, as a share of the learning rate per step; vectors do not decay."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate is {self.final_learning_rate}, expected at most learning_rate, "
                f"{self.learning_rate}"
            )
        return self


class StopConfig(Section):
    """Conditions that end a stage before its step limit."""

    watch: Literal["delta_nll", "kl", "row_kl"] = "delta_nll"
    """Validated loss that decides, over the whole horizon, or the mean of all rows; it also says which checkpoint is
    the best."""
    average_checks: int = Field(default=10, ge=1)
    """Validations that the moving average looks back on: α = 2 / (average_checks + 1)."""
    min_improvement: float | None = Field(default=0.05, gt=0, lt=1)
    """A stage is stable once its moving average improved by less than this share; None never is."""
    over_steps: int = Field(default=1000, ge=1)
    """The steps over which that improvement is asked for."""
    rises: int | None = Field(default=3, ge=1)
    """Consecutive validations, each worse than the one before, that end a stage; None never does."""


class ValidationConfig(Section):
    """Validation during training (spec, Validation Protocol)."""

    every_steps: int = Field(default=1000, ge=1)
    """Steps between validations; there is one before the first step and one after the last."""
    documents: int = Field(default=100, ge=1)
    """Held-out documents per domain, one window of each."""
    segments_per_window: int = Field(default=4, ge=1)
    """Segments of each window."""
    spans_per_segment: int = Field(default=1, ge=1)
    """k, how many consecutive spans a segment replaces. The best network of a stage is chosen on such segments: one
    that trains on long runs of gists may get worse on single ones, and is then taken back if it is judged by them."""
    rows: RowsConfig = RowsConfig()
    """Rows of gists that are judged as well, beside raw tails."""


class TrainConfig(Section):
    """Training of a stage. Replaced segments count alike, single spans and rows."""

    steps: int = Field(default=10_000, ge=1)
    """Optimiser steps of the stage, at most; the learning rate arrives at its end there."""
    probabilities: dict[str, float] = Field(default={"narrative": 1.0})
    """The probability with which a window is of each domain; they sum to 1."""
    windows_per_batch: int = Field(default=8, ge=1)
    """Windows read at once, over all processes; each process reads its share."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Batches whose gradients are added up before a step."""
    segments_per_window: int = Field(default=8, ge=1)
    """Segments drawn from each window; a branch replaces each."""
    segments: SegmentLengths = SegmentLengths()
    level: int = Field(default=0, ge=0)
    """The level of gists that the stage trains; those above it are left alone."""
    train_below: bool = False
    """Train the levels below with it, through its own loss; otherwise they stay as they are."""
    window_tokens: int | None = Field(default=None, ge=1)
    """Tokens of each window that the stage reads, from its first on; None reads all. Where a later stage needs long
    windows, an earlier one sees more documents for the same cost."""
    micro_batch_vectors: int | None = Field(default=None, ge=1)
    """Vectors of branches that run through the teacher at once, though never less than one branch; None is as many as
    fit and make it faster."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations dropped inside GistNet."""
    optimiser: OptimiserConfig = OptimiserConfig()
    validation: ValidationConfig = ValidationConfig()
    stop: StopConfig = StopConfig()
    raise_contrastive_weight: bool = True
    """True if λ rises, by half and to 0.5 at most, where a validation finds all gists alike (spec, When to use)."""
    checkpoint_every_steps: int = Field(default=1000, ge=1)
    """Steps between checkpoints; there is also one at each validation, at the end, and when interrupted. The two newest
    are kept, and the best of each stage."""
    log_every_steps: int = Field(default=10, ge=1)
    """Steps between lines of metrics."""


TargetName = Literal[
    "kl",
    "delta_nll",
    "recovered_kl",
    "row_kl",
    "row_recovered_kl",
    "substitutability_rate",
    "gist_diversity",
    "adjacent_distance",
    "contrastive_gap",
    "gist_variance",
]
"""Metrics of a validation, by name (`Validator.metrics`)."""


class Stage(Section):
    """One stage of the curriculum (spec, Curriculum Strategies)."""

    name: Name
    """Its name in messages, metrics and on the command line; no other stage has it."""
    train: TrainConfig
    objective: ObjectiveConfig
    targets: dict[TargetName, Target] = Field(default={})
    """Bounds that its best validation should reach; only reported."""

    @model_validator(mode="after")
    def _measures_what_it_watches(self) -> Self:
        if self.train.stop.watch == "row_kl" and not self.train.validation.rows.documents:
            raise ValueError("stop.watch is row_kl without rows in validation, expected validation.rows.documents")
        return self
