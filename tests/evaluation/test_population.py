"""Weighted means over domains and their intervals, against the plain loop over drawn documents."""

import numpy as np
import pytest

from gistnet.evaluation.metrics import bootstrap_over_documents, recovered_share
from gistnet.evaluation.population import Population

DOMAINS = np.array(["code", "code", "prose", "prose", "prose", "prose"])
DOCUMENTS = np.array([7, 8, 1, 1, 2, 3])


def population(shares: dict[str, float], resamples: int = 1000, **changes: np.ndarray) -> Population:
    arrays = {"domains": DOMAINS, "documents": DOCUMENTS, **changes}
    return Population("mixed", shares, **arrays, resamples=resamples, seed=0)


def itself(mean):
    return mean


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
