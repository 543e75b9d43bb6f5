"""When a stage ends, and what may change on the way: pure functions of a stage's validations.

A stage hands over once its validation has stabilised, when it gets worse, or at its step limit (spec, Curriculum
Progression and Validation Protocol). The whole history of a stage is a list of `Check`s, which its checkpoints hold,
so that a resumed run decides as an uninterrupted one does.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from gistnet.errors import TrainingError
from gistnet.settings import Section

Reason = Literal["stabilised", "early stop", "step limit"]

COLLAPSED_BELOW = 0.3
"""Mean cosine distance below which gists count as collapsed into one (spec, Secondary Metrics, 4)."""


class StopConfig(Section):
    """When a stage ends before its step limit."""

    watch: Literal["delta_nll", "kl"] = "delta_nll"
    """Which validated loss decides, over the whole horizon; it also says which checkpoint is the best."""
    average_checks: int = Field(default=10, ge=1)
    """Validations that the moving average looks back on: α = 2 / (average_checks + 1)."""
    min_improvement: float | None = Field(default=0.05, gt=0, lt=1)
    """A stage is stable once its moving average improved by less than this share; None never is."""
    over_steps: int = Field(default=1000, ge=1)
    """The steps over which that improvement is asked for."""
    rises: int | None = Field(default=3, ge=1)
    """Consecutive validations, each worse than the one before, that end a stage; None never does."""


class ContrastiveRule(Section):
    """When λ rises: gists that are all alike (spec, When to use), which the spread of cosines alone does not show."""

    enabled: bool = True
    """Whether λ may rise at all; where a stage's λ is zero it never does."""
    std_below: float = Field(default=0.1, gt=0)
    """Standard deviation of the cosine similarities of gists under which λ may rise…"""
    distance_below: float = Field(default=COLLAPSED_BELOW, gt=0)
    """…if their mean cosine distance is under this one too."""
    factor: float = Field(default=1.5, gt=1)
    """By what λ is multiplied at such a validation."""
    maximum: float = Field(default=0.5, gt=0)
    """λ does not rise above this."""


class Check(NamedTuple):
    """One validation of a stage."""

    step: int
    """Completed steps of the stage."""
    value: float
    """The watched loss, nats per token."""
    average: float
    """Its moving average, this validation included."""


def checked(checks: Sequence[Check], step: int, value: float, config: StopConfig) -> list[Check]:
    """The history with one more validation.

    Raises:
        TrainingError: the loss is not a finite number, which no average should hide.
    """
    if not math.isfinite(value):
        raise TrainingError(
            f"The validated {config.watch} after step {step} of the stage is {value}, expected a number"
        )
    average = value
    if checks:
        alpha = 2 / (config.average_checks + 1)
        average = alpha * value + (1 - alpha) * checks[-1].average
    return [*checks, Check(step, value, average)]


def is_best(checks: Sequence[Check]) -> bool:
    """Whether the last validation is lower than all before it; at a tie the earlier one stays the best."""
    return all(checks[-1].value < check.value for check in checks[:-1])


def consecutive_rises(checks: Sequence[Check]) -> int:
    """How many of the last validations were each higher than the one before; an equal one is no rise."""
    rises = 0
    for earlier, later in zip(reversed(checks[:-1]), reversed(checks), strict=False):
        if later.value <= earlier.value:
            break
        rises += 1
    return rises


def improvement(checks: Sequence[Check], over_steps: int) -> float | None:
    """By what share the moving average fell over the last `over_steps` steps, or more where no validation is as near.

    A loss that is zero or below has nothing left to improve: 0. None where the stage is not that old.
    """
    now = checks[-1]
    before = [check for check in checks if check.step <= now.step - over_steps]
    if not before:
        return None
    then = before[-1].average
    return 0.0 if now.average <= 0 or then <= 0 else 1 - now.average / then


def reason_to_end(checks: Sequence[Check], step_limit: int, config: StopConfig) -> Reason | None:
    """Why a stage ends after its last validation, or None while it goes on.

    Stability is judged once the moving average has seen as many validations as it looks back on: before, it has hardly
    left its first value, and any stage would look stable.
    """
    if config.rises is not None and consecutive_rises(checks) >= config.rises:
        return "early stop"
    share = improvement(checks, config.over_steps)
    settled = len(checks) >= config.average_checks and share is not None
    if config.min_improvement is not None and settled and share < config.min_improvement:  # type: ignore[operator]
        return "stabilised"
    return "step limit" if checks[-1].step >= step_limit else None


def raised_weight(weight: float, cosine_std: float, mean_distance: float, rule: ContrastiveRule) -> float:
    """λ after a validation: larger where the gists are all alike, otherwise as it was."""
    alike = cosine_std < rule.std_below and mean_distance < rule.distance_below
    if not (rule.enabled and alike) or weight >= rule.maximum:
        return weight
    return min(rule.maximum, weight * rule.factor)
