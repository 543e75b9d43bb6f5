"""Rows of gists beside raw tails, against two whole forwards of each, and in validation and evaluation."""

import dataclasses
from itertools import product

import numpy as np
import pytest
import torch

from gistnet.data.config import RowsConfig
from gistnet.errors import DataError
from gistnet.evaluation import baselines
from gistnet.evaluation.config import EvaluationConfig
from gistnet.evaluation.evaluator import evaluate
from gistnet.evaluation.rows import HeldOutRows, Row
from gistnet.model.encoder import SpanEncoder
from gistnet.objective.branches import SegmentBatch, gist_replacements, no_replacements
from gistnet.objective.reference import reference_original_hidden, reference_replaced_hidden
from gistnet.session import open_run, stage_validator

CONFIG = RowsConfig(documents=3, lengths=(1, 4), tails=(0, 9), scored_tokens=10)
POLICIES = ("end", "compact")


def held_out(run, **share: int) -> HeldOutRows:
    return HeldOutRows(run.dataset, ["narrative"], CONFIG, tokens_per_gist=8, **share)


def written_out(run, tokens: torch.Tensor, row: Row, other: torch.Tensor) -> dict[str, np.ndarray]:
    """KL of each scored token of a passage, from a forward over the whole text and one over each whole context."""
    horizon = row.tail + CONFIG.scored_tokens
    prefix = torch.tensor(run.dataset.description.window_prefix, dtype=torch.long)
    kept = 4 - len(prefix) + row.n_spans * 8 + horizon
    segments, borrowed = (
        SegmentBatch(
            torch.cat([prefix, text[-kept:]])[None], torch.tensor([0]), torch.tensor([4]), 8, row.n_spans, horizon
        )
        for text in (tokens, other)
    )
    encoder, embed = SpanEncoder(run.teacher, run.gistnet), run.teacher.embed
    gists, others = encoder.encode(segments.replaced), encoder.encode(borrowed.replaced)
    replaced = segments.replaced[0]
    made = {"drop": no_replacements(run.teacher, segments)}
    for policy in POLICIES:
        made[f"gist/{policy}"] = gist_replacements(segments, gists, policy)
        made[f"shuffled/{policy}"] = gist_replacements(segments, others, policy)
        made[f"last_token/{policy}"] = gist_replacements(segments, embed(replaced[7::8])[None], policy)
        recent = gist_replacements(segments, embed(replaced[-row.n_spans :])[None], policy)
        if policy == "end":
            first = 4 + 8 * row.n_spans - row.n_spans
            recent = dataclasses.replace(recent, positions=torch.arange(first, first + row.n_spans)[None])
        made[f"recent_tokens/{policy}"] = recent
    log_p = run.teacher.logits(reference_original_hidden(run.teacher, segments, 0)).log_softmax(-1)
    kls = {}
    for name, replacement in made.items():
        log_q = run.teacher.logits(reference_replaced_hidden(run.teacher, segments, replacement, 0)).log_softmax(-1)
        kls[name] = (log_p.exp() * (log_p - log_q)).sum(-1)[row.tail :].detach().numpy()
    return kls


def test_losses_after_rows_equal_whole_forwards(run):
    rows = held_out(run)
    measured = rows.measure(SpanEncoder(run.teacher, run.gistnet), POLICIES)
    assert list(measured) == [Row(n, tail) for n, tail in product((1, 4), (0, 9))]
    texts = [passage.tokens for passage in rows.passages]
    assert len(texts) == 3
    for row, losses in measured.items():
        for index, text in enumerate(texts):
            expected = written_out(run, text, row, texts[(index + 1) % 3])
            assert losses.keys() == expected.keys()
            for name, kl in expected.items():
                assert losses[name].kl.shape == (3, 10)
                np.testing.assert_allclose(losses[name].kl[index], kl, rtol=1e-6, atol=1e-9, err_msg=f"{row} {name}")


def test_the_scored_tokens_of_a_passage_are_the_same_for_all_rows(run):
    rows = held_out(run)
    for passage in rows.passages:
        ends = {
            tuple(rows._segments(passage, row, torch.device("cpu")).tokens[0, -10:].tolist()) for row in rows._rows()
        }
        assert len(ends) == 1


def test_shares_of_processes_make_the_whole(run):
    """Three processes, and one of them alone; a later call measures gists anew and keeps the baselines."""
    encoder = SpanEncoder(run.teacher, run.gistnet)
    whole = held_out(run)
    expected = whole.measure(encoder, POLICIES)
    shares = [held_out(run, rank=rank, processes=4).measure(encoder, POLICIES) for rank in range(4)]
    again = whole.measure(encoder, POLICIES)
    for row, losses in whole.whole(shares).items():
        assert losses.keys() == expected[row].keys() == again[row].keys()
        for name, measured in losses.items():
            np.testing.assert_array_equal(measured.kl, expected[row][name].kl)
            np.testing.assert_array_equal(measured.delta_nll, again[row][name].delta_nll)


def test_records_name_row_tail_and_baselines(run):
    config = EvaluationConfig(
        documents=4,
        segments_per_window=1,
        horizons=(4,),
        positions=("end", "center", "compact"),
        resamples=100,
        minimal_pairs=0,
        rows=CONFIG,
    )
    records = [r for r in evaluate(run.teacher, run.gistnet, run.dataset, config).records if r.name.startswith("row_")]
    losses = held_out(run).measure(SpanEncoder(run.teacher, run.gistnet), config.positions)
    whole = {(r.positions, r.spans_per_segment, r.offsets, r.name): r for r in records}
    for policy, (row, measured) in product(config.positions, losses.items()):
        record = whole[policy, row.n_spans, (row.tail + 1, row.tail + 10), "row_kl"]
        assert record.value == pytest.approx(measured[f"gist/{policy}"].kl.mean())
        assert record.baselines.keys() == {"drop", "shuffled", "last_token", "recent_tokens"}
        assert record.baselines["recent_tokens"] == pytest.approx(measured[f"recent_tokens/{policy}"].kl.mean())
        recovered = whole[policy, row.n_spans, (row.tail + 1, row.tail + 10), "row_recovered_kl"]
        assert recovered.value == pytest.approx(1 - record.value / record.baselines["drop"])
        assert recovered.baselines["drop"] == 0


def test_validation_has_the_share_recovered_of_each_row(config_file):
    from gistnet.config import load_config

    settings = ["teacher.precision=float64", "train.stop.watch=row_kl", "objective.positions=end"]
    settings.append("train.validation.rows={documents: 3, lengths: [1, 4], tails: [0, 9], scored_tokens: 10}")
    run = open_run(load_config(config_file, settings))
    torch.nn.init.normal_(run.gistnet.w_out.weight, generator=torch.Generator().manual_seed(0))
    validator = stage_validator(run, run.stages[0])
    metrics = validator.metrics([validator.measure(run.gistnet)])
    losses = held_out(run, for_validation=True).measure(SpanEncoder(run.teacher, run.gistnet), POLICIES)
    kls = [of_row[f"gist/{policy}"].kl.mean() for of_row in losses.values() for policy in POLICIES]
    assert metrics["row_kl"] == pytest.approx(np.mean(kls))
    of_row = losses[Row(4, 9)]
    share = 1 - of_row["gist/compact"].kl.mean() / of_row["drop"].kl.mean()
    assert metrics["row_recovered_kl/compact/4+9"] == pytest.approx(share)


def test_what_is_validated_on_comes_last_and_the_first_may_be_left_out(run):
    def taken(**which: int) -> list[str]:
        return [passage.document for passage in held_out(run, **which).passages]

    everything = [name for name, _ in run.dataset.whole_documents("held_out")]
    enough = [name for name in everything if name in {*taken(), *taken(for_validation=True), *taken(skip=2)}]
    assert taken(for_validation=True) == enough[::-1][:3]
    assert (taken(), taken(skip=2)) == (enough[:3], enough[2:5])


def test_rows_longer_than_any_document_are_refused(run):
    with pytest.raises(DataError, match="rows"):
        HeldOutRows(run.dataset, ["narrative"], RowsConfig(documents=2, lengths=(999,)), tokens_per_gist=8)
    with pytest.raises(ValueError, match="two"):
        RowsConfig(documents=1)


def test_recent_tokens_of_shorter_segments_stand_at_their_own_indices(run):
    """K = 8: two spans from token 5 on end with the tokens 19 and 20; one from token 10 on with 17."""
    tokens = torch.arange(60)[None]
    segments = SegmentBatch(tokens, torch.tensor([0, 0]), torch.tensor([5, 10]), 8, torch.tensor([2, 1]), 6)
    made = baselines.recent_tokens(run.teacher, segments, None, "end")
    assert made.positions[0].tolist() == [19, 20]
    assert made.positions[1, 0] == 17
    torch.testing.assert_close(made.vectors[0], run.teacher.embed(tokens[0, 19:21]))
    assert made.lengths.tolist() == [2, 1]
    assert baselines.recent_tokens(run.teacher, segments, None, "compact").positions[0].tolist() == [5, 6]
