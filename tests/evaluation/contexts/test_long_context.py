"""Long contexts against plain forwards of transformers, with a tiny teacher over bytes."""

import random

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from gistnet.errors import ConfigError, DataError, TeacherError
from gistnet.evaluation.config import LongContextConfig
from gistnet.evaluation.contexts.long_context import long_context
from gistnet.evaluation.contexts.long_documents import LongDocument
from gistnet.model.config import TeacherConfig
from gistnet.model.teacher import Teacher
from gistnet.tree.gist_encoder import GistEncoder
from tests.gistnets import woken_gistnet

SETTINGS = {
    "documents": 3,
    "min_tokens": 150,
    "max_tokens": 200,
    "scored_tokens": 40,
    "tokens_per_vector": (2, 8),
    "resamples": 100,
}
CONFIG = LongContextConfig(**SETTINGS)
WORDS = ("the", "river", "lantern", "over", "Boston", "and", "Alice", "a", "bridge")


@pytest.fixture(scope="module")
def teacher(teacher_folder) -> Teacher:
    return Teacher.from_pretrained(TeacherConfig(name=str(teacher_folder), precision="float64"))


@pytest.fixture(scope="module")
def encoder(teacher) -> GistEncoder:
    return GistEncoder(teacher, woken_gistnet(teacher))


@pytest.fixture(scope="module")
def documents(encoder) -> list[LongDocument]:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=60)) for _ in range(3)]
    return [LongDocument(f"d{n}", encoder.tokenize(text)[: 150 + 20 * n]) for n, text in enumerate(texts)]


@torch.no_grad()
def plain_nll(teacher, tokens, scored: int) -> np.ndarray:
    ids = torch.as_tensor(np.array(tokens))
    log_p = teacher.model(ids[None]).logits[0].log_softmax(-1)
    return -log_p[-scored - 1 : -1].gather(1, ids[-scored:, None])[:, 0].numpy()


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
    config = LongContextConfig(**SETTINGS | {"positions": ("center", "compact"), "tokens_per_vector": (2,)})
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


def test_kinds_of_tokens_and_reach_are_told(teacher, encoder, documents):
    said: list[str] = []
    records = long_context(teacher, encoder, documents, CONFIG, domain="code", say=said.append)
    kinds = {(record.tokens_per_vector, record.kind) for record in records if record.name == "long_context_nll"}
    assert {(8, ""), (8, "names"), (8, "repeated")} <= kinds
    covered = {r.tokens_per_vector: r for r in records if r.name == "long_context_covered"}
    assert covered[2].value == 1.0
    reach = covered[8].value
    assert reach < 1  # with 8 tokens a gist, the sink leaves too few vectors for all
    assert said[-1] == f"With one vector for 8 tokens, gists reach {reach:.1%} of the context."
    assert all(record.domain == "code" for record in records)
    assert records == long_context(teacher, encoder, documents, CONFIG, domain="code")


def test_what_cannot_be_compared_is_refused(teacher, encoder, documents, teacher_folder):
    with pytest.raises(DataError, match="Got 1 long documents"):
        long_context(teacher, encoder, documents[:1], CONFIG, domain="x")
    short = LongDocument("short", documents[0].tokens[:149])
    with pytest.raises(DataError, match="short has 149 tokens, expected the min_tokens 150"):
        long_context(teacher, encoder, [documents[0], short], CONFIG, domain="x")
    long = LongDocument("long", np.resize(documents[0].tokens, 257))
    with pytest.raises(ConfigError, match="257 tokens, expected at most the 256 positions"):
        long_context(teacher, encoder, [documents[0], long], CONFIG, domain="x")
    wordless = Teacher(teacher.model, name="wordless")
    with pytest.raises(TeacherError, match="no tokenizer"):
        long_context(wordless, encoder, documents, CONFIG, domain="x")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scored_tokens": 150}, "scored_tokens"),
        ({"max_tokens": 149}, "max_tokens"),
        ({"tokens_per_vector": (32,)}, "sink"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(changed, message):
    with pytest.raises(ValidationError, match=message):
        LongContextConfig(**SETTINGS | changed)
