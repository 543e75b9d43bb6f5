"""What a context costs the teacher: memory for keys and values, time to the first token, and speed after it.

Measured on the way that `generate` goes, so that a full and a compressed context compare as their users will see them.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from gistnet.context.assembly import Context
from gistnet.context.reading import continue_context
from gistnet.errors import ConfigError
from gistnet.model.teacher import Teacher


@dataclass(frozen=True)
class Cost:
    """What reading a context and writing after it cost.

    Attributes:
        vectors: how many the context has.
        kv_bytes: keys and values of the context's vectors, in all layers.
        first_token_seconds: from the context to the first new token.
        tokens_per_second: new tokens after the first one.
    """

    vectors: int
    kv_bytes: int
    first_token_seconds: float
    tokens_per_second: float


def measure_cost(teacher: Teacher, context: Context, *, new_tokens: int = 32, warm_up: bool = True) -> Cost:
    """Let the teacher write after a context, and measure it.

    Args:
        teacher: the language model that the context was assembled for.
        context: of any position policy.
        new_tokens: how many tokens to time, at least 2.
        warm_up: write once before, untimed: a first pass also pays for what is set up once.

    Raises:
        ConfigError: fewer than 2 new tokens, or positions beyond those the teacher was trained for.
    """
    if new_tokens < 2:
        raise ConfigError(f"Got {new_tokens} new tokens to time, expected 2 or more.")
    if warm_up:
        continue_context(teacher, context, _settings(2))
    stopwatch = _Stopwatch()
    _, cache = continue_context(teacher, context, _settings(new_tokens), stopwatch)
    first, last = stopwatch.times[1], stopwatch.times[-1]
    return Cost(
        vectors=len(context),
        kv_bytes=_kv_bytes(cache, len(context)),
        first_token_seconds=first - stopwatch.times[0],
        tokens_per_second=(new_tokens - 1) / (last - first),
    )


def _settings(new_tokens: int) -> GenerationConfig:
    """Greedy, and not to be ended by an end token."""
    return GenerationConfig(max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0)


class _Stopwatch(BaseStreamer):
    """Takes the time when it is given the prompt, and at each token. (On a GPU, that waits for the token.)"""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to finish."""


def _kv_bytes(cache: Cache, vectors: int) -> int:
    """Bytes of the keys and values of the first vectors; a sliding layer may keep fewer."""
    stored: list[torch.Tensor] = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    return sum(part[..., :vectors, :].numel() * part.element_size() for part in stored)
