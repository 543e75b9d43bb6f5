"""The records of compared contexts against figures worked out by hand, and the documents drawn anew."""

import numpy as np
import pytest

from gistnet.evaluation.contexts.long_context_records import BudgetScores, budget_records
from gistnet.evaluation.records import MetricRecord


def scores(nll: dict[str, list[list[float]]], kinds: dict[str, list[list[bool]]]) -> BudgetScores:
    documents = len(nll["full"])
    return BudgetScores(
        nll={name: np.array(values) for name, values in nll.items()},
        kinds={name: np.array(flags) for name, flags in kinds.items()},
        level=1,
        covered=np.linspace(0.8, 1.0, documents),
        truncated=np.full(documents, 0.125),
    )


NLL = {
    "full": [[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]],
    "truncated": [[2.0, 3.0, 4.0], [3.0, 3.0, 3.5]],
    "gist": [[1.5, 3.0, 3.0], [2.0, 3.0, 2.5]],
    "shuffled": [[2.5, 3.0, 4.0], [3.0, 3.0, 4.5]],
    "mean": [[4.0, 4.0, 4.0], [5.0, 5.0, 5.0]],
}
EVERY = [[True] * 3] * 2
SOME = [[False, True, False], [True, False, False]]


def made(nll, kinds, domain: str = "x") -> list[MetricRecord]:
    found = budget_records(scores(nll, kinds), 8, domain=domain, positions="end", resamples=400, seed=0)
    return list(found)


def by_kind(records, name: str) -> dict[str, MetricRecord]:
    return {record.kind: record for record in records if record.name == name}


def test_figures_are_those_of_a_calculation_by_hand():
    records = list(
        budget_records(
            scores(NLL, {"": EVERY, "names": SOME}), 8, domain="narrative", positions="end", resamples=200, seed=0
        )
    )
    nll = by_kind(records, "long_context_nll")
    assert set(nll) == {"", "names"}
    assert nll[""].value == pytest.approx(15 / 6)
    assert nll[""].baselines == pytest.approx(
        {"full": 12 / 6, "truncated": 18.5 / 6, "shuffled": 20 / 6, "mean": 27 / 6}
    )
    assert nll["names"].value == pytest.approx((3 + 2) / 2)
    assert nll["names"].n_spans == 2 and nll[""].n_spans == 6

    all_ = {r.name: r for r in records if not r.kind}
    assert all_["long_context_truncation_cost"].value == pytest.approx(6.5 / 6)
    assert all_["long_context_recovered"].value == pytest.approx(3.5 / 6.5)
    assert all_["long_context_recovered"].baselines == pytest.approx(
        {"full": 1, "truncated": 0, "shuffled": -1.5 / 6.5, "mean": -8.5 / 6.5}
    )
    assert all_["long_context_below_truncated"].value == pytest.approx(3.5 / 6)
    assert all_["long_context_below_shuffled"].value == pytest.approx(5 / 6)
    assert all_["long_context_below_mean"].value == pytest.approx(12 / 6)
    assert all_["long_context_above_full"].value == pytest.approx(3 / 6)
    assert all_["long_context_covered"].value == pytest.approx(0.9)
    assert all_["long_context_covered"].baselines == {"truncated": 0.125, "full": 1.0}
    for record in records:
        assert (record.domain, record.positions, record.level, record.tokens_per_vector) == ("narrative", "end", 1, 8)
        assert record.n_documents == 2 and (record.horizon, record.offsets) == (3, (1, 3))


def test_intervals_draw_documents_and_differences_are_paired():
    """Of two documents, a resample has both, or one of them twice: the extremes are the documents' own figures."""
    records = list(
        budget_records(scores(NLL, {"": EVERY}), 4, domain="code", positions="center", resamples=400, seed=1)
    )
    found = {r.name: r for r in records}
    assert found["long_context_nll"].interval == pytest.approx((2.5, 2.5))  # both documents have this mean
    assert found["long_context_truncation_cost"].interval == pytest.approx((1.0, 3.5 / 3))
    assert found["long_context_below_truncated"].interval == pytest.approx((1.5 / 3, 2 / 3))
    assert found["long_context_recovered"].interval == pytest.approx((0.5, 2 / 3.5))


def test_nothing_is_recovered_where_nothing_may_be_lost():
    """The first document loses 1 nat by truncation, the second gains 1: whether there is a loss is not known."""
    nll = NLL | {"truncated": [[2.0, 3.0, 4.0], [1.0, 1.0, 1.0]]}
    records = made(nll, {"": EVERY})
    names = {record.name for record in records}
    assert "long_context_recovered" not in names
    assert {"long_context_truncation_cost", "long_context_below_truncated"} <= names


def test_a_kind_without_tokens_has_no_record_and_one_document_no_interval():
    none, one = [[False] * 3] * 2, [[True, False, False], [False] * 3]
    kinds = {"": EVERY, "names": none, "repeated": one}
    records = made(NLL, kinds)
    assert not [record for record in records if record.kind == "names"]
    repeated = [record for record in records if record.kind == "repeated"]
    assert repeated and all(record.interval is None and record.n_documents == 1 for record in repeated)
    assert "long_context_recovered" not in {record.name for record in repeated}
