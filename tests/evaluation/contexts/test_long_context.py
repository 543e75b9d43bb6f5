"""Long contexts against plain forwards of transformers and figures worked out by hand; which passages are read."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from gistnet.context.plan import Plan
from gistnet.context.select import select
from gistnet.data.prepare import DataConfig, prepare, split_of
from gistnet.data.sources import Document
from gistnet.errors import ConfigError, DataError, TeacherError
from gistnet.evaluation.config import ContextsConfig, EvaluationConfig
from gistnet.evaluation.contexts.long_context import (
    LongDocument,
    _opened,
    choose_passages,
    held_out_passages,
    long_context,
    long_passages,
    nll_records,
    repeated_from_far,
    words_of_tokens,
)
from gistnet.evaluation.records import MetricRecord
from gistnet.model.teacher import Teacher
from gistnet.tree.document import compress
from tests.data.byte_tokenizer import ByteTokenizer
from tests.evaluation.contexts.conftest import plain_nll

SETTINGS = {
    "documents": 3,
    "min_tokens": 150,
    "max_tokens": 200,
    "scored_tokens": 40,
    "tokens_per_vector": (2, 8),
}
WORDS = ("the", "river", "lantern", "over", "Boston", "and", "Alice", "a", "bridge")
NLL = {
    "full": [[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]],
    "truncated": [[2.0, 3.0, 4.0], [3.0, 3.0, 3.5]],
    "gist": [[1.5, 3.0, 3.0], [2.0, 3.0, 2.5]],
    "row": [[2.0, 2.0, 4.0], [3.0, 3.0, 2.5]],
    "retrieved": [[2.0, 2.5, 4.0], [3.0, 3.0, 3.0]],
    "oracle": [[1.5, 2.5, 3.0], [3.0, 2.0, 3.0]],
    "shuffled": [[2.5, 3.0, 4.0], [3.0, 3.0, 4.5]],
    "mean": [[4.0, 4.0, 4.0], [5.0, 5.0, 5.0]],
}
EVERY = [[True] * 3] * 2
SOME = [[False, True, False], [True, False, False]]


def configured(positions: tuple[str, ...] = ("center",), **changes: object) -> EvaluationConfig:
    return EvaluationConfig(positions=positions, resamples=100, contexts=ContextsConfig(**SETTINGS | changes))


CONFIG = configured()


@pytest.fixture(scope="module")
def documents(encoder) -> list[LongDocument]:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=60)) for _ in range(3)]
    return [LongDocument(f"d{n}", encoder.tokenize(text)[: 150 + 20 * n]) for n, text in enumerate(texts)]


def test_full_and_truncated_contexts_are_plain_forwards_over_their_tokens(teacher, encoder, documents):
    records = long_context(teacher, encoder, documents, CONFIG, domain="narrative")
    found = {r.tokens_per_vector: r for r in records if r.name == "long_context_nll" and not r.kind}
    assert found.keys() == {2, 8}
    full = np.mean([plain_nll(teacher, document.tokens, 40) for document in documents])
    for tokens_per_vector in (2, 8):
        kept = []
        for document in documents:
            n = len(document.tokens) - 40
            recent = n // tokens_per_vector - 4
            kept.append([*document.tokens[:4], *document.tokens[n - recent :]])
        truncated = np.mean([plain_nll(teacher, tokens, 40) for tokens in kept])
        assert found[tokens_per_vector].baselines["full"] == pytest.approx(full)
        assert found[tokens_per_vector].baselines["truncated"] == pytest.approx(truncated)


@torch.no_grad()
def test_gist_contexts_are_plain_forwards_over_their_vectors(teacher, encoder, documents):
    """1/2 of 110 tokens: 4 for the sink, g gists and 110 - 8 g raw tokens in 55, so that g = 9 and 42 are raw (51)."""
    config = configured(("center", "compact"), tokens_per_vector=(2,))
    two = [documents[0], LongDocument("other", documents[1].tokens[:150])]
    found = {
        record.positions: record
        for record in long_context(teacher, encoder, two, config, domain="narrative")
        if (record.name, record.kind) == ("long_context_nll", "")
    }
    raw = 110 - 9 * 8
    spans = [document.tokens[:72].reshape(9, 8) for document in two]
    own = [torch.from_numpy(encoder.encode(0, span, 0)) for span in spans]
    means = [teacher.embed(torch.from_numpy(span)).mean(dim=1).half() for span in spans]
    stood_in = {"gist": own, "shuffled": own[::-1], "mean": means}
    positions = {
        "center": [*range(4), *(8 * n + 4 for n in range(9)), *range(72, 149)],
        "compact": list(range(4 + 9 + raw + 39)),
    }
    for policy, at in positions.items():
        for name, gists in stood_in.items():
            expected = []
            for document, vectors in zip(two, gists, strict=True):
                embedded = teacher.embed(torch.from_numpy(document.tokens))
                context = torch.cat([embedded[:4], vectors.double(), embedded[72:149]])[None]
                ids = torch.tensor(at)[None]
                mask = torch.ones(len(at), len(at), dtype=torch.bool).tril()[None, None]
                output = teacher.model(inputs_embeds=context, position_ids=ids, attention_mask=mask)
                log_p = output.logits[0, -40:].log_softmax(-1)
                expected.append(-log_p.gather(1, torch.from_numpy(document.tokens[-40:, None])).mean())
            record = found[policy]
            value = record.value if name == "gist" else record.baselines[name]
            assert value == pytest.approx(float(np.mean(expected)), rel=1e-6), (policy, name)


def test_kinds_of_tokens_and_reach_are_told(teacher, encoder, documents, caplog):
    with caplog.at_level("INFO"):
        records = long_context(teacher, encoder, documents, CONFIG, domain="code")
    kinds = {(record.tokens_per_vector, record.kind) for record in records if record.name == "long_context_nll"}
    assert {(8, ""), (8, "names"), (8, "repeated")} <= kinds
    covered = {r.tokens_per_vector: r for r in records if r.name == "long_context_covered"}
    assert covered[2].value == 1.0
    assert (covered[2].n_spans, covered[2].n_documents, covered[2].baselines["full"]) == (120, 3, 1.0)
    reach = covered[8].value
    assert reach < 1  # with 8 tokens a gist, the sink leaves too few vectors for all
    assert f"{reach:.1%}" in caplog.messages[-1]
    assert all(record.domain == "code" for record in records)
    assert records == long_context(teacher, encoder, documents, CONFIG, domain="code")


def test_what_cannot_be_compared_is_refused(teacher, encoder, documents, teacher_folder):
    with pytest.raises(DataError, match="1 long documents"):
        long_context(teacher, encoder, documents[:1], CONFIG, domain="x")
    short = LongDocument("short", documents[0].tokens[:149])
    with pytest.raises(DataError, match="149 tokens"):
        long_context(teacher, encoder, [documents[0], short], CONFIG, domain="x")
    long = LongDocument("long", np.resize(documents[0].tokens, 257))
    with pytest.raises(ConfigError, match="257 tokens"):
        long_context(teacher, encoder, [documents[0], long], CONFIG, domain="x")
    wordless = Teacher(teacher.model, name="wordless")
    with pytest.raises(TeacherError, match="no tokenizer"):
        long_context(wordless, encoder, documents, CONFIG, domain="x")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scored_tokens": 150}, "scored_tokens"),
        ({"max_tokens": 149}, "max_tokens"),
        ({"retrieval_cases": 1}, "retrieval_cases"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValidationError, match=message):
        ContextsConfig(**SETTINGS | changed)


def made(nll, kinds, **changes) -> list[MetricRecord]:
    columns = {name: np.array(values) for name, values in nll.items()}
    fields = {"domain": "narrative", "positions": "end", "level": 1, "tokens_per_vector": 8, "horizon": 3}
    flags = {name: np.array(of) for name, of in kinds.items()}
    config = EvaluationConfig(resamples=400, **changes)
    return list(nll_records(columns, flags, config, fields | {"offsets": (1, 3)}))


def by_kind(records, name: str) -> dict[str, MetricRecord]:
    return {record.kind: record for record in records if record.name == name}


def test_figures_are_those_of_a_calculation_by_hand():
    records = made(NLL, {"": EVERY, "names": SOME})
    nll = by_kind(records, "long_context_nll")
    assert set(nll) == {"", "names"}
    assert nll[""].value == pytest.approx(15 / 6)
    assert nll[""].baselines == pytest.approx(
        {
            "full": 12 / 6,
            "truncated": 18.5 / 6,
            "row": 16.5 / 6,
            "retrieved": 17.5 / 6,
            "oracle": 15 / 6,
            "shuffled": 20 / 6,
            "mean": 27 / 6,
        }
    )
    assert nll["names"].value == pytest.approx((3 + 2) / 2)
    assert nll["names"].n_spans == 2 and nll[""].n_spans == 6

    all_ = {r.name: r for r in records if not r.kind}
    assert all_["long_context_truncation_cost"].value == pytest.approx(6.5 / 6)
    assert all_["long_context_recovered"].value == pytest.approx(3.5 / 6.5)
    assert all_["long_context_recovered"].baselines == pytest.approx(
        {
            "full": 1,
            "truncated": 0,
            "row": 2 / 6.5,
            "retrieved": 1 / 6.5,
            "oracle": 3.5 / 6.5,
            "shuffled": -1.5 / 6.5,
            "mean": -8.5 / 6.5,
        }
    )
    assert all_["long_context_below_truncated"].value == pytest.approx(3.5 / 6)
    assert all_["long_context_below_retrieved"].value == pytest.approx(2.5 / 6)
    assert all_["long_context_row_below_truncated"].value == pytest.approx(2 / 6)
    assert all_["long_context_below_oracle"].value == pytest.approx(0)
    assert all_["long_context_below_shuffled"].value == pytest.approx(5 / 6)
    assert all_["long_context_below_mean"].value == pytest.approx(12 / 6)
    assert all_["long_context_above_full"].value == pytest.approx(3 / 6)
    for record in records:
        assert (record.domain, record.positions, record.level, record.tokens_per_vector) == ("narrative", "end", 1, 8)
        assert record.n_documents == 2 and (record.horizon, record.offsets) == (3, (1, 3))


def test_intervals_draw_documents_and_differences_are_paired():
    """Two documents: a resample has both, or one of them twice: the extremes are the documents' own figures."""
    found = {r.name: r for r in made(NLL, {"": EVERY}, seed=1)}
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


def test_a_token_belongs_to_the_word_of_its_first_visible_character():
    texts = [" Lant", "ern", " of", " the", "", " 1912x", "—Bridge", ".", "\n\n", "na", "ïve"]
    words = ["lantern", "lantern", "", "", "", "", "", "", "", "naïve", "naïve"]
    assert words_of_tokens(texts) == words
    assert words_of_tokens(["", "Bridge"]) == ["bridge", "bridge"]


def test_only_words_of_the_far_part_count_and_only_until_they_are_said_again():
    far = ["sink", "lantern", "river", "bridge", "harbour", ""]
    near = ["river", "stone"]
    judged = ["lantern", "lantern", "", "lantern", "river", "sink", "harbour", "bridge", "stone", "winter", "bridge"]
    found = repeated_from_far([*far, *near, *judged], sink=1, recent=6, scored=len(judged))
    #                    lantern (two tokens of one word), …, harbour, bridge
    assert found.tolist() == [True, True, False, False, False, False, True, True, False, False, False]


def test_where_nothing_is_far_nothing_is_repeated():
    words = ["river", "stone", "river"]
    assert not repeated_from_far(words, sink=0, recent=0, scored=2).any()
    assert repeated_from_far(words, sink=0, recent=1, scored=1).tolist() == [True]
    assert repeated_from_far(words, sink=1, recent=1, scored=1).dtype == np.bool_


def test_short_documents_are_left_out_and_long_ones_cut():
    documents = [("short", range(9)), ("whole", range(10)), ("long", range(1000)), ("also long", range(1000))]
    found = list(long_passages(documents, min_tokens=10, max_tokens=20, seed=0))
    assert [document.name for document in found] == ["whole", "long", "also long"]
    assert found[0].tokens.tolist() == list(range(10))
    for passage in found[1:]:
        assert 10 <= len(passage.tokens) <= 20
        assert np.array_equal(passage.tokens, np.arange(passage.tokens[0], passage.tokens[0] + len(passage.tokens)))
    assert found[1].tokens[0] != found[2].tokens[0]  # the name is a part of the draw
    again = list(long_passages(documents[2:3], min_tokens=10, max_tokens=20, seed=0))
    assert np.array_equal(again[0].tokens, found[1].tokens)  # whatever else there is
    assert not np.array_equal(
        next(long_passages(documents[2:3], min_tokens=10, max_tokens=20, seed=1)).tokens, again[0].tokens
    )


def test_every_length_and_place_can_be_drawn():
    documents = [(str(n), range(12)) for n in range(200)]
    found = {tuple(p.tokens[[0, -1]]) for p in long_passages(documents, min_tokens=10, max_tokens=11, seed=0)}
    assert found == {(0, 9), (1, 10), (2, 11), (0, 10), (1, 11)}


def test_documents_are_read_only_as_far_as_they_are_asked_for():
    def documents():
        yield "first", range(10)
        raise AssertionError("read too far")

    assert next(long_passages(documents(), min_tokens=5, max_tokens=10, seed=0)).name == "first"


def test_held_out_documents_are_read_beyond_their_windows(tmp_path: Path):
    texts = {f"d{n}": "".join(chr(97 + (7 * n + k * k) % 26) for k in range(150 + 30 * n)) for n in range(20)}
    file = tmp_path / "tales.jsonl"
    file.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items()))
    source = {"kind": "files", "name": "tales", "domain": "narrative", "paths": [str(file)]}
    sizes = {"window_tokens": 100, "min_tokens": 40, "held_out_fraction": 0.5, "deduplicate": False}
    dataset = prepare(DataConfig(sources=[source], folder=tmp_path / "prepared", **sizes), ByteTokenizer())
    found = held_out_passages(dataset, "narrative", configured(min_tokens=300, max_tokens=1000))
    assert len(found) == 3
    for passage in found:
        assert bytes(passage.tokens.tolist()).decode() == texts[passage.name]
        key = Document(passage.name, "tales", "narrative", texts[passage.name]).key
        assert split_of(key, 0.5) == "held_out" and len(passage.tokens) >= 300
    longer = configured(min_tokens=5000, max_tokens=8000)
    with pytest.raises(DataError, match="0 held-out documents"):
        held_out_passages(dataset, "narrative", longer)
    with pytest.raises(ConfigError, match="sink"):  # before any document is read
        choose_passages(dataset, (8,), ["narrative"], configured(long_context=True, tokens_per_vector=(32,)))
    with pytest.raises(ConfigError, match="sink of 4 tokens, expected 0 to 2"):
        choose_passages(dataset, (4, 8), ["narrative"], configured(long_context=True))


def test_the_oracle_opens_what_helps_alone_and_nothing_where_nothing_does(teacher, encoder, documents):
    tokenizer, compressed = teacher.tokenizer, compress(documents[2].tokens, encoder)
    budget, seen = len(compressed.token_ids) // 2, []

    def opened(measure: Callable[[Plan, str], np.ndarray]) -> Plan:
        return _opened(tokenizer, compressed, measure, 4, budget)["oracle"]

    def of_reach(plan: Plan, policy: str) -> np.ndarray:
        """The further back the first piece begins, the better."""
        seen.append(plan.pieces[0].start)
        return np.array([float(plan.pieces[0].start)])

    recent = select(compressed, None, budget, tokenizer=tokenizer).plan
    assert opened(lambda plan, policy: np.ones(3)) == recent
    assert opened(of_reach).pieces[0].start == min(seen) < recent.pieces[0].start
