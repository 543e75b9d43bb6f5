"""Minimal pairs against plain forwards of whole contexts, and how pairs are laid out."""

import zlib

import pytest
import torch

from gistnet.data.synthetic import adversarial_pairs
from gistnet.errors import DataError, TeacherError
from gistnet.evaluation import baselines
from gistnet.evaluation.probes.minimal_pairs import TokenPair, _mean_nll, minimal_pairs, spans_per_segment, token_pairs
from gistnet.model.config import GistNetConfig
from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import GistNet, SpanContext
from gistnet.model.teacher import Teacher
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.objective.branches import SegmentBatch, gist_replacements
from gistnet.objective.reference import reference_replaced_hidden
from tests.teachers import tiny_teacher
from tests.tokenizers import sentencepiece_like


def measure(teacher, gistnet, *policies: str, sink_tokens: int = 4, seed: int = 0):
    return minimal_pairs(teacher, gistnet, 14, sink_tokens=sink_tokens, positions=policies, seed=seed)


class Words:
    """A tokenizer with one token per word and one at the beginning."""

    def __call__(self, texts, add_special_tokens=True, verbose=True):
        if isinstance(texts, str):
            return {"input_ids": [1] * add_special_tokens + self._ids(texts)}
        return {"input_ids": [self._ids(text) for text in texts]}

    def _ids(self, text: str) -> list[int]:
        return [3 + zlib.crc32(word.encode()) % 94 for word in text.split()]


@pytest.fixture
def teacher() -> Teacher:
    teacher = tiny_teacher("llama")
    teacher.tokenizer = TeacherTokenizer(Words())
    return teacher


@pytest.fixture
def gistnet(teacher) -> GistNet:
    config = GistNetConfig(architecture="bottleneck", width=16, heads=2)
    gistnet = GistNet.build(config, teacher, 16)
    torch.nn.init.normal_(gistnet.w_out.weight, generator=torch.Generator().manual_seed(0))
    return gistnet


def mean_nll(teacher, hidden, following) -> float:
    log_p = teacher.logits(hidden).log_softmax(-1)
    return float(-log_p[torch.arange(len(following)), following].mean())


@torch.no_grad()
def accuracy_written_out(teacher, gistnet, pairs, k: int, what: str) -> dict[str, float]:
    """By kind of pair: one plain forward for each context and continuation."""
    right: dict[str, list[float]] = {}
    for pair in pairs:
        for trial in (0, 1):
            costs = []
            for following in pair.continuations[trial]:
                tokens = torch.tensor(pair.contexts[trial] + following)[None]
                n, h = len(pair.contexts[trial]), len(following)
                if what == "full":
                    hidden = teacher.model.base_model(tokens).last_hidden_state[0, n - 1 : -1]
                else:
                    start = torch.tensor([n - k * 16])
                    segments = SegmentBatch(tokens, torch.tensor([0]), start, span_tokens=16, n_spans=k, horizon=h)
                    read = teacher.prefill(tokens[:, :n], hidden_state_layer=gistnet.hidden_state_layer)
                    gists = SpanEncoder(teacher, gistnet).encode(
                        segments.replaced, SpanContext(read, torch.tensor([0]), start)
                    )
                    replacements = gist_replacements(segments, gists, "center")
                    hidden = reference_replaced_hidden(teacher, segments, replacements, 0)
                costs.append(mean_nll(teacher, hidden, torch.tensor(following)))
            right.setdefault(pair.kind, []).append((costs[0] < costs[1]) + (costs[0] == costs[1]) / 2)
    means = {kind: sum(values) / len(values) for kind, values in right.items()}
    return means | {"": sum(map(sum, right.values())) / sum(map(len, right.values()))}


@pytest.fixture(params=["alone", "in context"])
def either(request, teacher, gistnet) -> GistNet:
    """One that reads its spans alone, and one that reads them where they stand."""
    if request.param == "alone":
        return gistnet
    layers = {"teacher_layers": 2, "token_layers": 2}
    in_context = GistNet.build(GistNetConfig(reads="context", width=16, heads=2, **layers), teacher, 16)
    torch.nn.init.normal_(in_context.w_out.weight, generator=torch.Generator().manual_seed(0))
    return in_context


def test_accuracies_are_those_of_plain_forwards(teacher, either):
    gistnet = either
    records = measure(teacher, gistnet, "center")
    candidates = token_pairs(teacher.tokenizer, 14, seed=0)
    k = spans_per_segment(candidates, 16, 4)
    pairs = [pair for pair in candidates if pair.fits(16 * k, 4)]
    assert [record.kind for record in records] == ["", "number", "name", "negation"]
    for what in ("gist", "full"):
        expected = accuracy_written_out(teacher, gistnet, pairs, k, what)
        measured = {r.kind: r.value if what == "gist" else r.baselines["full"] for r in records}
        assert measured == pytest.approx(expected)
    assert 0 < records[0].value < 1  # otherwise the comparison says little
    assert (records[0].n_documents, records[0].n_spans, records[0].spans_per_segment) == (len(pairs), 2 * len(pairs), k)
    assert (records[0].domain, records[0].horizon, records[0].unit) == ("adversarial", None, "share of pairs")
    for record in records:
        assert record.baselines.keys() == {"full", "drop", "last_token", "mean", "shuffled"}
        assert record.interval[0] <= record.value <= record.interval[1]


@torch.no_grad()
def test_a_continuation_costs_the_mean_of_its_own_tokens(teacher):
    """Of two tokens and of five after one context: the shorter is padded beside the longer."""
    context, following = [*range(20, 32)], [[5, 6], [7, 8, 9, 10, 11]]
    tokens, windows, ends = torch.tensor([[*context, 0]]), torch.tensor([0, 0]), torch.tensor([12, 12])
    nothing = SegmentBatch(tokens, windows, ends, span_tokens=16, n_spans=0, horizon=1)
    prefill = teacher.prefill(tokens)
    dropped = baselines.drop(teacher, nothing, prefill, "end")
    costs = _mean_nll(teacher, prefill, nothing, dropped, following)
    for cost, row in zip(costs.tolist(), following, strict=True):
        hidden = teacher.model.base_model(torch.tensor([context + row])).last_hidden_state[0, 11:-1]
        assert cost == pytest.approx(mean_nll(teacher, hidden, torch.tensor(row)))


def test_where_the_span_is_dropped_both_trials_are_one_and_one_of_them_is_wrong(teacher, gistnet):
    """One token per word: texts that differ in a number or a name are of the same length, and so are their rests."""
    by_kind = {r.kind: r for r in measure(teacher, gistnet, "center")}
    assert by_kind["number"].baselines["drop"] == by_kind["name"].baselines["drop"] == 0.5


def test_every_policy_has_its_records_and_they_are_the_same_every_time(teacher, gistnet):
    first, second = (measure(teacher, gistnet, "end", "compact", seed=3) for _ in range(2))
    assert first == second
    assert [r.positions for r in first if not r.kind] == ["end", "compact"]
    assert first[0].baselines["full"] == first[4].baselines["full"]


def test_pairs_are_one_context_up_to_the_first_difference(teacher):
    for pair in token_pairs(teacher.tokenizer, 9, seed=1):
        a, b = pair.contexts
        same = max(len(a), len(b)) - pair.differing
        assert a[0] == b[0] == 1
        assert a[:same] == b[:same] and a[same] != b[same]
        assert len(a) - len(b) == (1 if pair.kind == "negation" else 0)


def test_continuations_lose_only_what_they_end_in_alike(teacher):
    pairs = token_pairs(teacher.tokenizer, 30, seed=1)
    for pair, text in zip(pairs, adversarial_pairs(1, 30), strict=True):
        tails = []
        after_a, after_b = pair.continuations
        assert after_a == after_b[::-1]  # one token per word: the same after either text
        for kept, whole in zip(after_a, (text.continuation_a, text.continuation_b), strict=True):
            (tokens,) = teacher.tokenizer.encode_batch([whole])
            assert kept and tokens[: len(kept)] == kept
            tails.append(tokens[len(kept) :])
        assert tails[0] == tails[1]
        assert after_a[0][-1] != after_a[1][-1]
    assert any(len(pair.continuations[0][0]) > 5 for pair in pairs)


def test_context_and_continuation_are_one_text() -> None:
    """A tokenizer that puts a space before every text, and merges the full stop with the space after it."""
    tokenizer = sentencepiece_like()
    for pair, text in zip(token_pairs(tokenizer, 12, seed=1), adversarial_pairs(1, 12), strict=True):
        before = (text.prefix + text.span_a, text.prefix + text.span_b)
        after = (text.continuation_a, text.continuation_b)
        for trial in (0, 1):
            for kept, following in zip(pair.continuations[trial], (after[trial], after[1 - trial]), strict=True):
                (whole,) = tokenizer.encode_batch([before[trial] + following])
                read = [*pair.contexts[trial][len(tokenizer.window_prefix) :], *kept]
                assert read == whole[: len(read)]


def pair(length: int, differing: int) -> TokenPair:
    return TokenPair("number", ([0] * length, [0] * length), (([0], [1]), ([1], [0])), differing)


def test_the_number_of_gists_fits_most_pairs():
    """With K = 8 and 2 tokens of beginning: 9 differing tokens ask for 2 gists, a context of 20 gives room for 2."""
    assert pair(20, 9).fits(16, 2) and not pair(20, 9).fits(8, 2) and not pair(20, 9).fits(24, 2)
    assert spans_per_segment([pair(20, 9), pair(20, 3)], 8, 2) == 2
    assert spans_per_segment([pair(20, 3), pair(20, 3)], 8, 2) == 1
    assert spans_per_segment([pair(12, 3), pair(12, 4), pair(40, 20)], 8, 2) == 1


def test_a_teacher_without_tokenizer_and_texts_without_room_are_refused(teacher, gistnet):
    with pytest.raises(DataError, match="pairs"):
        measure(teacher, gistnet, "center", sink_tokens=500)
    teacher.tokenizer = None
    with pytest.raises(TeacherError, match="no tokenizer"):
        measure(teacher, gistnet, "center")
