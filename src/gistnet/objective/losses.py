"""Losses: what a training step minimises per segment, from what is measured per token or per pair of gists.

The distillation losses never hold the logits of all horizon tokens at once. The head is frozen, so the gradient that
reaches a hidden state is known as soon as its logits are: it is computed with the loss, chunk by chunk, and the
logits are dropped. Peak extra memory is a few times chunk × vocabulary, whatever the number of tokens.
"""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gistnet.errors import ConfigError
from gistnet.kernels.gate import shown_exact
from gistnet.model.encoder import SpanEncoder
from gistnet.model.teacher import PrefillOutput, Teacher
from gistnet.objective.branches import SegmentBatch, gist_replacements, replaced_hidden
from gistnet.objective.config import ObjectiveConfig

DIFFERENTIATED = {"kl": ("kl",), "delta_nll": ("nll_replaced",), "mixed": ("kl", "nll_replaced")}
"""Losses that carry gradient for each kind of objective, as for `token_losses`."""


class SegmentLosses(NamedTuple):
    """Per segment, each `[branches]`; only `total` carries gradient."""

    total: Tensor
    """Loss that is minimised, in nats per predicted token plus the weighted hinge."""
    kl: Tensor
    """KL of the predictions, nats per token of the horizon."""
    delta_nll: Tensor
    """ΔNLL, nats per token of the horizon."""
    contrastive: Tensor
    """The unweighted hinge, cosine distance; zero where its weight is."""
    gist_norm: Tensor
    """Mean length of the segment's gists."""


def encode_segments(
    encoder: SpanEncoder,
    segments: SegmentBatch,
    prefill: PrefillOutput | None = None,
    *,
    with_next: bool = False,
    train_below: bool = False,
    dropout_rate: float = 0.0,
    dropout_keys: Tensor | None = None,
) -> Tensor:
    """Gists of segments of any lengths, `[branches, longest, dim]`, zero behind the end of a shorter one.

    Args:
        with_next: also the gist of the span that follows each segment, `[branches, longest + 1, dim]`.
        prefill, train_below, dropout_rate, dropout_keys: as for `SpanEncoder.encode_spans`.
    """
    real = _first(segments.counts + with_next, segments.longest + with_next)
    order = torch.arange(real.shape[1], device=real.device)
    starts = segments.starts[:, None] + order * segments.span_tokens
    windows = segments.windows[:, None].expand_as(starts)
    gists = encoder.encode_spans(
        segments.tokens,
        windows[real],
        starts[real],
        prefill,
        train_below=train_below,
        dropout_rate=dropout_rate,
        dropout_keys=dropout_keys,
    )
    padded = gists.new_zeros(*real.shape, gists.shape[1])
    return padded.masked_scatter(real[..., None], gists)


def segment_losses(
    encoder: SpanEncoder,
    prefill: PrefillOutput,
    segments: SegmentBatch,
    config: ObjectiveConfig,
    *,
    compact: Tensor | None = None,
    train_below: bool = False,
    dropout_rate: float = 0.0,
    dropout_keys: Tensor | None = None,
) -> SegmentLosses:
    """Losses of segments that gists replace (spec, Training Objectives): distillation, and the hinge beside it.

    Args:
        encoder: makes the gists; gradient flows into its GistNet.
        prefill: the encoder's pass over the windows of the segments.
        compact: bool `[branches]`, those whose positions have no gaps; the others have the objective's positions.
        train_below: whether gradient and dropout reach the levels below GistNet's own, too.
        dropout_rate: the share dropped inside GistNet.
        dropout_keys: `[windows]`, int64; a span's masks derive from its window's key and its start.
            Needed where the rate is above zero.

    Raises:
        ConfigError: there is a dropout rate without keys.
    """
    if dropout_rate > 0 and dropout_keys is None:
        raise ConfigError(f"The dropout rate is {dropout_rate} without keys; expected one key per window.")
    teacher, hinged = encoder.teacher, config.contrastive_weight > 0
    encoded = encode_segments(
        encoder,
        segments,
        prefill,
        with_next=hinged,
        train_below=train_below,
        dropout_rate=dropout_rate,
        dropout_keys=dropout_keys,
    )
    gists = encoded[:, : segments.longest]
    losses = token_losses(
        teacher,
        segments.original_hidden(prefill),
        replaced_hidden(teacher, prefill, segments, gist_replacements(segments, gists, config.positions, compact)),
        segments.targets,
        differentiate=DIFFERENTIATED[config.loss],
    )
    kl, delta_nll = losses.kl.mean(1), losses.delta_nll.mean(1)
    total = {"kl": kl, "delta_nll": delta_nll, "mixed": 0.5 * kl + 0.5 * delta_nll}[config.loss]
    counted = _first(segments.counts, segments.longest)
    contrastive = torch.zeros_like(kl)
    if hinged:
        hinges = contrastive_loss(gists[counted], encoded[:, 1:][counted], config.contrastive_margin)
        contrastive = _means(hinges, counted)
        total = total + config.contrastive_weight * contrastive
    norms = _means(gists.detach()[counted].norm(dim=-1), counted)
    return SegmentLosses(total, kl.detach(), delta_nll.detach(), contrastive.detach(), norms)


def _means(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of each row's values, which are those of the entries that are `counted`, bool `[branches, longest]`."""
    return values.new_zeros(counted.shape).masked_scatter(counted, values).sum(1) / counted.sum(1)


def _first(counts: Tensor, length: int) -> Tensor:
    """Mask of the first `counts` columns of each row: `[branches]` → bool `[branches, length]`."""
    return torch.arange(length, device=counts.device) < counts[:, None]


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
        """Increase of the true token's NLL by the replacement, in nats; may be negative."""
        return self.nll_replaced - self.nll_original


def token_losses(
    teacher: Teacher,
    original: Tensor,
    replaced: Tensor,
    targets: Tensor,
    *,
    differentiate: tuple[str, ...] = ("kl",),
    chunk_tokens: int | None = None,
) -> TokenLosses:
    """Compare the predictions of two contexts for the same tokens.

    Args:
        teacher: gives the head and its softcap.
        original: `[branches, H, dim]`, hidden states of the original context; treated as constant.
        replaced: `[branches, H, dim]`, hidden states of the replaced context.
        targets: `[branches, H]`, the true tokens.
        differentiate: which of "kl" and "nll_replaced" carry gradient to `replaced`; each costs a product with the
            head, and what is not named comes out without gradient.
        chunk_tokens: how many tokens' logits exist at a time; None is `default_chunk_tokens`.
    """
    shape = targets.shape
    wanted = tuple(name in differentiate and replaced.requires_grad for name in ("kl", "nll_replaced"))
    kl, nll_original, nll_replaced = _FrozenHeadLosses.apply(
        replaced.flatten(0, 1), original.flatten(0, 1).detach(), targets.flatten(), teacher, wanted, chunk_tokens
    )
    return TokenLosses(kl.view(shape), nll_original.view(shape), nll_replaced.view(shape))


@torch.no_grad()
def token_losses_of_each(
    teacher: Teacher, original: Tensor, replaced: Mapping[str, Tensor], targets: Tensor
) -> dict[str, TokenLosses]:
    """`token_losses` of several replaced contexts, by name; the original's logits are made once for all of them."""
    chunk_tokens = default_chunk_tokens(original.device.type)
    parts: dict[str, list[Tensor]] = {name: [] for name in replaced}
    columns = targets.flatten().split(chunk_tokens)
    flat = {name: hidden.flatten(0, 1).split(chunk_tokens) for name, hidden in replaced.items()}
    for number, states in enumerate(original.flatten(0, 1).split(chunk_tokens)):
        predicted = _predicted(teacher.logits(states))
        for name, chunks in flat.items():
            compared = _compare(predicted, teacher.logits(chunks[number]), columns[number], teacher, (False, False))
            parts[name].append(torch.stack(compared[:3]))
    return {name: TokenLosses(*torch.cat(part, dim=1).view(3, *targets.shape)) for name, part in parts.items()}


def default_chunk_tokens(device_type: str) -> int:
    """Number of tokens whose logits exist at a time: few for a CPU's cache, enough to fill a GPU."""
    return 1024 if device_type == "cuda" else 128


def token_nll(teacher: Teacher, hidden: Tensor, targets: Tensor, *, chunk_tokens: int | None = None) -> Tensor:
    """Negative log-likelihood of `targets` `[branches, n]` given hidden states `[branches, n, dim]`, in nats."""
    chunk_tokens = chunk_tokens or default_chunk_tokens(hidden.device.type)
    chunks = zip(hidden.flatten(0, 1).split(chunk_tokens), targets.flatten().split(chunk_tokens), strict=True)
    nll = [-_log_softmax(teacher.logits(states)).gather(1, column[:, None])[:, 0] for states, column in chunks]
    return torch.cat(nll).view(targets.shape)


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
        chunk_tokens: int | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        kl_wanted, nll_wanted = wanted
        chunk_tokens = chunk_tokens or default_chunk_tokens(replaced.device.type)
        wide = torch.promote_types(replaced.dtype, torch.float32)
        kl, nll_original, nll_replaced = (torch.empty(len(targets), dtype=wide, device=replaced.device) for _ in "123")
        d_kl = torch.empty_like(replaced) if kl_wanted else None
        d_nll = torch.empty_like(replaced) if nll_wanted else None
        for start in range(0, len(targets), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            predicted = _predicted(teacher.logits(original[chunk]))
            compared = _compare(predicted, teacher.logits(replaced[chunk]), targets[chunk], teacher, wanted)
            kl[chunk], nll_original[chunk], nll_replaced[chunk] = compared[:3]
            for gradient, d_logits in ((d_kl, compared.d_kl), (d_nll, compared.d_nll)):
                if gradient is not None and d_logits is not None:
                    torch.mm(d_logits, teacher.head_weight, out=gradient[chunk])
        ctx.save_for_backward(*(d for d in (d_kl, d_nll) if d is not None))
        ctx.wanted = wanted
        ctx.mark_non_differentiable(nll_original, *([] if kl_wanted else [kl]), *([] if nll_wanted else [nll_replaced]))
        return kl, nll_original, nll_replaced

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        outer = [g for g, wanted in zip((gradients[0], gradients[2]), ctx.wanted, strict=True) if wanted]
        parts = [g[:, None].to(d.dtype) * d for g, d in zip(outer, ctx.saved_tensors, strict=True)]
        return sum(parts[1:], parts[0]), None, None, None, None, None


class _Compared(NamedTuple):
    """Losses `[tokens]`, and the gradients of the replaced logits, `[tokens, vocab]`, where they are wanted."""

    kl: Tensor
    nll_original: Tensor
    nll_replaced: Tensor
    d_kl: Tensor | None
    d_nll: Tensor | None


def _predicted(logits: Tensor) -> Tensor:
    """Original context's predictions for `_compare`, `[tokens, vocab]`: logits on a GPU, else their log-softmax."""
    return logits if _by_kernel(logits) else _log_softmax(logits)


def _compare(
    predicted: Tensor, logits: Tensor, targets: Tensor, teacher: Teacher, wanted: tuple[bool, ...]
) -> _Compared:
    """Compare the logits of a replaced context with what was `_predicted`, for the same `targets`, `[tokens]`.

    With gradients wanted, `predicted` and `logits` are used up.
    """
    kl_wanted, nll_wanted = wanted
    if _by_kernel(logits):
        from gistnet.kernels.head_losses import compare_logits

        cap = teacher.final_softcap
        return _Compared(*compare_logits(predicted, logits, targets, cap, kl_wanted=kl_wanted, nll_wanted=nll_wanted))
    column, log_p, log_q = targets[:, None], predicted, _log_softmax(logits)
    nll_original, nll_replaced = -log_p.gather(1, column)[:, 0], -log_q.gather(1, column)[:, 0]
    p = log_p.exp()
    kl = torch.linalg.vecdot(p, log_p - log_q)
    if not (kl_wanted or nll_wanted):
        return _Compared(kl, nll_original, nll_replaced, None, None)
    q = log_q.exp_()
    d_nll = d_kl = None
    if nll_wanted:
        d_nll = _of_logits(q.scatter_add(1, column, torch.full_like(column, -1, dtype=q.dtype)), logits, teacher)
    if kl_wanted:
        d_kl = _of_logits(q.sub_(p), logits, teacher)
    return _Compared(kl, nll_original, nll_replaced, d_kl, d_nll)


def _of_logits(d_capped: Tensor, logits: Tensor, teacher: Teacher) -> Tensor:
    """The gradient of the head's product from that of the logits, in their number format."""
    if teacher.final_softcap is not None:
        d_capped = d_capped * (1 - (logits / teacher.final_softcap) ** 2)
    return d_capped.to(logits.dtype)


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _by_kernel(logits: Tensor) -> bool:
    return logits.device.type == "cuda" and _kernel_is_exact(logits.dtype, logits.device)


@cache
def _kernel_is_exact(dtype: torch.dtype, device: torch.device) -> bool:
    """True if the GPU kernel computes what PyTorch does here: losses and gradients of a few tokens, with a softcap."""
    name = f"the losses in {str(dtype).removeprefix('torch.')} on {device}"
    return dtype != torch.float64 and shown_exact(
        name, partial(largest_difference_of_kernel, dtype, device), 1e-5 if dtype == torch.float32 else 1e-2
    )


def largest_difference_of_kernel(dtype: torch.dtype, device: torch.device) -> float:
    """Largest difference of the kernel and PyTorch, as a share of the largest entry of each result."""
    from gistnet.kernels.head_losses import compare_logits

    generator = torch.Generator().manual_seed(0)
    original, replaced = (3 * torch.randn(5, 10_007, generator=generator).to(device, dtype) for _ in "12")
    targets = torch.randint(0, 10_007, (5,), generator=generator).to(device)
    largest = 0.0
    for cap in (None, 20.0):
        log_p, log_q = _log_softmax(original), _log_softmax(replaced)
        p, q = log_p.exp(), log_q.exp()
        slope = 1.0 if cap is None else 1 - (replaced.to(p.dtype) / cap) ** 2
        target = torch.nn.functional.one_hot(targets, p.shape[1])
        nlls = [-(target * table).sum(-1) for table in (log_p, log_q)]
        expected = ((p * (log_p - log_q)).sum(-1), *nlls, (q - p) * slope, (q - target) * slope)
        got = compare_logits(original.clone(), replaced.clone(), targets, cap, kl_wanted=True, nll_wanted=True)
        for a, b in zip(got, expected, strict=True):
            assert a is not None
            largest = max(largest, float((a.to(b.dtype) - b).abs().max() / b.abs().max()))
    return largest
