"""Configuration of training; without torch.

A stage of the curriculum has its data mix, its objective, how long it lasts and what it should reach.
"""

from typing import Literal

from pydantic import Field

from gistnet.data.config import GistRuns
from gistnet.objective.config import ObjectiveConfig
from gistnet.settings import Name, Section, Target
from gistnet.training.curriculum import ContrastiveRule, StopConfig
from gistnet.training.schedule import OptimiserConfig

Tracker = Literal["tensorboard", "trackio", "wandb"]
"""An experiment tracker, by the name that accelerate has for it."""

DEFAULT_TIMEOUT_MINUTES = 30.0
"""How long the processes of a run wait for one that does not answer."""


class ValidationConfig(Section):
    """When and on what to validate during training (spec, Validation Protocol)."""

    every_steps: int = Field(default=1000, ge=1)
    """Steps between validations; there is one before the first step and one after the last."""
    documents: int = Field(default=100, ge=1)
    """Held-out documents per domain, one window of each."""
    spans_per_document: int = Field(default=4, ge=1)
    """SegmentBatch of each window."""
    gists_in_a_row: int = Field(default=1, ge=1)
    """k, how many consecutive spans a segment replaces. The best network of a stage is chosen on such segments: one
    that trains on long runs of gists may get worse on single ones, and is then taken back if it is judged by them."""
    cache_gigabytes: float = Field(default=2.0, ge=0)
    """Memory for passes over held-out windows, which are the same at every validation."""


class TrainConfig(Section):
    """How long, on how much, and what is kept. A step's batch is counted in branches: batches × windows × spans."""

    steps: int = Field(default=10_000, ge=1)
    """Optimiser steps of the stage, at most; the learning rate arrives at its end there."""
    probabilities: dict[str, float] = Field(default={"narrative": 1.0})
    """The probability with which a window is of each domain; they sum to 1."""
    windows_per_batch: int = Field(default=8, ge=1)
    """Windows read at once, over all processes; each process reads its share."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Batches whose gradients are added up before a step."""
    spans_per_window: int = Field(default=8, ge=1)
    """SegmentBatch drawn from each window."""
    runs: GistRuns = GistRuns()
    level: int = Field(default=0, ge=0)
    """The level of gists that the stage trains; those above it are left alone."""
    train_below: bool = False
    """Whether the levels below it are trained with it, through its own loss, or stay as they are."""
    window_tokens: int | None = Field(default=None, ge=1)
    """Tokens of each window that the stage reads, from its first on; None reads all. Where a later stage needs long
    windows, an earlier one sees more documents for the same cost."""
    sink_tokens: int = Field(default=4, ge=1)
    """First tokens of a window that are never replaced, since attention rests on them."""
    micro_batch_windows: int | None = Field(default=None, ge=1)
    """Windows whose KV cache a process holds at once; None is as many as fit into memory."""
    micro_batch_branches: int | None = Field(default=None, ge=1)
    """Branches that run through the teacher at once; None is as many as fit and make it faster."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of activations dropped inside GistNet."""
    optimiser: OptimiserConfig = OptimiserConfig()
    validation: ValidationConfig = ValidationConfig()
    stop: StopConfig = StopConfig()
    contrastive_rule: ContrastiveRule = ContrastiveRule()
    checkpoint_every_steps: int = Field(default=1000, ge=1)
    """Steps between checkpoints; there is also one at each validation, at the end, and when interrupted."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the newest checkpoints are kept; the best of each stage is kept besides."""
    log_every_steps: int = Field(default=10, ge=1)
    """Steps between lines of metrics."""


TargetName = Literal[
    "kl",
    "delta_nll",
    "recovered_kl",
    "substitutability_rate",
    "gist_diversity",
    "adjacent_distance",
    "contrastive_gap",
    "gist_variance",
]
"""What a validation measures, under the names it has there (`Validator.figures`)."""


class Stage(Section):
    """One stage of the curriculum (spec, Curriculum Strategies)."""

    name: Name
    """What it is called in messages, metrics and on the command line; no other stage has the same."""
    train: TrainConfig
    objective: ObjectiveConfig
    targets: dict[TargetName, Target] = Field(default={})
    """What its best validation should reach; only reported."""
