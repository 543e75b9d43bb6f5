"""Geometry of gists: which spans are drawn, figures by hand, intervals against the plain loop, and the attention."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gistnet.config import load_config
from gistnet.errors import DataError
from gistnet.evaluation import metrics
from gistnet.evaluation.probes.geometry import (
    DrawnSpans,
    EncodedSpans,
    attention_entropy,
    domain_geometry,
    draw_spans,
    encode_spans,
    geometry_records,
    mixed_geometry,
)
from gistnet.evaluation.resampling import DocumentDraws
from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import SpanContext
from gistnet.session import open_run
from gistnet.settings import Target
from tests.gistnets import context_gistnet

K, SINK = 8, 4


@pytest.fixture
def run(config_file: Path):
    run = open_run(load_config(config_file))
    torch.nn.init.normal_(run.gistnet.w_out.weight, generator=torch.Generator().manual_seed(0))
    return run


def draw(run, count: int, seed: int = 0) -> DrawnSpans:
    return draw_spans(run.dataset, "narrative", span_tokens=K, sink_tokens=SINK, count=count, seed=seed)


def spans_of(documents: list[int], pairs: list[tuple[int, int]]) -> DrawnSpans:
    of_spans = np.array(documents)
    nowhere = np.zeros_like(of_spans)
    pairs_of_spans = np.array(pairs, int).reshape(-1, 2)
    return DrawnSpans(np.zeros((len(documents), K), int), nowhere, nowhere, of_spans, pairs_of_spans)


def encoded(gists: np.ndarray) -> EncodedSpans:
    """Last token and mean are all one vector; heads are of 1 and 2 bits in the first slot, ½ and 2½ in the other."""
    same = np.ones_like(gists)
    return EncodedSpans(gists, same, same, np.broadcast_to([[[1.0, 2.0], [0.5, 2.5]]], (len(gists), 2, 2)))


def test_all_spans_are_drawn_where_there_are_fewer(run):
    """Each window from its phase on, in steps of K, to its end: as many as fit behind the first tokens."""
    spans = draw(run, 10_000)
    held_out = run.dataset.window_indices("held_out")
    least = sum((length - SINK - (K - 1)) // K for length in run.dataset.lengths[held_out])
    most = sum((length - SINK) // K for length in run.dataset.lengths[held_out])
    assert least <= len(spans.tokens) <= most
    assert set(spans.documents) == set(run.dataset.documents[held_out])
    # In a window all spans but the last have a neighbour that follows.
    assert len(spans.pairs) == len(spans.tokens) - len(held_out)


def test_spans_that_are_drawn_are_aligned_runs_of_held_out_text(run):
    spans = draw(run, 31)
    assert spans.tokens.shape == (31, K)
    texts = {
        number: run.dataset.read(number)[SINK:].astype(np.uint8).tobytes()
        for number in run.dataset.window_indices("held_out").tolist()
    }
    for tokens, document in zip(spans.tokens, spans.documents, strict=True):
        windows = [text for number, text in texts.items() if run.dataset.documents[number] == document]
        assert any(tokens.astype(np.uint8).tobytes() in text for text in windows)
    for first, second in spans.pairs:
        assert spans.documents[first] == spans.documents[second]
        both = np.concatenate(spans.tokens[[first, second]]).astype(np.uint8).tobytes()
        assert any(both in text for text in texts.values())
    assert len(spans.pairs) >= 13  # drawn by twos; at most a few of the fifteen are a window's last
    assert all(np.array_equal(a, b) for a, b in zip(spans, draw(run, 31), strict=True))
    assert not np.array_equal(spans.tokens, draw(run, 31, seed=1).tokens)


def test_encoding_in_passes_gives_the_gists_and_the_embeddings(run, monkeypatch):
    spans = draw(run, 11)
    monkeypatch.setattr("gistnet.evaluation.probes.geometry.TOKENS_PER_PASS", 4 * 8)
    vectors = encode_spans(run.teacher, run.gistnet, spans, run.dataset)
    tokens = torch.from_numpy(spans.tokens)
    with torch.no_grad():
        np.testing.assert_allclose(vectors.gists, SpanEncoder(run.teacher, run.gistnet).encode(tokens)[:, 0], atol=1e-5)
    embeddings = run.teacher.model.get_input_embeddings().weight.detach()[tokens]
    np.testing.assert_allclose(vectors.last_token, embeddings[:, -1])
    np.testing.assert_allclose(vectors.mean, embeddings.mean(1), atol=1e-6)
    assert vectors.entropies.shape == (11, 2, 2)
    assert (vectors.entropies >= 0).all()
    assert (vectors.entropies <= math.log2(K) + 1e-6).all()


def test_spans_are_encoded_where_they_stand(run):
    gistnet = context_gistnet(run.teacher)
    spans = draw(run, 31)
    encoded = encode_spans(run.teacher, gistnet, spans, run.dataset)
    assert encoded.entropies.shape == (31, 2, 2)
    assert len(np.unique(spans.windows)) > 1
    for row in range(31):
        window = torch.from_numpy(run.dataset.read(spans.windows[row]))[None]
        start = int(spans.starts[row])
        assert np.array_equal(window[0, start : start + K], spans.tokens[row])
        read = run.teacher.prefill(window, hidden_state_layer=gistnet.hidden_state_layer)
        with torch.no_grad():
            context = SpanContext(read, torch.tensor([0]), torch.tensor([start]))
            gist = SpanEncoder(run.teacher, gistnet).encode(torch.from_numpy(spans.tokens[row])[None], context)
        np.testing.assert_allclose(encoded.gists[row], gist[0, 0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ["full", "bottleneck", "teacher_lora"])
def test_entropies_are_of_what_the_slots_read_the_tokens_with(config_file, architecture):
    """The softmax written out, from the tokens that each slot is given."""
    settings = [f"gistnet.architecture={architecture}", "gistnet.teacher_layers=2"]
    run = open_run(load_config(config_file, settings))
    given: list[torch.Tensor] = []
    reads = (run.gistnet.first_read, run.gistnet.second_read)
    for read in reads:
        read.register_forward_pre_hook(lambda module, arguments: given.append(arguments[0]))
    measured = encode_spans(run.teacher, run.gistnet, draw(run, 3), run.dataset).entropies
    for slot, (read, states) in enumerate(zip(reads, given, strict=True)):
        assert states.shape[:2] == (3, K)
        with torch.no_grad():
            keys = read.key_value(read.narrow(read.tokens_norm(states)))[..., : read.width]
        size = read.width // read.heads
        for head in range(read.heads):
            part = slice(head * size, (head + 1) * size)
            scores = (keys[..., part] @ read.query[part]).detach() / math.sqrt(size)
            shares = torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True)
            entropy = -(shares * torch.log2(shares)).sum(-1)
            np.testing.assert_allclose(measured[:, slot, head], entropy, rtol=1e-4)


def test_attention_entropy_is_in_bits_per_span_and_head():
    """Head 0 reads one key, then all 32: 0 and 5 bits; head 1 halves two keys, then ½, ¼, ⅛, ⅛: 1 and 1.75."""
    probabilities = np.zeros((2, 2, 32))
    probabilities[0, 0, 3] = 1
    probabilities[1, 0, :] = 1 / 32
    probabilities[0, 1, :2] = 1 / 2
    probabilities[1, 1, :4] = [1 / 2, 1 / 4, 1 / 8, 1 / 8]
    np.testing.assert_allclose(attention_entropy(probabilities), [[0, 1], [5, 1.75]])


@pytest.mark.parametrize("row", [[0.5, 0.4], [1.5, -0.5]])
def test_attention_that_is_no_distribution_is_refused(row):
    with pytest.raises(DataError, match="probabilities"):
        attention_entropy([[row]])


def test_figures_by_hand():
    """Two documents of two neighbours, at right angles to those of the other: as in the tests of the measures."""
    spans = spans_of([1, 1, 2, 2], [(0, 1), (2, 3)])
    figures = domain_geometry(spans, encoded(np.array([[1.0, 0], [3, 0], [0, 1], [0, 2]])), resamples=200, seed=0)
    values = {name: figure.value for (name, slot, _), figure in figures.items() if not slot}
    assert values == pytest.approx(
        {
            "gist_diversity": 4 / 6,
            "adjacent_distance": 0,
            "contrastive_gap": 4 / 6,
            # Squared lengths 1, 9, 1, 4; the mean vector is (1, ¾).
            "gist_variance": 1 - (1 + 9 / 16) / (15 / 4),
            "gist_norm": 7 / 4,
            "attention_entropy": 1.5,
        }
    )
    assert figures["gist_diversity", "", None].baselines == pytest.approx({"last_token": 0, "mean": 0})
    assert figures["gist_norm", "", None].baselines == pytest.approx({"last_token": math.sqrt(2), "mean": math.sqrt(2)})
    heads = {(slot, head): figure.value for (_, slot, head), figure in figures.items() if slot}
    assert heads == {("slot 1", 1): 1, ("slot 1", 2): 2, ("slot 2", 1): 0.5, ("slot 2", 2): 2.5}


def test_intervals_are_those_of_the_plain_loop_over_drawn_documents():
    """Each draw written out: all pairs of spans, but those of two copies of one document."""
    rng = np.random.default_rng(3)
    documents = np.sort(rng.integers(6, size=20))
    gists = rng.normal(loc=0.5, size=(20, 4)) + rng.normal(size=(6, 4))[documents]
    first = np.flatnonzero(np.diff(documents) == 0)
    pairs = np.stack([first, first + 1], axis=1)
    spans = spans_of(documents.tolist(), [tuple(pair) for pair in pairs.tolist()])
    figures = domain_geometry(spans, encoded(gists), resamples=5, seed=(1, 2))
    counts = DocumentDraws(documents, 5, (1, 2)).counts
    names = np.unique(documents)
    for draw, count in enumerate(counts.astype(int)):
        drawn = [
            (document, copy, row)
            for document, times in zip(names, count, strict=True)
            for copy in range(times)
            for row in np.flatnonzero(documents == document)
        ]
        distances = [
            1 - gists[a[2]] @ gists[b[2]] / np.linalg.norm(gists[a[2]]) / np.linalg.norm(gists[b[2]])
            for a in drawn
            for b in drawn
            if a != b and (a[0] != b[0] or a[1] == b[1])
        ]
        rows = [row for _, _, row in drawn]
        neighbours = [pair for row in rows for pair in pairs if pair[0] == row]
        first, second = gists[np.array(neighbours)].transpose(1, 0, 2)
        adjacent = metrics.adjacent_distance(first, second)
        plain = metrics.geometry(gists[rows], (first, second))
        expected = plain | {"gist_diversity": np.mean(distances), "contrastive_gap": np.mean(distances) - adjacent}
        resampled = {name: figures[name, "", None].resampled[draw] for name in expected}
        assert resampled == pytest.approx(expected)


def test_equal_gists_are_not_diverse_and_miss_their_targets():
    figures = domain_geometry(spans_of([1, 1, 2], [(0, 1)]), encoded(np.full((3, 4), 0.5)), resamples=200, seed=0)
    records = {r.name: r for r in geometry_records({"narrative": figures}, positions="end", level=0) if r.is_whole}
    for name in ("gist_diversity", "adjacent_distance", "contrastive_gap", "gist_variance"):
        assert records[name].value == pytest.approx(0, abs=1e-12)
    assert [records[name].met for name in ("gist_diversity", "adjacent_distance", "contrastive_gap")] == [False] * 3
    assert records["attention_entropy"].met is False  # 1.5 bits
    assert (records["gist_norm"].value, records["gist_norm"].interval) == (1.0, (1.0, 1.0))
    assert (records["gist_diversity"].n_spans, records["adjacent_distance"].n_spans) == (3, 2)
    # Only the first document has neighbours, and a draw may leave it out.
    assert records["adjacent_distance"].interval is None
    assert {r.positions for r in records.values()} == {"end"}


def test_without_neighbours_there_is_no_adjacent_distance():
    figures = domain_geometry(spans_of([1, 2, 3], []), encoded(np.eye(3)), resamples=200, seed=0)
    assert {name for name, slot, _ in figures if not slot} == {
        "gist_diversity", "gist_variance", "gist_norm", "attention_entropy",
    }  # fmt: skip
    assert figures["gist_diversity", "", None].value == pytest.approx(1)


def test_a_single_span_or_document_has_what_can_be_said_of_it():
    figures = domain_geometry(spans_of([1], []), encoded(np.array([[3.0, 4.0]])), resamples=200, seed=0)
    assert {name: figure.value for (name, slot, _), figure in figures.items() if not slot} == pytest.approx(
        {"gist_variance": 0, "gist_norm": 5, "attention_entropy": 1.5}
    )
    assert {figure.resampled for figure in figures.values()} == {None}
    figures = domain_geometry(spans_of([1, 1], [(0, 1)]), encoded(np.eye(2)), resamples=200, seed=0)
    assert {figure.resampled for figure in figures.values()} == {None}


def test_gists_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="NaN"):
        domain_geometry(
            spans_of([1, 2], []), encoded(np.array([[1.0, math.nan], [math.inf, 1.0]])), resamples=200, seed=0
        )


def test_the_mix_is_the_weighted_mean_of_what_all_domains_have():
    a = domain_geometry(spans_of([1, 1, 2, 2], [(0, 1), (2, 3)]), encoded(np.eye(4) * 2), resamples=200, seed=(0, 0))
    b = domain_geometry(spans_of([3, 4], []), encoded(np.ones((2, 4))), resamples=200, seed=(0, 1))
    mixed = mixed_geometry({"a": a, "b": b, "unweighted": a}, {"a": 0.75, "b": 0.25})
    assert mixed["gist_diversity", "", None].value == pytest.approx(0.75)
    assert ("adjacent_distance", "", None) not in mixed
    assert mixed["gist_norm", "", None].value == pytest.approx(2)
    assert mixed["gist_norm", "", None].baselines == pytest.approx({"last_token": 2, "mean": 2})
    assert (mixed["gist_norm", "", None].n_spans, mixed["gist_norm", "", None].n_documents) == (6, 4)
    np.testing.assert_allclose(
        mixed["gist_variance", "", None].resampled,
        0.75 * a["gist_variance", "", None].resampled + 0.25 * b["gist_variance", "", None].resampled,
    )
    assert mixed["gist_diversity", "", None].resampled is None  # b's may be one document drawn twice: no pairs
    (variance,) = (r for r in geometry_records({"mixed": mixed}, positions="end", level=0) if r.name == "gist_variance")
    # Four vectors at right angles: the mean vector has a quarter of their squared length.
    assert (variance.value, variance.target) == (pytest.approx(0.75 * 0.75), Target(above=0.3))
