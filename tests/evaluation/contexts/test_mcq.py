"""Multiple-choice questions: files, and accuracies against plain forwards with a tiny teacher over bytes."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gistnet.errors import ConfigError, DataError, TeacherError
from gistnet.evaluation.config import MultipleChoiceConfig
from gistnet.evaluation.contexts.mcq import evaluate_mcq, read_questions
from gistnet.model.config import TeacherConfig
from gistnet.model.teacher import Teacher
from gistnet.tree.gist_encoder import GistEncoder
from tests.gistnets import woken_gistnet

CONFIG = MultipleChoiceConfig(tokens_per_vector=(4,), resamples=100)
GOOD = {"article": "A long story.", "question": "Who?", "options": ["Ann", "Bob"], "gold": 1}


@pytest.fixture(scope="module")
def teacher(teacher_folder) -> Teacher:
    return Teacher.from_pretrained(TeacherConfig(name=str(teacher_folder), precision="float64"))


@pytest.fixture(scope="module")
def encoder(teacher) -> GistEncoder:
    return GistEncoder(teacher, woken_gistnet(teacher))


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


@torch.no_grad()
def plain_choice(teacher, context: str, asked: dict[str, Any]) -> int:
    """One plain forward for each option over the text's bytes, as the tokenizer of the teacher has them."""
    costs = []
    for option in asked["options"]:
        start, answer = teacher.tokenizer.encode_batch(
            [f"{context}\n\nQuestion: {asked['question']}\nAnswer:", f" {option}"]
        )
        ids = torch.tensor([*start, *answer])
        log_p = teacher.model(ids[None]).logits[0].log_softmax(-1)[len(start) - 1 : -1]
        costs.append(-float(log_p.gather(1, torch.tensor(answer)[:, None]).mean()))
    return int(np.argmin(costs))


def test_accuracies_are_those_of_plain_forwards(teacher, encoder, tmp_path):
    asked = questions()
    (record,) = evaluate_mcq(write(tmp_path / "q.jsonl", *asked), teacher, encoder, CONFIG)
    contexts = {
        "full": lambda article: article,
        "truncated": lambda article: article[:4] + article[4 - len(article) // 4 :],
        "no_context": lambda article: "",
    }
    for name, made in contexts.items():
        right = [plain_choice(teacher, made(one["article"]), one) == one["gold"] for one in asked]
        assert record.baselines[name] == pytest.approx(np.mean(right)), name
    assert record.baselines["chance"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert record.baselines.keys() == {"full", "truncated", "shuffled", "mean", "no_context", "chance"}
    assert (record.name, record.tokens_per_vector, record.n_spans, record.n_documents) == (
        "multiple_choice_accuracy",
        4,
        8,
        3,
    )
    assert 0 < record.baselines["full"] < 1  # otherwise the comparison says little


def test_where_everything_fits_the_budget_gists_answer_as_the_full_text(teacher, encoder, tmp_path):
    """One vector a token leaves nothing to compress: all contexts are the whole article."""
    config = MultipleChoiceConfig(tokens_per_vector=(1,), resamples=100)
    (record,) = evaluate_mcq(write(tmp_path / "q.jsonl", *questions()), teacher, encoder, config)
    assert {record.value, record.baselines["truncated"], record.baselines["mean"]} == {record.baselines["full"]}


def test_an_article_beyond_the_teachers_positions_is_read_as_far_as_they_go(teacher, encoder, tmp_path):
    asked = questions(length=300)
    path = write(tmp_path / "q.jsonl", *asked)
    with pytest.raises(ConfigError, match="compact"):
        evaluate_mcq(path, teacher, encoder, CONFIG)
    config = CONFIG.model_copy(update={"positions": ("compact",)})
    (record,) = evaluate_mcq(path, teacher, encoder, config)
    right = []
    for one in asked:
        prompt = len(f"\n\nQuestion: {one['question']}\nAnswer:") + 1 + max(map(len, one["options"]))
        room = 256 - prompt - 4
        context = one["article"][:4] + one["article"][-room:]
        right.append(plain_choice(teacher, context, one) == one["gold"])
    assert record.baselines["full"] == pytest.approx(np.mean(right))
    huge = [one | {"question": "a" * 250} for one in asked]
    with pytest.raises(DataError, match=r"q.jsonl:1 has a question and an option of \d+ tokens together"):
        evaluate_mcq(write(tmp_path / "q.jsonl", *huge), teacher, encoder, config)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Invalid JSON"),
        ("[1, 2]", "Input should be an object"),
        ({**GOOD, "gold": 2}, "gold is 2, but there are 2 options, counted from 0"),
        ({**GOOD, "gold": -1}, "gold: Input should be greater than or equal to 0"),
        ({**GOOD, "gold": "1"}, "gold: Input should be a valid integer"),
        ({**GOOD, "options": ["only one"]}, "options: Tuple should have at least 2 items"),
        ({**GOOD, "options": ["Ann", " "]}, "a text is blank"),
        ({**GOOD, "options": ["Ann", 3]}, r"options.1: Input should be a valid string"),
        ({name: GOOD[name] for name in ("article", "question", "options")}, "gold: Field required"),
        ('{"article": "\\ud800", "question": "Who?", "options": ["a", "b"], "gold": 0}', "is no multiple-choice"),
    ],
)
def test_a_bad_line_is_named(line, reason, tmp_path):
    path = write(tmp_path / "questions.jsonl", GOOD, "", line)
    with pytest.raises(DataError, match=reason) as raised:
        read_questions(path)
    assert str(raised.value).startswith(f"{path}:3 is no multiple-choice question (")
    assert str(raised.value).endswith("gold, the index of the right option from 0 on.")


def test_files_that_hold_no_questions_are_refused(teacher, encoder, tmp_path):
    with pytest.raises(DataError, match=r"Could not read .*missing\.jsonl: No such file"):
        read_questions(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="has no questions"):
        read_questions(write(tmp_path / "empty.jsonl", "", " "))
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b'{"article": "\xff"}\n')
    with pytest.raises(DataError, match=r"binary.jsonl:1 is not UTF-8"):
        read_questions(binary)
    assert [place for place, _ in read_questions(write(tmp_path / "q.jsonl", "", GOOD))] == [f"{tmp_path}/q.jsonl:2"]


def test_articles_that_cannot_be_compared_are_refused(teacher, encoder, tmp_path):
    short = [one | {"article": "a" * 19} for one in questions(2)]
    with pytest.raises(DataError, match=r"q.jsonl:1 has an article of 19 tokens, expected 20 at least"):
        evaluate_mcq(write(tmp_path / "q.jsonl", *short), teacher, encoder, CONFIG)
    path = write(tmp_path / "q.jsonl", *questions(2, articles=1))
    with pytest.raises(DataError, match="about one article only"):
        evaluate_mcq(path, teacher, encoder, CONFIG)
    with pytest.raises(TeacherError, match="no tokenizer"):
        evaluate_mcq(path, Teacher(teacher.model, name="wordless"), encoder, CONFIG)
