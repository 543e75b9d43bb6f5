"""What gists are worth in long contexts: the end of a document, predicted from contexts of as many vectors each.

The last tokens of each document are scored. Before them stand the contexts of `equal_budget`; the budget counts
vectors, as a share of the tokens before the scored ones. Figures are given for all scored tokens, and apart for names
and for words that only the far part of the document has had, since the rest of prose has little to gain
(`gistnet.evaluation.contexts.long_context_records`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gistnet.context.assembly import assemble
from gistnet.context.in_memory import InMemoryHistory, compress
from gistnet.context.plan import Plan
from gistnet.context.reading import read_context
from gistnet.errors import ConfigError, DataError, TeacherError
from gistnet.evaluation.baselines import other_documents
from gistnet.evaluation.config import LongContextConfig
from gistnet.evaluation.contexts.equal_budget import compare, gist_plan, highest_level, truncated_plan
from gistnet.evaluation.contexts.far_words import repeated_from_far, words_of_tokens
from gistnet.evaluation.contexts.long_context_records import BudgetScores, Flags, budget_records
from gistnet.evaluation.contexts.long_documents import LongDocument
from gistnet.evaluation.metrics import Floats
from gistnet.evaluation.records import MetricRecord
from gistnet.evaluation.token_kinds import token_kinds
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions
from gistnet.objective.losses import token_nll
from gistnet.tree.encoder import Encoder
from gistnet.tree.history import History

Say = Callable[[str], None]


def long_context(
    teacher: Teacher,
    encoder: Encoder,
    documents: Sequence[LongDocument],
    config: LongContextConfig,
    *,
    domain: str,
    say: Say = lambda message: None,
) -> list[MetricRecord]:
    """Compare contexts of equal budgets on the documents given, which `long_passages` chooses.

    Raises:
        DataError: fewer than two documents, or one shorter than `min_tokens`.
        ConfigError: `max_tokens` is beyond the teacher's positions.
        TeacherError: the teacher has no tokenizer.
    """
    _require_readable(teacher, documents, config)
    before = [document.tokens[: -config.scored_tokens] for document in documents]
    say(f"Making the gists of {sum(map(len, before)):,} tokens of {len(documents)} documents.")
    histories = [compress(tokens, encoder) for tokens in before]
    borrowed = other_documents(torch.arange(len(documents)), config.seed).tolist()
    read: list[dict[tuple[int, Positions], dict[str, Floats]]] = []
    for number, (document, history) in enumerate(zip(documents, histories, strict=True)):
        say(f"Reading contexts of document {number + 1} of {len(documents)}, {len(document.tokens):,} tokens.")
        measure = partial(scored_nll, teacher, document.tokens[-config.scored_tokens :])
        read.append(compare(teacher, history, histories[borrowed[number]], config, measure))
    words = [_noted(teacher, document, config.scored_tokens) for document in documents]
    records: list[MetricRecord] = []
    chance = {"resamples": config.resamples, "seed": config.seed}
    for policy in config.positions:
        for budget in config.tokens_per_vector:
            scores = _gathered([of[budget, policy] for of in read], histories, words, budget, config)
            records += budget_records(scores, budget, domain=domain, positions=policy, **chance)
            if scores.covered.min() < 1 and policy == config.positions[0]:
                say(f"With one vector for {budget} tokens, gists reach {scores.covered.mean():.1%} of the context.")
    return records


def scored_nll(teacher: Teacher, scored: NDArray[np.int64], history: History, plan: Plan, policy: Positions) -> Floats:
    """NLL of the tokens that follow a context, `[scored]`, nats; one forward over the context and them."""
    context = assemble(history, plan, teacher, positions=policy, after=scored[:-1].tolist())
    hidden = read_context(teacher, context)[:, -len(scored) :]
    targets = torch.from_numpy(scored).to(teacher.device)[None]
    with torch.no_grad():
        return token_nll(teacher, hidden, targets)[0].double().cpu().numpy()


def _require_readable(teacher: Teacher, documents: Sequence[LongDocument], config: LongContextConfig) -> None:
    if teacher.tokenizer is None:
        raise TeacherError(f"{teacher.name} has no tokenizer, expected one: tokens are judged by their text.")
    if len(documents) < 2:
        raise DataError(f"Got {len(documents)} long documents, expected two at least: each lends another its gists.")
    for document in documents:
        if len(document.tokens) < config.min_tokens:
            raise DataError(
                f"{document.name} has {len(document.tokens)} tokens, expected the min_tokens {config.min_tokens}."
            )
    longest = max(len(document.tokens) for document in documents) + len(teacher.tokenizer.window_prefix)
    if longest > teacher.max_positions:
        raise ConfigError(
            f"The longest document has {longest} tokens, expected at most the {teacher.max_positions} positions of "
            f"{teacher.name}: set max_tokens."
        )


class _Noted(NamedTuple):
    """The words of a document's tokens, and which of its scored tokens are names."""

    words: list[str]
    names: Flags


def _noted(teacher: Teacher, document: LongDocument, scored: int) -> _Noted:
    assert teacher.tokenizer is not None
    texts = teacher.tokenizer.texts(document.tokens.tolist())
    return _Noted(words_of_tokens(texts), np.array(token_kinds(texts))[-scored:] == "names")


def _gathered(
    read: Sequence[Mapping[str, Floats]],
    histories: Sequence[InMemoryHistory],
    noted: Sequence[_Noted],
    budget: int,
    config: LongContextConfig,
) -> BudgetScores:
    """What was read of all documents under one budget and policy."""
    scored, sink = config.scored_tokens, config.sink_tokens
    sizes = [(history.n_tokens, history.span_tokens, history.levels) for history in histories]
    plans = [gist_plan(*size, budget, sink) for size in sizes]
    cuts = [truncated_plan(n, span, budget, sink) for n, span, _ in sizes]
    repeated = [
        repeated_from_far(of.words, sink=sink, recent=cut.pieces[0].start, scored=scored)
        for of, cut in zip(noted, cuts, strict=True)
    ]
    names = np.stack([of.names for of in noted])

    def shares(plans: Sequence[Plan]) -> Floats:
        return np.array([plan.tokens_covered / size[0] for plan, size in zip(plans, sizes, strict=True)])

    return BudgetScores(
        nll={name: np.stack([of[name] for of in read]) for name in read[0]},
        kinds={"": np.ones_like(names), "names": names, "repeated": np.stack(repeated)},
        level=highest_level(histories, budget, config),
        covered=shares(plans),
        truncated=shares(cuts),
    )
