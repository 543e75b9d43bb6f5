"""Means over spans and their intervals, by domain and weighted, against the plain loop over drawn documents."""

import numpy as np
import pytest

from gistnet.errors import DataError
from gistnet.evaluation.metrics import recovered_share
from gistnet.evaluation.resampling import Population, bootstrap_over_documents, itself

DOMAINS = np.array(["code", "code", "prose", "prose", "prose", "prose"])
DOCUMENTS = np.array([7, 8, 1, 1, 2, 3])


def population(shares: dict[str, float], resamples: int = 1000, **changes: np.ndarray) -> Population:
    arrays = {"domains": DOMAINS, "documents": DOCUMENTS, **changes}
    return Population("mixed", shares, **arrays, resamples=resamples, seed=0)


def interval(columns: tuple, documents, statistic=itself, **options):
    options = {"resamples": 1000, "seed": 0} | options
    return Population.of_domain("prose", documents, **options).interval(columns, statistic)


def test_the_interval_of_two_documents_is_known():
    assert bootstrap_over_documents([0.0, 1.0], ["a", "b"]) == (0.0, 1.0)
    assert bootstrap_over_documents([1.0, 2.0, 3.0], ["a", "a", "a"]) is None


def test_the_interval_is_that_of_the_plain_loop_over_documents():
    """Same interval, to its own sampling error, as drawing documents one by one and concatenating their spans."""
    rng = np.random.default_rng(1)
    documents = np.repeat(np.arange(12), rng.integers(1, 9, size=12))
    values = rng.normal(size=12)[documents] + rng.normal(size=len(documents))
    loop = []
    for _ in range(8000):
        drawn = rng.integers(12, size=12)
        loop.append(np.concatenate([values[documents == document] for document in drawn]).mean())
    expected = np.quantile(loop, [0.025, 0.975])
    found = bootstrap_over_documents(values, documents, resamples=8000)
    assert found == pytest.approx(tuple(expected), abs=0.06 * (expected[1] - expected[0]))


def test_documents_of_unequal_size_are_weighed_by_their_spans():
    """Values that are the same in every span are certain, however many spans the drawn documents have."""
    documents = np.repeat([0, 1, 2], [1, 10, 100])
    assert bootstrap_over_documents(np.full(111, 0.3), documents) == pytest.approx((0.3, 0.3))


def test_spans_of_a_document_stay_together():
    """Copying each span a hundred times adds no document, hence no certainty."""
    rng = np.random.default_rng(2)
    values, documents = rng.normal(size=10), np.arange(10)
    once = bootstrap_over_documents(values, documents)
    assert bootstrap_over_documents(np.repeat(values, 100), np.repeat(documents, 100)) == pytest.approx(once)


def test_the_interval_does_not_depend_on_the_order_of_spans_and_is_repeatable():
    rng = np.random.default_rng(3)
    values, documents = rng.normal(size=50), rng.integers(7, size=50)
    order = rng.permutation(50)
    found = bootstrap_over_documents(values, documents, seed=5)
    assert bootstrap_over_documents(values, documents, seed=5) == found
    assert bootstrap_over_documents(values[order], documents[order], seed=5) == pytest.approx(found)
    assert bootstrap_over_documents(values, documents, seed=6) != found


def test_statistics_of_columns_share_the_resamples():
    """A KL that is a quarter of the drop's in every span recovers three quarters whatever is drawn."""
    drop = np.random.default_rng(5).uniform(0.1, 2.0, size=60)
    documents = np.repeat(np.arange(20), 3)
    assert interval((drop / 4, drop), documents, recovered_share) == pytest.approx((0.75, 0.75))
    assert interval((drop + 1, drop), documents, np.subtract) == pytest.approx((1.0, 1.0))
    low, high = interval((drop,), documents)
    assert interval((drop,), documents, np.exp) == pytest.approx((np.exp(low), np.exp(high)), rel=1e-3)


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="bootstrapped statistic"):
        interval((np.ones(2), np.zeros(2)), [0, 1], recovered_share)
    with pytest.raises(DataError, match="NaN"):
        bootstrap_over_documents([1.0, np.nan], [0, 1])
    with pytest.raises(DataError, match="empty"):
        bootstrap_over_documents([], [])


def test_the_mean_is_weighted_by_domain_and_not_by_spans():
    column = np.array([1.0, 3.0, 10.0, 10.0, 20.0, 40.0])
    assert population({"code": 0.25, "prose": 0.75}).mean(column) == 0.25 * 2 + 0.75 * 20
    assert population({"prose": 1.0}).mean(column) == 20
    assert population({"prose": 1.0}).rows.tolist() == [2, 3, 4, 5]
    assert population({"code": 0.25, "prose": 0.75}).rows.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_single_domain_has_the_interval_of_the_plain_bootstrap():
    column = np.random.default_rng(0).normal(size=6)
    alone = Population("code", {"code": 1.0}, DOMAINS, DOCUMENTS, resamples=1000, seed=0)
    assert alone.interval((column,), itself) == bootstrap_over_documents(column[:2], DOCUMENTS[:2])


def test_documents_are_drawn_within_each_domain():
    """Half of {0, 1} drawn twice and half of a constant: the mix has ¼, ½ or ¾ of the first, and nothing between."""
    column = np.array([0.0, 1.0, 4.0, 4.0, 4.0, 4.0])
    mixed = population({"code": 0.5, "prose": 0.5})
    assert set(mixed.resampled_means(column).tolist()) == {2.0, 2.25, 2.5}
    assert mixed.interval((column,), itself) == (2.0, 2.5)


def test_domains_are_drawn_independently_of_each_other():
    """Were both drawn alike, a column and its opposite would cancel in every draw, and nothing would seem uncertain."""
    documents = np.arange(20)
    domains = np.repeat(["a", "b"], 10)
    column = np.random.default_rng(1).normal(size=10)
    mixed = population({"a": 0.5, "b": 0.5}, domains=domains, documents=documents)
    resampled = mixed.resampled_means(np.concatenate([column, -column]))
    # The variance of a mean of n draws is that of what is drawn from, divided by n; here of two, a quarter each.
    assert resampled.var() == pytest.approx(2 * column.var() / 10 / 4, rel=0.2)


def test_the_stratified_interval_is_that_of_the_plain_loop():
    rng = np.random.default_rng(2)
    domains = np.repeat(["a", "b"], [30, 50])
    documents = np.concatenate([rng.integers(8, size=30), 100 + rng.integers(12, size=50)])
    loss, drop = rng.uniform(0.1, 1, size=80), rng.uniform(1, 2, size=80)
    mixed = population({"a": 0.3, "b": 0.7}, 8000, domains=domains, documents=documents)

    loop = []
    for _ in range(4000):
        means = np.zeros(2)
        for domain, share in (("a", 0.3), ("b", 0.7)):
            names = np.unique(documents[domains == domain])
            rows = np.concatenate([np.flatnonzero(documents == name) for name in rng.choice(names, len(names))])
            means += share * np.array([loss[rows].mean(), drop[rows].mean()])
        loop.append(1 - means[0] / means[1])
    low, high = np.quantile(loop, [0.025, 0.975])
    assert mixed.interval((loss, drop), recovered_share) == pytest.approx((low, high), abs=0.08 * (high - low))


def test_a_domain_of_one_document_leaves_no_interval():
    documents = np.array([7, 7, 1, 1, 2, 3])
    assert population({"code": 1.0}, documents=documents).interval((np.ones(6),), itself) is None
    assert population({"code": 0.5, "prose": 0.5}, documents=documents).interval((np.ones(6),), itself) is None
    assert population({"prose": 1.0}, documents=documents).interval((np.ones(6),), itself) == (1.0, 1.0)
