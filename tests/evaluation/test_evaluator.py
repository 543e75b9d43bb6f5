"""The evaluation against the spec's loop written out, and the baselines against what they stand for."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gistnet.config import load_config
from gistnet.data.sampling import validation_windows
from gistnet.errors import DataError
from gistnet.evaluation import baselines
from gistnet.evaluation.evaluator import EvaluationConfig, evaluate
from gistnet.evaluation.held_out import HeldOut
from gistnet.evaluation.validation import ValidationConfig, Validator
from gistnet.objective.branches import Stretches, gist_stand_ins
from gistnet.objective.objective import encode
from gistnet.objective.reference import reference_original_hidden, reference_replaced_hidden
from gistnet.session import open_run
from tests.teachers import tiny_teacher


@pytest.fixture
def run(config_file: Path):
    """A run with a GistNet that is not at its beginning."""
    run = open_run(load_config(config_file, ["teacher.precision=float64"]))
    torch.nn.init.normal_(run.gistnet.w_out.weight, generator=torch.Generator().manual_seed(0))
    return run


CONFIG = EvaluationConfig(documents=5, spans_per_document=2, horizons=(4, 12), resamples=200)


def written_out_kl(run, horizon: int) -> np.ndarray:
    """KL per span and offset by two whole forwards per span, in the evaluation's order of spans."""
    samples = validation_windows(run.dataset, run.layout, documents=5, spans_per_document=2, seed=0)
    rows = []
    for sample in samples:
        starts = torch.from_numpy(sample.starts)
        tokens = torch.from_numpy(run.dataset.read(sample.window))[None]
        stretches = Stretches(tokens, torch.zeros_like(starts), starts, 8, 1, horizon)
        with torch.no_grad():
            stand_ins = gist_stand_ins(stretches, encode(run.gistnet, run.teacher, stretches.replaced), "center")
            for branch in range(len(starts)):
                p = run.teacher.logits(reference_original_hidden(run.teacher, stretches, branch)).log_softmax(-1)
                q = reference_replaced_hidden(run.teacher, stretches, stand_ins, branch)
                rows.append((p.exp() * (p - run.teacher.logits(q).log_softmax(-1))).sum(-1).numpy())
    return np.array(rows)


def test_kl_equals_the_loop_for_every_horizon_and_range_of_offsets(run):
    records = evaluate(run.teacher, run.gistnet, run.dataset, CONFIG)
    kl = {(r.horizon, r.offsets): r.value for r in records if r.name == "kl" and r.positions == "center"}
    expected = written_out_kl(run, horizon=12)
    assert kl.keys() == {(4, (1, 4)), (12, (1, 12)), (12, (1, 8)), (12, (9, 12))}
    for (_, (first, last)), value in kl.items():
        assert value == pytest.approx(expected[:, first - 1 : last].mean(), rel=1e-6)


def test_every_record_has_all_baselines_and_a_consistent_recovered_share(run):
    records = evaluate(run.teacher, run.gistnet, run.dataset, CONFIG)
    names = {"kl", "delta_nll", "substitutability_rate", "perplexity_ratio", "recovered_kl", "kl_below_last_token"}
    assert names < {r.name for r in records}
    assert {r.positions for r in records} == {"center", "end", "compact"}
    for record in records:
        assert record.baselines.keys() == {"drop", "last_token", "surprisal_token", "mean", "shuffled"}
        assert record.interval[0] - 1e-9 <= record.value <= record.interval[1] + 1e-9
        assert (record.n_spans, record.n_documents) == (10, 5)
    by_key = {(r.name, r.positions, r.horizon, r.offsets): r for r in records}
    for policy in ("center", "end", "compact"):
        key = (policy, 12, (1, 12))
        kl, recovered = by_key[("kl", *key)], by_key[("recovered_kl", *key)]
        assert recovered.value == pytest.approx(1 - kl.value / kl.baselines["drop"])
        assert recovered.baselines["drop"] == 0
        assert by_key[("kl_below_last_token", *key)].value == pytest.approx(kl.baselines["last_token"] - kl.value)
    drops = {r.baselines["drop"] for r in records if r.name == "kl" and r.offsets == (1, 12)}
    assert len(drops) == 1  # one denominator for every position policy


def test_an_untrained_gistnet_at_the_end_is_the_last_token_exactly(config_file):
    run = open_run(load_config(config_file))
    records = evaluate(run.teacher, run.gistnet, run.dataset, CONFIG)
    assert len(records) > 10
    for record in records:
        if record.positions in ("end", "compact"):
            assert record.value == pytest.approx(record.baselines["last_token"], abs=1e-9)


def test_evaluation_is_the_same_every_time(run):
    first, second = (evaluate(run.teacher, run.gistnet, run.dataset, CONFIG) for _ in range(2))
    assert first == second


def test_one_held_out_document_is_too_few(run):
    config = CONFIG.model_copy(update={"documents": 1})
    with pytest.raises(DataError, match="single document"):
        evaluate(run.teacher, run.gistnet, run.dataset, config)


def test_validation_agrees_with_the_evaluation_of_the_same_spans(run):
    config = ValidationConfig(documents=5, spans_per_document=2, cache_gigabytes=1.0)
    validator = Validator(run.teacher, run.dataset, run.layout, "center", {"narrative": 1.0}, config, seed=0)
    result = validator.validate(run.gistnet)
    assert result["kl"] == pytest.approx(written_out_kl(run, 12).mean(), rel=1e-6)
    assert result == validator.validate(run.gistnet)  # the second time from the cache
    records = {r.name: r for r in evaluate(run.teacher, run.gistnet, run.dataset, CONFIG) if r.offsets == (1, 12)}
    kl = next(
        r
        for r in evaluate(run.teacher, run.gistnet, run.dataset, CONFIG)
        if (r.name, r.positions, r.offsets) == ("kl", "center", (1, 12))
    )
    assert records["kl"].baselines["drop"] == pytest.approx(result["kl_drop"])
    assert kl.baselines["last_token"] == pytest.approx(result["kl_last_token"])
    assert result["recovered_kl"] == pytest.approx(1 - result["kl"] / result["kl_drop"])


def test_the_cache_keeps_only_what_fits(run):
    samples = validation_windows(run.dataset, run.layout, documents=5, spans_per_document=2, seed=0)
    one = HeldOut(run.teacher, run.dataset, samples[:1], run.layout, cache_gigabytes=1.0)
    one.measure({"drop": lambda window, read: baselines.drop(run.teacher, window.stretches)})
    read = one._reads[0]
    size = read.hidden.nbytes + 2 * sum(k.nbytes for k in read.document.keys.values())
    few = HeldOut(run.teacher, run.dataset, samples, run.layout, cache_gigabytes=2.5 * size / 1e9)
    few.measure({"drop": lambda window, read: baselines.drop(run.teacher, window.stretches)})
    assert 1 <= len(few._reads) < len(samples)


def stretches_of_two_spans() -> Stretches:
    tokens = torch.randint(3, 97, (1, 60), generator=torch.Generator().manual_seed(4))
    return Stretches(tokens, torch.tensor([0]), torch.tensor([10]), span_tokens=8, gists=2, horizon=6)


def test_tokens_stand_at_their_own_place_and_the_mean_where_the_gist_would():
    teacher, stretches = tiny_teacher("llama"), stretches_of_two_spans()
    last = baselines.last_token(teacher, stretches, "center")
    assert last.positions.tolist() == [[17, 25]]
    torch.testing.assert_close(last.vectors[0], teacher.embed(stretches.tokens[0, [17, 25]]))
    assert baselines.last_token(teacher, stretches, "compact").positions.tolist() == [[10, 11]]
    mean = baselines.mean(teacher, stretches, "center")
    assert mean.positions.tolist() == [[14, 22]]
    torch.testing.assert_close(mean.vectors[0, 1], teacher.embed(stretches.tokens[0, 18:26]).mean(0))
    assert baselines.drop(teacher, stretches).continuation.tolist() == [26]


def test_the_surprisal_token_is_the_least_expected_by_the_plain_model():
    teacher, stretches = tiny_teacher("llama"), stretches_of_two_spans()
    with torch.no_grad():
        log_p = teacher.model(stretches.tokens, use_cache=False).logits.log_softmax(-1)[0]
    surprisal = -log_p[:-1].gather(1, stretches.tokens[0, 1:, None])[:, 0]  # entry t is of token t + 1
    places = [10 + int(surprisal[9:17].argmax()), 18 + int(surprisal[17:25].argmax())]
    chosen = baselines.surprisal_token(teacher, teacher.read_windows(stretches.tokens), stretches, "center")
    assert chosen.positions.tolist() == [places]
    torch.testing.assert_close(chosen.vectors[0], teacher.embed(stretches.tokens[0, places]))


def test_shuffled_gists_come_from_other_documents():
    documents = torch.tensor([0, 0, 1, 2, 2, 2])
    rows = baselines.other_documents(documents, seed=1)
    assert (documents[rows] != documents).all()
    assert torch.equal(rows, baselines.other_documents(documents, seed=1))
