"""What the teacher would make of several continuations of one context, which it reads only once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from gistnet.context.assembly import Context
from gistnet.context.reading import continued_mask
from gistnet.errors import DataError
from gistnet.evaluation.metrics import Floats
from gistnet.model.teacher import Teacher
from gistnet.objective.losses import token_nll


@torch.no_grad()
def alternatives_hidden(teacher: Teacher, context: Context, alternatives: Sequence[Sequence[int]]) -> list[Tensor]:
    """The hidden states that predict the tokens of each alternative, `[tokens, dim]` each.

    Args:
        context: ends with a raw token, whose position the alternatives follow.
        alternatives: token ids; none sees another.

    Raises:
        DataError: an alternative has no tokens.
        TeacherError: a token is outside the vocabulary.
    """
    if not all(len(tokens) for tokens in alternatives):
        raise DataError("Got an alternative of no tokens, expected one at least.")
    # Without the model's configuration the cache keeps every key of sliding layers; the mask says which are seen.
    cache = DynamicCache()
    positions = context.position_ids[0]
    last = _forward(teacher, context.inputs_embeds, positions, 0, cache)[-1:]
    found = []
    for tokens in alternatives:
        fed = teacher.embed(torch.as_tensor(tokens)[None, :-1])
        count = fed.shape[1]
        if count:
            following = positions[-1] + 1 + torch.arange(count, device=positions.device)
            hidden = _forward(teacher, fed, torch.cat([positions, following]), len(positions), cache)
            cache.crop(-count)
        found.append(torch.cat([last, hidden]) if count else last)
    return found


def alternatives_nll(teacher: Teacher, context: Context, alternatives: Sequence[Sequence[int]]) -> list[Tensor]:
    """Negative log-likelihood of the tokens of each alternative, `[tokens]` each, nats; see `alternatives_hidden`."""
    found = alternatives_hidden(teacher, context, alternatives)
    return [
        token_nll(teacher, hidden[None], torch.as_tensor(tokens, device=teacher.device)[None])[0]
        for hidden, tokens in zip(found, alternatives, strict=True)
    ]


def mean_nll(teacher: Teacher, context: Context, alternatives: Sequence[Sequence[int]]) -> Floats:
    """The mean over each alternative's own tokens, `[alternatives]`, nats per token: what choices are made by."""
    return np.array([float(nll.double().mean()) for nll in alternatives_nll(teacher, context, alternatives)])


def share_right(nll: Floats, right: int) -> float:
    """1 where the right alternative is the likeliest, 0 where another is; its share where several are."""
    best = nll == nll.min()
    return float(best[right] / best.sum())


def _forward(teacher: Teacher, vectors: Tensor, positions: Tensor, first: int, cache: Any) -> Tensor:
    """Read `vectors` `[1, n, dim]`, from index `first` of the positions on; the cache holds those before. `[n, dim]`"""
    output = teacher.model.base_model(
        inputs_embeds=vectors,
        position_ids=positions[None, first:],
        attention_mask=continued_mask(teacher, positions, first),
        past_key_values=cache,
        use_cache=True,
    )
    return output.last_hidden_state[0]
