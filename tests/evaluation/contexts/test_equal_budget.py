"""Contexts of equal budgets: how many vectors, of what; and alternatives after one against plain forwards."""

import numpy as np
import pytest
import torch

from gistnet.context.assembly import assemble
from gistnet.context.plan import Gists, Plan, Raw
from gistnet.errors import ConfigError, DataError, TeacherError
from gistnet.evaluation.contexts.equal_budget import (
    alternatives_nll,
    gist_plan,
    truncated_plan,
    with_gists_of,
    with_mean_embeddings,
)
from gistnet.model.teacher import Teacher
from gistnet.tree.document import InMemoryDocument
from tests.evaluation.contexts.conftest import plain_nll
from tests.teachers import FAMILIES, tiny_teacher

IDS = np.random.default_rng(0).integers(0, 97, 60)
GISTS = np.random.default_rng(1).normal(size=(7, 32)).astype(np.float16)


def document(tokens: int, seed: int = 0) -> InMemoryDocument:
    draw = np.random.default_rng(seed)
    levels = (tokens // 4, tokens // 16)
    gists = tuple(draw.normal(size=(count, 32)).astype(np.float16) for count in levels)
    return InMemoryDocument(draw.integers(0, 97, tokens), gists, (4, 4), "center", tiny_teacher("llama").fingerprint)


@pytest.mark.parametrize("tokens", [3584, 5001, 7680])
@pytest.mark.parametrize("tokens_per_vector", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("levels", [1, 2])
def test_both_fill_the_budget(tokens, tokens_per_vector, levels):
    branchings = (32, 32)[:levels]
    budget = tokens // tokens_per_vector
    cut = truncated_plan(tokens, branchings, tokens_per_vector, 4)
    plan = gist_plan(tokens, branchings, tokens_per_vector, 4)
    assert cut.vectors == cut.tokens_covered == budget
    assert cut.order == (Raw(0, 4), Raw(tokens - budget + 4, tokens))
    assert budget - 32 < plan.vectors <= budget  # what is left over is less than one more raw span
    assert plan.end == tokens
    gists = {piece.level for piece in plan.pieces if isinstance(piece, Gists)}
    assert gists == ({0, 1} if levels == 2 and tokens_per_vector == 32 else {0})
    reaches = tokens_per_vector < 32 or levels == 2
    assert (plan.tokens_covered == tokens) == reaches


def test_a_budget_for_the_sink_alone_is_refused():
    with pytest.raises(ConfigError, match="budget of 4 vectors"):
        truncated_plan(64, 32, 16, 4)


def test_borrowed_gists_leave_the_tokens():
    own, other = document(80), document(48, seed=1)
    mixed = with_gists_of(own, other)
    assert np.array_equal(mixed.tokens(0, 80), own.tokens(0, 80))
    assert np.array_equal(mixed.gists(0, 0, 12), other.gists(0, 0, 12))
    assert np.array_equal(mixed.gists(0, 12, 20), other.gists(0, 0, 8))  # again from its beginning
    assert np.array_equal(mixed.gists(1, 0, 5), other.gists(1, 0, 3)[[0, 1, 2, 0, 1]])


def test_means_are_of_the_embeddings_of_each_level():
    own, teacher = document(50), tiny_teacher("llama")
    means = with_mean_embeddings(own, teacher)
    embedded = teacher.embed(torch.from_numpy(own.token_ids)).numpy()
    assert means.gists(0, 0, 12)[3] == pytest.approx(embedded[12:16].mean(axis=0), rel=1e-3)
    assert means.gists(1, 0, 3)[1] == pytest.approx(embedded[16:32].mean(axis=0), abs=1e-3)
    assert means.level_gists[0].dtype == np.float16 and means.level_gists[0].shape == (12, 32)


def history_for(teacher: Teacher) -> InMemoryDocument:
    return InMemoryDocument(IDS, (GISTS,), (8,), "center", teacher.fingerprint)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_alternative_is_scored_as_if_it_were_alone(family):
    teacher = tiny_teacher(family)
    context = assemble(history_for(teacher), Plan([Raw(0, 40)], (8,)), teacher, before=())
    alternatives = [[5, 6, 7], IDS[40:].tolist(), [9], [5, 6, 7]]
    found = alternatives_nll(teacher, context, alternatives)
    for nll, tokens in zip(found, alternatives, strict=True):
        assert nll.numpy() == pytest.approx(plain_nll(teacher, [*IDS[:40], *tokens], len(tokens)), abs=1e-9)
    assert torch.equal(found[0], found[3])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["center", "end", "compact"])
@torch.no_grad()
def test_after_gists_it_is_a_plain_forward_with_the_mask_written_out(family, policy):
    """Every vector sees all before it; in sliding layers, those less than 20 positions away."""
    teacher = tiny_teacher(family)
    context = assemble(
        history_for(teacher),
        Plan([Gists(0, 0, 4), Raw(32, 40)], (8,), 2),
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


def test_what_is_no_alternative_is_refused():
    teacher = tiny_teacher("llama")
    context = assemble(history_for(teacher), Plan([Raw(0, 40)], (8,)), teacher, before=())
    with pytest.raises(DataError, match="no tokens"):
        alternatives_nll(teacher, context, [[1], []])
    with pytest.raises(TeacherError, match="97"):
        alternatives_nll(teacher, context, [[97, 1]])
