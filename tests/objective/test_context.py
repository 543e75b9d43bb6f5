"""A GistNet that reads spans where they stand: against the teacher's own states, and against a pass per span."""

from pathlib import Path

import pytest
import torch

from gistnet.config import load_config
from gistnet.errors import DataError
from gistnet.evaluation.config import EvaluationConfig
from gistnet.evaluation.evaluator import evaluate
from gistnet.model.config import GistNetConfig
from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import GistNet, SpanContext
from gistnet.objective.branches import SegmentBatch
from gistnet.objective.config import ObjectiveConfig
from gistnet.objective.losses import encode_segments, segment_losses
from gistnet.session import open_run
from gistnet.training.trainer import fit
from tests.gistnets import SPAN, context_gistnet
from tests.teachers import FAMILIES, tiny_teacher


def make_segments(gists: int | torch.Tensor = 1, span_tokens: int = SPAN) -> SegmentBatch:
    tokens = torch.randint(3, 97, (2, 160), generator=torch.Generator().manual_seed(0))
    windows, starts = torch.tensor([0, 1, 0]), torch.tensor([5, 12, 29])
    return SegmentBatch(tokens, windows, starts, span_tokens=span_tokens, n_spans=gists, horizon=6)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_gist_points_where_the_original_state_of_its_last_token_does(family):
    teacher = tiny_teacher(family)
    gistnet, segments = context_gistnet(teacher, woken=False), make_segments(torch.tensor([2, 1, 3]))
    read = SpanEncoder(teacher, gistnet).prefill(segments.tokens)
    gists = encode_segments(SpanEncoder(teacher, gistnet), segments, read)
    for branch, (window, start) in enumerate(zip(segments.windows, segments.starts, strict=True)):
        for place in range(int(segments.counts[branch])):
            state = read.states[window, start + (place + 1) * SPAN - 1]
            expected = 100 * teacher.embedding_norm() * state / state.norm()
            torch.testing.assert_close(gists[branch, place], expected.float(), rtol=1e-4, atol=1e-3)


def test_a_gist_is_made_of_its_span_and_what_precedes_it_and_of_nothing_after():
    teacher, segments = tiny_teacher("llama"), make_segments()
    gistnet = context_gistnet(teacher)
    end = int(segments.starts[1]) + SPAN

    def gist(tokens: torch.Tensor) -> torch.Tensor:
        changed = SegmentBatch(tokens, segments.windows, segments.starts, SPAN, 1, 6)
        read = SpanEncoder(teacher, gistnet).prefill(tokens)
        return encode_segments(SpanEncoder(teacher, gistnet), changed, read)[1]

    original = gist(segments.tokens)
    after, before, within = (segments.tokens.clone() for _ in range(3))
    after[1, end:] = 7
    before[1, 2] = (before[1, 2] + 1) % 97
    within[1, end - 3] = (within[1, end - 3] + 1) % 97
    torch.testing.assert_close(gist(after), original, rtol=1e-5, atol=1e-5)
    assert (gist(before) - original).norm() > 1e-2 * original.norm()
    assert (gist(within) - original).norm() > 1e-2 * original.norm()


def test_levels_above_read_gists_alone_and_pass_the_context_down():
    teacher = tiny_teacher("llama")
    gistnet = context_gistnet(teacher, levels=2)
    assert [level.reads_context for level in gistnet.levels] == [True, False]
    assert gistnet.hidden_state_layer == 2
    segments = make_segments(span_tokens=SPAN * SPAN)
    read = teacher.prefill(segments.tokens, hidden_state_layer=2)
    context = SpanContext(read, segments.windows, segments.starts)
    together = encode_segments(SpanEncoder(teacher, gistnet), segments, read)
    apart = SpanEncoder(teacher, gistnet).encode(segments.replaced, context)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    first = torch.cat(
        [
            SpanEncoder(teacher, gistnet.below).encode(segments.tokens[:1, at : at + SPAN], SpanContext(read, *places))
            for at in range(5, 5 + SPAN * SPAN, SPAN)
            for places in ((torch.tensor([0]), torch.tensor([at])),)
        ],
        dim=1,
    )
    torch.testing.assert_close(apart[0], gistnet(first), rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_of_whole_forwards():
    """Along a random direction of the weights, by finite differences of the loss."""
    teacher, segments = tiny_teacher("llama"), make_segments(torch.tensor([2, 1, 1]))
    gistnet = context_gistnet(teacher).double()
    read = SpanEncoder(teacher, gistnet).prefill(segments.tokens)

    def loss() -> torch.Tensor:
        return segment_losses(SpanEncoder(teacher, gistnet), read, segments, ObjectiveConfig()).total.sum()

    loss().backward()
    parameters = [p for p in gistnet.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, direction, strict=True) if p.grad is not None)
    ends = []
    for step in (1e-4, -2e-4):  # norms of the teacher run in float32, which is heard below this
        with torch.no_grad():
            for parameter, along in zip(parameters, direction, strict=True):
                parameter += step * along
            ends.append(float(loss()))
    assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(slope, rel=2e-3)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in parameters)


def test_what_is_missing_is_named():
    teacher, segments = tiny_teacher("llama"), make_segments()
    gistnet = context_gistnet(teacher)
    with pytest.raises(DataError, match="reads spans where they stand in a text, but got spans alone"):
        SpanEncoder(teacher, gistnet).encode(segments.replaced)
    with pytest.raises(DataError, match="without keeping states"):
        encode_segments(SpanEncoder(teacher, gistnet), segments, teacher.prefill(segments.tokens))
    with pytest.raises(ValueError, match="reads is context, expected the architecture teacher_lora"):
        GistNetConfig(reads="context", architecture="full")


def test_the_copied_layers_are_two_thirds_and_cost_a_token_of_each():
    teacher = tiny_teacher("llama")
    config = GistNetConfig(reads="context", width=16, heads=2)
    gistnet = GistNet.build(config, teacher, SPAN)
    assert gistnet.hidden_state_layer == 2 == teacher.n_layers * 2 // 3
    by_span = GistNet.build(config.model_copy(update={"reads": "span"}), teacher, SPAN)
    assert gistnet.parameter_budget().flops_per_span < by_span.parameter_budget().flops_per_span / 2


def test_it_is_trained_saved_and_judged_like_any_other(config_file: Path, tmp_path: Path):
    settings = ["gistnet.architecture=teacher_lora", "gistnet.reads=context", "teacher.precision=float64"]
    run = open_run(load_config(config_file, [*settings, f"run_folder={tmp_path / 'run'}"]))
    progress = fit(run)
    assert run.is_finished(progress)
    gistnet = run.gistnet.eval()
    gistnet.save_pretrained(tmp_path / "saved")
    again = GistNet.from_pretrained(tmp_path / "saved", run.teacher).eval()
    assert again.fingerprint == gistnet.fingerprint

    config = EvaluationConfig(
        documents=5,
        segments_per_window=2,
        horizons=(4,),
        resamples=100,
        positions=("end",),
        minimal_pairs=0,
        reconstruction=True,
    )
    records = evaluate(run.teacher, again, run.dataset, config).records
    wanted = {"kl", "recovered_kl", "delta_nll", "gist_diversity", "attention_entropy", "reconstruction_ce"}
    assert {record.name for record in records} >= wanted
