"""The fused head losses against log-softmax tables written out."""

import pytest
import torch

from gistnet.objective.losses import contrastive_loss, token_losses, token_losses_of_each, token_nll
from tests.teachers import tiny_teacher


def states(seed: int, dim: int = 32) -> torch.Tensor:
    return torch.randn(3, 5, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TARGETS = torch.randint(0, 97, (3, 5), generator=torch.Generator().manual_seed(9))


def tables(teacher, original, replaced):
    return teacher.logits(original).log_softmax(-1), teacher.logits(replaced).log_softmax(-1)


@pytest.mark.parametrize("family", ["llama", "gemma3"])  # gemma3 caps its logits
@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
@pytest.mark.parametrize("which", [("kl",), ("nll_replaced",), ("kl", "nll_replaced")])
def test_values_and_gradients_equal_autograd_through_the_whole_table(family, chunk_tokens, which):
    teacher = tiny_teacher(family)
    original = states(0)
    weights = torch.linspace(0.5, 2, 15, dtype=torch.float64).view(3, 5)
    fused, written_out = states(1).requires_grad_(), states(1).requires_grad_()

    losses = token_losses(teacher, original, fused, TARGETS, differentiate=which, chunk_tokens=chunk_tokens)
    sum((getattr(losses, name) * weights).sum() for name in which).backward()

    log_p, log_q = tables(teacher, original, written_out)
    expected = {
        "kl": (log_p.exp() * (log_p - log_q)).sum(-1),
        "nll_replaced": -log_q.gather(-1, TARGETS[..., None])[..., 0],
        "nll_original": -log_p.gather(-1, TARGETS[..., None])[..., 0],
    }
    sum((expected[name] * weights).sum() for name in which).backward()
    for name, value in expected.items():
        torch.testing.assert_close(getattr(losses, name), value, rtol=1e-10, atol=1e-10)
        assert getattr(losses, name).requires_grad == (name in which)
    torch.testing.assert_close(fused.grad, written_out.grad, rtol=1e-9, atol=1e-10)


def test_kl_of_a_prediction_with_itself_is_zero():
    teacher, same = tiny_teacher("llama"), states(0)
    losses = token_losses(teacher, same, same.clone(), TARGETS)
    assert losses.kl.abs().max() < 1e-12
    assert losses.delta_nll.abs().max() == 0


def test_kl_by_hand_on_a_vocabulary_of_two():
    """p = (3/4, 1/4), q = (1/4, 3/4): KL = 3/4 ln 3 - 1/4 ln 3 = ln(3)/2; the true token is the first."""

    class TwoWords:
        final_softcap = None
        head_weight = torch.eye(2, dtype=torch.float64)

        def logits(self, hidden):
            return hidden @ self.head_weight.T

    ln3 = torch.log(torch.tensor(3.0, dtype=torch.float64))
    p, q = torch.tensor([[[ln3, 0.0]]], dtype=torch.float64), torch.tensor([[[0.0, ln3]]], dtype=torch.float64)
    losses = token_losses(TwoWords(), p, q, torch.tensor([[0]]))
    torch.testing.assert_close(losses.kl[0, 0], ln3 / 2)
    torch.testing.assert_close(losses.nll_original[0, 0], torch.log(torch.tensor(4 / 3, dtype=torch.float64)))
    torch.testing.assert_close(losses.delta_nll[0, 0], ln3)


def test_token_nll_is_cross_entropy():
    teacher, hidden = tiny_teacher("gemma3"), states(2).requires_grad_()
    nll = token_nll(teacher, hidden, TARGETS)
    expected = torch.nn.functional.cross_entropy(teacher.logits(states(2)).flatten(0, 1), TARGETS.flatten())
    torch.testing.assert_close(nll.mean(), expected)
    assert nll.requires_grad
    for chunk_tokens in (None, 1, 4):
        torch.testing.assert_close(token_nll(teacher, states(2), TARGETS, chunk_tokens=chunk_tokens), nll.detach())


@pytest.mark.parametrize(("chunk_tokens", "n_products"), [(128, 4), (4, 16)])
def test_replacements_compared_together_give_the_losses_of_each_with_fewer_products(
    chunk_tokens, n_products, monkeypatch
):
    """Three replacements share the original's logits: four products of a chunk with the head, and not six."""
    monkeypatch.setattr("gistnet.objective.losses.default_chunk_tokens", lambda device_type: chunk_tokens)
    teacher, products = tiny_teacher("gemma3"), []
    replaced = {"a": states(2), "b": states(3), "c": states(1)}
    expected = {name: token_losses(teacher, states(1), hidden, TARGETS) for name, hidden in replaced.items()}
    head = teacher.logits
    monkeypatch.setattr(teacher, "logits", lambda hidden: products.append(1) or head(hidden))
    together = token_losses_of_each(teacher, states(1), replaced, TARGETS)
    assert len(products) == n_products
    assert together.keys() == expected.keys()
    for name, losses in together.items():
        for got, value in zip(losses, expected[name], strict=True):
            torch.testing.assert_close(got, value)
    assert together["c"].kl.abs().max() < 1e-12  # the same states


def test_peak_memory_does_not_grow_with_the_number_of_tokens():
    """Ten times the tokens must not allocate ten times the logits: the largest tensor made stays a chunk's."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for part in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(part, torch.Tensor):
                    self.elements = max(self.elements, part.numel())
            return result

    teacher, largest = tiny_teacher("llama"), []
    for branches in (4, 40):
        hidden = torch.randn(branches, 16, 32, dtype=torch.float64, requires_grad=True)
        targets = torch.zeros(branches, 16, dtype=torch.long)
        with Largest() as seen:
            token_losses(teacher, hidden.detach() + 1, hidden, targets, chunk_tokens=32)
        largest.append(seen.elements)
    # 32 tokens × 97 words, or the hidden states themselves (640 × 32) where those are larger.
    assert largest == [32 * 97, max(32 * 97, 640 * 32)]


def test_contrastive_loss_by_hand():
    """Margin 0.2: identical gists cost 0.2, cosine 0.9 costs 0.1, cosine 0.8 and below cost nothing."""
    first = torch.tensor([[1.0, 0.0]] * 4)
    second = torch.tensor([[2.0, 0.0], [0.9, (1 - 0.81) ** 0.5], [0.8, 0.6], [0.0, 1.0]])
    torch.testing.assert_close(contrastive_loss(first, second, margin=0.2), torch.tensor([0.2, 0.1, 0.0, 0.0]))


def test_contrastive_loss_pushes_both_neighbours_apart():
    first = torch.tensor([[1.0, 0.1]], requires_grad=True)
    second = torch.tensor([[1.0, -0.1]], requires_grad=True)
    contrastive_loss(first, second, margin=0.2).sum().backward()
    assert first.grad[0, 1] < 0 < second.grad[0, 1]  # a descent step moves them away from each other
