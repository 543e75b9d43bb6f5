"""Assembled contexts: what is in them, where, and that the teacher reads them as training made it read branches."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch

from gistnet.context.assembly import assemble, read_context
from gistnet.context.plan import Gists, Plan, Raw, default_plan
from gistnet.errors import ConfigError, DataError, TeacherError
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions, Replacements, SegmentBatch, gist_replacements, replaced_hidden
from gistnet.tree.document import compress
from gistnet.tree.gist_encoder import GistEncoder
from tests.context.documents import random_document
from tests.gistnets import woken_gistnet
from tests.teachers import FAMILIES, tiny_teacher

SPAN, N_TOKENS = 8, 140
POLICIES: tuple[Positions, ...] = ("center", "end", "compact")


def plan_of(*pieces: Raw | Gists, sink: int = 0) -> Plan:
    return Plan(pieces, (SPAN, SPAN), sink_tokens=sink)


def branch_logits(teacher: Teacher, tokens: torch.Tensor, start: int, stop: int, gists, policy: Positions):
    """Predictions after `gists` in place of tokens `start` to `stop - 1`, through the branches of training."""
    count = gists.shape[1]
    horizon = tokens.shape[1] - stop
    zero, starts = torch.tensor([0]), torch.tensor([start])
    segments = SegmentBatch(tokens, zero, starts, (stop - start) // count, count, horizon)
    replacements = gist_replacements(segments, gists, policy)
    return teacher.logits(replaced_hidden(teacher, teacher.prefill(tokens), segments, replacements))


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_alone_are_read_as_the_plain_text(family: str) -> None:
    teacher = tiny_teacher(family)
    document = random_document(N_TOKENS, teacher)
    tokens = torch.from_numpy(document.token_ids)[None]
    with torch.no_grad():
        expected = teacher.model(tokens, use_cache=False).logits
    for policy in POLICIES:
        context = assemble(document, plan_of(Raw(0, N_TOKENS), sink=4), teacher, positions=policy)
        torch.testing.assert_close(teacher.logits(read_context(teacher, context)), expected)
        with torch.no_grad():
            torch.testing.assert_close(teacher.model(**context.model_inputs).logits, expected)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("gists", "start", "stop"),
    [(Gists(0, 3, 4), 24, 32), (Gists(0, 2, 9), 16, 72), (Gists(1, 1, 2), 64, 128)],
    ids=["one gist", "a run", "level 1"],
)
def test_gists_are_read_as_the_branches_of_training(
    family: str, policy: Positions, gists: Gists, start: int, stop: int
) -> None:
    """In sliding layers (a window of 20 positions), too; every prediction after the gists, not the first alone."""
    teacher = tiny_teacher(family)
    document = random_document(N_TOKENS, teacher)
    tokens = torch.from_numpy(document.token_ids)[None]
    context = assemble(document, plan_of(Raw(0, start), gists, Raw(stop, N_TOKENS)), teacher, positions=policy)
    vectors = torch.from_numpy(document.gists(gists.level, gists.start, gists.stop)).double()[None]
    with torch.no_grad():
        expected = branch_logits(teacher, tokens, start, stop, vectors, policy)
        read = teacher.logits(read_context(teacher, context))
        last_gist = start + vectors.shape[1] - 1
        torch.testing.assert_close(read[:, last_gist:-1], expected, rtol=1e-8, atol=1e-9)
        plain = teacher.model(**context.model_inputs).logits
    if policy == "compact" or family != "gemma3":
        torch.testing.assert_close(plain, read, rtol=1e-8, atol=1e-9)
    else:  # transformers lets sliding layers count indices
        assert (plain - read).abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_mask_the_gaps_would_be_borders_of_documents(family: str) -> None:
    """What the explicit mask is for (D8): the text behind a gap must see what is before it."""
    teacher = tiny_teacher(family)
    document = random_document(60, teacher)
    other = dataclasses.replace(document, level_gists=(document.level_gists[0] * 2, document.level_gists[1]))
    plan = plan_of(Raw(0, 24), Gists(0, 3, 4), Raw(32, 48))
    inputs = [assemble(h, plan, teacher, positions="center").model_inputs for h in (document, other)]
    with torch.no_grad():
        seen = [teacher.model(**i, use_cache=False).logits[:, 30:] for i in inputs]
        for i in inputs:
            del i["attention_mask"]
        unseen = [teacher.model(**i, use_cache=False).logits[:, 30:] for i in inputs]
    assert (seen[0] - seen[1]).abs().max() > 0.1
    assert torch.equal(unseen[0], unseen[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sink_precedes_the_gist_that_also_stands_for_it(family: str) -> None:
    """The branch [gist] after 4 tokens, at position 4 = K / 2 of the first span, then text from token 8 on."""
    teacher = tiny_teacher(family)
    document = random_document(60, teacher)
    tokens = torch.from_numpy(document.token_ids)[None]
    context = assemble(document, plan_of(Gists(0, 0, 1), Raw(8, 60), sink=4), teacher)
    assert context.position_ids[0].tolist() == [0, 1, 2, 3, 4, *range(8, 60)]
    gist = torch.from_numpy(document.gists(0, 0, 1)).double()[None]
    one = torch.tensor([0])
    segments = SegmentBatch(tokens, one, one + 4, span_tokens=4, n_spans=1, horizon=52)
    replacement = Replacements(gist, torch.tensor([[4]]), torch.tensor([8]))
    with torch.no_grad():
        expected = teacher.logits(replaced_hidden(teacher, teacher.prefill(tokens), segments, replacement))
        read = teacher.logits(read_context(teacher, context))
    torch.testing.assert_close(read[:, 4:-1], expected, rtol=1e-8, atol=1e-9)


def test_positions_spans_and_levels_by_hand() -> None:
    teacher = tiny_teacher("llama")
    document = random_document(N_TOKENS, teacher)
    plan = plan_of(Gists(1, 0, 1), Gists(0, 8, 10), Raw(80, 82), Raw(90, 92), sink=2)
    expected = {
        "center": [0, 1, 2, 3, 34, 70, 78, 82, 83, 92, 93, 94, 95, 96],
        "end": [0, 1, 2, 3, 65, 73, 81, 82, 83, 92, 93, 94, 95, 96],
        "compact": list(range(14)),
    }
    for policy in POLICIES:
        context = assemble(document, plan, teacher, positions=policy, before=(1, 2), after=(5, 6, 7))
        assert context.position_ids.tolist() == [expected[policy]]
        assert context.attention_mask.tolist() == [[1] * 14]
        assert context.spans.tolist() == [
            *([[-1, -1]] * 2),
            *([0, 1], [1, 2], [0, 64], [64, 72], [72, 80], [80, 81], [81, 82], [90, 91], [91, 92]),
            *([[-1, -1]] * 3),
        ]
        assert context.levels.tolist() == [-1, -1, -1, -1, 1, 0, 0, *[-1] * 7]
        assert len(context) == plan.vectors + 5 == 14
    # Vectors: embeddings of the tokens, gists as they are stored.
    rows = context.inputs_embeds[0]
    assert torch.equal(rows[:2], teacher.embed(torch.tensor([1, 2])))
    assert torch.equal(rows[2:4], teacher.embed(torch.from_numpy(document.token_ids[:2])))
    assert torch.equal(rows[4], torch.from_numpy(document.level_gists[1][0]).double())
    assert torch.equal(rows[5:7], torch.from_numpy(document.level_gists[0][8:10]).double())
    assert torch.equal(rows[-3:], teacher.embed(torch.tensor([5, 6, 7])))


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_in_front_shifts_the_document(policy: Positions) -> None:
    """BOS and text are the window [BOS, text] of training."""
    teacher = tiny_teacher("qwen3")
    document = random_document(60, teacher)
    tokens = torch.cat([torch.tensor([1]), torch.from_numpy(document.token_ids)])[None]
    plan = plan_of(Raw(0, 16), Gists(0, 2, 4), Raw(32, 50))
    context = assemble(document, plan, teacher, positions=policy, before=(1,), after=document.token_ids[50:].tolist())
    gists = torch.from_numpy(document.gists(0, 2, 4)).double()[None]
    with torch.no_grad():
        expected = branch_logits(teacher, tokens, 17, 33, gists, policy)
        read = teacher.logits(read_context(teacher, context))
    torch.testing.assert_close(read[:, 18:-1], expected, rtol=1e-8, atol=1e-9)


def test_beyond_the_trained_positions_only_compact_reaches() -> None:
    teacher = tiny_teacher("llama")  # 256 positions
    document = random_document(400, teacher)
    plan = plan_of(Gists(0, 0, 40), Raw(320, 400))
    for policy in ("center", "end"):
        with pytest.raises(ConfigError, match="399"):
            assemble(document, plan, teacher, positions=policy)
    assert assemble(document, plan, teacher, positions="compact").position_ids.max() == 119
    assert assemble(document, plan, teacher).positions == "compact"  # unasked, where there is no other way
    at_the_end = replace(document, positions="end")
    assert assemble(at_the_end, plan_of(Gists(0, 0, 32)), teacher).positions == "end"  # as trained, where that fits
    assert len(assemble(document, plan_of(Raw(0, 256)), teacher)) == 256
    for policy in POLICIES:
        with pytest.raises(ConfigError, match=r"257 vectors|up to 256"):
            assemble(document, plan_of(Raw(0, 257)), teacher, positions=policy)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_context_fades_over_three_rates(policy: Positions) -> None:
    """Vectors of 64, 8 and 4 tokens and one: each token after the sink stands in one vector, in order."""
    teacher = tiny_teacher("llama", torch.float32)
    tokens = random_document(203, teacher).token_ids
    document = compress(tokens, GistEncoder(teacher, woken_gistnet(teacher, branchings=(4, 2, 8))))
    plan = default_plan(203, document.branchings, 32, sink_tokens=2)
    context = assemble(document, plan, teacher, positions=policy)
    assert context.levels.tolist() == [-1] * 2 + [2] + [1] * 14 + [0] * 4 + [-1] * 11
    starts, stops = context.spans[2:].T
    assert starts[0] == 0 and torch.equal(starts[1:], stops[:-1]) and stops[-1] == 203
    assert (stops - starts).tolist() == [64] + [8] * 14 + [4] * 4 + [1] * 11
    assert (context.position_ids[0].diff() > 0).all()
    gists = [document.gists(2, 0, 1), document.gists(1, 8, 22), document.gists(0, 44, 48)]
    assert torch.equal(context.inputs_embeds[0, 2:21], torch.from_numpy(np.concatenate(gists)).float())


def test_what_does_not_fit_together_is_refused() -> None:
    teacher = tiny_teacher("llama")
    document = random_document(100, teacher)
    with pytest.raises(DataError, match=r"\[8, 32\], expected \[8, 8\]"):
        assemble(document, Plan([Raw(0, 5)], (8, 32)), teacher)
    with pytest.raises(DataError, match="range 0 to 101 of tokens"):
        assemble(document, plan_of(Raw(0, 101)), teacher)
    with pytest.raises(DataError, match="range 10 to 13 of gists of level 0"):
        assemble(document, plan_of(Gists(0, 10, 13)), teacher)
    with pytest.raises(DataError, match="level 2"):
        assemble(document, plan_of(Gists(2, 0, 1)), teacher)
    with pytest.raises(TeacherError, match="tiny-qwen3"):
        assemble(random_document(100, tiny_teacher("qwen3")), plan_of(Gists(0, 0, 1)), teacher)
    mixture = replace(document, positions="center or end")
    with pytest.raises(ConfigError, match="center or end"):
        assemble(mixture, plan_of(Gists(0, 0, 1)), teacher)
    assert assemble(mixture, plan_of(Gists(0, 0, 1)), teacher, positions="end").positions == "end"
    with pytest.raises(TeacherError, match="ids 0 to 96"):
        assemble(document, plan_of(Raw(0, 5)), teacher, after=(97,))
    with pytest.raises(DataError, match="at least one vector"):
        assemble(document, plan_of(), teacher)
