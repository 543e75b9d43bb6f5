"""The evaluation against the spec's loop written out, and the baselines against what they stand for."""

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from gistnet.config import load_config
from gistnet.data.prepare import split_of
from gistnet.data.sampling import fixed_windows
from gistnet.data.sources import Document
from gistnet.errors import DataError, TrainingError
from gistnet.evaluation import baselines
from gistnet.evaluation.config import EvaluationConfig
from gistnet.evaluation.evaluator import evaluate
from gistnet.evaluation.held_out import HeldOut, Measured
from gistnet.evaluation.validation import Validator
from gistnet.model.encoder import SpanEncoder
from gistnet.objective.branches import SegmentBatch, gist_replacements
from gistnet.objective.reference import reference_original_hidden, reference_replaced_hidden
from gistnet.session import open_run
from tests.teachers import tiny_teacher

SUBSTITUTION = {
    "kl", "delta_nll", "substitutability_rate", "perplexity_ratio", "recovered_kl", "recovered_delta_nll",
    "kl_below_last_token", "delta_nll_by_offset", "kl_by_kind", "delta_nll_by_kind",
}  # fmt: skip
GEOMETRY = {
    "gist_diversity", "adjacent_distance", "contrastive_gap", "gist_variance", "gist_norm", "attention_entropy",
}  # fmt: skip
CONFIG = EvaluationConfig(
    documents=5,
    segments_per_window=2,
    horizons=(4, 12),
    positions=("end", "center", "compact"),
    resamples=200,
    minimal_pairs=0,
)


ALL = 10**6
"""So many documents that the evaluation measures all that are held out, as validation does."""


def written_out_kl(run, horizon: int, gists: int = 1, documents: int = 5) -> np.ndarray:
    """KL per span and offset by two whole forwards per span, in the evaluation's order of spans."""
    layout = run.stages[0].layout
    samples = fixed_windows(run.dataset, layout, documents=documents, segments_per_window=2, seed=0, n_spans=gists)
    rows = []
    for sample in samples:
        starts = torch.from_numpy(sample.starts)
        tokens = torch.from_numpy(run.dataset.read(sample.window))[None]
        segments = SegmentBatch(tokens, torch.zeros_like(starts), starts, 8, gists, horizon)
        with torch.no_grad():
            replacements = gist_replacements(
                segments, SpanEncoder(run.teacher, run.gistnet).encode(segments.replaced), "center"
            )
            for branch in range(len(starts)):
                p = run.teacher.logits(reference_original_hidden(run.teacher, segments, branch)).log_softmax(-1)
                q = reference_replaced_hidden(run.teacher, segments, replacements, branch)
                rows.append((p.exp() * (p - run.teacher.logits(q).log_softmax(-1))).sum(-1).numpy())
    return np.array(rows)


def test_kl_equals_the_loop_for_every_horizon_and_range_of_offsets(run):
    records = evaluate(run.teacher, run.gistnet, run.dataset, CONFIG).records
    kl = {(r.horizon, r.offsets): r.value for r in records if r.name == "kl" and r.positions == "center"}
    expected = written_out_kl(run, horizon=12)
    assert kl.keys() == {(4, (1, 4)), (12, (1, 12)), (12, (1, 8)), (12, (9, 12))}
    for (_, (first, last)), value in kl.items():
        assert value == pytest.approx(expected[:, first - 1 : last].mean(), rel=1e-6)


def test_every_record_has_its_baselines_and_a_consistent_recovered_share(run):
    records = evaluate(run.teacher, run.gistnet, run.dataset, CONFIG).records
    assert {r.name for r in records} == SUBSTITUTION | GEOMETRY
    assert {r.positions for r in records} == {"center", "end", "compact"}
    for record in records:
        if record.name in GEOMETRY:
            assert record.horizon is None
            assert record.baselines.keys() == (set() if record.name == "attention_entropy" else {"last_token", "mean"})
            continue
        assert record.baselines.keys() == {"drop", "last_token", "surprisal_token", "mean", "shuffled"}
        if record.interval is not None:
            assert record.interval[0] - 1e-9 <= record.value <= record.interval[1] + 1e-9
        if record.is_whole:
            assert record.interval is not None
            assert (record.n_spans, record.n_documents) == (10, 5)
    by_key = {(r.name, r.positions, r.horizon, r.offsets): r for r in records if r.is_whole}
    for policy in ("center", "end", "compact"):
        key = (policy, 12, (1, 12))
        kl, recovered = by_key[("kl", *key)], by_key[("recovered_kl", *key)]
        assert recovered.value == pytest.approx(1 - kl.value / kl.baselines["drop"])
        assert recovered.baselines["drop"] == 0
        assert by_key[("kl_below_last_token", *key)].value == pytest.approx(kl.baselines["last_token"] - kl.value)
    drops = {r.baselines["drop"] for r in records if r.name == "kl" and r.offsets == (1, 12)}
    assert len(drops) == 1  # one denominator for every position policy


def test_offsets_and_kinds_of_tokens_add_up_to_the_whole(run):
    records = evaluate(run.teacher, run.gistnet, run.dataset, CONFIG).records
    for policy in ("center", "end", "compact"):
        (whole,) = (
            r for r in records if (r.name, r.positions, r.offsets, r.horizon) == ("delta_nll", policy, (1, 12), 12)
        )
        by_offset = [r for r in records if (r.name, r.positions) == ("delta_nll_by_offset", policy)]
        assert [r.offsets for r in by_offset] == [(offset, offset) for offset in range(1, 13)]
        assert np.mean([r.value for r in by_offset]) == pytest.approx(whole.value)
        assert np.mean([r.baselines["mean"] for r in by_offset]) == pytest.approx(whole.baselines["mean"])
        # The words of the corpus are common or other words, with spaces between them; each token is one letter.
        kinds = {r.kind: r for r in records if (r.name, r.positions) == ("delta_nll_by_kind", policy)}
        assert kinds.keys() == {"punctuation", "common words", "other words"}
        counts = Counter(kinds_by_hand(run))
        assert counts.total() == 10 * 12
        total = sum(counts[kind] * record.value for kind, record in kinds.items())
        assert total / (10 * 12) == pytest.approx(whole.value)


def kinds_by_hand(run) -> Iterator[str]:
    """The kind of each letter that is predicted: the words of the windows looked up one by one."""
    for sample in fixed_windows(run.dataset, run.stages[0].layout, documents=5, segments_per_window=2, seed=0):
        kinds: list[str] = []
        for word in re.findall(r"\w+|\s", run.teacher.tokenizer.decode(run.dataset.read(sample.window))):
            common = word in ("the", "over", "a", "and", "never")
            kinds += ["punctuation" if word == " " else "common words" if common else "other words"] * len(word)
        for start in sample.starts:
            yield from kinds[start + 8 : start + 20]


def test_an_untrained_gistnet_at_the_end_is_the_last_token_exactly(config_file):
    run = open_run(load_config(config_file))
    records = evaluate(run.teacher, run.gistnet, run.dataset, CONFIG).records
    assert len(records) > 10
    for record in records:
        if record.baselines and (record.positions in ("end", "compact") or record.name in GEOMETRY):
            assert record.value == pytest.approx(record.baselines["last_token"], abs=1e-9)


def test_evaluation_is_the_same_every_time(run):
    first, second = (evaluate(run.teacher, run.gistnet, run.dataset, CONFIG) for _ in range(2))
    assert first == second


def test_each_longer_part_is_logged_before_it_begins(run, caplog):
    with caplog.at_level("INFO", logger="gistnet.evaluation"):
        evaluate(run.teacher, run.gistnet, run.dataset, CONFIG)
    assert [message.split()[:2] for message in caplog.messages] == [
        ["1/3", "Reading"],
        ["2/3", "Comparing"],
        ["3/3", "Measuring"],
    ]


@pytest.fixture
def two_domains(tiny_config: dict[str, Any], tmp_path: Path):
    """A run whose data also has code, of which one document only is held out."""
    draw = random.Random(1)
    texts = ["".join(f"x{draw.random()} = y{n}\n" for n in range(30)) for _ in range(200)]
    documents = [Document(f"module-{n}", "code", "code", text) for n, text in enumerate(texts)]
    held_out = [document for document in documents if split_of(document.key, 0.3) == "held_out"][:1]
    trained = [document for document in documents if split_of(document.key, 0.3) == "train"][:3]
    code = tmp_path / "code.jsonl"
    lines = [json.dumps({"id": document.id, "text": document.text}) for document in held_out + trained]
    code.write_text("\n".join(lines) + "\n")
    tiny_config["data"]["sources"].append({"kind": "files", "name": "code", "domain": "code", "paths": [str(code)]})
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(tiny_config))
    return open_run(load_config(path))


def test_the_mix_is_the_weighted_mean_of_the_domains(two_domains):
    run = two_domains
    config = CONFIG.model_copy(update={"weights": {"narrative": 0.75, "code": 0.25}, "positions": ("end",)})
    records = evaluate(run.teacher, run.gistnet, run.dataset, config).records
    by_domain = {domain: [r for r in records if r.domain == domain] for domain in ("narrative", "code", "mixed")}
    assert len(by_domain["narrative"]) + len(by_domain["code"]) + len(by_domain["mixed"]) == len(records)
    by_key = {(r.domain, r.name, r.kind, r.index, r.horizon, r.offsets): r for r in records}
    linear = ("kl", "delta_nll", "substitutability_rate", "kl_below_last_token", "delta_nll_by_offset", *GEOMETRY)
    checked = set()
    for record in by_domain["mixed"]:
        if record.name in linear:
            key = (record.name, record.kind, record.index, record.horizon, record.offsets)
            parts = [by_key[domain, *key] for domain in ("narrative", "code")]
            assert record.value == pytest.approx(0.75 * parts[0].value + 0.25 * parts[1].value)
            assert record.n_spans == parts[0].n_spans + parts[1].n_spans
            for name, value in record.baselines.items():
                assert value == pytest.approx(0.75 * parts[0].baselines[name] + 0.25 * parts[1].baselines[name])
            checked.add(record.name)
    assert checked == set(linear)
    # The only held-out document of code says nothing of others, alone or in the mix.
    assert {r.interval for r in by_domain["code"]} == {r.interval for r in by_domain["mixed"]} == {None}
    assert any(r.interval for r in by_domain["narrative"])
    assert all(r.n_documents == 1 for r in by_domain["code"])


def test_weights_of_domains_that_cannot_be_weighed_are_refused(run):
    config = CONFIG.model_copy(update={"weights": {"narrative": 0.5, "code": 0.5}})
    with pytest.raises(DataError, match="code"):
        evaluate(run.teacher, run.gistnet, run.dataset, config)
    with pytest.raises(ValidationError, match="must sum to 1"):
        EvaluationConfig(weights={"narrative": 0.5, "code": 0.4})
    with pytest.raises(ValidationError, match="greater than 0"):
        EvaluationConfig(weights={"narrative": 1.5, "code": -0.5})
    with pytest.raises(ValidationError, match="code"):
        EvaluationConfig(weights={"narrative": 0.5, "code": 0.5}, domains=("narrative",))


def test_a_horizon_of_one_token_is_evaluated(run):
    config = CONFIG.model_copy(update={"horizons": (1,), "positions": ("end",), "map_documents": 1})
    records, span_map = evaluate(run.teacher, run.gistnet, run.dataset, config)
    assert {r.offsets for r in records if r.name == "kl"} == {(1, 1)}
    (by_offset,) = (r for r in records if r.name == "delta_nll_by_offset")
    (delta_nll,) = (r for r in records if r.name == "delta_nll")
    assert by_offset.value == delta_nll.value
    assert all(len(span.delta_nll_by_offset["gist"]) == 1 for span in span_map.documents[0].spans)


def test_a_network_that_is_broken_is_refused(run):
    with torch.no_grad():
        run.gistnet.w_out.weight[0, 0] = torch.nan
    with pytest.raises(DataError, match="NaN or infinite"):
        evaluate(run.teacher, run.gistnet, run.dataset, CONFIG)


def test_one_held_out_document_is_too_few(run):
    config = CONFIG.model_copy(update={"documents": 1})
    with pytest.raises(DataError, match="single document"):
        evaluate(run.teacher, run.gistnet, run.dataset, config)


@torch.no_grad()
def neighbours(run, gists: int) -> torch.Tensor:
    """The gist of each segment's last span and that of the span after it, encoded one by one, `[segments, 2, dim]`."""
    rows = []
    for sample in fixed_windows(
        run.dataset, run.stages[0].layout, documents=ALL, segments_per_window=2, seed=0, n_spans=gists
    ):
        tokens = torch.from_numpy(run.dataset.read(sample.window))
        for start in sample.starts:
            spans = tokens[start + (gists - 1) * 8 :][:16].view(2, 8)
            rows.append(SpanEncoder(run.teacher, run.gistnet).encode(spans)[:, 0])
    return torch.stack(rows)


@pytest.mark.parametrize("k", [1, 2])
def test_validation_agrees_with_the_evaluation_of_the_same_spans(run, k):
    size = {"documents": ALL, "segments_per_window": 2, "spans_per_segment": k, "cache_gigabytes": 1.0}
    validator = Validator(run.teacher, run.dataset, run.stages[0].layout, "center", {"narrative": 1.0}, seed=0, **size)
    result = validator.metrics([validator.measure(run.gistnet)])
    assert result["kl"] == pytest.approx(written_out_kl(run, 12, gists=k, documents=ALL).mean(), rel=1e-6)
    assert result == validator.metrics([validator.measure(run.gistnet)])  # the second time from the cache
    evaluation = CONFIG.model_copy(update={"spans_per_segment": k, "documents": ALL})
    records = evaluate(run.teacher, run.gistnet, run.dataset, evaluation).records
    kl = next(r for r in records if (r.name, r.positions, r.offsets) == ("kl", "center", (1, 12)))
    assert kl.value == pytest.approx(result["kl"])
    # The spec's targets are for single gists; this one is the same for every horizon.
    rate = next(r for r in records if r.name == "substitutability_rate" and r.offsets == (1, 12))
    assert (kl.spans_per_segment, rate.spans_per_segment, rate.target is not None) == (k, k, k == 1)
    assert kl.baselines["drop"] == pytest.approx(result["kl_drop"])
    assert kl.baselines["last_token"] == pytest.approx(result["kl_last_token"])
    assert result["recovered_kl"] == pytest.approx(1 - result["kl"] / result["kl_drop"])
    last, following = neighbours(run, k).double().unbind(1)
    if k == 1:
        assert result["gist_norm"] == pytest.approx(last.norm(dim=1).mean().item(), rel=1e-5)
    adjacent = 1 - torch.cosine_similarity(last, following).mean()
    cosines = torch.cosine_similarity(last[:, None], last[None], dim=-1)
    diversity = 1 - cosines[~torch.eye(len(last), dtype=torch.bool)].mean()
    assert result["adjacent_distance"] == pytest.approx(adjacent.item(), rel=1e-5)
    assert result["gist_diversity"] == pytest.approx(diversity.item(), rel=1e-5)


def test_a_validation_weighs_domains_by_their_share_in_training_and_counts_spans_below_one_nat(two_domains):
    """Losses made up: KL of 2 nats in narrative, 4 in code, 3 more from offset 9 on; 7 where the span is dropped."""
    run, size = two_domains, {"documents": 5, "segments_per_window": 2}
    shares, layout = {"narrative": 0.75, "code": 0.25}, run.stages[0].layout
    validator = Validator(run.teacher, run.dataset, layout, "center", shares, seed=0, **size)
    samples = fixed_windows(run.dataset, layout, seed=0, **size, domains=["code", "narrative"])
    is_code = np.repeat([run.dataset.describe(sample.window).domain == "code" for sample in samples], 2)
    assert is_code.tolist().count(True) == 2 and len(is_code) == 12
    kl = np.where(is_code, 4.0, 2.0)[:, None] + np.where(np.arange(12) < 8, 0.0, 3.0)
    # One nat is not below one.
    delta_nll = np.where(is_code, 3.0, np.where(np.arange(12) % 2 == 0, 0.5, 1.0))[:, None].repeat(12, axis=1)
    measured = validator.measure(run.gistnet)
    losses = measured.spans.losses | {
        "gist": Measured(kl, delta_nll),
        "drop": Measured(np.full((12, 12), 7.0), delta_nll),
    }
    result = validator.metrics([measured._replace(spans=measured.spans._replace(losses=losses))])
    expected = {
        "kl": 0.75 * 3 + 0.25 * 5, "kl_1_8": 0.75 * 2 + 0.25 * 4, "kl_9_12": 0.75 * 5 + 0.25 * 7,
        "kl/code": 5.0, "kl/narrative": 3.0, "delta_nll": 0.75 * 0.75 + 0.25 * 3, "delta_nll/code": 3.0,
        "substitutability_rate": 0.75 * 0.5, "kl_drop": 7.0, "recovered_kl": 1 - 3.5 / 7,
        "recovered_kl_1_8": 1 - 2.5 / 7,
    }  # fmt: skip
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    delta_nll[0, 3] = np.nan
    with pytest.raises(TrainingError, match=r"not finite \(documents: "):
        broken = measured.spans._replace(losses=losses | {"gist": Measured(kl, delta_nll)})
        validator.metrics([measured._replace(spans=broken)])


def test_the_cache_keeps_only_what_fits(run):
    samples = fixed_windows(run.dataset, run.stages[0].layout, documents=5, segments_per_window=2, seed=0)
    one = HeldOut(run.teacher, run.dataset, samples[:1], run.stages[0].layout, cache_gigabytes=1.0)
    one.measure({"drop": (baselines.drop, "end")})
    (read,) = one._cache.values()
    size = sum(tensor.nbytes for tensor in read.tensors())
    few = HeldOut(run.teacher, run.dataset, samples, run.stages[0].layout, cache_gigabytes=2.5 * size / 1e9)
    few.measure({"drop": (baselines.drop, "end")})
    assert 1 <= len(few._cache) < len(samples)


def segments_of_two_spans() -> SegmentBatch:
    tokens = torch.randint(3, 97, (1, 60), generator=torch.Generator().manual_seed(4))
    return SegmentBatch(tokens, torch.tensor([0]), torch.tensor([10]), span_tokens=8, n_spans=2, horizon=6)


def test_tokens_stand_at_their_own_place_and_the_mean_where_the_gist_would():
    teacher, segments = tiny_teacher("llama"), segments_of_two_spans()
    read = teacher.prefill(segments.tokens)
    last = baselines.last_token(teacher, segments, read, "center")
    assert last.positions.tolist() == [[17, 25]]
    torch.testing.assert_close(last.vectors[0], teacher.embed(segments.tokens[0, [17, 25]]))
    assert baselines.last_token(teacher, segments, read, "compact").positions.tolist() == [[10, 11]]
    mean = baselines.mean(teacher, segments, read, "center")
    assert mean.positions.tolist() == [[14, 22]]
    torch.testing.assert_close(mean.vectors[0, 1], teacher.embed(segments.tokens[0, 18:26]).mean(0))
    assert baselines.drop(teacher, segments, read, "end").continuation.tolist() == [26]


def test_the_surprisal_token_is_the_least_expected_by_the_plain_model():
    teacher, segments = tiny_teacher("llama"), segments_of_two_spans()
    with torch.no_grad():
        log_p = teacher.model(segments.tokens, use_cache=False).logits.log_softmax(-1)[0]
    surprisal = -log_p[:-1].gather(1, segments.tokens[0, 1:, None])[:, 0]  # entry t is of token t + 1
    places = [10 + int(surprisal[9:17].argmax()), 18 + int(surprisal[17:25].argmax())]
    chosen = baselines.surprisal_token(teacher, segments, teacher.prefill(segments.tokens), "center")
    assert chosen.positions.tolist() == [places]
    torch.testing.assert_close(chosen.vectors[0], teacher.embed(segments.tokens[0, places]))
    packed = baselines.surprisal_token(teacher, segments, teacher.prefill(segments.tokens), "compact")
    assert packed.positions.tolist() == [[10, 11]]
    assert torch.equal(packed.vectors, chosen.vectors)


def test_shuffled_gists_come_from_other_documents():
    documents = torch.tensor([0, 0, 1, 2, 2, 2])
    rows = baselines.other_documents(documents, seed=1)
    assert (documents[rows] != documents).all()
    assert torch.equal(rows, baselines.other_documents(documents, seed=1))


def test_the_probes_are_part_of_an_evaluation_where_asked_for(run):
    """Pairs always, a probe and oracle vectors on demand; each under its own names, and nothing else changes."""
    config = CONFIG.model_copy(
        update={
            "minimal_pairs": 6,
            "reconstruction": True,
            "oracle_spans": 1,
        }
    )
    plain = evaluate(run.teacher, run.gistnet, run.dataset, CONFIG).records
    probed = evaluate(run.teacher, run.gistnet, run.dataset, config).records
    names = {"pair_accuracy", "reconstruction_ce", "reconstruction_accuracy", "reconstruction_mse"}
    names |= {"oracle_kl", "oracle_recovered_kl", "share_of_oracle"}
    assert {record.name for record in probed} - {record.name for record in plain} == names
    assert [record for record in probed if record.name not in names] == plain
