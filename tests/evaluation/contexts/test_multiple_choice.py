"""Multiple-choice questions: files, and accuracies against plain forwards with a tiny teacher over bytes."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gistnet.errors import ConfigError, DataError, TeacherError
from gistnet.evaluation.config import ContextsConfig, EvaluationConfig
from gistnet.evaluation.contexts.multiple_choice import multiple_choice, read_questions
from gistnet.model.teacher import Teacher
from tests.evaluation.contexts.conftest import plain_nll

GOOD = {"article": "A long story.", "question": "Who?", "options": ["Ann", "Bob"], "gold": 1}


def configured(budget: int = 4, positions: str = "center") -> EvaluationConfig:
    contexts = ContextsConfig(question_tokens_per_vector=(budget,))
    return EvaluationConfig(positions=(positions,), resamples=100, contexts=contexts)


CONFIG = configured()


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def questions(count: int = 8, articles: int = 3, length: int = 120) -> list[dict[str, Any]]:
    draw = random.Random(1)
    texts = ["".join(draw.choices("abcdefgh ", k=length + 8 * n)) for n in range(articles)]
    return [
        {
            "article": texts[n % articles],
            "question": "".join(draw.choices("abcdefgh ", k=12)) + "?",
            "options": ["".join(draw.choices("abcdefgh", k=3 + option)) for option in range(3 + n % 2)],
            "gold": draw.randrange(3),
        }
        for n in range(count)
    ]


def plain_choice(teacher, context: str, asked: dict[str, Any]) -> int:
    """One plain forward for each option over the text's bytes, as the tokenizer of the teacher has them."""
    costs = []
    for option in asked["options"]:
        start, answer = teacher.tokenizer.encode_batch(
            [f"{context}\n\nQuestion: {asked['question']}\nAnswer:", f" {option}"]
        )
        costs.append(plain_nll(teacher, [*start, *answer], len(answer)).mean())
    return int(np.argmin(costs))


def test_accuracies_are_those_of_plain_forwards(teacher, encoder, tmp_path):
    asked = questions()
    (record,) = multiple_choice(teacher, encoder, write(tmp_path / "q.jsonl", *asked), CONFIG)
    contexts = {
        "full": lambda article: article,
        "truncated": lambda article: article[:4] + article[4 - len(article) // 4 :],
        "no_context": lambda article: "",
    }
    for name, made in contexts.items():
        right = [plain_choice(teacher, made(one["article"]), one) == one["gold"] for one in asked]
        assert record.baselines[name] == pytest.approx(np.mean(right)), name
    assert record.baselines["chance"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert record.baselines.keys() == {
        *("full", "truncated", "shuffled", "mean", "retrieved", "with_gists", "by_meaning", "no_context", "chance")
    }
    assert (record.name, record.tokens_per_vector, record.n_spans, record.n_documents) == (
        "multiple_choice_accuracy",
        4,
        8,
        3,
    )
    assert 0 < record.baselines["full"] < 1  # otherwise the comparison says little


def test_where_everything_fits_the_budget_gists_answer_as_the_full_text(teacher, encoder, tmp_path):
    """One vector a token leaves nothing to compress: all contexts are the whole article."""
    (record,) = multiple_choice(teacher, encoder, write(tmp_path / "q.jsonl", *questions()), configured(1))
    assert {record.value, record.baselines["truncated"], record.baselines["mean"]} == {record.baselines["full"]}


def test_an_article_beyond_the_teachers_positions_is_read_as_far_as_they_go(teacher, encoder, tmp_path):
    asked = questions(length=300)
    path = write(tmp_path / "q.jsonl", *asked)
    with pytest.raises(ConfigError, match="compact"):
        multiple_choice(teacher, encoder, path, CONFIG)
    config = configured(positions="compact")
    (record,) = multiple_choice(teacher, encoder, path, config)
    right = []
    for one in asked:
        prompt = len(f"\n\nQuestion: {one['question']}\nAnswer:") + 1 + max(map(len, one["options"]))
        room = 256 - prompt - 4
        context = one["article"][:4] + one["article"][-room:]
        right.append(plain_choice(teacher, context, one) == one["gold"])
    assert record.baselines["full"] == pytest.approx(np.mean(right))
    huge = [one | {"question": "a" * 250} for one in asked]
    with pytest.raises(DataError, match="room"):
        multiple_choice(teacher, encoder, write(tmp_path / "q.jsonl", *huge), config)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "JSON"),
        ("[1, 2]", "object"),
        ({**GOOD, "gold": 2}, "gold"),
        ({**GOOD, "gold": -1}, "gold"),
        ({**GOOD, "gold": "1"}, "gold"),
        ({**GOOD, "options": ["only one"]}, "options"),
        ({**GOOD, "options": ["Ann", " "]}, "blank"),
        ({**GOOD, "options": ["Ann", 3]}, "options.1"),
        ({name: GOOD[name] for name in ("article", "question", "options")}, "gold"),
        ('{"article": "\\ud800", "question": "Who?", "options": ["a", "b"], "gold": 0}', "is no"),
    ],
)
def test_a_bad_line_is_named(line, reason, tmp_path):
    path = write(tmp_path / "questions.jsonl", GOOD, "", line)
    with pytest.raises(DataError, match=reason) as raised:
        read_questions(path)
    assert f"{path}:3" in str(raised.value)


def test_files_that_hold_no_questions_are_refused(teacher, encoder, tmp_path):
    with pytest.raises(DataError, match="missing"):
        read_questions(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="no questions"):
        read_questions(write(tmp_path / "empty.jsonl", "", " "))
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b'{"article": "\xff"}\n')
    with pytest.raises(DataError, match="UTF-8"):
        read_questions(binary)
    assert [place for place, _ in read_questions(write(tmp_path / "q.jsonl", "", GOOD))] == [f"{tmp_path}/q.jsonl:2"]


def test_articles_that_cannot_be_compared_are_refused(teacher, encoder, tmp_path):
    short = [one | {"article": "a" * 19} for one in questions(2)]
    with pytest.raises(DataError, match="19 tokens"):
        multiple_choice(teacher, encoder, write(tmp_path / "q.jsonl", *short), CONFIG)
    path = write(tmp_path / "q.jsonl", *questions(2, articles=1))
    with pytest.raises(DataError, match="one article"):
        multiple_choice(teacher, encoder, path, CONFIG)
    with pytest.raises(TeacherError, match="no tokenizer"):
        multiple_choice(Teacher(teacher.model, name="wordless"), encoder, path, CONFIG)
