"""The end of long documents, predicted after contexts of as many vectors each; and what else is asked of them.

The last tokens of each document are scored. Before them stand the contexts of `equal_budget`; a budget counts vectors,
as a share of the tokens before the scored ones. Records are of all scored tokens, and apart of names and of words that
only the far part of the document has had, since the rest of prose has little to gain:

    long_context_nll              mean NLL, beside that of the other contexts
    long_context_recovered        (truncated - gist) / (truncated - full), of means; left out unless the 95 % interval
                                  of its denominator is above 0: otherwise there is nothing known to win back
    long_context_truncation_cost  that denominator
    long_context_below_…          how much lower the gists' NLL is than another context's on the same tokens
    long_context_row_below_truncated  how much lower the NLL is behind a short row of gists than after recent text alone
    long_context_above_full       and how much higher than with the whole text
    long_context_covered          the share of the tokens that something in the gist context stands for
"""

import logging
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gistnet.context.assembly import Context, assemble, read_context
from gistnet.context.generate import CONTINUED_SHARE
from gistnet.context.plan import Plan
from gistnet.context.select import select
from gistnet.context.selectors import Hit, by_words
from gistnet.data.dataset import PreparedDataset
from gistnet.errors import ConfigError, DataError, TeacherError
from gistnet.evaluation.baselines import other_documents
from gistnet.evaluation.config import EvaluationConfig
from gistnet.evaluation.contexts.equal_budget import (
    budget_record,
    compare,
    gist_plan,
    highest_level,
    opened_plans,
    truncated_plan,
)
from gistnet.evaluation.contexts.multiple_choice import multiple_choice, read_questions
from gistnet.evaluation.contexts.retrieval import retrieval
from gistnet.evaluation.metrics import Floats
from gistnet.evaluation.records import MetricRecord
from gistnet.evaluation.token_kinds import token_kinds
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.objective.branches import Positions
from gistnet.objective.losses import token_nll
from gistnet.tree.document import CompressedDocument, InMemoryDocument, compress
from gistnet.tree.encoder import Encoder
from gistnet.tree.gist_encoder import GistEncoder

logger = logging.getLogger(__name__)

Flags = NDArray[np.bool_]

CONTINUED_TOKENS = 64
"""Last tokens before the scored ones by which passages are found."""
TRIED = 8
"""Passages by words among which `oracle` chooses."""
MIN_LETTERS = 4
"""Letters of a word that counts as repeated, at least."""
_WORD = re.compile(r"[^\W\d_]+")


class LongDocument(NamedTuple):
    """A document, or a passage of it, as token ids, int64 `[n]`."""

    name: str
    tokens: NDArray[np.int64]


Passages = dict[str, list[LongDocument]]
"""Passages of each domain; empty where no contexts are asked for that need them."""


def choose_passages(
    dataset: PreparedDataset, branchings: Sequence[int], domains: Sequence[str], config: EvaluationConfig
) -> Passages:
    """Held-out passages that contexts are made of; and a look at budgets and questions, before any long work.

    Args:
        branchings: of each level of the GistNet that is evaluated.

    Raises:
        ConfigError: a budget leaves nothing beside the sink, or the sink is longer than half a span of level 0.
        DataError: a domain has fewer than two held-out documents that are long enough, or a question is damaged.
    """
    contexts = config.contexts
    if contexts.questions is not None:
        read_questions(contexts.questions)
    if not contexts.long_context:
        return {}
    n_tokens = contexts.min_tokens - contexts.scored_tokens
    gist_plan(n_tokens, branchings, max(contexts.tokens_per_vector), config.sink_tokens)
    return {domain: held_out_passages(dataset, domain, config) for domain in domains}


def context_records(
    teacher: Teacher, gistnet: GistNet, passages: Passages, config: EvaluationConfig
) -> Iterator[MetricRecord]:
    """The records of long contexts, retrieval and multiple choice, as far as they are asked for.

    Args:
        gistnet: of the highest level; contexts use all of them.
        passages: of `choose_passages`.

    Raises:
        ConfigError: documents beyond the teacher's positions, or budgets that leave nothing.
    """
    encoder = GistEncoder(teacher, gistnet)
    if config.contexts.long_context:
        for domain, documents in passages.items():
            yield from long_context(teacher, encoder, documents, config, domain=domain)
        if config.contexts.retrieval_cases:
            filler = [document.tokens for documents in passages.values() for document in documents]
            yield from retrieval(teacher, encoder, filler, config)
    if config.contexts.questions is not None:
        yield from multiple_choice(teacher, encoder, config.contexts.questions, config)


# Passages -------------------------------------------------------------------------------------------------------------


def held_out_passages(dataset: PreparedDataset, domain: str, config: EvaluationConfig) -> list[LongDocument]:
    """Passages of held-out documents of one domain, as many as are asked for and there; see `long_passages`.

    Raises:
        DataError: fewer than two held-out documents are long enough.
    """
    least = config.contexts.min_tokens
    whole = dataset.whole_documents("held_out", domain, min_tokens=least)
    passages = long_passages(whole, min_tokens=least, max_tokens=config.contexts.max_tokens, seed=config.seed)
    found = list(islice(passages, config.contexts.documents))
    if len(found) < 2:
        raise DataError(
            f"The corpus has {len(found)} held-out documents of {domain} with {least} tokens or more, expected 2."
        )
    return found


def long_passages(
    documents: Iterable[tuple[str, Sequence[int] | NDArray[np.integer]]], *, min_tokens: int, max_tokens: int, seed: int
) -> Iterator[LongDocument]:
    """One passage of each document that has `min_tokens`, in order; shorter documents are left out.

    A document of up to `max_tokens` is taken whole. Of a longer one a passage is taken, of a length between the two and
    from an offset that its name and the seed decide: the first pages of a book would be title and contents.
    """
    for name, tokens in documents:
        ids = np.asarray(tokens, dtype=np.int64)
        if len(ids) < min_tokens:
            continue
        if len(ids) > max_tokens:
            draw = random.Random(f"{seed}:{name}")
            length = draw.randint(min_tokens, max_tokens)
            start = draw.randint(0, len(ids) - length)
            ids = ids[start : start + length]
        yield LongDocument(name, ids)


# Contexts compared ----------------------------------------------------------------------------------------------------


def long_context(
    teacher: Teacher, encoder: Encoder, documents: Sequence[LongDocument], config: EvaluationConfig, *, domain: str
) -> list[MetricRecord]:
    """Compare contexts of equal budgets on the documents given, which `long_passages` chooses.

    Raises:
        DataError: fewer than two documents, or one shorter than `min_tokens`.
        ConfigError: `max_tokens` is beyond the teacher's positions.
        TeacherError: the teacher has no tokenizer.
    """
    budgets, scored, sink = config.contexts.tokens_per_vector, config.contexts.scored_tokens, config.sink_tokens
    texts = _texts(teacher, documents, config)
    assert teacher.tokenizer is not None
    before = [document.tokens[:-scored] for document in documents]
    logger.info("Making the gists of %s tokens of %d documents.", f"{sum(map(len, before)):,}", len(documents))
    compressed_documents = [compress(tokens, encoder) for tokens in before]
    borrowed = other_documents(torch.arange(len(documents)), config.seed).tolist()
    read = []
    for number, (document, compressed) in enumerate(zip(documents, compressed_documents, strict=True)):
        logger.info(
            "Reading contexts of document %d of %d, %s tokens.",
            number + 1,
            len(documents),
            f"{len(document.tokens):,}",
        )
        measure = partial(scored_nll, teacher, document.tokens[-scored:])
        opened = partial(_opened, teacher.tokenizer, compressed, partial(measure, compressed), sink)
        other = compressed_documents[borrowed[number]]
        read.append(compare(teacher, compressed, other, config, budgets, measure, opened))

    words = [words_of_tokens(of) for of in texts]
    names = np.stack([np.array(token_kinds(of))[-scored:] == "names" for of in texts])
    records: list[MetricRecord] = []
    for policy, budget in product(config.positions, budgets):
        fields = {
            "domain": domain,
            "positions": policy,
            "tokens_per_vector": budget,
            "level": highest_level(compressed_documents, budget, sink),
            "horizon": scored,
            "offsets": (1, scored),
        }
        cuts = [truncated_plan(h.n_tokens, h.branchings, budget, sink) for h in compressed_documents]
        repeated = [
            repeated_from_far(of, sink=sink, recent=cut.pieces[0].start, scored=scored)
            for of, cut in zip(words, cuts, strict=True)
        ]
        kinds = {"": np.ones_like(names), "names": names, "repeated": np.stack(repeated)}
        nll = {name: np.stack([of[budget, policy][name] for of in read]) for name in read[0][budget, policy]}
        records += nll_records(nll, kinds, config, fields)

        plans = [gist_plan(h.n_tokens, h.branchings, budget, sink) for h in compressed_documents]
        covered, truncated = (
            np.array([plan.tokens_covered / h.n_tokens for plan, h in zip(chosen, compressed_documents, strict=True)])
            for chosen in (plans, cuts)
        )
        records.append(
            budget_record(
                "long_context_covered",
                covered,
                np.arange(len(documents)),
                {**fields, "n_spans": names.size},
                config,
                baselines={"truncated": truncated, "full": np.ones(len(documents))},
            )
        )
        if covered.min() < 1 and policy == config.positions[0]:
            logger.info(
                "With one vector for %d tokens, gists reach %.1f%% of the context.", budget, 100 * covered.mean()
            )
    return records


def _opened(
    tokenizer: TeacherTokenizer,
    compressed: InMemoryDocument,
    measure: Callable[[Plan, Positions], Floats],
    sink: int,
    budget: int,
) -> dict[str, Plan]:
    """The plans of `opened_plans` for the last tokens, and `row`, what `select` reads where nothing is asked.

    `oracle` knows what follows, by what `measure` says of a plan.

    It opens those of the first passages by words that lower the NLL when opened alone, the most helpful first, and
    none where none does: a bound of what a selector of these passages could do.
    """
    text = tokenizer.decode(compressed.token_ids[-CONTINUED_TOKENS:].tolist())
    choose = partial(select, compressed, budget=budget, tokenizer=tokenizer, sink_tokens=sink)

    def cost(*opened: Hit) -> float:
        plan = choose(text, selector=lambda *_: opened, recent_share=CONTINUED_SHARE, row_share=0).plan
        return float(measure(plan, "compact").mean())

    without = cost()
    costs = [(cost(hit), hit) for hit in by_words(compressed, text, tokenizer)[:TRIED]]
    helping = [hit for paid, hit in sorted(costs, key=lambda of: of[0]) if paid < without]
    opened = opened_plans(
        tokenizer,
        compressed,
        text,
        budget,
        sink_tokens=sink,
        recent_share=CONTINUED_SHARE,
        oracle=lambda *_: helping,
    )
    return {"row": choose(None).plan, **opened}


def scored_nll(
    teacher: Teacher, scored: NDArray[np.int64], compressed: CompressedDocument, plan: Plan, policy: Positions
) -> Floats:
    """NLL of the tokens that follow a plan of a document, `[scored]`, nats; one forward over the context and them."""
    context = assemble(compressed, plan, teacher, positions=policy, after=scored[:-1].tolist())
    return context_nll(teacher, context, scored)


def context_nll(teacher: Teacher, context: Context, scored: NDArray[np.int64]) -> Floats:
    """NLL of tokens, `[scored]`, nats, all of which but the last end the context."""
    hidden = read_context(teacher, context)[:, -len(scored) :]
    targets = torch.from_numpy(scored).to(teacher.device)[None]
    with torch.no_grad():
        return token_nll(teacher, hidden, targets)[0].double().cpu().numpy()


def nll_records(
    nll: Mapping[str, Floats], kinds: Mapping[str, Flags], config: EvaluationConfig, fields: Mapping[str, Any]
) -> Iterator[MetricRecord]:
    """The records of one budget and policy, for all tokens and for each kind that there is.

    Args:
        nll: `[documents, scored]`, nats, by context: those of `equal_budget` that need no question.
        kinds: `[documents, scored]`, which tokens are of a kind, by its name; "" is all.
        fields: of every record.
    """
    for kind, flags in kinds.items():
        if not flags.any():
            continue
        document_of_token = np.repeat(np.arange(len(flags)), flags.sum(axis=1))
        column = {name: values[flags] for name, values in nll.items()}
        gist, truncated, full = column["gist"], column["truncated"], column["full"]
        others = {name: values for name, values in column.items() if name != "gist"}
        measured = document_of_token, {**fields, "kind": kind}, config

        yield budget_record("long_context_nll", gist, *measured, baselines=others)
        difference = partial(budget_record, statistic=np.subtract)
        cost = difference("long_context_truncation_cost", truncated, *measured, given=(full,))
        yield cost
        if cost.interval is not None and cost.interval[0] > 0:
            recovered = partial(budget_record, statistic=_recovered, given=(truncated, full), baselines=others)
            yield recovered("long_context_recovered", gist, *measured)
        for other in ("truncated", "retrieved", "oracle", "shuffled", "mean"):
            yield difference(f"long_context_below_{other}", column[other], *measured, given=(gist,))
        yield difference("long_context_above_full", gist, *measured, given=(full,))
        yield difference("long_context_row_below_truncated", truncated, *measured, given=(column["row"],))


def _recovered(nll: Floats, truncated: Floats, full: Floats) -> Floats:
    return (truncated - nll) / (truncated - full)


def _texts(teacher: Teacher, documents: Sequence[LongDocument], config: EvaluationConfig) -> list[list[str]]:
    """The text of each token of each document, once it is known that they can be compared."""
    if teacher.tokenizer is None:
        raise TeacherError(f"{teacher.name} has no tokenizer, expected one: tokens are judged by their text.")
    if len(documents) < 2:
        raise DataError(f"Got {len(documents)} long documents, expected two at least: each lends another its gists.")
    least = config.contexts.min_tokens
    for document in documents:
        if len(document.tokens) < least:
            raise DataError(f"{document.name} has {len(document.tokens)} tokens, expected the min_tokens {least}.")
    longest = max(len(document.tokens) for document in documents) + len(teacher.tokenizer.window_prefix)
    if longest > teacher.max_positions:
        raise ConfigError(
            f"The longest document has {longest} tokens, expected at most the {teacher.max_positions} positions of "
            f"{teacher.name}: set max_tokens."
        )
    return [teacher.tokenizer.texts(document.tokens.tolist()) for document in documents]


# Words repeated from far back -----------------------------------------------------------------------------------------


def words_of_tokens(texts: Sequence[str]) -> list[str]:
    """The word each token belongs to, given the text of each; empty where it has fewer than `MIN_LETTERS` or is none.

    A word is a run of letters, lower-cased; a token belongs to the word that its first visible character is in. A token
    without text of its own is a part of the next one's first character. As in `gistnet.evaluation.token_kinds`.
    """
    text = "".join(texts)
    of_character = [""] * len(text)
    for word in _WORD.finditer(text):
        if len(word[0]) >= MIN_LETTERS:
            of_character[word.start() : word.end()] = [word[0].lower()] * len(word[0])
    words, start = [], 0
    for token in texts:
        visible = start + len(token) - len(token.lstrip())
        words.append(of_character[visible] if token.strip() else "")
        start += len(token)
    for index in reversed(range(len(texts) - 1)):
        if not texts[index]:
            words[index] = words[index + 1]
    return words


def repeated_from_far(words: Sequence[str], *, sink: int, recent: int, scored: int) -> Flags:
    """Mask of the last `scored` tokens whose word only the far part of the text has had: `[scored]`.

    Args:
        words: of all tokens, see `words_of_tokens`.
        sink: so many first tokens are near: a truncated context keeps them.
        recent: the first token of its recent part; those between are far.
        scored: the text that is judged is near too, up to the word in question: it counts where it comes first.
    """
    first = len(words) - scored
    known = set(words[:sink]) | set(words[recent:first])
    far = set(words[sink:recent]) - known - {""}
    found, before = np.zeros(scored, dtype=bool), ""
    for index, word in enumerate(words[first:]):
        if before in far and word != before:
            far.remove(before)  # from here on, it has been said nearby
        found[index] = word in far
        before = word
    return found
