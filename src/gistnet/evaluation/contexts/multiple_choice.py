"""Multiple-choice questions over long articles: does a context that holds gists answer as the whole article does?

A file has one question a line, as JSON: `{"article": text, "question": text, "options": [text, …], "gold": index}`, the
first option having index 0. The teacher reads a context of the article, then "Question: …", then "Answer:"; each option
follows as " option". Chosen is the option of lowest mean NLL per token, which does not prefer short options; where
several are lowest, each counts its share. A small teacher is near chance, so every figure stands beside it.

    full        the whole article, or as much of it as the teacher was trained for: its first tokens and the last ones
    truncated   the first tokens and as many of the last ones as the budget has
    gist        gists of what is old, the end as tokens
    shuffled    the same with gists of another article
    mean        the same with mean embeddings
    no_context  the question alone
    chance      one in as many as there are options
"""

import logging
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gistnet.context.assembly import assemble
from gistnet.context.plan import Plan, Raw
from gistnet.context.selectors import Selector, by_words, fused
from gistnet.context.states import ByStates
from gistnet.data.sources import read_lines, reading
from gistnet.errors import DataError, TeacherError
from gistnet.evaluation.baselines import other_documents
from gistnet.evaluation.config import EvaluationConfig
from gistnet.evaluation.contexts.equal_budget import (
    budget_record,
    compare,
    highest_level,
    mean_nll,
    opened_plans,
    share_right,
)
from gistnet.evaluation.records import MetricRecord
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions
from gistnet.tree.document import InMemoryDocument, compress
from gistnet.tree.encoder import Encoder

logger = logging.getLogger(__name__)

DOMAIN = "multiple choice"


class Question(BaseModel):
    """One line of a file of questions; other fields are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)

    article: str = Field(min_length=1)
    question: str = Field(min_length=1)
    options: tuple[str, ...] = Field(min_length=2)
    gold: int = Field(ge=0)

    @model_validator(mode="after")
    def _can_be_answered(self) -> "Question":
        if self.gold >= len(self.options):
            raise ValueError(f"gold is {self.gold}, but there are {len(self.options)} options, counted from 0")
        for text in (self.article, self.question, *self.options):
            if not text.strip():
                raise ValueError("a text is blank")
            try:
                text.encode()
            except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no tokenizer accepts
                raise ValueError(f"a text is not Unicode: {error.reason}") from error
        return self


def read_questions(path: Path) -> list[tuple[str, Question]]:
    """The questions of a file, each with where it stands, `FILE:line`; blank lines are skipped.

    Raises:
        DataError: the file cannot be read or has no question, or a line is none; names the line and what was expected.
    """
    questions = []
    with reading(path):
        for number, line in enumerate(read_lines(path), start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                questions.append((where, Question.model_validate_json(line.decode("utf-8-sig"))))
            except UnicodeDecodeError as error:
                raise DataError(f"{where} is not UTF-8: {error.reason} at byte {error.start}.") from error
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"]))
                reason = first["msg"].removeprefix("Value error, ")
                raise DataError(
                    f"{where} is no multiple-choice question ({field}{': ' if field else ''}{reason}), expected one "
                    "JSON object with the texts article and question, a list of options, and gold, the index of the "
                    "right option from 0 on."
                ) from error
    if not questions:
        raise DataError(f"{path} has no questions, expected one JSON object a line.")
    return questions


class _Article(NamedTuple):
    number: int
    compressed: InMemoryDocument


def multiple_choice(teacher: Teacher, encoder: Encoder, path: Path, config: EvaluationConfig) -> list[MetricRecord]:
    """Answer the questions of a file from each kind of context.

    Returns:
        `multiple_choice_accuracy` for each policy and budget, the interval over articles; `n_spans` counts questions.

    Raises:
        DataError: a line of the file is bad, an article is too short for a budget, or there is only one article.
        ConfigError: an article is beyond the teacher's positions, and the policy is not `compact`.
        TeacherError: the teacher has no tokenizer.
    """
    if teacher.tokenizer is None:
        raise TeacherError(f"{teacher.name} has no tokenizer, expected one to read questions.")
    budgets = config.contexts.question_tokens_per_vector
    questions = read_questions(path)
    by_meaning = fused(by_words, ByStates(teacher))
    articles = _compressed(questions, encoder, config, path)
    asked = [articles[question.article] for _, question in questions]
    numbers = torch.tensor([article.number for article in asked])
    borrowed = other_documents(numbers, config.seed).tolist()
    right = []
    for row, (line, question) in enumerate(questions):
        logger.info("Answering question %d of %d.", row + 1, len(questions))
        right.append(
            _answer(teacher, line, question, asked[row].compressed, asked[borrowed[row]].compressed, by_meaning, config)
        )
    every = [article.compressed for article in articles.values()]
    records = []
    for policy, budget in product(config.positions, budgets):
        found = [of[budget, policy] for of in right]
        columns = {name: np.array([of[name] for of in found]) for name in found[0]}
        level = highest_level(every, budget, config.sink_tokens)
        fields = {"domain": DOMAIN, "tokens_per_vector": budget, "positions": policy, "level": level}
        gist = columns.pop("gist")
        records.append(budget_record("multiple_choice_accuracy", gist, numbers, fields, config, baselines=columns))
    return records


def _compressed(
    questions: Sequence[tuple[str, Question]], encoder: Encoder, config: EvaluationConfig, path: Path
) -> dict[str, _Article]:
    """The gists of each article, made once, by its text."""
    articles: dict[str, _Article] = {}
    coarsest = max(config.contexts.question_tokens_per_vector)
    least = coarsest * (config.sink_tokens + 1)
    for line, question in questions:
        if question.article in articles:
            continue
        compressed = compress(question.article, encoder)
        if compressed.n_tokens < least:
            raise DataError(
                f"{line} has an article of {compressed.n_tokens} tokens, expected {least} at least: the smallest "
                f"budget is one vector for {coarsest} tokens, and {config.sink_tokens} are the sink's."
            )
        articles[question.article] = _Article(len(articles), compressed)
    if len(articles) < 2:
        raise DataError(f"{path} has questions about one article only, expected two at least: one lends its gists.")
    return articles


def _answer(
    teacher: Teacher,
    line: str,
    question: Question,
    compressed: InMemoryDocument,
    other: InMemoryDocument,
    by_meaning: Selector,
    config: EvaluationConfig,
) -> dict[tuple[int, Positions], dict[str, float]]:
    """True if the right option is chosen, by budget and policy, then by context."""
    assert teacher.tokenizer is not None
    prompt, options = teacher.tokenizer.encode_alternatives(
        f"\n\nQuestion: {question.question}\nAnswer:", [f" {option}" for option in question.options], continued=True
    )
    asked = len(teacher.tokenizer.window_prefix) + len(prompt) + max(map(len, options))
    room, sink = teacher.max_positions - asked, config.sink_tokens
    if room <= sink:
        raise DataError(
            f"{line} has a question and an option of {asked} tokens together, expected room for an article within the "
            f"{teacher.max_positions} positions of {teacher.name}."
        )

    def chosen(of: InMemoryDocument, plan: Plan, policy: Positions) -> float:
        if plan.vectors > room and all(isinstance(piece, Raw) for piece in plan.pieces):
            plan = Plan([Raw(of.n_tokens - (room - sink), of.n_tokens)], of.branchings, sink)
        context = assemble(of, plan, teacher, positions=policy, after=prompt)
        return share_right(mean_nll(teacher, context, options), question.gold)

    nothing = chosen(compressed, Plan([], compressed.branchings), "compact")
    known = {"no_context": nothing, "chance": 1 / len(options)}
    budgets = config.contexts.question_tokens_per_vector
    tokenizer, text = teacher.tokenizer, question.question
    opened = partial(opened_plans, tokenizer, compressed, text, sink_tokens=sink, by_meaning=by_meaning)
    found = compare(teacher, compressed, other, config, budgets, chosen, opened)
    return {of: {**right, **known} for of, right in found.items()}
