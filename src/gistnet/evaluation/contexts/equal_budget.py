"""Contexts of as many vectors each of one document, and the measures of what follows them.

    full        all tokens, whatever they cost: what there is to win
    truncated   the first tokens (the sink) and as many of the most recent as fit, numbered without gaps
    gist        gists of what is old, recent tokens raw: `gistnet.context.plan.default_plan`
    shuffled    the same plan with gists of another document
    mean        the same plan with the mean of the embeddings that each gist stands for
    row         in prose, recent tokens behind a short row of gists: what `gistnet.context.select` reads for no question

and those that open passages, with `gistnet.context.select`, and have recent text besides:

    retrieved   passages that share words with the question; in prose, with the text before what is predicted
    with_gists  the same, and a gist on either side of each
    by_meaning  passages that states of the teacher's middle layer find, too
    oracle      what says which answer is right; in prose, what makes the text that follows likelier

Those contexts, and those without gists, are numbered without gaps under every policy: so `generate` reads them, and the
teacher predicts better so (SmolLM2-135M: by 0.003 to 0.022 nats per token, after 128 to 2048 tokens of three stories).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from transformers import DynamicCache

from gistnet.context.assembly import Context, continued_mask
from gistnet.context.plan import Plan, Raw, default_plan
from gistnet.context.select import RECENT_SHARE, select
from gistnet.context.selectors import Hit, Selector
from gistnet.errors import ConfigError, DataError
from gistnet.evaluation.config import EvaluationConfig
from gistnet.evaluation.metrics import Floats
from gistnet.evaluation.records import MetricRecord
from gistnet.evaluation.resampling import Measure, Population, itself
from gistnet.model.teacher import Teacher
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.objective.branches import Positions
from gistnet.objective.losses import token_nll
from gistnet.tree.document import InMemoryDocument
from gistnet.tree.encoder import tokens_per_gist
from gistnet.tree.passages import Passage

COARSER_BELOW = 2
"""A level is for budgets with fewer vectors than so many for each gist of the level below."""

Evidence = Sequence[tuple[int, int]]
"""Ranges of tokens, start and stop, that tell which answer is right."""
Measured = TypeVar("Measured")


def compare(
    teacher: Teacher,
    compressed: InMemoryDocument,
    other: InMemoryDocument,
    config: EvaluationConfig,
    tokens_per_vector: Sequence[int],
    measure: Callable[[InMemoryDocument, Plan, Positions], Measured],
    opened: Callable[[int], Mapping[str, Plan]],
) -> dict[tuple[int, Positions], dict[str, Measured]]:
    """Measure every context, by budget and policy, then by name; those without gists only once.

    Args:
        compressed: what the contexts are of.
        other: whose gists are the `shuffled` ones.
        tokens_per_vector: the budgets.
        measure: of a document, a plan for it, and a policy.
        opened: the plans that open passages, by name, for so many vectors.

    Raises:
        ConfigError: a budget leaves nothing beside the sink.
    """
    replacements = {
        "gist": compressed,
        "shuffled": with_gists_of(compressed, other),
        "mean": with_mean_embeddings(compressed, teacher),
    }
    n, branchings = compressed.n_tokens, compressed.branchings
    full = measure(compressed, Plan([Raw(0, n)], branchings), "compact")
    found = {}
    for budget in tokens_per_vector:
        plan = gist_plan(n, branchings, budget, config.sink_tokens)
        raw = {"truncated": truncated_plan(n, branchings, budget, config.sink_tokens), **opened(n // budget)}
        once = {name: measure(compressed, of, "compact") for name, of in raw.items()}
        for policy in config.positions:
            read = {name: measure(of, plan, policy) for name, of in replacements.items()}
            found[budget, policy] = {"full": full, **once, **read}
    return found


# Plans and replacements -----------------------------------------------------------------------------------------------


def gist_plan(n_tokens: int, branchings: Sequence[int], tokens_per_vector: int, sink_tokens: int) -> Plan:
    """The plan of a gist context with one vector for every so many tokens; of the finest levels that will do.

    Raises:
        ConfigError: the budget leaves nothing beside the sink.
    """
    sizes = [tokens_per_gist(branchings, level) for level in range(len(branchings))]
    too_fine = sum(COARSER_BELOW * tokens_per_vector > size for size in sizes)
    return default_plan(n_tokens, branchings[: too_fine + 1], n_tokens // tokens_per_vector, sink_tokens=sink_tokens)


def truncated_plan(n_tokens: int, branchings: Sequence[int], tokens_per_vector: int, sink_tokens: int) -> Plan:
    """The first tokens and the most recent ones, with one vector for every so many tokens of the document.

    Raises:
        ConfigError: the budget leaves nothing beside the sink.
    """
    budget = n_tokens // tokens_per_vector
    if budget <= sink_tokens:
        raise ConfigError(f"Got a budget of {budget} vectors, expected more than the sink's {sink_tokens}.")
    return Plan([Raw(n_tokens - (budget - sink_tokens), n_tokens)], branchings, sink_tokens)


def opened_plans(
    tokenizer: TeacherTokenizer,
    document: InMemoryDocument,
    question: str,
    budget: int,
    *,
    sink_tokens: int,
    recent_share: float = RECENT_SHARE,
    by_meaning: Selector | None = None,
    oracle: Selector | None = None,
) -> dict[str, Plan]:
    """The plans that open what a question, or a text to continue, needs, within a budget of vectors.

    Args:
        tokenizer: of the document's teacher.
        by_meaning: the selector of the plan of that name; without one there is none.
        oracle: likewise.
        recent_share: part of the budget that recent text has at least.
    """
    choose = partial(
        select,
        document,
        question,
        budget,
        tokenizer=tokenizer,
        sink_tokens=sink_tokens,
        recent_share=recent_share,
        row_share=0,
    )
    plans = {"retrieved": choose().plan, "with_gists": choose(gists_beside=1).plan}
    if by_meaning is not None:
        plans["by_meaning"] = choose(selector=by_meaning).plan
    if oracle is not None:
        plans["oracle"] = choose(selector=oracle).plan
    return plans


def opens(evidence: Evidence) -> Selector:
    """Selector of known ranges for any question: the one of `oracle`."""
    return lambda *_: [Hit(Passage(start, stop, start, stop), 1.0) for start, stop in evidence]


def highest_level(documents: Sequence[InMemoryDocument], tokens_per_vector: int, sink_tokens: int) -> int:
    """The highest level of gists in the plans of one budget; 0 where there are none."""
    plans = [gist_plan(h.n_tokens, h.branchings, tokens_per_vector, sink_tokens) for h in documents]
    return max(0, max(piece.level for plan in plans for piece in plan.order))


def with_gists_of(compressed: InMemoryDocument, other: InMemoryDocument) -> InMemoryDocument:
    """Document with another one's gists, from its beginning on, and again where it is shorter."""
    levels = zip(compressed.level_gists, other.level_gists, strict=True)
    borrowed = tuple(np.resize(others, own.shape) for own, others in levels)
    return replace(compressed, level_gists=borrowed)


def with_mean_embeddings(compressed: InMemoryDocument, teacher: Teacher) -> InMemoryDocument:
    """Document with the mean of the embeddings of its tokens in place of each gist."""
    embedded = teacher.embed(torch.from_numpy(compressed.token_ids))
    means = []
    for level, gists in enumerate(compressed.level_gists):
        size = tokens_per_gist(compressed.branchings, level)
        blocks = embedded[: len(gists) * size].view(len(gists), size, embedded.shape[1])
        means.append(blocks.double().mean(dim=1).half().cpu().numpy())
    return replace(compressed, level_gists=tuple(means))


# Several continuations of one context ---------------------------------------------------------------------------------


@torch.no_grad()
def alternatives_nll(teacher: Teacher, context: Context, alternatives: Sequence[Sequence[int]]) -> list[Tensor]:
    """Negative log-likelihood of the tokens of each alternative, `[tokens]` each, nats; the context is read once.

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
        hidden = last
        if count:
            following = positions[-1] + 1 + torch.arange(count, device=positions.device)
            read = _forward(teacher, fed, torch.cat([positions, following]), len(positions), cache)
            cache.crop(-count)
            hidden = torch.cat([last, read])
        found.append(token_nll(teacher, hidden[None], torch.as_tensor(tokens, device=teacher.device)[None])[0])
    return found


def _forward(teacher: Teacher, vectors: Tensor, positions: Tensor, first: int, cache: DynamicCache) -> Tensor:
    """Read `vectors` `[1, n, dim]`, from index `first` of the positions on; the cache holds those before. `[n, dim]`"""
    output = teacher.model.base_model(
        inputs_embeds=vectors,
        position_ids=positions[None, first:],
        attention_mask=continued_mask(teacher, positions, first),
        past_key_values=cache,
        use_cache=True,
    )
    return cast(Tensor, output.last_hidden_state[0])


def mean_nll(teacher: Teacher, context: Context, alternatives: Sequence[Sequence[int]]) -> Floats:
    """The mean over each alternative's own tokens, `[alternatives]`, nats per token: what choices are made by."""
    return np.array([float(nll.double().mean()) for nll in alternatives_nll(teacher, context, alternatives)])


def share_right(nll: Floats, right: int) -> float:
    """1 where the right alternative is the likeliest, 0 where another is; its share where several are."""
    best = nll == nll.min()
    return float(best[right] / best.sum())


# Records --------------------------------------------------------------------------------------------------------------


def budget_record(
    name: str,
    column: Floats,
    documents: ArrayLike,
    fields: Mapping[str, Any],
    config: EvaluationConfig,
    *,
    statistic: Callable[..., Any] = itself,
    given: tuple[Floats, ...] = (),
    baselines: Mapping[str, Floats] | None = None,
) -> MetricRecord:
    """Record of a statistic of the means of a column and of the columns `given`, its interval over documents.

    Args:
        column: a value for each token, case or question, `[n]`.
        documents: the document of each, `[n]`.
        fields: further ones of the record; `n_spans` where it is not the column's length.
        statistic: of the mean of the column, or of a baseline, and the means of `given`.
        baselines: columns of the same by other contexts.
    """
    labels = dict(fields)
    population = Population.of_domain(labels.pop("domain"), documents, resamples=config.resamples, seed=config.seed)
    n_spans = labels.pop("n_spans", len(column))
    record = population.record(name, Measure({"gist": column, **(baselines or {})}, given, statistic), **labels)
    return record.model_copy(update={"n_spans": n_spans})
