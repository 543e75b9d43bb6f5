"""What an evaluation puts in the place of spans: gists and all baselines, under each position policy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from gistnet.errors import DataError
from gistnet.evaluation import baselines
from gistnet.evaluation.held_out import HeldOut, HeldOutWindow, MakeReplacements, Measured
from gistnet.model.teacher import PrefillOutput, Teacher
from gistnet.objective.branches import Positions, Replacements, gist_replacements


def all_replacements(
    teacher: Teacher,
    held_out: HeldOut,
    gists: Tensor,
    policies: Sequence[Positions],
    seed: int,
    gists_below: Tensor | None = None,
) -> Iterator[tuple[str, MakeReplacements]]:
    """Every replacement under every policy, named `replacement/policy`; those that do not depend on it, once.

    Args:
        gists: of the held-out segments, `[segments, k, dim]`.
        seed: decides whose gists stand in as `shuffled`.
        gists_below: of the level below, which the gists stand for, `[segments, k * K, dim]`; None at level 0.

    Raises:
        DataError: all segments are of one document, so that there are no gists of another.
    """
    documents = torch.from_numpy(held_out.documents)
    if len(documents.unique()) < 2:
        raise DataError("The held-out data is a single document; expected two at least, for the shuffled baseline.")
    others = gists[baselines.other_documents(documents, seed)]

    yield "drop", partial(_dropped, teacher)
    for policy in policies:
        yield f"gist/{policy}", partial(_placed, gists, policy)
        yield f"shuffled/{policy}", partial(_placed, others, policy)
        yield f"mean/{policy}", partial(_mean, teacher, policy)
        if gists_below is not None:
            yield f"gists_below/{policy}", partial(_placed_below, gists_below, policy)
    # A token stands at its own place under `center` and `end` alike.
    for place in dict.fromkeys(_place_of_tokens(policy) for policy in policies):
        yield f"last_token/{place}", partial(_last_token, teacher, place)
        yield f"surprisal_token/{place}", partial(_surprisal_token, teacher, place)


def of_policy(measured: Mapping[str, Measured], policy: Positions) -> dict[str, Measured]:
    """What the records of a policy compare, by the plain name of each replacement."""
    names = {"drop": "drop"} | {name: f"{name}/{policy}" for name in ("gist", "mean", "shuffled", "gists_below")}
    names |= {name: f"{name}/{_place_of_tokens(policy)}" for name in ("last_token", "surprisal_token")}
    return {name: measured[full] for name, full in names.items() if full in measured}


def _dropped(teacher: Teacher, window: HeldOutWindow, read: PrefillOutput) -> Replacements:
    return baselines.drop(teacher, window.segments)


def _placed(vectors: Tensor, policy: Positions, window: HeldOutWindow, read: PrefillOutput) -> Replacements:
    return gist_replacements(window.segments, vectors[window.rows], policy)


def _placed_below(vectors: Tensor, policy: Positions, window: HeldOutWindow, read: PrefillOutput) -> Replacements:
    """Each gist's own parts in its place, at theirs."""
    segments = window.segments
    parts = vectors.shape[1] // segments.longest
    finer = replace(segments, span_tokens=segments.span_tokens // parts, gists=segments.counts * parts)
    return gist_replacements(finer, vectors[window.rows], policy)


def _mean(teacher: Teacher, policy: Positions, window: HeldOutWindow, read: PrefillOutput) -> Replacements:
    return baselines.mean(teacher, window.segments, policy)


def _last_token(teacher: Teacher, policy: Positions, window: HeldOutWindow, read: PrefillOutput) -> Replacements:
    return baselines.last_token(teacher, window.segments, policy)


def _surprisal_token(teacher: Teacher, policy: Positions, window: HeldOutWindow, read: PrefillOutput) -> Replacements:
    return baselines.surprisal_token(teacher, read, window.segments, policy)


def _place_of_tokens(policy: Positions) -> Positions:
    return "compact" if policy == "compact" else "end"
