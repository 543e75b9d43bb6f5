"""Contexts: the vectors that the teacher reads in place of a long document, some of them tokens and some gists.

Positions follow the policies that GistNets are trained with (`gistnet.objective.branches.Positions`). With `center` and
`end` raw tokens keep their places in the document, and gists stand in the middle of their span or on its last token, so
gaps stay where gists are and where text is left out. With `compact` the vectors are numbered without gaps. In all of
them what stands before the document (BOS, a template's head) shifts it, and what follows goes on behind its last piece.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gistnet.context.plan import RAW_LEVEL, Piece, Plan, Raw
from gistnet.errors import ConfigError, DataError, TeacherError
from gistnet.model.teacher import Teacher
from gistnet.positions import Positions, policy_of
from gistnet.tree.history import History, tokens_per_gist

NOT_OF_THE_DOCUMENT = -1
"""Stands in `Context.spans` for vectors that are no part of the document: BOS, a template, a prompt."""


@dataclass(frozen=True)
class Context:
    """A context of n vectors, and what each of them stands for.

    Attributes:
        inputs_embeds: `[1, n, dim]`, in the teacher's number format.
        position_ids: `[1, n]`, ascending.
        attention_mask: `[1, n]`, ones: without it, transformers takes each gap of the positions for the border of
            another document (D8).
        spans: `[n, 2]`, the first token of the document that a vector stands for, and the one after its last.
        levels: `[n]`, the level of the gist; `RAW_LEVEL` for a token.
        positions: the position policy.
        plan: what was taken of the document.
    """

    inputs_embeds: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    spans: Tensor
    levels: Tensor
    positions: Positions
    plan: Plan

    def __len__(self) -> int:
        """How many vectors there are."""
        return self.inputs_embeds.shape[1]

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """What a model of transformers, and its `generate`, must be given.

        Sliding layers count indices there; `gistnet.context.reading` lets them count positions, as training does.
        """
        return {
            "inputs_embeds": self.inputs_embeds,
            "position_ids": self.position_ids,
            "attention_mask": self.attention_mask,
        }


@torch.no_grad()
def assemble(
    history: History,
    plan: Plan,
    teacher: Teacher,
    *,
    positions: Positions | None = None,
    before: Sequence[int] | None = None,
    after: Sequence[int] = (),
) -> Context:
    """The context that a plan makes of a document.

    Args:
        history: the document.
        plan: what stands in it as tokens, and what as gists.
        teacher: the language model that will read it, and for which the gists were made.
        positions: where gists stand; None for the policy that they were trained for, or `compact` where the document
            reaches beyond the positions that the teacher was trained for.
        before: tokens in front of the document; None for what the tokenizer begins every text with (BOS or nothing).
        after: tokens that follow: a prompt, or text to be scored.

    Raises:
        DataError: the plan does not fit the document, or there would be no vector.
        ConfigError: a position beyond those the teacher was trained for; or the GistNet was trained for a mixture of
            policies, and none is given.
        TeacherError: the document is of another teacher.
    """
    if plan.span_tokens != history.span_tokens:
        raise DataError(
            f"Got a plan for spans of {plan.span_tokens} tokens, expected {history.span_tokens} as the history has."
        )
    if not history.teacher.same_model(teacher.fingerprint):
        raise TeacherError(
            f"Got a document compressed for {history.teacher.describe()}, expected one for "
            f"{teacher.fingerprint.describe()}."
        )
    if before is None:
        before = () if teacher.tokenizer is None else teacher.tokenizer.window_prefix
    fits = len(before) + plan.end + len(after) <= teacher.max_positions
    policy = positions or (policy_of(history.positions) if fits else "compact")
    if not len(before) + plan.vectors + len(after):
        raise DataError("Got a plan of nothing, expected a context of at least one vector.")
    spans, levels = _document_map(plan)
    ends = [_of_tokens(before), *(_piece_vectors(history, piece, teacher) for piece in plan.order), _of_tokens(after)]
    vectors = torch.cat([teacher.embed(part) if part.dtype == torch.long else part for part in ends])
    position_ids = _positions(spans, levels, policy, len(before), len(after), plan)
    _require_room(position_ids, policy, teacher)
    outside = [torch.full((len(part), 2), NOT_OF_THE_DOCUMENT) for part in (before, after)]
    raw = [torch.full((len(part),), RAW_LEVEL) for part in (before, after)]
    return Context(
        inputs_embeds=vectors[None],
        position_ids=position_ids[None].to(teacher.device),
        attention_mask=torch.ones(1, len(vectors), dtype=torch.long, device=teacher.device),
        spans=torch.cat([outside[0], spans, outside[1]]),
        levels=torch.cat([raw[0], levels, raw[1]]),
        positions=policy,
        plan=plan,
    )


def _of_tokens(tokens: Sequence[int]) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.long)


def _document_map(plan: Plan) -> tuple[Tensor, Tensor]:
    """What each vector of the plan stands for: tokens `[n, 2]` and level `[n]`."""
    spans, levels = [torch.empty(0, 2, dtype=torch.long)], [torch.empty(0, dtype=torch.long)]
    for piece in plan.order:
        size = tokens_per_gist(plan.span_tokens, piece.level)
        starts = torch.arange(piece.start, piece.stop) * size
        spans.append(torch.stack([starts, starts + size], dim=1))
        levels.append(torch.full_like(starts, piece.level))
    return torch.cat(spans), torch.cat(levels)


def _piece_vectors(history: History, piece: Piece, teacher: Teacher) -> Tensor:
    """The token ids of a raw piece, `[n]`, or the gists of another, `[n, dim]`."""
    if isinstance(piece, Raw):
        return torch.tensor(history.tokens(piece.start, piece.stop), dtype=torch.long)
    gists = torch.tensor(history.gists(piece.level, piece.start, piece.stop))
    return gists.to(teacher.device, teacher.dtype)


def _positions(spans: Tensor, levels: Tensor, policy: Positions, before: int, after: int, plan: Plan) -> Tensor:
    """Position ids of everything in the context, `[before + n + after]`."""
    if policy == "compact":
        return torch.arange(before + len(spans) + after)
    sizes = spans[:, 1] - spans[:, 0]
    within = sizes // 2 if policy == "center" else sizes - 1
    within = torch.where(levels == RAW_LEVEL, 0, within)
    following = before + plan.end + torch.arange(after)
    return torch.cat([torch.arange(before), before + spans[:, 0] + within, following])


def _require_room(position_ids: Tensor, policy: Positions, teacher: Teacher) -> None:
    if (last := int(position_ids[-1])) < teacher.max_positions:
        return
    if policy == "compact":
        raise ConfigError(
            f"Got a context of {len(position_ids)} vectors, expected at most the {teacher.max_positions} positions "
            f"of {teacher.name}."
        )
    raise ConfigError(
        f"Got positions up to {last} with the policy '{policy}', expected less than the {teacher.max_positions} "
        f"of {teacher.name}: a longer document needs the policy 'compact'."
    )
