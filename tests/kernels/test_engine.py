"""The whole engine on the GPU's kernels, in Triton's interpreter: losses and gradients of every verified family."""

import pytest
import torch

from gistnet.model import prefix_attention
from gistnet.objective import losses as losses_module
from gistnet.objective.branches import gist_replacements
from tests.objective.test_engine import MIXED, engine_kl, make_segments, random_gists
from tests.teachers import FAMILIES, tiny_teacher

pytest.importorskip("triton", reason="the kernels need Triton")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engine_on_kernels_equals_the_engine_on_pytorch(family, monkeypatch):
    """Runs of one to six gists, two windows; Gemma 3 with layers that slide over 20 positions, and capped logits."""
    teacher, segments = tiny_teacher(family, torch.float32), make_segments(MIXED)

    def losses_and_gradient():
        vectors = random_gists(segments, teacher.hidden_size).float().requires_grad_()
        found = engine_kl(teacher, segments, gist_replacements(segments, vectors, "center"))
        (found.kl * torch.linspace(1, 2, found.kl.shape[1])).sum().backward()
        return torch.stack([part.detach() for part in found]), vectors.grad

    expected, layers, by_kernels = losses_and_gradient(), [], prefix_attention._by_kernels
    monkeypatch.setattr(
        prefix_attention.TwoPartAttention, "apply", lambda *inputs: layers.append(1) or by_kernels(*inputs)
    )
    monkeypatch.setattr(losses_module, "_by_kernel", lambda logits: True)
    for got, value in zip(losses_and_gradient(), expected, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))
    assert len(layers) == teacher.config.num_hidden_layers
