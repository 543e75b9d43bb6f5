"""The packed engine equals the spec's two-forward loop, in values and in gradients, for every verified family."""

import dataclasses

import pytest
import torch

from gistnet.errors import DataError
from gistnet.evaluation import baselines
from gistnet.model.prefix_attention import BranchPass, Intervals
from gistnet.objective import branches
from gistnet.objective.branches import (
    Replacements,
    SegmentBatch,
    gist_replacements,
    of_similar_length,
    replaced_hidden,
    replaced_hidden_of_each,
)
from gistnet.objective.losses import token_losses
from gistnet.objective.reference import reference_original_hidden, reference_replaced_hidden
from tests.teachers import FAMILIES, tiny_teacher

SPAN, HORIZON = 8, 6
MIXED = torch.tensor([5, 1, 2, 6])  # the last one replaces all that has room behind the window's first token


def make_segments(gists: int | torch.Tensor = 1) -> SegmentBatch:
    tokens = torch.randint(3, 97, (2, 60), generator=torch.Generator().manual_seed(0))
    windows, starts = torch.tensor([0, 1, 0, 1]), torch.tensor([5, 30, 22, 1])
    return SegmentBatch(tokens, windows, starts, span_tokens=SPAN, n_spans=gists, horizon=HORIZON)


def random_gists(segments: SegmentBatch, dim: int) -> torch.Tensor:
    shape = (len(segments.starts), segments.longest, dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def engine_kl(teacher, segments, replacements):
    read = teacher.prefill(segments.tokens)
    hidden = replaced_hidden(teacher, read, segments, replacements)
    return token_losses(teacher, segments.original_hidden(read), hidden, segments.targets)


def written_out_losses(teacher, segments, replacements):
    """KL and NLLs from full log-softmax tables of two whole forwards per branch."""
    rows = []
    for branch in range(len(segments.starts)):
        log_p = teacher.logits(reference_original_hidden(teacher, segments, branch)).log_softmax(-1)
        log_q = teacher.logits(reference_replaced_hidden(teacher, segments, replacements, branch)).log_softmax(-1)
        targets = segments.targets[branch]
        step = torch.arange(len(targets))
        rows.append(((log_p.exp() * (log_p - log_q)).sum(-1), -log_p[step, targets], -log_q[step, targets]))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("policy", ["center", "end", "compact"])
@pytest.mark.parametrize("gists", [1, MIXED], ids=["one gist", "mixed runs"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_branches_equal_the_two_forward_loop(family, gists, policy):
    teacher, segments = tiny_teacher(family), make_segments(gists)
    values, gradients = [], []
    for losses in (engine_kl, written_out_losses):
        vectors = random_gists(segments, teacher.hidden_size).requires_grad_()
        result = losses(teacher, segments, gist_replacements(segments, vectors, policy))
        # Uneven weights, so that a gradient given to the wrong token shows.
        (result[0] * torch.linspace(1, 2, HORIZON)).sum().backward()
        values.append(torch.stack([part.detach() for part in result]))
        gradients.append(vectors.grad)
    assert values[1][0].mean() > 0.05  # the comparison is of something
    torch.testing.assert_close(values[0], values[1], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_document_pass_equals_the_plain_forward(family):
    """Final states and logits of whole windows are those of the untouched Hugging Face model."""
    teacher = tiny_teacher(family)
    tokens = make_segments().tokens
    with torch.no_grad():
        expected = teacher.model(tokens, use_cache=False).logits
    torch.testing.assert_close(teacher.logits(teacher.prefill(tokens).hidden), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_replaced_by_their_own_embeddings_change_nothing(family):
    teacher, segments = tiny_teacher(family), make_segments(MIXED)
    positions = segments.starts[:, None] + torch.arange(6 * SPAN)
    counts = MIXED * SPAN
    own = Replacements(teacher.embed(segments.replaced), positions, segments.starts + counts, counts)
    losses = engine_kl(teacher, segments, own)
    torch.testing.assert_close(losses.kl, torch.zeros_like(losses.kl), atol=1e-12, rtol=0)
    torch.testing.assert_close(losses.delta_nll, torch.zeros_like(losses.kl), atol=1e-11, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_dropping_spans_equals_the_loop_without_them(family):
    teacher, segments = tiny_teacher(family), make_segments(MIXED)
    nothing = Replacements(
        torch.zeros(4, 0, teacher.hidden_size, dtype=torch.float64),
        torch.zeros(4, 0, dtype=torch.long),
        segments.starts + MIXED * SPAN,
    )
    losses = engine_kl(teacher, segments, nothing)
    expected = written_out_losses(teacher, segments, nothing)
    torch.testing.assert_close(torch.stack(list(losses)), torch.stack(expected), rtol=1e-9, atol=1e-10)
    first = dataclasses.replace(segments, horizon=1)
    torch.testing.assert_close(engine_kl(teacher, first, nothing).kl, losses.kl[:, :1])


def test_what_pads_a_shorter_branch_is_not_read():
    """Rubbish in the places that do not count, and no horizon to hide it, leaves every bit as it was."""
    teacher = tiny_teacher("llama")
    for horizon in (1, HORIZON):
        segments = dataclasses.replace(make_segments(MIXED), horizon=horizon)
        clean = gist_replacements(segments, random_gists(segments, teacher.hidden_size), "center")
        pads = torch.arange(6) >= MIXED[:, None]
        rubbish = dataclasses.replace(
            clean,
            vectors=clean.vectors.masked_fill(pads[..., None], 1e6),
            positions=clean.positions.masked_fill(pads, 3),
        )
        losses = [torch.stack(list(engine_kl(teacher, segments, replacements))) for replacements in (clean, rubbish)]
        assert torch.equal(*losses)
        expected = torch.stack(written_out_losses(teacher, segments, clean))
        torch.testing.assert_close(losses[0], expected, rtol=1e-9, atol=1e-10)


def test_branches_without_and_with_vectors_share_a_pass():
    teacher, segments = tiny_teacher("qwen3"), make_segments(MIXED)
    for horizon in (1, HORIZON):
        segments = dataclasses.replace(segments, horizon=horizon)
        gists = gist_replacements(segments, random_gists(segments, teacher.hidden_size), "end")
        some = dataclasses.replace(gists, counts=torch.tensor([5, 0, 2, 0]))
        expected = torch.stack(written_out_losses(teacher, segments, some))
        losses = torch.stack(list(engine_kl(teacher, segments, some)))
        torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("horizon", [1, HORIZON])
def test_kinds_of_replacements_give_the_same_states_together_as_each_by_itself(horizon, monkeypatch):
    """Runs of gists, one token, nothing, and all tokens of the runs, which are too many to go with the others."""
    teacher, segments = tiny_teacher("gemma3"), dataclasses.replace(make_segments(MIXED), horizon=horizon)
    read = teacher.prefill(segments.tokens)
    kinds = {
        "gists": gist_replacements(segments, random_gists(segments, teacher.hidden_size), "center"),
        "token": baselines.last_token(teacher, dataclasses.replace(segments, n_spans=1), read, "end"),
        "nothing": baselines.drop(teacher, segments, read, "end"),
        "compact": gist_replacements(segments, random_gists(segments, teacher.hidden_size), "compact"),
        "tokens": Replacements(
            teacher.embed(segments.replaced),
            segments.starts[:, None] + torch.arange(6 * SPAN),
            segments.starts + MIXED * SPAN,
            MIXED * SPAN,
        ),
    }
    passes, read_branches = [], teacher.read_branches
    monkeypatch.setattr(teacher, "read_branches", lambda *inputs: passes.append(1) or read_branches(*inputs))
    with torch.no_grad():
        expected = {name: replaced_hidden(teacher, read, segments, kind) for name, kind in kinds.items()}
        apart, passes[:] = len(passes), []
        together = replaced_hidden_of_each(teacher, read, segments, kinds)
    assert len(passes) < apart
    assert list(together) == list(kinds)
    for name, hidden in together.items():
        torch.testing.assert_close(hidden, expected[name], rtol=1e-9, atol=1e-10, msg=name)


def test_positions_of_runs_by_hand():
    """K = 32: gists in the middle or on the last token of their spans, or one after the other."""
    tokens, gists = torch.zeros(1, 2200, dtype=torch.long), torch.tensor([64, 2])
    segments = SegmentBatch(tokens, torch.tensor([0, 0]), torch.tensor([4, 100]), 32, gists, horizon=8)
    vectors = torch.zeros(2, 64, 3)
    expected = {
        "center": (list(range(20, 2052, 32)), [116, 148], [2052, 164]),
        "end": (list(range(35, 2052, 32)), [131, 163], [2052, 164]),
        "compact": (list(range(4, 68)), [100, 101], [68, 102]),
    }
    for policy, (long, short, continuation) in expected.items():
        replacements = gist_replacements(segments, vectors, policy)
        assert replacements.positions[0].tolist() == long
        assert replacements.positions[1, :2].tolist() == short
        assert replacements.continuation.tolist() == continuation
        assert replacements.lengths.tolist() == [64, 2]
    some = gist_replacements(segments, vectors, "end", compact=torch.tensor([False, True]))
    assert (some.positions[0].tolist(), some.positions[1, :2].tolist()) == (expected["end"][0], [100, 101])
    assert some.continuation.tolist() == [2052, 102]


def shift(
    replacements: Replacements, vectors: torch.Tensor | int = 0, continuation: torch.Tensor | int = 0
) -> Replacements:
    return dataclasses.replace(
        replacements,
        positions=replacements.positions + vectors,
        continuation=replacements.continuation + continuation,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_positions_prefix_and_targets_are_noticed(family):
    """Each mutation of the engine moves the loss far beyond the tolerance of the equality test."""
    teacher, segments = tiny_teacher(family), make_segments()
    gists = gist_replacements(segments, random_gists(segments, teacher.hidden_size), "center")
    expected = written_out_losses(teacher, segments, gists)
    read = teacher.prefill(segments.tokens)
    late = dataclasses.replace(segments, starts=segments.starts + 1)  # sees one token more, its targets one late
    mutants = {
        "gist one position late": (segments, shift(gists, vectors=1), segments.targets),
        "horizon one position late": (segments, shift(gists, continuation=1), segments.targets),
        "prefix one token longer": (late, gists, segments.targets),
    }
    for name, (mutated, replacements, targets) in mutants.items():
        hidden = replaced_hidden(teacher, read, mutated, replacements, tokens=segments.targets)
        losses = token_losses(teacher, segments.original_hidden(read), hidden, targets)
        assert (losses.kl - expected[0]).abs().max() > 1e-3, name
    hidden = replaced_hidden(teacher, read, segments, gists)
    off_by_one = token_losses(teacher, late.original_hidden(read), hidden, segments.targets)
    assert (off_by_one.kl - expected[0]).abs().max() > 1e-3
    wrong_target = token_losses(teacher, segments.original_hidden(read), hidden, late.targets)
    assert (wrong_target.nll_replaced - expected[2]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mistake_in_one_run_of_a_mixed_pass_is_noticed(family, monkeypatch):
    """In the branch of two gists, and in no other."""
    teacher, segments = tiny_teacher(family), make_segments(MIXED)
    gists = gist_replacements(segments, random_gists(segments, teacher.hidden_size), "center")
    expected = written_out_losses(teacher, segments, gists)[0]
    row = torch.tensor([0, 0, 1, 0])
    mutants = {
        "one gist late": shift(gists, vectors=row[:, None] * torch.tensor([0, 1, 0, 0, 0, 0])),
        "horizon late": shift(gists, continuation=row),
        "a gist too few": dataclasses.replace(gists, counts=MIXED - row),
        "a gist too many": dataclasses.replace(gists, counts=MIXED + row),
    }
    differences = {name: engine_kl(teacher, segments, mutant).kl - expected for name, mutant in mutants.items()}
    exact = branches._each_row
    for shifted in (-1, 1):  # of the rows that are H long: the states read at the end

        def read_elsewhere(values, index, shifted=shifted):
            return exact(values, index + shifted * row[:, None] * (index.shape[1] == HORIZON))

        monkeypatch.setattr(branches, "_each_row", read_elsewhere)
        differences[f"states read {shifted} late"] = engine_kl(teacher, segments, gists).kl - expected
    for name, difference in differences.items():
        assert difference[2].abs().max() > 1e-3, name
        assert difference[[0, 1, 3]].abs().max() < 1e-9, name


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_mask_that_lets_a_branch_see_too_much_is_noticed(family, monkeypatch):
    """Without causality inside the branch, or without the sliding window, the equality breaks."""
    teacher, segments = tiny_teacher(family), make_segments(MIXED)
    gists = gist_replacements(segments, random_gists(segments, teacher.hidden_size), "center")
    expected = written_out_losses(teacher, segments, gists)[0]
    if family == "llama":
        exact = BranchPass.own_intervals

        def seeing_all(self, reach):
            seen = exact(self, reach)
            return Intervals(seen.low, torch.full_like(seen.high, seen.high.shape[1]))

        monkeypatch.setattr(BranchPass, "own_intervals", seeing_all)
    else:
        monkeypatch.setattr(BranchPass, "reach", lambda self, sliding_window: None)
    assert (engine_kl(teacher, segments, gists).kl - expected).abs().amax(dim=1).min() > 1e-3


def test_transformers_takes_a_gap_of_positions_for_a_packed_document():
    """Why a mask is always passed: without one and without a cache, what follows a gap does not see before it."""
    teacher, segments = tiny_teacher("llama"), make_segments()
    gists = gist_replacements(segments, random_gists(segments, teacher.hidden_size), "center")
    start = int(segments.starts[0])
    suffix = segments.tokens[0, start + SPAN :]
    context = torch.cat([teacher.embed(segments.tokens[0, :start]), gists.vectors[0], teacher.embed(suffix)])
    positions = torch.cat([torch.arange(start), gists.positions[0], start + SPAN + torch.arange(len(suffix))])
    unmasked = teacher.model.base_model(inputs_embeds=context[None], position_ids=positions[None], use_cache=False)
    exact = reference_replaced_hidden(teacher, segments, gists, 0)
    assert (unmasked.last_hidden_state[0, start : start + HORIZON] - exact).abs().max() > 1e-2


def test_gradient_checkpointing_changes_memory_and_nothing_else():
    """It runs (the layers are entered twice) although the model is in eval(), and gives the same gradient."""
    segments, gradients, calls = make_segments(), [], []
    for checkpointed in (False, True):
        teacher = tiny_teacher("llama")
        if checkpointed:
            teacher.enable_gradient_checkpointing()
        projection = teacher.model.base_model.layers[0].self_attn.q_proj
        counted = []
        projection.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        vectors = random_gists(segments, teacher.hidden_size).requires_grad_()
        engine_kl(teacher, segments, gist_replacements(segments, vectors, "center")).kl.sum().backward()
        gradients.append(vectors.grad)
        calls.append(len(counted))
    assert calls == [2, 3]  # document pass and branch pass; and the branch pass once more
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_the_teacher_gets_no_gradient():
    teacher, segments = tiny_teacher("llama"), make_segments()
    vectors = random_gists(segments, teacher.hidden_size).requires_grad_()
    engine_kl(teacher, segments, gist_replacements(segments, vectors, "center")).kl.sum().backward()
    assert vectors.grad.abs().max() > 0
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())


def test_a_segment_that_does_not_fit_is_refused():
    tokens = torch.zeros(1, 60, dtype=torch.long)
    with pytest.raises(DataError, match="end within the window"):
        SegmentBatch(tokens, torch.tensor([0]), torch.tensor([50]), span_tokens=8, n_spans=1, horizon=6)
    with pytest.raises(DataError, match="start at token 1"):
        SegmentBatch(tokens, torch.tensor([0]), torch.tensor([0]), span_tokens=8, n_spans=1, horizon=6)
    windows, starts, runs = torch.tensor([0, 0]), torch.tensor([20, 20]), torch.tensor([4, 5])
    with pytest.raises(DataError, match="window's 60 tokens; got 5 spans of 8 tokens from token 20 on"):
        SegmentBatch(tokens, windows, starts, span_tokens=8, n_spans=runs, horizon=6)
    with pytest.raises(DataError, match=r"no less than nothing.* got -1 spans"):
        SegmentBatch(tokens, windows, starts, span_tokens=8, n_spans=runs - 5, horizon=6)


@torch.no_grad()
def test_replacing_nothing_is_the_plain_model():
    teacher = tiny_teacher("llama")
    tokens = torch.randint(3, 97, (1, 60), generator=torch.Generator().manual_seed(4))
    nothing = SegmentBatch(tokens, torch.tensor([0]), torch.tensor([20]), span_tokens=8, n_spans=0, horizon=6)
    read = teacher.prefill(tokens)
    hidden = replaced_hidden(teacher, read, nothing, baselines.drop(teacher, nothing, read, "end"))
    plain = teacher.model(tokens, use_cache=False).logits[:, 19:25]
    torch.testing.assert_close(teacher.logits(hidden), plain)


# Passes of branches ---------------------------------------------------------------------------------------------------


def test_branches_of_one_length_keep_their_order_and_fill_micro_batches():
    for vectors in (64, 95):
        assert list(of_similar_length([32] * 5, vectors)) == [[0, 1], [2, 3], [4]]


def test_a_micro_batch_ends_before_a_branch_more_than_a_quarter_longer_than_its_shortest():
    """9 and 11 go together (11.25 at most), 12 and 15 (15 at most), then 16."""
    assert list(of_similar_length([16, 11, 9, 15, 12], 640)) == [[2, 1], [4, 3], [0]]


def test_vectors_are_counted_with_padding_and_a_branch_that_is_longer_goes_by_itself():
    """9 and 11 take 22 padded, 12 alone is more than 11."""
    assert list(of_similar_length([9, 11, 12], 22)) == [[0, 1], [2]]
    for vectors in (21, 11):
        assert list(of_similar_length([9, 11, 12], vectors)) == [[0], [1], [2]]
