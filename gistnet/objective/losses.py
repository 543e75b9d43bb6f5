"""What training minimises and evaluation reports, per token or per pair; reduced by the caller.

The distillation losses never hold the logits of all horizon tokens at once. The head is frozen, so the gradient that
reaches a hidden state is known as soon as its logits are: it is computed with the loss, chunk by chunk, and the
logits are dropped. Peak extra memory is a few times chunk × vocabulary, whatever the number of tokens.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gistnet.model.teacher import Teacher


class TokenLosses(NamedTuple):
    """Per predicted token, in nats, each `[branches, H]`.

    `kl` is KL(p_original || p_replaced) over the whole vocabulary (spec, Substitutability Loss; Hinton et al., 2015);
    `nll_original` and `nll_replaced` are the negative log-likelihoods of the true token in either context.
    """

    kl: Tensor
    nll_original: Tensor
    nll_replaced: Tensor

    @property
    def delta_nll(self) -> Tensor:
        """How much worse the true token is predicted after replacement, in nats; may be negative."""
        return self.nll_replaced - self.nll_original


def token_losses(
    teacher: Teacher,
    original: Tensor,
    replaced: Tensor,
    targets: Tensor,
    *,
    differentiate: tuple[str, ...] = ("kl",),
    chunk_tokens: int = 128,
) -> TokenLosses:
    """Compare the predictions of two contexts for the same tokens.

    Args:
        teacher: gives the head and its softcap.
        original: `[branches, H, dim]`, hidden states of the original context; treated as constant.
        replaced: `[branches, H, dim]`, hidden states of the replaced context.
        targets: `[branches, H]`, the true tokens.
        differentiate: which of "kl" and "nll_replaced" carry gradient to `replaced`; each costs a product with the
            head, and what is not named comes out without gradient.
        chunk_tokens: how many tokens' logits exist at a time.
    """
    shape = targets.shape
    wanted = tuple(name in differentiate and replaced.requires_grad for name in ("kl", "nll_replaced"))
    kl, nll_original, nll_replaced = _FrozenHeadLosses.apply(
        replaced.flatten(0, 1), original.flatten(0, 1).detach(), targets.flatten(), teacher, wanted, chunk_tokens
    )
    return TokenLosses(kl.view(shape), nll_original.view(shape), nll_replaced.view(shape))


def token_nll(teacher: Teacher, hidden: Tensor, targets: Tensor, *, chunk_tokens: int = 128) -> Tensor:
    """Negative log-likelihood of `targets` `[branches, n]` given hidden states `[branches, n, dim]`, in nats."""
    losses = token_losses(
        teacher, hidden.detach(), hidden, targets, differentiate=("nll_replaced",), chunk_tokens=chunk_tokens
    )
    return losses.nll_replaced


def contrastive_loss(gists: Tensor, neighbours: Tensor, margin: float) -> Tensor:
    """Hinge on the cosine distance of gists of consecutive spans, `[pairs, dim]` twice → `[pairs]`.

    `max(0, margin - (1 - cos))`: zero once two neighbours differ by the margin; gradient into both
    (spec, Contrastive Span Separation).
    """
    cosine = torch.nn.functional.cosine_similarity(gists, neighbours, dim=-1)
    return (cosine - (1 - margin)).clamp(min=0)


class _FrozenHeadLosses(torch.autograd.Function):
    """KL and both NLLs per token, `[tokens]` each, with the gradient of the replaced hidden states made on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        replaced: Tensor,
        original: Tensor,
        targets: Tensor,
        teacher: Teacher,
        wanted: tuple[bool, bool],
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kl_wanted, nll_wanted = wanted
        wide = torch.promote_types(replaced.dtype, torch.float32)
        kl, nll_original, nll_replaced = (torch.empty(len(targets), dtype=wide, device=replaced.device) for _ in "123")
        d_kl = torch.empty_like(replaced) if kl_wanted else None
        d_nll = torch.empty_like(replaced) if nll_wanted else None
        for start in range(0, len(targets), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            column = targets[chunk, None]
            logits = teacher.logits(replaced[chunk])
            log_p = torch.log_softmax(teacher.logits(original[chunk]), dim=-1, dtype=wide)
            log_q = torch.log_softmax(logits, dim=-1, dtype=wide)
            nll_original[chunk] = -log_p.gather(1, column)[:, 0]
            nll_replaced[chunk] = -log_q.gather(1, column)[:, 0]
            p = log_p.exp()
            kl[chunk] = torch.linalg.vecdot(p, log_p.sub_(log_q))
            if d_kl is None and d_nll is None:
                continue
            q = log_q.exp_()
            if d_nll is not None:
                d_logits = q.scatter_add(1, column, torch.full_like(column, -1, dtype=wide))
                d_nll[chunk] = _through_head(d_logits, logits, teacher)
            if d_kl is not None:
                d_kl[chunk] = _through_head(q.sub_(p), logits, teacher)
        ctx.save_for_backward(*(d for d in (d_kl, d_nll) if d is not None))
        ctx.wanted = wanted
        ctx.mark_non_differentiable(nll_original, *([] if kl_wanted else [kl]), *([] if nll_wanted else [nll_replaced]))
        return kl, nll_original, nll_replaced

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        outer = [g for g, wanted in zip((gradients[0], gradients[2]), ctx.wanted, strict=True) if wanted]
        parts = [g[:, None].to(d.dtype) * d for g, d in zip(outer, ctx.saved_tensors, strict=True)]
        return sum(parts[1:], parts[0]), None, None, None, None, None


def _through_head(d_logits: Tensor, logits: Tensor, teacher: Teacher) -> Tensor:
    """The gradient of hidden states, `[tokens, dim]`, from that of their logits, `[tokens, vocab]`."""
    if teacher.final_softcap is not None:
        d_logits = d_logits * (1 - (logits / teacher.final_softcap) ** 2)
    return d_logits.to(logits.dtype) @ teacher.head_weight
