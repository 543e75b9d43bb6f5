"""The contexts that are compared: as many vectors each, and the same document before the same text.

    full        all tokens, whatever they cost: what there is to win
    truncated   the first tokens (the sink) and as many of the most recent as fit, numbered without gaps
    gist        gists of what is old, recent tokens raw: `gistnet.context.plan.default_plan`
    shuffled    the same plan with gists of another document
    mean        the same plan with the mean of the embeddings that each gist stands for

Truncated contexts are numbered without gaps under every policy: that is how one is made in practice, and the teacher
predicts better so (SmolLM2-135M: by 0.003 to 0.022 nats per token, after 128 to 2048 tokens of three stories).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from gistnet.context.plan import Plan, Raw, default_plan
from gistnet.errors import ConfigError
from gistnet.evaluation.config import BudgetConfig
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions
from gistnet.tree.document import InMemoryDocument
from gistnet.tree.encoder import tokens_per_gist

COARSE_FROM = 16
"""Gists above level 0 are for budgets that have less than one vector for so many tokens."""

Measured = TypeVar("Measured")


def compare(
    teacher: Teacher,
    history: InMemoryDocument,
    other: InMemoryDocument,
    config: BudgetConfig,
    measure: Callable[[InMemoryDocument, Plan, Positions], Measured],
) -> dict[tuple[int, Positions], dict[str, Measured]]:
    """Measure every context, by budget and policy, then by name; the full one and each truncated one only once.

    Args:
        history: what the contexts are of.
        other: whose gists stand in as `shuffled`.
        measure: of a document, a plan for it, and a policy.

    Raises:
        ConfigError: a budget leaves nothing beside the sink.
    """
    replacements = {
        "gist": history,
        "shuffled": with_gists_of(history, other),
        "mean": with_mean_embeddings(history, teacher),
    }
    n, span = history.n_tokens, history.span_tokens
    full = measure(history, Plan([Raw(0, n)], span), "compact")
    found = {}
    for budget in config.tokens_per_vector:
        plan = gist_plan(n, span, history.levels, budget, config.sink_tokens)
        truncated = measure(history, truncated_plan(n, span, budget, config.sink_tokens), "compact")
        for policy in config.positions:
            read = {name: measure(of, plan, policy) for name, of in replacements.items()}
            found[budget, policy] = {"full": full, "truncated": truncated, **read}
    return found


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


def highest_level(histories: Sequence[InMemoryDocument], tokens_per_vector: int, config: BudgetConfig) -> int:
    """The highest level of gists in the plans of one budget; 0 where there are none."""
    plans = [
        gist_plan(history.n_tokens, history.span_tokens, history.levels, tokens_per_vector, config.sink_tokens)
        for history in histories
    ]
    return max(0, max(piece.level for plan in plans for piece in plan.order))


def with_gists_of(history: InMemoryDocument, other: InMemoryDocument) -> InMemoryDocument:
    """The same tokens with another document's gists, from its beginning on, and again where it is shorter."""
    levels = zip(history.level_gists, other.level_gists, strict=True)
    borrowed = tuple(np.resize(others, own.shape) for own, others in levels)
    return replace(history, level_gists=borrowed)


def with_mean_embeddings(history: InMemoryDocument, teacher: Teacher) -> InMemoryDocument:
    """The same tokens with the mean of the embeddings of its tokens in place of each gist."""
    embedded = teacher.embed(torch.from_numpy(history.token_ids))
    means = []
    for level, gists in enumerate(history.level_gists):
        size = tokens_per_gist(history.span_tokens, level)
        blocks = embedded[: len(gists) * size].view(len(gists), size, embedded.shape[1])
        means.append(blocks.double().mean(dim=1).half().cpu().numpy())
    return replace(history, level_gists=tuple(means))
