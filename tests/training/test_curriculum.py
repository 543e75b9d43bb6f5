"""When stages end and when λ rises: hand-made histories of validations, with the numbers worked out by hand."""

import json
import math

import pytest

from gistnet.errors import TrainingError
from gistnet.training.config import StopConfig
from gistnet.training.curriculum import (
    ValidationPoint,
    consecutive_rises,
    improvement,
    is_best,
    is_due,
    raised_weight,
    reason_to_end,
    with_validation,
)

PLAIN = StopConfig(average_checks=1, min_improvement=None, rises=3, over_steps=100)
"""An average over one validation is that validation."""


def history(*values: float, every: int = 100, config: StopConfig = PLAIN) -> list[ValidationPoint]:
    points: list[ValidationPoint] = []
    for number, value in enumerate(values):
        points = with_validation(points, number * every, value, config)
    return points


def test_the_moving_average_is_exponential():
    """α = 2 / (3 + 1) = 0.5: 1; (1 + 0) / 2; (0.5 + 0.5) / 2; (0.5 + 2) / 2."""
    checks = history(1.0, 0.0, 0.5, 2.0, config=StopConfig(average_checks=3))
    assert [check.average for check in checks] == [1.0, 0.5, 0.5, 1.25]
    assert [check.step for check in checks] == [0, 100, 200, 300]
    assert history(1.0, 0.0, config=StopConfig())[-1].average == pytest.approx(9 / 11)  # spec, Validation Protocol


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_refused_not_averaged(value):
    with pytest.raises(TrainingError, match=rf"validated delta_nll .* step 200.* is {value}, expected a number"):
        with_validation(history(1.0, 0.9), 200, value, PLAIN)


@pytest.mark.parametrize(
    ("values", "rises"),
    [
        ((1.0,), 0),
        ((1.0, 1.1), 1),
        ((1.0, 1.1, 1.2, 1.3), 3),
        ((1.0, 1.1, 1.1, 1.2), 1),  # an equal one is no rise
        ((1.0, 1.1, 1.0), 0),
        ((3.0, 1.0, 1.1, 1.2), 2),
        ((-0.3, -0.2, -0.1, 0.0), 3),  # ΔNLL may be below zero; it rises all the same
    ],
)
def test_rises_are_counted_from_the_end(values, rises):
    assert consecutive_rises(history(*values)) == rises


def test_early_stop_after_three_rises_in_a_row_and_not_before():
    values = (1.0, 0.8, 0.9, 1.0, 1.1, 1.2)
    reasons = [reason_to_end(history(*values[: n + 1]), 10_000, PLAIN) for n in range(len(values))]
    assert reasons == [None, None, None, None, "early stop", "early stop"]
    assert reason_to_end(history(*values), 10_000, PLAIN.model_copy(update={"rises": None})) is None


def test_improvement_is_the_share_that_the_average_fell_over_the_steps():
    """Checks every 100 steps: 1.0, 0.8, 0.72. Over 100 steps 10 %, over 200 steps 28 %, over 300 not known yet."""
    checks = history(1.0, 0.8, 0.72)
    assert improvement(checks, 100) == pytest.approx(0.1)
    assert improvement(checks, 200) == pytest.approx(0.28)
    assert improvement(checks, 150) == pytest.approx(0.28)  # from the newest validation that is old enough
    assert improvement(checks, 300) is None
    assert improvement(history(1.0, 1.5), 100) == pytest.approx(-0.5)
    # A loss of zero or less counts as stable.
    assert [improvement(history(*values), 100) for values in ((1.0, 0.0), (0.5, -0.5), (-0.1, -0.5))] == [0, 0, 0]


STABLE = StopConfig(average_checks=3, min_improvement=0.05, over_steps=200, rises=None)


def test_a_stage_ends_when_it_improved_by_less_than_five_percent():
    """Averages (α = 1/2) of 1, .5, .5, .5, .5: 1, .75, .625, .5625, .53125; over 200 steps 37.5, 25 and 15 percent."""
    values = [1.0, 0.5, 0.5, 0.5, 0.5]
    assert [check.average for check in history(*values, config=STABLE)] == [1.0, 0.75, 0.625, 0.5625, 0.53125]
    assert reason_to_end(history(*values, config=STABLE), 10_000, STABLE) is None
    # .515625 (8.3 %), then .5078125 (4.4 %)
    assert reason_to_end(history(*values, 0.5, config=STABLE), 10_000, STABLE) is None
    assert reason_to_end(history(*values, 0.5, 0.5, config=STABLE), 10_000, STABLE) == "stabilised"


def test_exactly_the_asked_improvement_goes_on():
    config = StopConfig(average_checks=1, min_improvement=0.25, over_steps=100, rises=None)
    assert reason_to_end(history(1.0, 0.75), 10_000, config) is None
    assert reason_to_end(history(1.0, 0.7500001), 10_000, config) == "stabilised"


def test_a_young_stage_is_not_called_stable():
    """Equal from the start: neither before the average has its validations, nor before the steps are over."""
    for checks, config in ((3, STABLE.model_copy(update={"over_steps": 100})), (10, StopConfig(over_steps=100))):
        flat = [reason_to_end(history(*[1.0] * n, config=config), 10_000, config) for n in range(1, checks + 2)]
        assert flat == [None] * (checks - 1) + ["stabilised"] * 2
    sparse = StopConfig(average_checks=1, min_improvement=0.05, over_steps=300, rises=None)
    assert reason_to_end(history(1.0, 1.0, 1.0, config=sparse), 10_000, sparse) is None
    assert reason_to_end(history(1.0, 1.0, 1.0, 1.0, config=sparse), 10_000, sparse) == "stabilised"


def test_the_step_limit_ends_every_stage_and_a_better_reason_goes_first():
    assert reason_to_end(history(1.0, 0.5, 0.2), 200, PLAIN) == "step limit"
    assert reason_to_end(history(1.0, 0.5, 0.2), 201, PLAIN) is None
    assert reason_to_end(history(1.0, 1.0, 1.0, config=STABLE), 200, STABLE) == "stabilised"


def test_the_best_is_the_first_of_equals():
    assert [is_best(history(*values)) for values in ((1.0,), (1.0, 0.9), (1.0, 0.9, 0.9), (1.0, 0.9, 0.95))] == [
        True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("cut", range(1, 7))
def test_a_history_written_to_json_and_read_back_decides_the_same(cut):
    """A resume in the middle, at any validation: the same averages to the last bit, and the same decision."""
    values = (0.7, 0.61, 0.603, 0.602, 0.6021, 0.6022, 0.6023)
    config = StopConfig(average_checks=3, over_steps=100, min_improvement=0.01)
    whole = history(*values, config=config)
    checks = [ValidationPoint(*check) for check in json.loads(json.dumps(history(*values[:cut], config=config)))]
    for number in range(cut, len(values)):
        checks = with_validation(checks, number * 100, values[number], config)
        assert reason_to_end(checks, 10_000, config) == reason_to_end(whole[: number + 1], 10_000, config)
    assert checks == whole


@pytest.mark.parametrize(
    ("std", "distance", "weight", "expected"),
    [
        (0.05, 0.2, 0.05, 0.075),  # all alike
        (0.05, 0.9, 0.05, 0.05),  # healthy gists of many dimensions have a small spread too
        (0.2, 0.2, 0.05, 0.05),  # near, but of different nearness
        (0.1, 0.2, 0.05, 0.05),  # "below" is below
        (0.05, 0.3, 0.05, 0.05),
        (0.05, 0.2, 0.4, 0.5),  # bounded
        (0.05, 0.2, 0.5, 0.5),
        (0.05, 0.2, 0.7, 0.7),  # what the configuration sets above the bound stays
        (0.05, 0.2, 0.0, 0.0),  # a stage without the contrastive loss gets none
        (math.nan, 0.2, 0.05, 0.05),
    ],
)
def test_lambda_rises_only_where_gists_are_alike(std, distance, weight, expected):
    assert raised_weight(weight, std, distance) == pytest.approx(expected)


def test_work_is_due_at_multiples_at_the_last_step_and_when_interrupted():
    """Before any step it is due only where asked for."""
    assert [step for step in range(11) if is_due(step, 4, last_step=10)] == [4, 8, 10]
    assert [step for step in range(9) if is_due(step, 4, last_step=8)] == [4, 8]
    assert [step for step in range(5) if is_due(step, 4, last_step=10, first=True)] == [0, 4]
    assert [step for step in range(3) if is_due(step, 4, last_step=10, interrupted=True)] == [1, 2]
