"""The learning rate and when periodic work is due: pure functions of the step."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from gistnet.settings import Section


class OptimiserConfig(Section):
    """The optimiser and its schedule (spec, Optimization Settings)."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw: AdamW for all parameters (spec); muon: Muon for matrices, with the momentum `betas[0]`, and AdamW for
    vectors. Muon learned a little more from the same spans, at a rate three times as large (docs/ablations.md)."""

    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak rate, reached at the end of the warm-up. The spec's 1e-4 taught far less in the same steps, with a teacher
    of 135M parameters (docs/ablations.md); a larger teacher may want less."""

    final_learning_rate: float = Field(default=1e-6, ge=0)
    """Rate at the end of the stage, where the cosine arrives."""

    warmup_steps: int = Field(default=1000, ge=0)
    """Steps of linear warm-up in every stage; a stage that is short warms up for 5 % of its steps instead."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean and, in AdamW, of the running square of the gradient, per step, each in [0, 1)."""

    epsilon: float = Field(default=1e-8, gt=0)
    """Added to AdamW's denominator."""

    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled decay of matrices, as a share of the learning rate per step; vectors do not decay."""

    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient; a longer one is scaled down to it."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate is {self.final_learning_rate}, expected at most learning_rate, "
                f"{self.learning_rate}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}, expected two numbers in [0, 1)")
        return self


def warmup_length(total_steps: int, config: OptimiserConfig) -> int:
    """Steps of warm-up in a stage of `total_steps`: the configured ones, or 5 % of a shorter stage."""
    return min(config.warmup_steps, total_steps // 20)


def learning_rate(step: int, total_steps: int, config: OptimiserConfig) -> float:
    """The learning rate of the update that follows `step` completed ones, in a stage of `total_steps`.

    Rises linearly to the peak, which the last warm-up step has in full (the first step is already above zero), then
    follows half a cosine to `final_learning_rate` at `total_steps` (Loshchilov & Hutter, 2017, without restarts) and
    stays there.
    """
    warmup = warmup_length(total_steps, config)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / (total_steps - warmup))
    height = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + height * (1 + math.cos(math.pi * progress)) / 2


def is_due(step: int, every: int, *, last_step: int, first: bool = False, interrupted: bool = False) -> bool:
    """Whether work that is done `every` so many steps is due after `step` completed ones.

    It is due at each multiple of `every`, at `last_step` whether or not that is a multiple, and, when the run was asked
    to stop (`interrupted`), now. Before any step it is due only where asked for by `first`, as a validation of the
    untrained network is.
    """
    if step == 0:
        return first
    return step % every == 0 or step == last_step or interrupted
