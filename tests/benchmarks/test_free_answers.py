"""Questions with free answers: what is in the repository, its documents where the corpora are there, the grader."""

import json
import os
from pathlib import Path

import pytest

from benchmarks.free_answers import QUESTIONS, is_right, load_free_questions
from gistnet.errors import DataError

CORPORA = Path(os.environ.get("GISTNET_CORPORA", "corpora"))


def test_there_are_five_questions_on_each_of_twelve_documents_with_short_quotes_that_hold_an_answer():
    listed = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    documents = [(asked["file"], asked["id"]) for asked in listed]
    assert len(set(documents)) == 12 and {documents.count(document) for document in documents} == {5}
    assert len({asked["question"] for asked in listed}) == 60
    for asked in listed:
        assert len(asked["quote"].split()) <= 25
        assert is_right(asked["quote"], asked["answers"]) and not is_right(asked["question"], asked["answers"])


@pytest.mark.skipif(not CORPORA.is_dir(), reason="no corpora; name their folder in GISTNET_CORPORA")
def test_every_document_is_found_and_holds_its_quotes():
    questions = load_free_questions(CORPORA)
    assert len(questions) == 60
    for asked in questions:
        start, end = asked.evidence
        assert is_right(asked.document[start:end], asked.answers)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("It was  the\nblack CUBE.", True),
        ("black cube", True),
        ("the black cubes", False),
        ("black", False),
        ("22% more", True),
        ("122%", False),
        ("", False),
    ],
)
def test_an_answer_is_right_where_it_holds_an_accepted_one_as_whole_words(answer, right):
    assert is_right(answer, ["black cube", "22%"]) is right


@pytest.mark.parametrize(
    ("document", "missing"),
    [(None, "no file"), ({"id": "b", "text": "the axle broke"}, "'a'"), ({"id": "a", "text": "it broke"}, "0 times")],
)
def test_a_document_or_quote_that_is_missing_is_said(tmp_path, document, missing):
    questions = tmp_path / "questions.jsonl"
    asked = {"file": "cars.jsonl", "id": "a", "question": "What broke?", "answers": ["axle"], "quote": "axle broke"}
    questions.write_text(json.dumps(asked) + "\n")
    if document:
        (tmp_path / "cars.jsonl").write_text(json.dumps(document) + "\n")
    with pytest.raises(DataError, match=missing):
        load_free_questions(tmp_path, questions)


def test_a_quote_is_found_across_line_breaks(tmp_path):
    questions = tmp_path / "questions.jsonl"
    asked = {"file": "cars.jsonl", "id": "a", "question": "What broke?", "answers": ["axle"], "quote": "axle broke"}
    questions.write_text(json.dumps(asked) + "\n")
    (tmp_path / "cars.jsonl").write_text(json.dumps({"id": "a", "text": "Then the axle\nbroke."}) + "\n")
    (found,) = load_free_questions(tmp_path, questions)
    assert found.document[slice(*found.evidence)] == "axle\nbroke"
