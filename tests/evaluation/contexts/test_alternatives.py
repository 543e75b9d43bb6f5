"""Alternatives after one context against transformers' plain forward over the whole, for each family of teacher."""

import numpy as np
import pytest
import torch

from gistnet.context.assembly import assemble
from gistnet.context.plan import Gists, Plan, Raw
from gistnet.errors import DataError, TeacherError
from gistnet.evaluation.contexts.alternatives import alternatives_hidden, alternatives_nll
from gistnet.model.teacher import Teacher
from gistnet.tree.document import InMemoryDocument
from tests.teachers import FAMILIES, tiny_teacher

IDS = np.random.default_rng(0).integers(0, 97, 60)
GISTS = np.random.default_rng(1).normal(size=(7, 32)).astype(np.float16)


def history_for(teacher: Teacher) -> InMemoryDocument:
    return InMemoryDocument(IDS, (GISTS,), 8, "center", teacher.fingerprint)


@torch.no_grad()
def plain_nll(teacher, ids, scored: int) -> torch.Tensor:
    """One forward of transformers over token ids, nothing else given."""
    tokens = torch.as_tensor(ids)
    log_p = teacher.model(tokens[None]).logits[0].log_softmax(-1)
    return -log_p[-scored - 1 : -1].gather(1, tokens[-scored:, None])[:, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_alternative_is_scored_as_if_it_were_alone(family):
    teacher = tiny_teacher(family)
    context = assemble(history_for(teacher), Plan([Raw(0, 40)], 8), teacher, before=())
    alternatives = [[5, 6, 7], IDS[40:].tolist(), [9], [5, 6, 7]]
    found = alternatives_nll(teacher, context, alternatives)
    for nll, tokens in zip(found, alternatives, strict=True):
        assert torch.allclose(nll, plain_nll(teacher, [*IDS[:40], *tokens], len(tokens)), atol=1e-9)
    assert torch.equal(found[0], found[3])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["center", "end", "compact"])
@torch.no_grad()
def test_after_gists_it_is_a_plain_forward_with_the_mask_written_out(family, policy):
    """Every vector sees all before it; in sliding layers, those less than 20 positions away."""
    teacher = tiny_teacher(family)
    context = assemble(
        history_for(teacher),
        Plan([Gists(0, 0, 4), Raw(32, 40)], 8, 2),
        teacher,
        positions=policy,
        before=(),
    )
    gist = {"center": [4, 12, 20, 28], "end": [7, 15, 23, 31]}.get(policy)
    at = torch.tensor([0, 1, *gist, *range(32, 48)] if gist else range(22))
    following = torch.as_tensor(IDS[40:48])
    vectors = torch.cat(
        [
            teacher.embed(torch.as_tensor(IDS[:2])),
            torch.from_numpy(GISTS[:4]),
            teacher.embed(torch.as_tensor(IDS[32:48])),
        ]
    )
    distance = at[:, None] - at[None]
    causal = (distance >= 0)[None, None]
    mask = {"full_attention": causal, "sliding_attention": causal & (distance < 20)} if family == "gemma3" else causal
    logits = teacher.model(inputs_embeds=vectors[None], position_ids=at[None], attention_mask=mask).logits
    expected = -logits[0, 13:-1].log_softmax(-1).gather(1, following[:, None])[:, 0]
    assert torch.allclose(alternatives_nll(teacher, context, [following.tolist()])[0], expected, atol=1e-9)


@torch.no_grad()
def test_the_hidden_states_choose_what_generation_without_sampling_writes():
    teacher = tiny_teacher("llama")
    context = assemble(history_for(teacher), Plan([Raw(0, 40)], 8), teacher, before=())
    prompt = torch.as_tensor(IDS[:40])[None]
    options = {"do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(prompt)}
    written = teacher.model.generate(prompt, max_new_tokens=4, **options)[0, 40:].tolist()
    (hidden,) = alternatives_hidden(teacher, context, [written])
    assert teacher.logits(hidden).argmax(dim=-1).tolist() == written


def test_what_is_no_alternative_is_refused():
    teacher = tiny_teacher("llama")
    context = assemble(history_for(teacher), Plan([Raw(0, 40)], 8), teacher, before=())
    with pytest.raises(DataError, match="no tokens"):
        alternatives_hidden(teacher, context, [[1], []])
    with pytest.raises(TeacherError, match="97"):
        alternatives_hidden(teacher, context, [[97, 1]])
