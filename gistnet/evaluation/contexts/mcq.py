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

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gistnet.context.assembly import assemble
from gistnet.context.in_memory import InMemoryHistory, compress
from gistnet.context.plan import Plan, Raw
from gistnet.data.inputs import read_lines, reading
from gistnet.errors import DataError, TeacherError
from gistnet.evaluation.baselines import other_documents
from gistnet.evaluation.config import MultipleChoiceConfig
from gistnet.evaluation.contexts.alternatives import mean_nll, share_right
from gistnet.evaluation.contexts.equal_budget import compare, highest_level
from gistnet.evaluation.records import Baseline, MetricRecord
from gistnet.evaluation.resampling import bootstrap_over_documents
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions
from gistnet.tree.encoder import Encoder

Say = Callable[[str], None]
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
    """The questions of a file, each with its place, `FILE:line`; blank lines are skipped.

    Raises:
        DataError: the file cannot be read or has no question, or a line is none; names the line and what was expected.
    """
    questions = []
    with reading(path):
        for number, line in enumerate(read_lines(path), start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                questions.append((place, Question.model_validate_json(line.decode("utf-8-sig"))))
            except UnicodeDecodeError as error:
                raise DataError(f"{place} is not UTF-8: {error.reason} at byte {error.start}.") from error
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"]))
                reason = first["msg"].removeprefix("Value error, ")
                raise DataError(
                    f"{place} is no multiple-choice question ({field}{': ' if field else ''}{reason}), expected one "
                    "JSON object with the texts article and question, a list of options, and gold, the index of the "
                    "right option from 0 on."
                ) from error
    if not questions:
        raise DataError(f"{path} has no questions, expected one JSON object a line.")
    return questions


class _Article(NamedTuple):
    number: int
    history: InMemoryHistory


def evaluate_mcq(
    path: Path,
    teacher: Teacher,
    encoder: Encoder,
    config: MultipleChoiceConfig | None = None,
    say: Say = lambda message: None,
) -> list[MetricRecord]:
    """Answer the questions of a file from each kind of context.

    Returns:
        `multiple_choice_accuracy` for each policy and budget, the interval over articles; `n_spans` counts questions.

    Raises:
        DataError: a line of the file is bad, an article is too short for a budget, or there is only one article.
        ConfigError: an article is beyond the teacher's positions, and the policy is not `compact`.
        TeacherError: the teacher has no tokenizer.
    """
    config = config or MultipleChoiceConfig()
    if teacher.tokenizer is None:
        raise TeacherError(f"{teacher.name} has no tokenizer, expected one to read questions.")
    questions = read_questions(path)
    articles = _compressed(questions, encoder, config, path)
    asked = [articles[question.article] for _, question in questions]
    numbers = torch.tensor([article.number for article in asked])
    borrowed = other_documents(numbers, config.seed).tolist()
    right = []
    for row, (place, question) in enumerate(questions):
        say(f"Answering question {row + 1} of {len(questions)}.")
        histories = asked[row].history, asked[borrowed[row]].history
        right.append(_answer(teacher, place, question, *histories, config))
    every = [article.history for article in articles.values()]
    return [
        record
        for policy in config.positions
        for budget in config.tokens_per_vector
        for record in _records(
            [of[budget, policy] for of in right],
            numbers.tolist(),
            {"part": f"budget 1/{budget}", "positions": policy, "level": highest_level(every, budget, config)},
            config,
        )
    ]


def _compressed(
    questions: Sequence[tuple[str, Question]], encoder: Encoder, config: MultipleChoiceConfig, path: Path
) -> dict[str, _Article]:
    """The gists of each article, made once, by its text."""
    articles: dict[str, _Article] = {}
    least = max(config.tokens_per_vector) * (config.sink_tokens + 1)
    for place, question in questions:
        if question.article in articles:
            continue
        history = compress(question.article, encoder)
        if history.n_tokens < least:
            raise DataError(
                f"{place} has an article of {history.n_tokens} tokens, expected {least} at least: the smallest budget "
                f"is one vector for {max(config.tokens_per_vector)} tokens, and {config.sink_tokens} are the sink's."
            )
        articles[question.article] = _Article(len(articles), history)
    if len(articles) < 2:
        raise DataError(f"{path} has questions about one article only, expected two at least: one lends its gists.")
    return articles


def _answer(
    teacher: Teacher,
    place: str,
    question: Question,
    history: InMemoryHistory,
    other: InMemoryHistory,
    config: MultipleChoiceConfig,
) -> dict[tuple[int, Positions], dict[str, float]]:
    """Whether the right option is chosen, by budget and policy, then by context."""
    assert teacher.tokenizer is not None
    prompt, options = teacher.tokenizer.encode_alternatives(
        f"\n\nQuestion: {question.question}\nAnswer:", [f" {option}" for option in question.options], continued=True
    )
    asked = len(teacher.tokenizer.window_prefix) + len(prompt) + max(map(len, options))
    room, sink = teacher.max_positions - asked, config.sink_tokens
    if room <= sink:
        raise DataError(
            f"{place} has a question and an option of {asked} tokens together, expected room for an article within the "
            f"{teacher.max_positions} positions of {teacher.name}."
        )

    def chosen(of: InMemoryHistory, plan: Plan, policy: Positions) -> float:
        if plan.vectors > room and all(isinstance(piece, Raw) for piece in plan.pieces):
            plan = Plan([Raw(of.n_tokens - (room - sink), of.n_tokens)], of.span_tokens, sink)
        context = assemble(of, plan, teacher, positions=policy, after=prompt)
        return share_right(mean_nll(teacher, context, options), question.gold)

    nothing = chosen(history, Plan([], history.span_tokens), "compact")
    known = {"no_context": nothing, "chance": 1 / len(options)}
    found = compare(teacher, history, other, config, chosen)
    return {of: {**right, **known} for of, right in found.items()}


def _records(
    right: Sequence[dict[str, float]], articles: Sequence[int], place: dict[str, Any], config: MultipleChoiceConfig
) -> Iterator[MetricRecord]:
    columns = {name: np.array([of[name] for of in right]) for name in right[0]}
    beside = {name: float(values.mean()) for name, values in columns.items() if name != "gist"}
    yield MetricRecord(
        name="multiple_choice_accuracy",
        domain=DOMAIN,
        value=float(columns["gist"].mean()),
        interval=bootstrap_over_documents(columns["gist"], articles, resamples=config.resamples, seed=config.seed),
        n_spans=len(right),
        n_documents=len(set(articles)),
        baselines=cast(dict[Baseline, float], beside),
        **place,
    )
