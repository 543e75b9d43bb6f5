"""Records of losses against figures computed by hand: offsets, kinds of tokens, and the weighted mean."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from gistnet.evaluation.held_out import Measured
from gistnet.evaluation.resampling import Population
from gistnet.evaluation.substitution import Substitution, target_kinds
from gistnet.evaluation.token_kinds import KINDS
from gistnet.objective.branches import SegmentBatch
from gistnet.settings import Target

NUMBERS, NAMES, PUNCTUATION, COMMON, OTHER = range(len(KINDS))
STAND_INS = ("gist", "drop", "last_token", "surprisal_token", "mean", "shuffled")


def substitution(
    gist: np.ndarray,
    documents: list[int],
    *,
    domains: list[str] | None = None,
    shares: dict[str, float] | None = None,
    level: int = 0,
    k: int = 1,
) -> Substitution:
    """Losses of a gist, [spans, H], KL and ΔNLL alike, and of baselines that cost 1, 2, … nats more."""
    shares = shares or {"narrative": 1.0}
    measured = {name: Measured(gist + more, gist + more) for more, name in enumerate(STAND_INS)}
    kinds_of_text = np.array(domains or ["narrative"] * len(documents))
    name = next(iter(shares)) if len(shares) == 1 else "mixed"
    population = Population(name, shares, kinds_of_text, np.array(documents), resamples=200, seed=0)
    return Substitution(population, measured, {"positions": "center", "level": level, "spans_per_segment": k})


def test_by_offset_is_one_record_per_offset_with_all_baselines():
    records = list(substitution(np.array([[1.0, 5.0], [3.0, -1.0]]), [0, 1]).by_offset())
    assert [(r.name, r.horizon, r.offsets, r.value) for r in records] == [
        ("delta_nll_by_offset", 2, (1, 1), 2.0),
        ("delta_nll_by_offset", 2, (2, 2), 2.0),
    ]
    assert records[0].baselines == {"drop": 3, "last_token": 4, "surprisal_token": 5, "mean": 6, "shuffled": 7}
    assert [r.interval for r in records] == [(1.0, 3.0), (-1.0, 5.0)]
    assert {(r.n_spans, r.n_documents, r.target) for r in records} == {(2, 2, None)}


def test_what_is_lost_by_kind_is_the_mean_over_tokens_and_not_over_spans():
    """Of numbers there are 1 + 2 tokens, that lose 6 and 0 + 3: 3 nats a token, where the mean over spans is 3¾."""
    gist = np.array([[6.0, 1.0, 2.0], [0.0, 3.0, 1.0]])
    kinds = np.array([[NUMBERS, COMMON, COMMON], [NUMBERS, NUMBERS, COMMON]])
    records = list(substitution(gist, [0, 1]).by_kind(kinds))
    assert [(r.name, r.kind, r.offsets) for r in records] == [
        (name, kind, (1, 3)) for name in ("kl_by_kind", "delta_nll_by_kind") for kind in ("numbers", "common words")
    ]
    assert [r.value for r in records] == pytest.approx([3, 4 / 3] * 2)
    assert records[0].baselines["drop"] == pytest.approx(4)
    # The first document twice, the second twice, or both: 6, 1½, or 3.
    assert records[0].interval == (1.5, 6.0)


def test_a_kind_that_not_every_draw_has_is_left_without_an_interval():
    kinds = np.array([[NAMES, OTHER], [OTHER, OTHER], [OTHER, PUNCTUATION]])
    records = list(substitution(np.ones((3, 2)), [0, 0, 1]).by_kind(kinds))
    found = {r.kind: (r.value, r.n_spans, r.n_documents, r.interval) for r in records if r.name == "kl_by_kind"}
    assert found == {
        "names": (1.0, 1, 1, None),
        "punctuation": (1.0, 1, 1, None),
        "other words": (1.0, 3, 2, (1.0, 1.0)),
    }


def test_what_begins_a_window_is_no_part_of_its_first_word():
    """Behind a token that would be an s: the last letter of "the" is predicted, and of no "sthe"."""
    tokens, first = torch.tensor([[0, 1, 2, 3]]), torch.tensor([1])
    window = SimpleNamespace(segments=SegmentBatch(tokens, first - 1, first, span_tokens=2, n_spans=1, horizon=1))
    tokenizer = SimpleNamespace(texts=lambda ids: ["sthe"[token] for token in ids])
    held_out: Any = SimpleNamespace(windows=[window])
    assert target_kinds(held_out, cast(Any, tokenizer), prefix_tokens=1).tolist() == [[COMMON]]


def test_each_loss_recovers_a_share_of_what_dropping_costs_of_it():
    """KL comes down from 4 nats to 1, ΔNLL from 3 to 1½; the last token wins back half a nat of either."""
    costs = {"gist": (1.0, 1.5), "drop": (4.0, 3.0), "last_token": (3.5, 2.5)}
    measured = {name: Measured(*(np.full((2, 1), loss) for loss in losses)) for name, losses in costs.items()}
    population = Population("code", {"code": 1.0}, np.array(["code"] * 2), np.array([0, 1]), resamples=200, seed=0)
    records = {record.name: record for record in Substitution(population, measured, {"positions": "end"}).records(1)}
    kl, delta_nll = records["recovered_kl"], records["recovered_delta_nll"]
    assert (kl.value, kl.baselines) == (0.75, {"drop": 0, "last_token": 0.125})
    assert (delta_nll.value, delta_nll.baselines) == (0.5, {"drop": 0, "last_token": pytest.approx(1 / 6)})
    assert records["perplexity_ratio"].value == pytest.approx(4.481689)  # e to the 1½ of ΔNLL


def test_no_share_is_recovered_where_dropping_may_cost_nothing():
    """It costs 0 and 2 nats: nothing, where the first document is drawn twice."""
    records = substitution(np.array([[-1.0], [1.0]]), [0, 1]).records(1)
    assert not [r.name for r in records if r.name.startswith("recovered")]


def test_the_mix_weighs_domains_whatever_their_number_of_spans():
    gist = np.array([[1.0], [3.0], [8.0]])
    mixed = substitution(gist, [0, 1, 2], domains=["a", "a", "b"], shares={"a": 0.25, "b": 0.75})
    records = {r.name: r for r in mixed.records(1)}
    assert {r.domain for r in records.values()} == {"mixed"}
    assert records["kl"].value == 0.25 * 2 + 0.75 * 8
    assert records["kl"].baselines["drop"] == 7.5
    assert records["perplexity_ratio"].value == pytest.approx(np.exp(6.5))
    assert records["substitutability_rate"].value == 0
    assert (records["kl"].n_spans, records["kl"].n_documents, records["kl"].interval) == (3, 3, None)
    # Of numbers there are ½ a span in a and 1 in b, that lose ½ and 8: in the mix 0.125 + 6 over 0.125 + 0.75.
    by_kind = list(mixed.by_kind(np.array([[NUMBERS], [NAMES], [NUMBERS]])))
    assert by_kind[0].value == pytest.approx(6.125 / 0.875)


def test_the_mix_has_the_targets_of_the_spec():
    gist = np.full((4, 128), 0.7)
    mixed = substitution(gist, [0, 1, 2, 3], domains=["a", "a", "b", "b"], shares={"a": 0.5, "b": 0.5})
    record = next(r for r in mixed.records(128) if r.name == "delta_nll")
    assert (record.target, record.met) == (Target(below=0.8), True)
    assert record.interval == pytest.approx((0.7, 0.7))


def test_a_horizon_of_one_token():
    records = list(substitution(np.array([[0.5], [1.5]]), [0, 1]).records(1))
    assert {r.offsets for r in records} == {(1, 1)}
    assert next(r for r in records if r.name == "substitutability_rate").value == 0.5


def test_level_and_run_of_gists_are_recorded_and_have_their_own_targets():
    (record,) = (r for r in substitution(np.ones((2, 4)), [0, 1], level=1).records(4) if r.name == "delta_nll")
    assert (record.level, record.spans_per_segment, record.target) == (1, 1, Target(below=2.0))
    assert {(r.spans_per_segment, r.target) for r in substitution(np.ones((2, 4)), [0, 1], k=3).records(4)} == {
        (3, None)
    }


def test_a_single_document_has_figures_without_intervals():
    """And no share recovered, since nothing says whether dropping costs anything."""
    records = list(substitution(np.ones((3, 2)), [5, 5, 5]).records(2))
    assert [r.name for r in records] == [
        "kl", "delta_nll", "substitutability_rate", "perplexity_ratio", "kl_below_last_token",
    ]  # fmt: skip
    assert {r.interval for r in records} == {None}
