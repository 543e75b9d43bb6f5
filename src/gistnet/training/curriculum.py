"""End of a stage, rise of λ, and due work: pure functions of steps and validations.

A stage hands over once its validation has stabilised, when it gets worse, or at its step limit (spec, Curriculum
Progression and Validation Protocol). The history of a stage is a list of `ValidationPoint`s, which its checkpoints
hold, so that a resumed run decides as an uninterrupted one does.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from gistnet.errors import TrainingError
from gistnet.training.config import StopConfig

Reason = Literal["stabilised", "early stop", "step limit"]

COLLAPSED_BELOW = 0.3
"""Mean cosine distance below which gists count as collapsed into one (spec, Secondary Metrics, 4)."""
ALIKE_BELOW = 0.1
"""Standard deviation of gists' cosine similarities below which λ rises, where they are collapsed as well."""
LAMBDA_FACTOR, LARGEST_LAMBDA = 1.5, 0.5
"""By what λ is multiplied at such a validation, and up to what."""


class ValidationPoint(NamedTuple):
    """One validation of a stage."""

    step: int
    """Completed steps of the stage."""
    value: float
    """The watched loss, nats per token."""
    average: float
    """Its moving average, this validation included."""


def with_validation(
    points: Sequence[ValidationPoint], step: int, value: float, config: StopConfig
) -> list[ValidationPoint]:
    """Validations of a stage with one more.

    Raises:
        TrainingError: the loss is not a finite number, which no average should hide.
    """
    if not math.isfinite(value):
        raise TrainingError(
            f"The validated {config.watch} after step {step} of the stage is {value}, expected a number"
        )
    average = value
    if points:
        alpha = 2 / (config.average_checks + 1)
        average = alpha * value + (1 - alpha) * points[-1].average
    return [*points, ValidationPoint(step, value, average)]


def is_best(points: Sequence[ValidationPoint]) -> bool:
    """True if the last validation is lower than all before it; at a tie the earlier one stays the best."""
    return all(points[-1].value < point.value for point in points[:-1])


def consecutive_rises(points: Sequence[ValidationPoint]) -> int:
    """Number of the last validations that were each higher than the one before; an equal one is no rise."""
    rises = 0
    for earlier, later in zip(reversed(points[:-1]), reversed(points), strict=False):
        if later.value <= earlier.value:
            break
        rises += 1
    return rises


def improvement(points: Sequence[ValidationPoint], over_steps: int) -> float | None:
    """By what share the moving average fell over the last `over_steps` steps, or more where no validation is as near.

    A loss that is zero or below has nothing left to improve: 0. None where the stage is not that old.
    """
    now = points[-1]
    before = [point for point in points if point.step <= now.step - over_steps]
    if not before:
        return None
    then = before[-1].average
    return 0.0 if now.average <= 0 or then <= 0 else 1 - now.average / then


def reason_to_end(points: Sequence[ValidationPoint], step_limit: int, config: StopConfig) -> Reason | None:
    """Why a stage ends after its last validation, or None while it goes on.

    Stability is judged once the moving average has seen as many validations as it looks back on: before, it has hardly
    left its first value, and any stage would look stable.
    """
    if config.rises is not None and consecutive_rises(points) >= config.rises:
        return "early stop"
    share = improvement(points, config.over_steps)
    settled = len(points) >= config.average_checks and share is not None
    if config.min_improvement is not None and settled and share < config.min_improvement:  # type: ignore[operator]
        return "stabilised"
    return "step limit" if points[-1].step >= step_limit else None


def raised_weight(weight: float, cosine_std: float, mean_distance: float) -> float:
    """λ after a validation: larger where the gists are all alike, otherwise as it was.

    The spread of cosines (spec, When to use) does not show by itself that gists are alike; their distance does.
    """
    alike = cosine_std < ALIKE_BELOW and mean_distance < COLLAPSED_BELOW
    return min(LARGEST_LAMBDA, weight * LAMBDA_FACTOR) if alike and weight < LARGEST_LAMBDA else weight


def is_due(step: int, every: int, *, last_step: int, first: bool = False, interrupted: bool = False) -> bool:
    """True if work that is done `every` so many steps is due after `step` completed ones.

    It is due at each multiple of `every`, at `last_step` whether or not that is a multiple, and, when the run was asked
    to stop (`interrupted`), now. Before any step it is due only where asked for by `first`, as a validation of the
    untrained network is.
    """
    if step == 0:
        return first
    return step % every == 0 or step == last_step or interrupted
