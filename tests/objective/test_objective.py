"""What a training step minimises, against each term written out."""

import dataclasses
from itertools import pairwise

import pytest
import torch

from gistnet.errors import ConfigError
from gistnet.model.config import GistNetConfig
from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import GistNet
from gistnet.model.layers import Dropout
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import SegmentBatch, gist_replacements
from gistnet.objective.config import ObjectiveConfig
from gistnet.objective.losses import SegmentLosses, contrastive_loss, segment_losses, token_losses
from gistnet.objective.reference import (
    reference_original_hidden,
    reference_replaced_hidden,
)
from tests.teachers import tiny_teacher

SPAN, HORIZON = 8, 10
MIXED = torch.tensor([4, 1, 2, 5])  # the last one replaces all that has room behind the window's first token


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return tiny_teacher("llama")


CONFIG = GistNetConfig(architecture="bottleneck", width=16, heads=2)


@pytest.fixture
def gistnet(teacher) -> GistNet:
    """Untrained but for W_out, so that everything inside matters and has a gradient."""
    network = GistNet.build(CONFIG, teacher, SPAN)
    torch.manual_seed(4)
    torch.nn.init.normal_(network.w_out.weight, std=0.3)
    return network


def make_segments(gists: int | torch.Tensor = 1) -> SegmentBatch:
    tokens = torch.randint(3, 97, (2, 60), generator=torch.Generator().manual_seed(0))
    windows, starts = torch.tensor([0, 1, 0, 1]), torch.tensor([5, 18, 22, 1])
    return SegmentBatch(tokens, windows, starts, span_tokens=SPAN, n_spans=gists, horizon=HORIZON)


def losses_of(
    teacher, gistnet, segments, dropout_rate=0.0, dropout_keys=None, positions="center", compact=None, **settings
) -> SegmentLosses:
    return segment_losses(
        SpanEncoder(teacher, gistnet),
        teacher.prefill(segments.tokens),
        segments,
        ObjectiveConfig(positions=positions, **settings),
        compact=compact,
        dropout_rate=dropout_rate,
        dropout_keys=dropout_keys,
    )


def gradient_of(gistnet, value) -> torch.Tensor:
    """The gradient of every parameter, end to end."""
    gistnet.zero_grad()
    value.backward()
    return torch.cat([p.grad.flatten() for p in gistnet.parameters() if p.grad is not None])


def written_out(teacher, gistnet, segments, positions="center"):
    """KL and both NLLs per token, from two whole forwards per branch."""
    replacements = gist_replacements(segments, SpanEncoder(teacher, gistnet).encode(segments.replaced), positions)
    branches = range(len(segments.starts))
    original = torch.stack([reference_original_hidden(teacher, segments, b) for b in branches])
    replaced = torch.stack([reference_replaced_hidden(teacher, segments, replacements, b) for b in branches])
    return token_losses(teacher, original, replaced, segments.targets), replaced


@pytest.mark.parametrize("gists", [1, MIXED], ids=["one gist", "mixed runs"])
@pytest.mark.parametrize("positions", ["center", "end", "compact"])
def test_totals_are_means_over_the_horizon_of_what_the_loss_names(teacher, gistnet, gists, positions):
    segments = make_segments(gists)
    expected, _ = written_out(teacher, gistnet, segments, positions)
    kl, delta = expected.kl.mean(1), (expected.nll_replaced - expected.nll_original).mean(1)
    assert kl.min() > 0.05
    totals = {"kl": kl, "delta_nll": delta, "mixed": 0.5 * kl + 0.5 * delta}
    for loss, total in totals.items():
        result = losses_of(teacher, gistnet, segments, loss=loss, positions=positions)
        torch.testing.assert_close(result.total, total, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(result.kl, kl, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(result.delta_nll, delta, rtol=1e-9, atol=1e-10)
        assert [part.requires_grad for part in result] == [True] + 4 * [False]


def test_branches_that_are_compact_are_read_so_beside_others(teacher, gistnet):
    segments, some = make_segments(MIXED), torch.tensor([True, False, True, False])
    mixed, compact, others = (
        losses_of(teacher, gistnet, segments, positions=positions, compact=of)
        for positions, of in (("end", some), ("compact", None), ("end", None))
    )
    assert (compact.kl - others.kl).abs()[[0, 2, 3]].min() > 1e-3  # a single gist is one vector earlier, too
    torch.testing.assert_close(mixed.total, torch.where(some, compact.total, others.total), rtol=1e-9, atol=1e-10)


def test_the_gradient_of_delta_nll_is_that_of_plain_cross_entropy(teacher, gistnet):
    segments = make_segments()
    ours = gradient_of(gistnet, losses_of(teacher, gistnet, segments, loss="delta_nll").total.mean())
    logits = teacher.logits(written_out(teacher, gistnet, segments)[1])
    cross_entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), segments.targets.flatten())
    theirs = gradient_of(gistnet, cross_entropy)
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_the_gradient_of_mixed_is_the_weighted_sum_of_both(teacher, gistnet):
    segments = make_segments()
    kl, delta, mixed = (
        gradient_of(gistnet, losses_of(teacher, gistnet, segments, loss=loss).total.sum())
        for loss in ("kl", "delta_nll", "mixed")
    )
    torch.testing.assert_close(mixed, 0.5 * kl + 0.5 * delta, rtol=1e-4, atol=1e-6)
    assert (kl - delta).abs().max() > 1e-3


@pytest.mark.parametrize("gists", [1, MIXED], ids=["one gist", "mixed runs"])
def test_the_contrastive_term_is_the_hinge_of_each_gist_and_the_next(teacher, gistnet, gists):
    """Gists of the spans at s, s + K, … are encoded one by one; a margin of 2 keeps every hinge open."""
    segments = make_segments(gists)
    result = losses_of(teacher, gistnet, segments, contrastive_weight=0.05, contrastive_margin=2.0)
    rows = []
    for window, start, count in zip(segments.windows, segments.starts, segments.counts, strict=True):
        firsts = [int(start) + index * SPAN for index in range(count + 1)]
        run = [SpanEncoder(teacher, gistnet).encode(segments.tokens[window, None, at : at + SPAN])[0] for at in firsts]
        hinges = [contrastive_loss(first, second, 2.0)[0] for first, second in pairwise(run)]
        rows.append(torch.stack(hinges).mean())
    expected = torch.stack(rows)
    torch.testing.assert_close(result.contrastive, expected.to(result.contrastive.dtype), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.total.detach(), result.kl + 0.05 * result.contrastive)


def test_the_contrastive_gradient_flows_into_the_gist_and_its_neighbour(teacher):
    """A network whose gist is a free vector per span: both vectors of a pair get a gradient, away from each other.

    Spans come by window and start: those of the branches in the order 0, 2, 3, 1, each with its neighbour.
    """

    class FreeGists(torch.nn.Module):
        config = CONFIG
        below, branching, tokens_per_gist, reads_context = None, SPAN, SPAN, False

        def __init__(self) -> None:
            super().__init__()
            self.teacher_fingerprint = teacher.fingerprint
            self.gists = torch.nn.Parameter(torch.randn(8, 32, generator=torch.Generator().manual_seed(1)))

        def forward(self, spans: torch.Tensor, dropout: Dropout | None, context: None) -> torch.Tensor:
            return self.gists

    segments, gradients = make_segments(), []
    for weight in (0.0, 1.0):
        network = FreeGists()
        if weight == 0:  # then the neighbours are not encoded
            network.gists = torch.nn.Parameter(network.gists.detach()[::2])
        losses_of(teacher, network, segments, contrastive_weight=weight, contrastive_margin=2.0).total.sum().backward()
        gradients.append(network.gists.grad)
    pairs = FreeGists().gists.detach().view(4, 2, 32).requires_grad_()
    contrastive_loss(pairs[:, 0], pairs[:, 1], 2.0).sum().backward()
    torch.testing.assert_close(gradients[1].view(4, 2, 32)[:, 1], pairs.grad[:, 1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients[1].view(4, 2, 32)[:, 0] - gradients[0], pairs.grad[:, 0], rtol=1e-3, atol=1e-5)
    assert pairs.grad.abs().amax(dim=(0, 2)).min() > 1e-3


def test_terms_without_weight_are_not_computed(teacher, gistnet):
    encoded_spans = []
    gistnet.register_forward_pre_hook(lambda module, arguments: encoded_spans.append(len(arguments[0])))
    plain = losses_of(teacher, gistnet, make_segments())
    with_neighbours = losses_of(teacher, gistnet, make_segments(), contrastive_weight=0.1)
    assert encoded_spans == [4, 8]
    assert plain.contrastive.abs().max() == 0
    torch.testing.assert_close(plain.total, plain.kl)
    torch.testing.assert_close(with_neighbours.kl, plain.kl)


def test_dropout_depends_on_the_keys_and_on_nothing_else(teacher, gistnet):
    keys = torch.tensor([-(2**62), 2**63 - 1])
    segments = make_segments(MIXED)
    drop = {"dropout_rate": 0.3, "contrastive_weight": 0.1, "contrastive_margin": 2.0}
    whole = losses_of(teacher, gistnet, segments, dropout_keys=keys, **drop)
    torch.manual_seed(99)
    torch.rand(5)
    for part, again in zip(whole, losses_of(teacher, gistnet, segments, dropout_keys=keys, **drop), strict=True):
        assert torch.equal(part, again)
    others = losses_of(teacher, gistnet, segments, dropout_keys=keys + 1000, **drop)
    assert (whole.kl - others.kl).abs().min() > 1e-4
    without = losses_of(teacher, gistnet, segments, contrastive_weight=0.1, contrastive_margin=2.0)
    assert (whole.kl - without.kl).abs().min() > 1e-4


def test_every_span_of_a_run_has_masks_of_its_own_and_is_encoded_once(teacher, gistnet):
    """Branches 0 and 2 share the span at token 29 of their window; keys are the window's plus the span's place."""
    seen = []
    gistnet.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1].keys.tolist()))
    segments = dataclasses.replace(make_segments(MIXED), starts=torch.tensor([5, 18, 29, 1]))
    losses_of(teacher, gistnet, segments, dropout_rate=0.3, dropout_keys=torch.tensor([1000, 2000]))
    assert seen == [[1005, 1013, 1021, 1029, 1037, 2001, 2009, 2017, 2018, 2025, 2033]]


@pytest.mark.parametrize("parts", [[[0], [1], [2], [3]], [[0, 1, 2], [3]], [[3, 1], [0, 2]]])
@pytest.mark.parametrize("gists", [torch.ones(4, dtype=torch.long), MIXED], ids=["one gist", "mixed runs"])
def test_losses_and_gradients_do_not_depend_on_how_the_batch_is_split(teacher, gistnet, gists, parts):
    """Mixed runs alone, branch by branch, are uniform ones."""
    segments, keys = make_segments(gists), torch.tensor([11, 12])
    settings = {"dropout_rate": 0.3, "contrastive_weight": 0.1, "contrastive_margin": 2.0}
    result = losses_of(teacher, gistnet, segments, dropout_keys=keys, **settings)
    whole, gradient = torch.stack(list(result)).detach(), gradient_of(gistnet, result.total.sum())
    summed = torch.zeros_like(gradient)
    for part in parts:
        some = dataclasses.replace(
            segments, windows=segments.windows[part], starts=segments.starts[part], n_spans=gists[part]
        )
        result = losses_of(teacher, gistnet, some, dropout_keys=keys, **settings)
        torch.testing.assert_close(torch.stack(list(result)).detach(), whole[:, part], rtol=1e-5, atol=1e-6)
        summed += gradient_of(gistnet, result.total.sum())
    assert (summed - gradient).norm() < 1e-5 * gradient.norm()


def test_a_dropout_rate_without_keys_is_refused(teacher, gistnet):
    with pytest.raises(ConfigError, match=r"0\.1 without keys"):
        losses_of(teacher, gistnet, make_segments(), dropout_rate=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_encode_is_gistnet_on_the_embeddings_of_each_span_in_float32(dtype):
    teacher = tiny_teacher("gemma3", dtype)
    network = GistNet.build(CONFIG, teacher, SPAN)
    torch.nn.init.normal_(network.w_out.weight, std=0.3)
    tokens = torch.randint(3, 97, (3, 2 * SPAN), generator=torch.Generator().manual_seed(1))
    gists = SpanEncoder(teacher, network).encode(tokens)
    assert gists.dtype == torch.float32
    assert gists.shape == (3, 2, 32)
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    for row in range(3):
        for span in range(2):
            alone = network(teacher.embed(tokens[row, span * SPAN : (span + 1) * SPAN])[None])[0]
            torch.testing.assert_close(gists[row, span], alone, rtol=tolerance, atol=tolerance)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_an_untrained_gistnet_scores_as_the_last_token_does(teacher):
    """W_out starts at zero, so the losses are those of the span's last embedding; its length is the norm reported."""
    network = GistNet.build(CONFIG, teacher, SPAN)
    segments = make_segments()
    result = losses_of(teacher, network, segments)
    last = teacher.embed(segments.replaced[:, -1:])
    replacements = gist_replacements(segments, last, "center")
    hidden = torch.stack([reference_replaced_hidden(teacher, segments, replacements, b) for b in range(4)])
    original = torch.stack([reference_original_hidden(teacher, segments, b) for b in range(4)])
    expected = token_losses(teacher, original, hidden, segments.targets).kl.mean(1)
    torch.testing.assert_close(result.kl, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.gist_norm, last[:, 0].norm(dim=-1).float(), rtol=1e-5, atol=1e-6)
