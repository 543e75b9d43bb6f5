"""What a training step minimises, per branch: distillation, and the two optional terms beside it."""

from typing import NamedTuple

import torch
from torch import Tensor

from gistnet.errors import ConfigError
from gistnet.model.gistnet import GistNet
from gistnet.model.layers import Dropout
from gistnet.model.span_context import SpanContext
from gistnet.model.teacher import PrefillOutput, Teacher
from gistnet.objective.branches import Replacements, SegmentBatch, gist_replacements, replaced_hidden
from gistnet.objective.config import ObjectiveConfig
from gistnet.objective.losses import contrastive_loss, token_losses, token_nll

DIFFERENTIATED = {"kl": ("kl",), "delta_nll": ("nll_replaced",), "mixed": ("kl", "nll_replaced")}
"""What carries gradient for each kind of loss, as for `token_losses`."""


class BranchLosses(NamedTuple):
    """Per branch, each `[branches]`; only `total` carries gradient."""

    total: Tensor
    """What is minimised, in nats per token plus the weighted hinge."""
    kl: Tensor
    """KL@H, nats per token, all tokens alike."""
    delta_nll: Tensor
    """ΔNLL@H, nats per token, all tokens alike."""
    contrastive: Tensor
    """The unweighted hinge, cosine distance; zero where its weight is."""
    reconstruction: Tensor
    """The unweighted cross-entropy of the repeated span, nats per token; zero where its weight is."""
    gist_norm: Tensor
    """Mean length of the branch's gists."""


def encode(gistnet: GistNet, teacher: Teacher, tokens: Tensor, context: SpanContext | None = None) -> Tensor:
    """Gists of consecutive spans: token ids `[branches, k * tokens_per_gist]` → `[branches, k, dim]`, float32.

    Matrix products run in the teacher's number format; the weights of GistNet stay in their own.

    Args:
        context: where the first token of each branch stands, for a GistNet that reads its context.

    Raises:
        DataError: the context is missing.
    """
    return encode_with_attention(gistnet, teacher, tokens, context)[0]


def encode_with_attention(
    gistnet: GistNet, teacher: Teacher, tokens: Tensor, context: SpanContext | None = None
) -> tuple[Tensor, Tensor]:
    """As `encode`, and the probabilities `[2, branches * k, heads, K]` with which the two slots read their span."""
    span = gistnet.config.span_tokens
    vectors = teacher.embed(tokens) if gistnet.below is None else encode(gistnet.below, teacher, tokens, context)
    of_spans = context and context.spans(tokens.shape[1] // span, span) if gistnet.reads_context else None
    with encoding_precision(teacher):
        gists, attention = gistnet.forward_with_attention(vectors.view(-1, span, teacher.hidden_size), context=of_spans)
    return gists.view(len(tokens), -1, teacher.hidden_size), attention


def encoding_precision(teacher: Teacher) -> torch.autocast:
    """The number format in which a GistNet's matrix products run: the teacher's, where that is bfloat16."""
    return torch.autocast(teacher.device.type, dtype=torch.bfloat16, enabled=teacher.dtype == torch.bfloat16)


def encode_segments(
    gistnet: GistNet,
    teacher: Teacher,
    segments: SegmentBatch,
    read: PrefillOutput | None = None,
    *,
    with_next: bool = False,
    train_below: bool = False,
    dropout_rate: float = 0.0,
    dropout_keys: Tensor | None = None,
) -> Tensor:
    """Gists of segments of any lengths, `[branches, longest, dim]`, zero behind the end of a shorter one.

    A span that several branches replace is encoded once.

    Args:
        read: the pass over the windows that the segments are cut from, for a GistNet that reads their context, with
            the states that it asks for.
        with_next: also the gist of the span that follows each segment, `[branches, longest + 1, dim]`.
        train_below: whether gradient and dropout reach the levels below, too.
        dropout_rate, dropout_keys: as for `branch_losses`.
    """
    real = _first(segments.counts + with_next, segments.longest + with_next)
    order = torch.arange(real.shape[1], device=real.device)
    firsts = segments.starts[:, None] + order * segments.span_tokens
    windows = segments.windows[:, None].expand_as(firsts)
    dropout = None if dropout_keys is None else (dropout_rate, dropout_keys)
    gists = _encode_spans(
        gistnet, teacher, segments.tokens, read, windows[real], firsts[real], train_below=train_below, dropout=dropout
    )
    padded = gists.new_zeros(*real.shape, gists.shape[1])
    return padded.masked_scatter(real[..., None], gists)


def _encode_spans(
    gistnet: GistNet,
    teacher: Teacher,
    tokens: Tensor,
    read: PrefillOutput | None,
    windows: Tensor,
    firsts: Tensor,
    *,
    train_below: bool,
    dropout: tuple[float, Tensor] | None,
) -> Tensor:
    """Gists of the spans that begin at tokens `firsts` of `windows`, `[spans]` each: `[spans, dim]`.

    Spans of a level above 0 may overlap: each span below them is encoded once.

    Args:
        tokens: `[windows, tokens]`.
        dropout: the rate, and a key for each window.
    """
    span, length = gistnet.config.span_tokens, tokens.shape[1]
    # A span is known by the number of its first token, counted over all windows.
    numbers, which = (windows * length + firsts).unique(return_inverse=True)
    windows, firsts = numbers // length, numbers % length
    step = gistnet.tokens_per_gist // span
    parts = firsts[:, None] + torch.arange(span, device=firsts.device) * step
    if gistnet.below is None:
        vectors = teacher.embed(tokens[windows[:, None], parts])
    else:
        with torch.set_grad_enabled(train_below and torch.is_grad_enabled()):
            vectors = _encode_spans(
                gistnet.below,
                teacher,
                tokens,
                read,
                windows[:, None].expand_as(parts).flatten(),
                parts.flatten(),
                train_below=train_below,
                dropout=dropout if train_below else None,
            ).view(*parts.shape, -1)
    masks = None if dropout is None else Dropout(dropout[0], dropout[1][windows] + firsts)
    context = SpanContext(read, windows, firsts) if gistnet.reads_context and read is not None else None
    with encoding_precision(teacher):
        return gistnet(vectors, masks, context)[which]


def branch_losses(
    teacher: Teacher,
    gistnet: GistNet,
    read: PrefillOutput,
    segments: SegmentBatch,
    config: ObjectiveConfig,
    *,
    train_below: bool = False,
    dropout_rate: float = 0.0,
    dropout_keys: Tensor | None = None,
) -> BranchLosses:
    """The losses of branches of windows that have been read.

    Args:
        train_below: whether gradient and dropout reach the levels below GistNet's own, too.
        dropout_rate: the share dropped inside GistNet.
        dropout_keys: `[windows]`, int64; a span's masks derive from its window's key and its place in the window.
            Needed where the rate is above zero.

    Raises:
        ConfigError: the contrastive term needs the span after a segment, and the horizon is shorter than a span; or
            there is a dropout rate without keys.
    """
    with_neighbour = config.contrastive_weight > 0
    if with_neighbour and segments.horizon < segments.span_tokens:
        raise ConfigError(
            f"contrastive_weight is {config.contrastive_weight} with a horizon of {segments.horizon} tokens; expected "
            f"at least the {segments.span_tokens} of a span, so that every segment has a neighbour."
        )
    if dropout_rate > 0 and dropout_keys is None:
        raise ConfigError(f"The dropout rate is {dropout_rate} without keys; expected one key per window.")
    encoded = encode_segments(
        gistnet,
        teacher,
        segments,
        read,
        with_next=with_neighbour,
        train_below=train_below,
        dropout_rate=dropout_rate,
        dropout_keys=dropout_keys,
    )
    is_gist = _first(segments.counts, segments.longest)
    gists = encoded[:, : segments.longest]
    replacements = gist_replacements(segments, gists, config.positions)

    hidden = replaced_hidden(teacher, read, segments, replacements)
    losses = token_losses(
        teacher,
        segments.original_hidden(read),
        hidden,
        segments.targets,
        differentiate=DIFFERENTIATED[config.loss],
        chunk_tokens=config.chunk_tokens,
    )
    kl, delta_nll = losses.kl.mean(dim=1), losses.delta_nll.mean(dim=1)
    kl_share = {"kl": 1.0, "delta_nll": 0.0, "mixed": config.mixed_kl_share}[config.loss]
    total = (kl_share * losses.kl + (1 - kl_share) * losses.delta_nll).mean(dim=1)

    contrastive = reconstruction = torch.zeros_like(kl)
    if with_neighbour:
        hinges = contrastive_loss(encoded[:, :-1][is_gist], encoded[:, 1:][is_gist], config.contrastive_margin)
        contrastive = _branch_means(hinges, is_gist)
        total = total + config.contrastive_weight * contrastive
    if config.reconstruction_weight > 0:
        reconstruction = _reconstruction(teacher, read, segments, replacements, config.chunk_tokens)
        total = total + config.reconstruction_weight * reconstruction
    norms = _branch_means(gists.detach()[is_gist].norm(dim=-1), is_gist)
    return BranchLosses(total, kl.detach(), delta_nll.detach(), contrastive.detach(), reconstruction.detach(), norms)


def _reconstruction(
    teacher: Teacher, read: PrefillOutput, segments: SegmentBatch, replacements: Replacements, chunk_tokens: int | None
) -> Tensor:
    """Cross-entropy of the replaced tokens when they follow their own gists, `[branches]`, nats per token.

    The context is the one that gists are read in, so that what they must hold is what the prefix does not give away.
    """
    replaced = segments.replaced
    hidden = replaced_hidden(teacher, read, segments, replacements, tokens=replaced)
    is_replaced = _first(segments.replaced_tokens, replaced.shape[1])
    nll = token_nll(teacher, hidden[is_replaced][None], replaced[is_replaced][None], chunk_tokens=chunk_tokens)
    return _branch_means(nll[0], is_replaced)


def _first(counts: Tensor, places: int) -> Tensor:
    """Which places are among the first `counts` of their branch: `[branches]` → bool `[branches, places]`."""
    return torch.arange(places, device=counts.device) < counts[:, None]


def _branch_means(values: Tensor, real: Tensor) -> Tensor:
    """Means per branch, `[branches]`, of one value for each place that is real, `[branches, places]`."""
    return values.new_zeros(real.shape).masked_scatter(real, values).sum(dim=1) / real.sum(dim=1)
