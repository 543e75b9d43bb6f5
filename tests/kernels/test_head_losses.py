"""The kernel of the losses computes what PyTorch does, for tables whose width is no multiple of its block."""

import pytest
import torch

from gistnet.objective.losses import largest_difference_of_kernel

pytest.importorskip("triton", reason="the kernels need Triton")
from gistnet.kernels import head_losses

CPU = torch.device("cpu")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 2e-3)])
def test_losses_and_gradients_equal_those_of_pytorch_with_and_without_softcap(dtype, tolerance):
    assert largest_difference_of_kernel(dtype, CPU) < tolerance


def test_equal_tables_have_no_divergence_and_no_gradient():
    table = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 50, 99])
    compared = head_losses.compare_logits(table.clone(), table.clone(), targets, None, kl_wanted=True, nll_wanted=False)
    torch.testing.assert_close(compared.kl, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(compared.d_kl, torch.zeros(3, 100), atol=1e-7, rtol=0)
    assert torch.equal(compared.nll_original, compared.nll_replaced)
    assert compared.d_nll is None


def test_what_is_not_wanted_leaves_the_tables_as_they_were():
    original, replaced = torch.randn(2, 3, 5000, generator=torch.Generator().manual_seed(0)).unbind()
    before = original.clone(), replaced.clone()
    head_losses.compare_logits(original, replaced, torch.tensor([1, 2, 3]), None, kl_wanted=False, nll_wanted=False)
    assert torch.equal(original, before[0]) and torch.equal(replaced, before[1])


def test_very_unlikely_tokens_do_not_overflow():
    """Logits 500 apart: the less likely token has a loss of 500 nats and a probability of zero."""
    original, replaced = torch.tensor([[500.0, 0.0]]), torch.tensor([[0.0, 500.0]])
    compared = head_losses.compare_logits(original, replaced, torch.tensor([1]), None, kl_wanted=True, nll_wanted=False)
    assert compared.kl.tolist() == [500.0]
    assert compared.nll_original.tolist() == [500.0]
    assert compared.d_kl.tolist() == [[-1.0, 1.0]]
