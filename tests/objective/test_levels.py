"""Gists of gists: the objective at level 1, against each level encoded by itself and whole forwards per branch."""

import pytest
import torch

from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import SegmentBatch, gist_replacements
from gistnet.objective.config import ObjectiveConfig
from gistnet.objective.losses import encode_segments, segment_losses, token_losses
from gistnet.objective.reference import reference_original_hidden, reference_replaced_hidden
from tests.gistnets import SPAN, woken_gistnet
from tests.teachers import FAMILIES, tiny_teacher

HORIZON = 6
ABOVE = SPAN * SPAN


def make_segments(gists: int | torch.Tensor = 1) -> SegmentBatch:
    """Two windows; the first two segments of the first overlap on the grid of level 0."""
    tokens = torch.randint(3, 97, (2, 180), generator=torch.Generator().manual_seed(0))
    windows, starts = torch.tensor([0, 0, 1]), torch.tensor([5, 5 + 3 * SPAN, 40])
    return SegmentBatch(tokens, windows, starts, span_tokens=ABOVE, n_spans=gists, horizon=HORIZON)


def by_hand(gistnet: GistNet, teacher: Teacher, tokens: torch.Tensor) -> torch.Tensor:
    """The gist of so many tokens as it stands for, one gist of a level below at a time."""
    if gistnet.below is None:
        return gistnet(teacher.embed(tokens)[None])[0]
    parts = tokens.view(gistnet.branching, -1)
    return gistnet(torch.stack([by_hand(gistnet.below, teacher, part) for part in parts])[None])[0]


@pytest.mark.parametrize("branchings", [(SPAN, SPAN), (4, 2, 8)])
def test_a_gist_is_made_of_the_gists_below_it(branchings):
    teacher = tiny_teacher("llama")
    gistnet, segments = woken_gistnet(teacher, branchings=branchings), make_segments(torch.tensor([2, 1, 2]))
    assert (gistnet.tokens_per_gist, gistnet.branchings) == (ABOVE, branchings)
    encoded = encode_segments(SpanEncoder(teacher, gistnet), segments)
    whole = SpanEncoder(teacher, gistnet).encode(segments.replaced)
    for branch, (window, start) in enumerate(zip(segments.windows, segments.starts, strict=True)):
        for place in range(int(segments.counts[branch])):
            first = int(start) + place * ABOVE
            expected = by_hand(gistnet, teacher, segments.tokens[window, first : first + ABOVE])
            torch.testing.assert_close(encoded[branch, place], expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(whole[branch, place], expected, rtol=1e-5, atol=1e-6)
    assert not encoded[1, 1].any()  # behind the shorter segment


def test_spans_that_overlap_share_the_gists_below(monkeypatch):
    teacher = tiny_teacher("llama")
    gistnet, seen = woken_gistnet(teacher, levels=2), []
    level_0 = gistnet.levels[0]
    forward = level_0.forward
    monkeypatch.setattr(level_0, "forward", lambda spans, *rest: seen.append(len(spans)) or forward(spans))
    encode_segments(SpanEncoder(teacher, gistnet), make_segments())
    assert seen == [8 + 3 + 8]  # the second segment shares five of its eight with the first


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_equal_whole_forwards_in_values_and_gradients(family):
    teacher = tiny_teacher(family)
    gistnet, segments = woken_gistnet(teacher, levels=2), make_segments(torch.tensor([1, 1, 2]))
    read = teacher.prefill(segments.tokens)
    objective = ObjectiveConfig(positions="center")
    result = segment_losses(SpanEncoder(teacher, gistnet), read, segments, objective, train_below=True)
    result.total.sum().backward()
    ours = {name: p.grad.clone() for name, p in gistnet.named_parameters()}
    gistnet.zero_grad()

    replacements = gist_replacements(segments, SpanEncoder(teacher, gistnet).encode(segments.replaced), "center")
    assert replacements.positions[0, 0] == 5 + ABOVE // 2  # in the middle of its 64 tokens
    branches = range(len(segments.starts))
    original = torch.stack([reference_original_hidden(teacher, segments, b) for b in branches])
    replaced = torch.stack([reference_replaced_hidden(teacher, segments, replacements, b) for b in branches])
    kl = token_losses(teacher, original, replaced, segments.targets).kl.mean(1)
    torch.testing.assert_close(result.kl, kl, rtol=1e-8, atol=1e-9)
    log_p, log_q = (teacher.logits(hidden).log_softmax(-1) for hidden in (original, replaced))
    (log_p.exp() * (log_p - log_q)).sum(-1).mean(1).sum().backward()
    for name, parameter in gistnet.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("train_below", [False, True])
def test_gradient_reaches_the_level_below_only_where_asked_for(train_below):
    teacher = tiny_teacher("llama")
    gistnet, segments = woken_gistnet(teacher, levels=2), make_segments()
    read = teacher.prefill(segments.tokens)
    encoder = SpanEncoder(teacher, gistnet)
    segment_losses(encoder, read, segments, ObjectiveConfig(), train_below=train_below).total.sum().backward()
    reached = {name.startswith("below.") for name, p in gistnet.named_parameters() if p.grad is not None}
    assert reached == ({False, True} if train_below else {False})
    assert all(p.grad is None for p in teacher.model.parameters())


def test_gradient_reaches_every_level_below():
    teacher, here = tiny_teacher("llama"), torch.tensor([0])
    gistnet = woken_gistnet(teacher, levels=3)
    tokens = torch.randint(3, 97, (1, SPAN**3), generator=torch.Generator().manual_seed(0))
    SpanEncoder(teacher, gistnet).encode_spans(tokens, here, here, train_below=True).sum().backward()
    assert all(level.w_out.weight.grad is not None for level in gistnet.levels)


def test_dropout_leaves_a_frozen_level_below_alone():
    teacher = tiny_teacher("llama")
    gistnet, segments = woken_gistnet(teacher, levels=2), make_segments()
    keys = torch.tensor([3, 7])

    def gists(**options):
        return encode_segments(SpanEncoder(teacher, gistnet), segments, dropout_rate=0.5, dropout_keys=keys, **options)

    plain = encode_segments(SpanEncoder(teacher, gistnet), segments)
    frozen, trained = gists(), gists(train_below=True)
    assert not torch.equal(frozen, plain)
    assert not torch.equal(frozen, trained)
    with torch.no_grad():  # a level that gives the last gist below, whatever is dropped within it
        gistnet.w_out.weight.zero_()
    torch.testing.assert_close(gists(), encode_segments(SpanEncoder(teacher, gistnet), segments), rtol=0, atol=0)
    assert not torch.equal(gists(train_below=True), gists())
