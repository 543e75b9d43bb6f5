"""Contexts: the vectors that the teacher reads in place of a long document, some of them tokens and some gists.

Positions follow the policies that GistNets are trained with (`gistnet.positions`). With `center` and `end` raw tokens
keep their positions in the document, and gists stand in the middle of their span or on its last token, so gaps stay
where gists are and where text is left out. With `compact` the vectors are numbered without gaps. In all of them BOS or
a template's head before the document shifts it, and a prompt follows its last piece.

A context is read by transformers' own forward. Where its positions have gaps, sliding-window layers need care:
transformers measures distance in indices, training measured it in positions (D9), and a gist 40 indices back may be
1000 positions back. So such layers are given masks made from the positions; their cache then keeps all keys, because
the index does not tell which of them are near enough. Everything else is left to transformers.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from gistnet.context.plan import RAW_LEVEL, Piece, Plan, Raw
from gistnet.errors import ConfigError, DataError, TeacherError
from gistnet.model.teacher import Teacher
from gistnet.positions import Positions, policy_of
from gistnet.tree.document import CompressedDocument
from gistnet.tree.encoder import tokens_per_gist

NOT_OF_THE_DOCUMENT = -1
"""Stands in `Context.spans` for vectors that are no part of the document: BOS, a template, a prompt."""


@dataclass(frozen=True)
class Context:
    """Context of n vectors, and the tokens that each of them stands for.

    Attributes:
        inputs_embeds: `[1, n, dim]`, in the teacher's number format.
        position_ids: `[1, n]`, ascending.
        attention_mask: `[1, n]`, ones: without it, transformers takes each gap of the positions for the border of
            another document (D8).
        spans: `[n, 2]`, the first token of the document that a vector stands for, and the one after its last.
        levels: `[n]`, the level of the gist; `RAW_LEVEL` for a token.
        positions: the position policy.
        plan: the parts of the document that are in it.
    """

    inputs_embeds: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    spans: Tensor
    levels: Tensor
    positions: Positions
    plan: Plan

    def __len__(self) -> int:
        """Number of vectors."""
        return self.inputs_embeds.shape[1]

    @property
    def model_inputs(self) -> dict[str, Tensor]:
        """Arguments of a model of transformers and of its `generate`.

        Sliding layers count indices there; `read_context` and `continue_context` let them count positions, as training
        does.
        """
        return {
            "inputs_embeds": self.inputs_embeds,
            "position_ids": self.position_ids,
            "attention_mask": self.attention_mask,
        }


@torch.no_grad()
def assemble(
    document: CompressedDocument,
    plan: Plan,
    teacher: Teacher,
    *,
    positions: Positions | None = None,
    before: Sequence[int] | None = None,
    after: Sequence[int] = (),
) -> Context:
    """The context that a plan makes of a document.

    Args:
        document: compressed.
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
    if plan.branchings != document.branchings[: len(plan.branchings)]:
        raise DataError(
            f"Got a plan for the branchings {list(plan.branchings)}, expected {list(document.branchings)} as the "
            "document has, or the first of them."
        )
    if not document.teacher.same_model(teacher.fingerprint):
        raise TeacherError(
            f"Got a document compressed for {document.teacher.describe()}, expected one for "
            f"{teacher.fingerprint.describe()}."
        )
    if before is None:
        before = () if teacher.tokenizer is None else teacher.tokenizer.window_prefix
    fits = len(before) + plan.end + len(after) <= teacher.max_positions
    policy = positions or (policy_of(document.positions) if fits else "compact")
    if not len(before) + plan.vectors + len(after):
        raise DataError("Got a plan of nothing, expected a context of at least one vector.")
    spans, levels = _document_map(plan)
    ends = [_of_tokens(before), *(_piece_vectors(document, piece, teacher) for piece in plan.order), _of_tokens(after)]
    vectors = torch.cat([teacher.embed(part) if part.dtype == torch.long else part for part in ends])
    position_ids = _positions(spans, levels, policy, len(before), len(after), plan)
    _require_trained_positions(position_ids, policy, teacher)
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
    """Tokens `[n, 2]` that each vector of the plan stands for, and its level `[n]`."""
    spans, levels = [torch.empty(0, 2, dtype=torch.long)], [torch.empty(0, dtype=torch.long)]
    for piece in plan.order:
        size = tokens_per_gist(plan.branchings, piece.level)
        starts = torch.arange(piece.start, piece.stop) * size
        spans.append(torch.stack([starts, starts + size], dim=1))
        levels.append(torch.full_like(starts, piece.level))
    return torch.cat(spans), torch.cat(levels)


def _piece_vectors(document: CompressedDocument, piece: Piece, teacher: Teacher) -> Tensor:
    """The token ids of a raw piece, `[n]`, or the gists of another, `[n, dim]`."""
    if isinstance(piece, Raw):
        return torch.tensor(document.tokens(piece.start, piece.stop), dtype=torch.long)
    gists = torch.tensor(document.gists(piece.level, piece.start, piece.stop))
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


def _require_trained_positions(position_ids: Tensor, policy: Positions, teacher: Teacher) -> None:
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


@torch.no_grad()
def read_context(teacher: Teacher, context: Context) -> Tensor:
    """Final hidden states of a whole context, `[1, n, dim]`; `teacher.logits` makes predictions of them."""
    inputs: dict[str, Any] = dict(context.model_inputs)
    if _slides(teacher) and context.positions != "compact":
        inputs["attention_mask"] = _masks_by_position(teacher, context.position_ids[0], 0)
    return teacher.model.base_model(**inputs, use_cache=False).last_hidden_state


@torch.no_grad()
def continue_context(
    teacher: Teacher,
    context: Context,
    settings: GenerationConfig,
    streamer: BaseStreamer | None = None,
    stopping: StoppingCriteria | None = None,
) -> tuple[list[int], Cache]:
    """Generate after a context: the new token ids, and the KV cache of everything read.

    Args:
        teacher: the language model that the context was assembled for.
        context: ends with a raw token, whose position the new ones follow.
        settings: how transformers generates; `max_new_tokens` must be set.
        streamer: given each token as it comes.
        stopping: ends what is written, besides end tokens.

    Raises:
        ConfigError: the new tokens would have positions that the teacher was not trained for.
    """
    last = int(context.position_ids[0, -1])
    if last + settings.max_new_tokens > teacher.max_positions:  # the last new token is written, not read
        raise ConfigError(
            f"Got {settings.max_new_tokens} new tokens after position {last}, expected them to fit within the "
            f"{teacher.max_positions} positions of {teacher.name}: shorten either, or use the policy 'compact'."
        )
    settings = copy.copy(settings)
    settings.return_dict_in_generate = True
    cache = DynamicCache() if _slides(teacher) and context.positions != "compact" else None
    sliding = _sliding_by_position(teacher, context, settings.max_new_tokens if cache is not None else 0)
    with sliding, warnings.catch_warnings():
        # Penalties see the new tokens only, as `generate` documents: gists have no ids.
        warnings.filterwarnings("ignore", message="Passing `.*` with `inputs_embeds`")
        warnings.filterwarnings("ignore", message="`past_key_values` is deprecated")  # newer releases: `cache`
        output = teacher.model.generate(
            **context.model_inputs,
            **({} if cache is None else {"past_key_values": cache}),
            generation_config=settings,
            streamer=streamer,
            stopping_criteria=None if stopping is None else StoppingCriteriaList([stopping]),
            tokenizer=None if teacher.tokenizer is None else teacher.tokenizer.inner,  # for `stop_strings`
        )
    return output.sequences[0].tolist(), output.past_key_values


def continued_mask(teacher: Teacher, positions: Tensor, first: int) -> Tensor | dict[str, Tensor]:
    """Attention mask of the vectors from `first` on, where a cache holds those before; see `_masks_by_position`.

    Ones say that all is one document, and leave transformers its fastest attention.
    """
    if _slides(teacher):
        return _masks_by_position(teacher, positions, first)
    return torch.ones(1, len(positions), dtype=torch.bool, device=positions.device)


def _slides(teacher: Teacher) -> bool:
    """True where some layers have a sliding window."""
    layer_types = getattr(teacher.config, "layer_types", None)
    window = getattr(teacher.config, "sliding_window", None)
    return window is not None and (layer_types is None or "sliding_attention" in layer_types)


def _masks_by_position(teacher: Teacher, positions: Tensor, first: int) -> Tensor | dict[str, Tensor]:
    """Attention mask `[1, 1, n - first, n]` by distance in positions; one by kind of layer, where there are several.

    Args:
        positions: `[n]`, of all keys.
        first: the index of the first query among them.
    """
    distance = positions[first:, None] - positions[None, :]
    causal = (distance >= 0)[None, None]
    near = causal & (distance < teacher.config.sliding_window)
    if getattr(teacher.config, "layer_types", None) is None:
        return near
    return {"full_attention": causal, "sliding_attention": near}


@contextmanager
def _sliding_by_position(teacher: Teacher, context: Context, new_tokens: int) -> Iterator[None]:
    """Within the block every forward of the model gets masks by position; without new tokens, nothing changes."""
    if not new_tokens:
        yield
        return
    last = context.position_ids[0, -1]
    following = last + 1 + torch.arange(new_tokens, device=last.device)
    positions = torch.cat([context.position_ids[0], following])

    def give_masks(model: Any, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache = options["cache"] if "cache" in options else options["past_key_values"]  # transformers 5.24 renamed it
        read = cache.get_seq_length()
        total = read + options["position_ids"].shape[-1]
        return arguments, {**options, "attention_mask": _masks_by_position(teacher, positions[:total], read)}

    # A hook, because `generate` makes its own masks and hands on no others.
    hook = teacher.model.register_forward_pre_hook(give_masks, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
