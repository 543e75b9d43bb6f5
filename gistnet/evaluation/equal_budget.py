"""The contexts that are compared: as many vectors each, and the same document before the same text.

    full        all tokens, whatever they cost: what there is to win
    truncated   the first tokens (the sink) and as many of the most recent as fit, numbered without gaps
    gist        gists of what is old, recent tokens raw: `gistnet.tree.plan.default_plan`
    shuffled    the same plan with gists of another document
    mean        the same plan with the mean of the embeddings that each gist stands for

Truncated contexts are numbered without gaps under every policy: that is how one is made in practice, and the teacher
predicts better so (SmolLM2-135M: by 0.003 to 0.022 nats per token, after 128 to 2048 tokens of three stories).
"""

import numpy as np
import torch

from gistnet.errors import ConfigError
from gistnet.model.teacher import Teacher
from gistnet.tree.history import tokens_per_gist
from gistnet.tree.in_memory import InMemoryHistory
from gistnet.tree.plan import Plan, Raw, default_plan

COARSE_FROM = 16
"""Gists above level 0 are for budgets that have less than one vector for so many tokens."""


def gist_plan(n_tokens: int, span_tokens: int, levels: int, tokens_per_vector: int, sink_tokens: int) -> Plan:
    """The plan of a gist context with one vector for every so many tokens; level 0 alone where that will do.

    Raises:
        ConfigError: the budget leaves nothing beside the sink.
    """
    usable = levels if tokens_per_vector > COARSE_FROM else min(levels, 1)
    return default_plan(n_tokens, span_tokens, usable, n_tokens // tokens_per_vector, sink_tokens=sink_tokens)


def truncated_plan(n_tokens: int, span_tokens: int, tokens_per_vector: int, sink_tokens: int) -> Plan:
    """The first tokens and the most recent ones, with one vector for every so many tokens of the document.

    Raises:
        ConfigError: the budget leaves nothing beside the sink.
    """
    budget = n_tokens // tokens_per_vector
    if budget <= sink_tokens:
        raise ConfigError(f"Got a budget of {budget} vectors, expected more than the sink's {sink_tokens}.")
    return Plan([Raw(n_tokens - (budget - sink_tokens), n_tokens)], span_tokens, sink_tokens)


def levels_used(plan: Plan) -> int:
    """The highest level of gists in a plan; 0 where there is none."""
    return max(0, max(piece.level for piece in plan.order))


def with_gists_of(history: InMemoryHistory, other: InMemoryHistory) -> InMemoryHistory:
    """The same tokens with another document's gists, from its beginning on, and again where it is shorter."""
    levels = zip(history.level_gists, other.level_gists, strict=True)
    borrowed = tuple(np.resize(others, own.shape) for own, others in levels)
    return InMemoryHistory(history.token_ids, borrowed, history.span_tokens)


def with_mean_embeddings(history: InMemoryHistory, teacher: Teacher) -> InMemoryHistory:
    """The same tokens with the mean of the embeddings of its tokens in place of each gist."""
    embedded = teacher.embed(torch.from_numpy(history.token_ids))
    means = []
    for level, gists in enumerate(history.level_gists):
        size = tokens_per_gist(history.span_tokens, level)
        blocks = embedded[: len(gists) * size].view(len(gists), size, embedded.shape[1])
        means.append(blocks.double().mean(dim=1).half().cpu().numpy())
    return InMemoryHistory(history.token_ids, tuple(means), history.span_tokens)
