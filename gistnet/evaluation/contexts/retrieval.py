"""Questions whose answer stands far back: a fact stated once, a row of a list, a passage that comes again.

The filler is real text, the rest is made from a seed. What decides stands in the first half of the context, where every
truncated context has a gap; the wrong answers stand there too, so that it is not enough to know which words occurred.
The teacher is right where the mean NLL of the right answer is the lowest of four. With the whole text it nearly always
is; a truncated context has lost what decides, and chance is one in four.
"""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from gistnet.context.assembly import assemble
from gistnet.context.plan import Plan
from gistnet.data.synthetic import templates
from gistnet.errors import DataError, TeacherError
from gistnet.evaluation.baselines import other_documents
from gistnet.evaluation.config import EvaluationConfig
from gistnet.evaluation.contexts.equal_budget import budget_record, compare, highest_level, mean_nll, share_right
from gistnet.evaluation.metrics import Floats
from gistnet.evaluation.records import MetricRecord
from gistnet.model.teacher import Teacher
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.objective.branches import Positions
from gistnet.tree.document import InMemoryDocument, compress
from gistnet.tree.encoder import Encoder

logger = logging.getLogger(__name__)

DOMAIN = "synthetic"
CaseKind = Literal["fact", "list", "passage"]
CASE_KINDS: tuple[CaseKind, ...] = get_args(CaseKind)
ANSWERS = 4

LIST_ROWS = 10
LIST_HEADS = (
    "Goods counted at the {place} in {town}:",
    "The {trade} of {town} wrote down what lay in the {place}:",
    "Delivered to the {place} in {town} for {person} {surname}:",
)
PASSAGE_TOKENS, PASSAGE_ANSWER_TOKENS = 48, 16


class _Fact(NamedTuple):
    """A sentence that ends in a value, and where its values come from: a list of words, or None for numbers."""

    text: str
    values: str | None


# The name stands right before the value: so a small model can look it up where it has the full text.
FACTS = (
    _Fact("The {object} of the {trade} was last seen in {town}, and the home town of {person} {surname} is", "town"),
    _Fact("Whoever wants to enter the {place} needs the password of {person} {surname}, which is", None),
    _Fact("The {trade} lives in the {place}, and the best friend of {person} {surname} is", "person"),
    _Fact("Near the {place} in {town}, the favourite animal of {person} {surname} is the", "animal"),
)
MENTION = "There was also talk of {}, of {} and of {}, but nobody could say why."


@dataclass(frozen=True)
class RetrievalCase:
    """One case as token ids: after `context` and `question` comes the first of `answers`, and none of the others."""

    kind: CaseKind
    context: list[int]
    question: list[int]
    answers: tuple[list[int], ...]


def retrieval(
    teacher: Teacher, encoder: Encoder, filler: Sequence[NDArray[np.int64]], config: EvaluationConfig
) -> list[MetricRecord]:
    """Ask for what stands far back in passages of the filler, token ids of documents.

    Returns:
        `retrieval_accuracy` and `retrieval_nll` (of the right answer) for each policy and budget, of all cases and of
        each kind; with `full`, `truncated`, `shuffled`, `mean`, and `chance`.

    Raises:
        TeacherError: the teacher has no tokenizer.
        DataError: the filler is too short.
        ConfigError: a context is longer than the teacher's positions, or a budget leaves nothing beside the sink.
    """
    if teacher.tokenizer is None:
        raise TeacherError(f"{teacher.name} has no tokenizer, expected one to make cases for retrieval.")
    contexts, budgets = config.contexts, config.contexts.question_tokens_per_vector
    size = {"count": contexts.retrieval_cases, "context_tokens": contexts.retrieval_tokens, "seed": config.seed}
    cases = retrieval_cases(teacher.tokenizer, filler, **size)
    documents = [compress(case.context, encoder) for case in cases]
    borrowed = other_documents(torch.arange(len(cases)), config.seed).tolist()
    asked = []
    for number, (case, compressed) in enumerate(zip(cases, documents, strict=True)):
        logger.info("Asking for a %s, case %d of %d.", case.kind, number + 1, len(cases))

        def answered(of: InMemoryDocument, plan: Plan, policy: Positions, case: RetrievalCase = case) -> Floats:
            context = assemble(of, plan, teacher, positions=policy, after=case.question)
            return mean_nll(teacher, context, case.answers)

        asked.append(compare(teacher, compressed, documents[borrowed[number]], config, budgets, answered))

    kinds = np.array([case.kind for case in cases])
    groups = {"": np.arange(len(cases))} | {kind: np.flatnonzero(kinds == kind) for kind in CASE_KINDS}
    records = []
    for (policy, budget), (kind, rows) in product(product(config.positions, budgets), groups.items()):
        if not len(rows):
            continue
        nll = {name: np.stack([asked[row][budget, policy][name] for row in rows]) for name in asked[0][budget, policy]}
        right = {name: np.array([share_right(of_case, 0) for of_case in answers]) for name, answers in nll.items()}
        right["chance"] = np.full(len(rows), 1 / ANSWERS)
        cost = {name: answers[:, 0].copy() for name, answers in nll.items()}
        level = highest_level(documents, budget, config.sink_tokens)
        fields = {"domain": DOMAIN, "kind": kind, "tokens_per_vector": budget, "positions": policy, "level": level}
        for name, columns in (("retrieval_accuracy", right), ("retrieval_nll", cost)):
            gist = columns.pop("gist")
            records.append(budget_record(name, gist, rows, fields, config, baselines=columns))
    return records


def retrieval_cases(
    tokenizer: TeacherTokenizer, filler: Sequence[NDArray[np.int64]], *, count: int, context_tokens: int, seed: int
) -> list[RetrievalCase]:
    """`count` cases, of the three kinds in turn, each in a passage of the next filler. More continue fewer.

    Raises:
        DataError: a document of the filler is shorter than `context_tokens`, or there is none.
    """
    if not filler or (shortest := min(map(len, filler))) < context_tokens:
        got = f"one of {shortest} tokens" if filler else "none"
        raise DataError(f"Retrieval cases need filler documents of {context_tokens} tokens at least; got {got}.")
    make: dict[CaseKind, Callable[..., RetrievalCase]] = {"fact": _fact, "list": _list, "passage": _passage}
    cases = []
    for number in range(count):
        draw = random.Random(f"{seed}:retrieval:{number}")
        document = filler[number % len(filler)]
        start = draw.randint(0, len(document) - context_tokens)
        text = document[start : start + context_tokens].tolist()
        kind = CASE_KINDS[number % len(CASE_KINDS)]
        cases.append(make[kind](draw, tokenizer, text))
    return cases


def _fact(draw: random.Random, tokenizer: TeacherTokenizer, text: list[int]) -> RetrievalCase:
    """A fact is stated once and asked for; the wrong values are mentioned elsewhere, of nobody."""
    fact = draw.choice(FACTS)
    value, *others = _values(draw, fact)
    said = fact.text.format_map({key: draw.choice(words) for key, words in templates().words.items()})
    mention = MENTION.format(*others)
    inserted = tokenizer.encode_batch([f"\n\n{said} {value}.\n\n", f"\n\n{mention}\n\n"], continued=True)
    draw.shuffle(inserted)
    question, answers = tokenizer.encode_alternatives(
        f"\n\n{said}", [f" {text}" for text in (value, *others)], continued=True
    )
    return RetrievalCase("fact", _with(draw, text, inserted), question, tuple(answers))


def _values(draw: random.Random, fact: _Fact) -> list[str]:
    if fact.values is None:
        return [str(number) for number in draw.sample(range(1000, 10000), ANSWERS)]
    return draw.sample(templates().words[fact.values], ANSWERS)


def _list(draw: random.Random, tokenizer: TeacherTokenizer, text: list[int]) -> RetrievalCase:
    """A list of numbers by name; one is looked up, and the numbers of other rows are wrong."""
    words = {key: draw.choice(templates().words[key]) for key in ("place", "town", "trade", "person", "surname")}
    head = draw.choice(LIST_HEADS).format_map(words)
    labels = draw.sample(templates().words["goods"], LIST_ROWS)
    numbers = draw.sample(range(100, 1000), LIST_ROWS)
    rows = "\n".join(f"- {label}: {number}" for label, number in zip(labels, numbers, strict=True))
    asked, *others = draw.sample(range(LIST_ROWS), ANSWERS)
    inserted = tokenizer.encode_batch([f"\n\n{head}\n{rows}\n\n"], continued=True)
    question, answers = tokenizer.encode_alternatives(
        f"\n\n{head}\n- {labels[asked]}:", [f" {numbers[row]}" for row in (asked, *others)], continued=True
    )
    return RetrievalCase("list", _with(draw, text, inserted), question, tuple(answers))


def _passage(draw: random.Random, tokenizer: TeacherTokenizer, text: list[int]) -> RetrievalCase:
    """A passage of the text comes again and goes on as before; wrong is what followed later in the same text."""
    (again,) = tokenizer.encode_batch(["\n\n"], continued=True)
    spacing = PASSAGE_TOKENS + PASSAGE_ANSWER_TOKENS
    start = draw.randint(len(text) // 20, max(len(text) // 20, len(text) // 2 - ANSWERS * spacing))
    ends = [start + PASSAGE_TOKENS + n * spacing for n in range(ANSWERS)]
    answers = tuple(text[end : end + PASSAGE_ANSWER_TOKENS] for end in ends)
    return RetrievalCase("passage", text, [*again, *text[start : start + PASSAGE_TOKENS]], answers)


def _with(draw: random.Random, text: list[int], inserted: Sequence[list[int]]) -> list[int]:
    """The text with something inserted in its first half, after the first 5 %, and cut at its end to its length."""
    length = len(text)
    last = length // 2 - sum(map(len, inserted))
    offsets = sorted(draw.sample(range(length // 20, last), len(inserted)), reverse=True)
    for offset, tokens in zip(offsets, inserted, strict=True):
        text = [*text[:offset], *tokens, *text[offset:]]
    return text[:length]
