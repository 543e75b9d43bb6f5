"""Replacements of spans: gists, and the baselines that every figure is shown beside, on the same spans."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from gistnet.model.teacher import PrefillOutput, Teacher
from gistnet.objective.branches import Positions, Replacements, SegmentBatch, gist_replacements, no_replacements
from gistnet.objective.losses import token_nll

Baseline = Callable[[Teacher, SegmentBatch, PrefillOutput, Positions], Replacements]
"""Makes replacements of the segments of windows that the teacher has read, under a position policy."""
Measured = TypeVar("Measured")


def drop(teacher: Teacher, segments: SegmentBatch, prefill: PrefillOutput, positions: Positions) -> Replacements:
    """Remove the span; what follows keeps its positions. The denominator of `recovered`."""
    return no_replacements(teacher, segments)


def last_token(teacher: Teacher, segments: SegmentBatch, prefill: PrefillOutput, positions: Positions) -> Replacements:
    """Keep each span's last token, the strongest cheap replacement; at its own index, or packed under `compact`."""
    return gist_replacements(segments, teacher.embed(_spans(segments)[:, :, -1]), _positions_of_tokens(positions))


def surprisal_token(
    teacher: Teacher, segments: SegmentBatch, prefill: PrefillOutput, positions: Positions
) -> Replacements:
    """Keep each span's least expected token, at its own index, or packed under `compact`."""
    with torch.no_grad():
        surprisal = token_nll(teacher, segments.hidden_before_replaced(prefill), segments.replaced)
    surprisal = surprisal.view(_spans(segments).shape)
    chosen = surprisal.argmax(dim=2)  # [branches, k]
    vectors = teacher.embed(_spans(segments).gather(2, chosen[..., None])[..., 0])
    if positions == "compact":
        return gist_replacements(segments, vectors, positions)
    first = segments.starts[:, None] + torch.arange(segments.longest, device=teacher.device) * segments.span_tokens
    return Replacements(vectors, first + chosen, segments.starts + segments.replaced_tokens, segments.counts)


def mean(teacher: Teacher, segments: SegmentBatch, prefill: PrefillOutput, positions: Positions) -> Replacements:
    """Put the mean of each span's token embeddings where the gist would stand."""
    return gist_replacements(segments, teacher.embed(_spans(segments)).mean(dim=2), positions)


def recent_tokens(
    teacher: Teacher, segments: SegmentBatch, prefill: PrefillOutput, positions: Positions, parts: int = 1
) -> Replacements:
    """Keep the last k tokens of a segment of k spans, at their own indices, or packed under `compact`.

    Args:
        parts: how many tokens to keep for each span.
    """
    segments = _divided(segments, parts)
    first = segments.counts * (segments.span_tokens - 1)
    indices = segments.starts[:, None] + first[:, None] + torch.arange(segments.longest, device=teacher.device)
    indices = indices.clamp(max=segments.tokens.shape[1] - 1)  # only what pads a shorter segment lies beyond
    vectors = teacher.embed(segments.tokens[segments.windows[:, None], indices])
    if positions == "compact":
        return gist_replacements(segments, vectors, positions)
    return Replacements(vectors, indices, segments.starts + segments.replaced_tokens, segments.counts)


TOKENS: dict[str, Baseline] = {"last_token": last_token, "surprisal_token": surprisal_token}
"""Baselines that keep a token, which stands at its own index under the policies `center` and `end` alike."""
VECTORS: dict[str, Baseline] = {"mean": mean}
"""Baselines that put another vector where the gist would stand."""


def vectors_in_place(segments: SegmentBatch, vectors: Tensor, positions: Positions) -> Replacements:
    """Put vectors `[branches, n * longest, dim]` where gists stand; n > 1 are those of the level below."""
    return gist_replacements(_divided(segments, vectors.shape[1] // segments.longest), vectors, positions)


def every_replacement(
    gists: Tensor, documents: Tensor, policies: Sequence[Positions], seed: int, gists_below: Tensor | None = None
) -> dict[str, tuple[Baseline | Tensor, Positions]]:
    """Gists and all baselines under every policy, named `replacement/policy`; those that do not depend on it, once.

    Args:
        gists: of all segments, `[segments, k, dim]`.
        documents: of the segments, `[segments]`, at least two different ones.
        seed: decides whose gists are `shuffled`.
        gists_below: of the level below, which the gists stand for, `[segments, k * K, dim]`; None at level 0.
    """
    others = gists[other_documents(documents, seed)]
    chosen: dict[str, tuple[Baseline | Tensor, Positions]] = {"drop": (drop, policies[0])}
    for policy in policies:
        chosen |= {f"gist/{policy}": (gists, policy), f"shuffled/{policy}": (others, policy)}
        chosen |= {f"{name}/{policy}": (baseline, policy) for name, baseline in VECTORS.items()}
        if gists_below is not None:
            chosen[f"gists_below/{policy}"] = gists_below, policy
    tokens, finest = dict(TOKENS), gists if gists_below is None else gists_below
    if finest.shape[1] > 1:  # one recent token is the last one
        tokens["recent_tokens"] = partial(recent_tokens, parts=finest.shape[1] // gists.shape[1])
    for policy in map(_positions_of_tokens, policies):
        chosen |= {f"{name}/{policy}": (baseline, policy) for name, baseline in tokens.items()}
    return chosen


def of_policy(measured: Mapping[str, Measured], policy: Positions) -> dict[str, Measured]:
    """Results of `every_replacement` under one policy, by the plain name of each: the gist first."""
    names = {"gist": f"gist/{policy}", "drop": "drop"}
    names |= {name: f"{name}/{policy}" for name in (*VECTORS, "shuffled", "gists_below")}
    names |= {name: f"{name}/{_positions_of_tokens(policy)}" for name in (*TOKENS, "recent_tokens")}
    return {name: measured[full] for name, full in names.items() if full in measured}


def other_documents(documents: Tensor, seed: int) -> Tensor:
    """For each row a row of another document, `[rows]`: whose gist is the `shuffled` baseline.

    Args:
        documents: `[rows]`, the document of each row, at least two different ones.
        seed: decides the choice.
    """
    generator = torch.Generator().manual_seed(seed)
    choices = [torch.nonzero(documents != document)[:, 0] for document in documents]
    return torch.stack([rows[torch.randint(len(rows), (), generator=generator)] for rows in choices])


def _divided(segments: SegmentBatch, parts: int) -> SegmentBatch:
    """Segments whose spans are cut into so many spans each, as those of the level below."""
    return replace(segments, span_tokens=segments.span_tokens // parts, n_spans=segments.counts * parts)


def _spans(segments: SegmentBatch) -> Tensor:
    """The replaced tokens by span, `[branches, longest, K]`."""
    return segments.replaced.view(len(segments.starts), segments.longest, segments.span_tokens)


def _positions_of_tokens(policy: Positions) -> Positions:
    return "compact" if policy == "compact" else "end"
