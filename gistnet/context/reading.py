"""The teacher reads an assembled context, and goes on writing.

Both go through transformers' own forward. Where the positions of a context have gaps, sliding-window layers need care:
transformers measures distance in indices, training measured it in positions (D9), and a gist 40 indices back may be
1000 positions back. So such layers are given masks made from the positions; their cache then keeps all keys, because
the index does not tell which of them are near enough. Everything else is left to transformers.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from gistnet.context.assembly import Context
from gistnet.errors import ConfigError
from gistnet.model.teacher import Teacher


@torch.no_grad()
def read_context(teacher: Teacher, context: Context) -> Tensor:
    """Final hidden states of a whole context, `[1, n, dim]`; `teacher.logits` makes predictions of them."""
    inputs: dict[str, Any] = dict(context.model_inputs)
    if _slides(teacher) and context.positions != "compact":
        inputs["attention_mask"] = _masks_by_position(teacher, context.position_ids[0], 0)
    return teacher.model.base_model(**inputs, use_cache=False).last_hidden_state


@torch.no_grad()
def continue_context(
    teacher: Teacher, context: Context, settings: GenerationConfig, streamer: BaseStreamer | None = None
) -> tuple[list[int], Cache]:
    """What the teacher writes after a context: token ids, and the keys and values it then holds.

    Args:
        teacher: the language model that the context was assembled for.
        context: ends with a raw token, whose position the new ones follow.
        settings: how transformers generates; `max_new_tokens` must be set.
        streamer: told of each token as it comes.

    Raises:
        ConfigError: the new tokens would have positions that the teacher was not trained for.
    """
    last = int(context.position_ids[0, -1])
    if last + settings.max_new_tokens > teacher.max_positions:  # the last new token is written, not read
        raise ConfigError(
            f"Got {settings.max_new_tokens} new tokens after position {last}, expected room for them within the "
            f"{teacher.max_positions} positions of {teacher.name}: shorten either, or use the policy 'compact'."
        )
    settings = copy.copy(settings)
    settings.return_dict_in_generate = True
    cache = DynamicCache() if _slides(teacher) and context.positions != "compact" else None
    with _sliding_by_position(teacher, context, settings.max_new_tokens if cache is not None else 0):
        output = teacher.model.generate(
            **context.model_inputs,
            generation_config=settings,
            past_key_values=cache,
            streamer=streamer,
            tokenizer=None if teacher.tokenizer is None else teacher.tokenizer.inner,  # for `stop_strings`
        )
    return output.sequences[0].tolist(), output.past_key_values


def continued_mask(teacher: Teacher, positions: Tensor, first: int) -> Tensor | dict[str, Tensor]:
    """What the model is told of who sees whom, where a cache holds what is before `first`; see `_masks_by_position`.

    Ones say that all is one document, and leave transformers its fastest attention.
    """
    if _slides(teacher):
        return _masks_by_position(teacher, positions, first)
    return torch.ones(1, len(positions), dtype=torch.bool, device=positions.device)


def _slides(teacher: Teacher) -> bool:
    """Whether some layers see only what is near."""
    layer_types = getattr(teacher.config, "layer_types", None)
    window = getattr(teacher.config, "sliding_window", None)
    return window is not None and (layer_types is None or "sliding_attention" in layer_types)


def _masks_by_position(teacher: Teacher, positions: Tensor, first: int) -> Tensor | dict[str, Tensor]:
    """Which keys each query may see, `[1, 1, n - first, n]`; for each kind of layer, where there are several.

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
        read = options["past_key_values"].get_seq_length()
        total = read + options["position_ids"].shape[-1]
        return arguments, {**options, "attention_mask": _masks_by_position(teacher, positions[:total], read)}

    # A hook, because `generate` makes its own masks and hands on no others.
    hook = teacher.model.register_forward_pre_hook(give_masks, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
