"""The span map against the evaluation of the same spans, and its text, neighbours and passes."""

import numpy as np
import pytest
import torch

from gistnet.evaluation.config import EvaluationConfig
from gistnet.evaluation.evaluator import evaluate
from gistnet.evaluation.probes.mapping import nearest_spans
from gistnet.evaluation.probes.span_map import SpanMap
from gistnet.model.encoder import SpanEncoder

K, H = 8, 12


# All spans of a window of 96 tokens are evaluated, so that the map's are among them.
CONFIG = EvaluationConfig(
    documents=3,
    segments_per_window=20,
    horizons=(H, 4),
    positions=("end", "center"),
    map_documents=3,
    resamples=100,
    minimal_pairs=0,
)


@pytest.fixture(autouse=True)
def finer(monkeypatch):
    """Losses of so small a teacher need more decimals than a page shows."""
    monkeypatch.setattr("gistnet.evaluation.probes.mapping.DECIMALS", 6)


def test_the_map_agrees_with_the_evaluation_of_the_same_spans(run):
    records, span_map = evaluate(run.teacher, run.gistnet, run.dataset, CONFIG)
    assert (span_map.positions, span_map.horizon, span_map.span_tokens) == ("end", H, K)
    assert len({document.id for document in span_map.documents}) == 3
    spans = [span for document in span_map.documents for span in document.spans]
    for name in ("gist", "drop", "last_token"):
        per_span = [span.delta_nll[name] for span in spans]
        assert span_map.distribution["narrative"][name] == pytest.approx(per_span, abs=1e-5)
        for span in spans:
            assert np.mean(span.delta_nll_by_offset[name]) == pytest.approx(span.delta_nll[name], abs=1e-5)
            assert len(span.delta_nll_by_offset[name]) == H
    for name in ("kl", "delta_nll"):
        (record,) = (r for r in records if (r.name, r.positions, r.offsets) == (name, "end", (1, H)))
        measured = [getattr(span, name) for span in spans]
        assert np.mean([of_span["gist"] for of_span in measured]) == pytest.approx(record.value, abs=1e-5)
        for baseline in ("drop", "last_token"):
            mean = np.mean([of_span[baseline] for of_span in measured])
            assert mean == pytest.approx(record.baselines[baseline], abs=1e-5)


def test_all_aligned_spans_with_room_are_mapped_with_their_own_gists(run):
    span_map = evaluate(run.teacher, run.gistnet, run.dataset, CONFIG).span_map
    for document in span_map.documents:
        starts = [span.start for span in document.spans]
        assert np.diff(starts).tolist() == [K] * (len(starts) - 1)
        assert 4 <= starts[0] < 4 + K
        assert starts[-1] + K + H <= len(document.tokens) < starts[-1] + 2 * K + H
        windows = [
            run.dataset.read(number)
            for number in run.dataset.window_indices("held_out").tolist()
            if run.dataset.describe(number).document_id == document.id
        ]
        text = "".join(document.tokens)
        (window,) = (tokens for tokens in windows if run.teacher.tokenizer.decode(tokens) == text)
        assert len(window) == len(document.tokens)
        with torch.no_grad():
            tokens = torch.from_numpy(np.stack([window[start : start + K] for start in starts]))
            gists, attention = SpanEncoder(run.teacher, run.gistnet).encode_with_attention(tokens)
        for row, span in enumerate(document.spans):
            assert span.gist_norm == pytest.approx(float(gists[row].norm()), abs=1e-4)
            for slot in range(2):
                np.testing.assert_allclose(span.attention[slot], attention[slot, row].mean(0), atol=1e-5)
                assert sum(span.attention[slot]) == pytest.approx(1, abs=1e-4)


def test_the_next_tokens_are_those_of_the_text_with_and_without_the_span(run):
    """By the teacher's own forward pass; without the span, on a text that ends before it."""
    span_map = evaluate(run.teacher, run.gistnet, run.dataset, CONFIG).span_map
    document = span_map.documents[0]
    number = next(
        number
        for number in run.dataset.window_indices("held_out").tolist()
        if run.teacher.tokenizer.decode(run.dataset.read(number)) == "".join(document.tokens)
    )
    window = torch.from_numpy(run.dataset.read(number))[None]
    for span in document.spans[:3]:
        assert span.next_tokens.keys() == {"full", "gist", "drop"}
        for name, end in (("full", span.start + K), ("drop", span.start)):
            with torch.no_grad():
                hidden = run.teacher.prefill(window[:, :end]).hidden[0, -1]
                probabilities, tokens = run.teacher.logits(hidden).softmax(-1).topk(3)
            found = span.next_tokens[name]
            assert [p.text for p in found] == [run.teacher.tokenizer.decode([token]) for token in tokens.tolist()]
            assert [p.probability for p in found] == pytest.approx(probabilities.tolist(), abs=1e-5)


def test_passes_of_few_spans_give_the_same_map(run, monkeypatch):
    whole = evaluate(run.teacher, run.gistnet, run.dataset, CONFIG).span_map
    monkeypatch.setattr("gistnet.evaluation.probes.mapping.SPANS_PER_PASS", 2)
    reads = []
    prefill = run.teacher.prefill
    monkeypatch.setattr(run.teacher, "prefill", lambda tokens, **_: reads.append(tokens) or prefill(tokens))
    parts = evaluate(run.teacher, run.gistnet, run.dataset, CONFIG).span_map
    assert len(reads) == 3 + 2 * 3  # the evaluation's three windows; the map's, for losses and for next tokens
    for a, b in zip(whole.documents, parts.documents, strict=True):
        assert (a.id, a.tokens, len(a.spans)) == (b.id, b.tokens, len(b.spans))
        for x, y in zip(a.spans, b.spans, strict=True):
            assert (x.start, [n.span for n in x.nearest]) == (y.start, [n.span for n in y.nearest])
            assert x.kl == pytest.approx(y.kl, abs=2e-5)


def test_the_map_survives_its_file_and_may_have_no_documents(run, tmp_path):
    config = CONFIG.model_copy(update={"map_documents": 0})
    span_map = evaluate(run.teacher, run.gistnet, run.dataset, config).span_map
    assert span_map.documents == []
    assert len(span_map.distribution["narrative"]["gist"]) > 3
    span_map = evaluate(run.teacher, run.gistnet, run.dataset, CONFIG).span_map
    span_map.write(tmp_path / "spans.json")
    assert SpanMap.read(tmp_path / "spans.json") == span_map


def test_nearest_spans_by_hand():
    """Directions 0°, 90°, 45° and 180°, of two documents of one and three spans; a zero gist is near to none."""
    gists = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0], [-1.0, 0.0]])
    nearest = nearest_spans(gists, [1, 3])
    found = [[(n.document, n.span, round(n.cosine, 3)) for n in of_span] for of_span in nearest]
    assert found[0] == [(1, 1, 0.707), (1, 0, 0.0), (1, 2, -1.0)]
    assert found[2] == [(0, 0, 0.707), (1, 0, 0.707), (1, 2, -0.707)]  # of equal ones the first
    assert nearest_spans(gists[:1], [1]) == [[]]
    assert [n.cosine for n in nearest_spans(np.zeros((2, 3)), [2])[0]] == [0]


def test_at_most_five_neighbours_are_named():
    nearest = nearest_spans(np.random.default_rng(0).normal(size=(9, 4)), [4, 5])
    assert [len(of_span) for of_span in nearest] == [5] * 9
    for row, of_span in enumerate(nearest):
        cosines = [n.cosine for n in of_span]
        assert cosines == sorted(cosines, reverse=True)
        assert (row // 4 if row < 4 else 1, row if row < 4 else row - 4) not in [(n.document, n.span) for n in of_span]
