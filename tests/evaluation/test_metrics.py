"""Each measure against numbers computed by hand or by the plainest loop, and what it refuses."""

import itertools
import json
import math

import numpy as np
import pytest
from pydantic import ValidationError

from gistnet.errors import DataError
from gistnet.evaluation.metrics import (
    geometry,
    gist_diversity,
    gist_variance,
    mean_over_offsets,
    offset_slices,
    recovered_share,
    substituted,
)
from gistnet.evaluation.records import TARGETS, UNITS, MetricRecord, target_for
from gistnet.settings import Target


def test_spans_are_substituted_strictly_below_one_nat() -> None:
    """A tie at exactly 1 nat does not count; a negative ΔNLL does."""
    assert substituted([-0.5, 0.0, 0.999, 1.0, 3.0]).tolist() == [1, 1, 1, 0, 0]


def test_recovered_is_relative_to_the_cost_of_dropping() -> None:
    assert [recovered_share(mean, 1.0) for mean in (0.25, 0.0, 1.0, 2.0)] == [0.75, 1.0, 0.0, -1.0]


@pytest.mark.parametrize(
    ("horizon", "expected"),
    [
        (128, [(1, 128), (1, 8), (9, 32)]),
        (32, [(1, 32), (1, 8), (9, 32)]),
        (20, [(1, 20), (1, 8), (9, 20)]),
        (9, [(1, 9), (1, 8), (9, 9)]),
        (8, [(1, 8)]),
        (4, [(1, 4)]),
    ],
)
def test_offset_slices_are_clipped_and_distinct(horizon: int, expected: list[tuple[int, int]]) -> None:
    assert offset_slices(horizon) == expected


def test_mean_over_offsets_counts_from_one_and_includes_both_ends() -> None:
    values = np.arange(20.0).reshape(2, 10)
    assert mean_over_offsets(values, (1, 10)).tolist() == [4.5, 14.5]
    assert mean_over_offsets(values, (1, 8)).tolist() == [3.5, 13.5]
    assert mean_over_offsets(values, (9, 10)).tolist() == [8.5, 18.5]


@pytest.mark.parametrize("offsets", [(0, 3), (3, 2), (1, 11)])
def test_offsets_outside_the_horizon_are_refused(offsets: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="range"):
        mean_over_offsets(np.zeros((2, 10)), offsets)


def _cosine_distance(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def test_diversity_by_hand() -> None:
    """Of three unit vectors at 0°, 90° and 180° the pairs' cosines are 0, 0 and -1."""
    assert gist_diversity([[1.0, 0.0], [0.0, 5.0], [-2.0, 0.0]]) == pytest.approx(1 + 1 / 3)
    assert gist_diversity([[1.0, 2.0], [2.0, 4.0]]) == pytest.approx(0.0)


def test_diversity_is_the_double_loop_over_pairs() -> None:
    gists = np.random.default_rng(6).normal(loc=0.5, size=(17, 5))
    distances = [_cosine_distance(a, b) for a, b in itertools.combinations(gists, 2)]
    assert gist_diversity(gists) == pytest.approx(np.mean(distances))


def test_diversity_of_one_gist_or_of_a_zero_gist_is_refused() -> None:
    with pytest.raises(DataError, match="pairs"):
        gist_diversity([[1.0, 0.0]])
    with pytest.raises(DataError, match="length 0"):
        gist_diversity([[1.0, 0.0], [0.0, 0.0]])


def test_geometry_by_hand() -> None:
    """Two documents of two equal gists each, at right angles: adjacent 0 apart, random pairs 4 of 6 at distance 1."""
    gists = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    measured = geometry(gists, (gists[[0, 2]], gists[[1, 3]]))
    assert measured["adjacent_distance"] == pytest.approx(0.0)
    assert measured["contrastive_gap"] == measured["gist_diversity"] == pytest.approx(4 / 6)
    assert measured["gist_norm"] == 7 / 4
    assert geometry(gists, (gists[[0, 1]], gists[[2, 3]]))["adjacent_distance"] == pytest.approx(1.0)
    assert geometry(gists, (gists[:0], gists[:0])).keys() == {"gist_diversity", "gist_variance", "gist_norm"}
    assert geometry(gists[:1], (gists[:0], gists[:0])).keys() == {"gist_variance", "gist_norm"}


def test_the_gap_is_the_mean_of_drawn_random_pairs() -> None:
    """The expectation in closed form against drawing pairs, as the spec writes it."""
    rng = np.random.default_rng(7)
    gists = rng.normal(loc=0.3, size=(9, 4))
    drawn = [_cosine_distance(*gists[rng.choice(9, 2, replace=False)]) for _ in range(20_000)]
    adjacent = [_cosine_distance(gists[i], gists[i + 1]) for i in range(8)]
    gap = geometry(gists, (gists[:-1], gists[1:]))["contrastive_gap"]
    assert gap == pytest.approx(np.mean(drawn) - np.mean(adjacent), abs=0.02)


def test_gist_variance_by_hand() -> None:
    """Opposite vectors are all variance, equal ones none; (3,4)±(1,0): variance 1 of squared length 26."""
    assert gist_variance([[1.0, 2.0], [-1.0, -2.0]]) == pytest.approx(1.0)
    assert gist_variance([[1.0, 2.0], [1.0, 2.0]]) == 0.0
    assert gist_variance([[4.0, 4.0], [2.0, 4.0]]) == pytest.approx(1 / 26)
    with pytest.raises(DataError, match="length 0"):
        gist_variance([[0.0, 0.0]])


MEASURES = {
    "rate": lambda values: substituted(values),
    "diversity": lambda values: gist_diversity(np.array(values).reshape(-1, 1)),
    "offsets": lambda values: mean_over_offsets(np.array(values).reshape(-1, 1), (1, 1)),
}


@pytest.mark.parametrize("measure", MEASURES)
def test_numbers_that_are_not_finite_are_counted_and_refused(measure: str) -> None:
    with pytest.raises(DataError, match="holds 2 numbers of 3 that are NaN or infinite"):
        MEASURES[measure]([1.0, math.nan, math.inf])


@pytest.mark.parametrize("measure", MEASURES)
def test_nothing_to_measure_is_refused(measure: str) -> None:
    with pytest.raises(DataError, match="is empty"):
        MEASURES[measure]([])


def test_an_array_of_the_wrong_rank_is_refused() -> None:
    with pytest.raises(DataError, match="delta_nll has 2 dimensions, expected 1"):
        substituted(np.zeros((2, 3)))


def record(**changes: object) -> MetricRecord:
    fields = {
        "name": "delta_nll",
        "domain": "narrative",
        "horizon": 32,
        "offsets": (1, 32),
        "positions": "center",
        "value": 0.4,
        "n_spans": 400,
        "n_documents": 100,
        "target": Target(below=0.5),
    }
    return MetricRecord.model_validate({**fields, **changes})


def test_a_record_knows_its_unit_and_whether_it_meets_its_target() -> None:
    assert (record().unit, record().met) == ("nats per token", True)
    assert record(value=0.5).met is False
    assert record(target=None).met is None
    assert record(name="substitutability_rate", value=0.91, target=Target(above=0.9)).met is True
    assert record(name="substitutability_rate", value=0.9, target=Target(above=0.9)).met is False
    within = Target(above=2.0, below=4.0)
    assert [record(name="attention_entropy", value=v, target=within).met for v in (1.0, 3.0, 5.0)] == [
        False,
        True,
        False,
    ]


def test_a_record_survives_json() -> None:
    original = record(interval=(0.35, 0.45), baselines={"drop": 0.66, "last_token": 0.46})
    text = original.model_dump_json()
    assert json.loads(text)["met"] is True
    assert json.loads(text)["unit"] == "nats per token"
    assert json.loads(text)["baselines"] == {"drop": 0.66, "last_token": 0.46}
    assert MetricRecord.model_validate_json(text) == original


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "delta_nil"},
        {"value": math.nan},
        {"interval": (0.1, math.inf)},
        {"baselines": {"nothing": 0.1}},
        {"offsets": (1, 33)},
        {"n_spans": 0},
        {"colour": "red"},
    ],
)
def test_a_record_that_cannot_be_read_is_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        record(**wrong)


def find(name: str, domain: str = "narrative", horizon: int = 32, level: int = 0) -> Target | None:
    return target_for(name, domain=domain, horizon=horizon, offsets=(1, horizon), level=level)


def test_the_targets_are_those_of_the_spec() -> None:
    assert find("delta_nll", "narrative", 32) == Target(below=0.5)
    assert find("delta_nll", "code", 64) == find("delta_nll", "structured", 64) == Target(below=1.0)
    assert find("delta_nll", "mixed", 128) == Target(below=0.8)
    assert find("delta_nll", "mixed", 32, level=1) == Target(below=2.0)
    assert find("substitutability_rate", "narrative", 128) == Target(above=0.9)
    assert find("substitutability_rate", "code", 32) == Target(above=0.7)
    assert find("perplexity_ratio", "mixed") == Target(below=1.5)
    assert find("gist_diversity") == Target(above=0.5)
    assert find("contrastive_gap") == Target(above=0.1)
    assert find("adjacent_distance") == Target(above=0.3)
    assert find("attention_entropy") == Target(above=2.0, below=4.0)
    assert {name for name, *_ in TARGETS} <= UNITS.keys()


def test_no_target_where_the_spec_has_none() -> None:
    assert find("delta_nll", "narrative", 64) is None
    assert find("substitutability_rate", "mixed") is None
    assert find("kl") is None
    assert find("perplexity_ratio", level=1) is None
    assert target_for("delta_nll", domain="narrative", horizon=32, offsets=(1, 8)) is None
    assert target_for("delta_nll", domain="narrative", horizon=32, offsets=(1, 32), spans_per_segment=2) is None
