"""Retrieval cases, how they are laid out, and their records against plain forwards with a tiny teacher over bytes."""

import random
import re

import numpy as np
import pytest

from gistnet.context.plan import Raw
from gistnet.context.selectors import Hit
from gistnet.data.synthetic import templates
from gistnet.errors import DataError, TeacherError
from gistnet.evaluation.config import CASE_KINDS, DEFAULT_CASE_KINDS, ContextsConfig, EvaluationConfig
from gistnet.evaluation.contexts.equal_budget import opened_plans, opens
from gistnet.evaluation.contexts.retrieval import (
    PARAPHRASES,
    SHORT_NAMES,
    RetrievalCase,
    recall,
    retrieval,
    retrieval_cases,
)
from gistnet.model.config import TeacherConfig
from gistnet.model.teacher import Teacher
from gistnet.tree.document import compress
from gistnet.tree.gist_encoder import GistEncoder
from gistnet.tree.passages import Passage
from tests.evaluation.contexts.conftest import plain_nll
from tests.gistnets import woken_gistnet
from tests.tokenizers import merging, sentencepiece_like

LENGTH = 1100
NEW_KINDS = tuple(kind for kind in CASE_KINDS if kind not in DEFAULT_CASE_KINDS)
LONGER = 2000
"""Tokens that sentences of the new kinds have room in, with a token a byte."""
FUNCTION_WORDS = """
    a an the he she it they who which what when where whose how many did does do was were is are be been has had have of
    in on at to by for from with and or his her their its him them that this these must every each s up there out no
"""


@pytest.fixture(scope="module")
def teacher(teacher_folder) -> Teacher:
    teacher = Teacher.from_pretrained(TeacherConfig(name=str(teacher_folder), precision="float64"))
    teacher.config.max_position_embeddings = 2048
    return teacher


@pytest.fixture(scope="module")
def filler(teacher) -> list[np.ndarray]:
    draw = random.Random(0)
    words = [word for name in ("trade", "colour", "weather") for word in templates().words[name]]
    texts = [" ".join(draw.choices(words, k=400)) for _ in range(2)]
    return [np.array(ids) for ids in teacher.tokenizer.encode_batch(texts)]


def text(teacher: Teacher, tokens: list[int]) -> str:
    return bytes(teacher.tokenizer.decode(tokens), "utf-8").decode()


def made(teacher, filler, count: int = 30, seed: int = 0, **other) -> list[RetrievalCase]:
    return retrieval_cases(
        teacher.tokenizer, filler, **{"context_tokens": LENGTH, "count": count, "seed": seed, **other}
    )


def test_the_right_answer_follows_its_question_in_the_first_half_and_no_other_does(teacher, filler):
    for case in made(teacher, filler):
        assert len(case.context) == LENGTH and len(case.answers) == 4
        whole, question = text(teacher, case.context), text(teacher, case.question)
        answers = [text(teacher, answer) for answer in case.answers]
        assert len(set(answers)) == 4
        if case.kind == "list":
            question = question[question.index("- ") :]  # the row that is asked for
        elif case.kind == "passage":
            question = question.removeprefix("\n\n")
        assert whole.count(question + answers[0]) == 1
        assert LENGTH / 20 <= whole.index(question) < LENGTH / 2
        for wrong in answers[1:]:
            assert question + wrong not in whole
            assert wrong in whole  # it was said, of something else


def test_evidence_stands_in_the_first_half_and_holds_the_right_answer_alone(teacher, filler):
    cases = [*made(teacher, filler), *made(teacher, filler, 24, context_tokens=LONGER, kinds=NEW_KINDS)]
    assert {case.kind for case in cases} == set(CASE_KINDS)
    for case in cases:
        assert list(case.evidence) == sorted(case.evidence)
        assert all(0 < start < end <= len(case.context) / 2 for start, end in case.evidence)
        said = " ".join(text(teacher, case.context[start:end]) for start, end in case.evidence)
        right, *wrong = ((" " + text(teacher, answer)).strip().removesuffix(".").split()[-1] for answer in case.answers)
        whole = text(teacher, case.context)
        if case.kind == "passage":
            assert text(teacher, case.answers[0]) in said
            continue
        assert right in said.replace(".", " ").split()
        assert all(word in whole and word not in said.replace(".", " ").split() for word in wrong)


def test_the_two_sentences_of_a_hop_are_far_apart_and_the_latest_value_comes_last(teacher, filler):
    for case in made(teacher, filler, 24, context_tokens=LONGER, kinds=("hops", "last")):
        if case.kind == "hops":
            (_, first), (second, _) = case.evidence
            between = text(teacher, case.context[first:second])
            assert between.count("lives in the") == between.count("The password of") == 1
        else:
            ((start, _),) = case.evidence
            before = text(teacher, case.context[:start])
            assert all(text(teacher, wrong) in before for wrong in case.answers[1:])


def test_a_paraphrase_shares_no_content_word_with_its_sentence():
    def content(of: str) -> set[str]:
        return {word for word in re.findall(r"[a-z]+", of.lower()) if word not in FUNCTION_WORDS.split()}

    for pair in (pair for pairs in PARAPHRASES.values() for pair in pairs):
        said, asked = content(pair.said), content(pair.question)
        assert said.isdisjoint(asked), pair
        assert not [(a, b) for a in said for b in asked if len(a) > 3 and a[:4] == b[:4]], pair


def test_a_name_is_asked_for_in_a_form_that_is_not_in_the_text(teacher, filler):
    assert all(short != name for name, short in SHORT_NAMES.items())
    for case in made(teacher, filler, 12, context_tokens=LONGER, kinds=("name",)):
        asked = text(teacher, case.question).split(" of ")[1].split(" is")[0]
        assert asked not in text(teacher, case.context)


@pytest.mark.parametrize("make", [merging, sentencepiece_like])
def test_questions_and_answers_are_tokenised_as_one_text(make):
    """Also by a tokenizer that puts a space before every text, and merges across the space before an answer."""
    tokenizer = make()
    texts = [" ".join(random.Random(n).choices(templates().words["weather"], k=2000)) for n in range(2)]
    filler = [np.array(tokens) for tokens in tokenizer.encode_batch(texts)]
    for case in retrieval_cases(tokenizer, filler, count=12, context_tokens=LENGTH, seed=0):
        if case.kind == "passage":
            continue
        for answer in case.answers:
            following = tokenizer.decode([*tokenizer.encode_batch(["x"])[0], *case.question, *answer]).removeprefix("x")
            assert following.startswith("\n\n") and not following.startswith("\n\n ")
            assert tokenizer.encode_batch([following], continued=True)[0] == [*case.question, *answer]


def test_a_truncated_context_has_lost_what_decides(teacher, filler):
    for case in made(teacher, filler):
        rest = text(teacher, case.context[-(LENGTH // 4) :])
        if case.kind != "passage":
            asked = text(teacher, case.question).split("\n- ")[-1].strip()
            assert asked not in rest


def test_cases_are_the_same_every_time_and_more_continue_fewer(teacher, filler):
    assert made(teacher, filler, 9) == made(teacher, filler)[:9]
    assert made(teacher, filler, 9) != made(teacher, filler, 9, seed=1)
    assert [case.kind for case in made(teacher, filler, 6)] == ["fact", "list", "passage"] * 2
    new = {"context_tokens": LONGER, "kinds": NEW_KINDS}
    assert made(teacher, filler, 4, **new) == made(teacher, filler, 9, **new)[:4]


def test_records_are_those_of_plain_forwards(teacher, filler):
    encoder = GistEncoder(teacher, woken_gistnet(teacher))
    contexts = ContextsConfig(retrieval_cases=3, retrieval_tokens=LENGTH, question_tokens_per_vector=(4,))
    records = retrieval(
        teacher, encoder, filler, EvaluationConfig(positions=("center",), resamples=100, contexts=contexts)
    )
    found = {(record.name, record.kind): record for record in records}
    right: dict[str, list[float]] = {}
    cost: dict[str, list[float]] = {}
    for case in made(teacher, filler, 3):
        recent = LENGTH // 4 - 4
        for name, context in (("full", case.context), ("truncated", case.context[:4] + case.context[-recent:])):
            asked = [*context, *case.question]
            means = [plain_nll(teacher, [*asked, *answer], len(answer)).mean() for answer in case.answers]
            right.setdefault(name, []).append(means[0] == min(means))
            cost.setdefault(name, []).append(means[0])
    accuracy, nll = found["retrieval_accuracy", ""], found["retrieval_nll", ""]
    for name in ("full", "truncated"):
        assert accuracy.baselines[name] == pytest.approx(np.mean(right[name]))
        assert nll.baselines[name] == pytest.approx(np.mean(cost[name]))
        assert found["retrieval_nll", "list"].baselines[name] == pytest.approx(np.mean(cost[name][1]))
    assert accuracy.baselines.keys() == {
        *("full", "truncated", "shuffled", "mean", "retrieved", "with_gists", "by_meaning", "oracle", "chance")
    }
    assert accuracy.baselines["chance"] == 0.25 and "chance" not in nll.baselines
    assert (accuracy.n_spans, accuracy.domain, accuracy.level) == (3, "synthetic", 0)
    assert {kind for _, kind in found} == {"", "fact", "list", "passage"}
    assert {record.tokens_per_vector for record in records} == {4, None}
    with_gists = found["retrieval_gain_with_gists", ""]
    assert with_gists.value == pytest.approx(accuracy.baselines["with_gists"] - accuracy.baselines["retrieved"])
    recalled = {r.index: r.value for r in records if (r.name, r.kind) == ("retrieval_recall", "")}
    assert list(recalled) == [1, 4, 16]
    assert list(recalled.values()) == sorted(recalled.values())


def test_evidence_is_recalled_range_by_range():
    hits = [Hit(Passage(start, start + 10, 0, 99), 1.0) for start in (20, 40)]
    assert recall(hits, [(29, 35)]) == recall(hits, [(15, 21), (45, 46)]) == 1
    assert recall(hits, [(30, 40)]) == 0
    assert recall(hits, [(30, 40), (49, 70)]) == 0.5


def test_the_oracle_reads_the_evidence(teacher, filler):
    encoder = GistEncoder(teacher, woken_gistnet(teacher))
    for case in made(teacher, filler, 3):
        document, question = compress(case.context, encoder), text(teacher, case.question)
        plans = opened_plans(
            teacher.tokenizer, document, question, LENGTH // 2, sink_tokens=4, oracle=opens(case.evidence)
        )
        read = {index for piece in plans["oracle"].pieces for index in range(piece.start, piece.stop)}
        assert all(set(range(start, stop)) <= read for start, stop in case.evidence)
        assert all(isinstance(piece, Raw) for name in ("oracle", "retrieved") for piece in plans[name].pieces)
        assert all(plan.vectors <= LENGTH // 2 for plan in plans.values())


def test_filler_that_is_too_short_and_a_teacher_without_tokenizer_are_refused(teacher, filler):
    with pytest.raises(DataError, match="none"):
        made(teacher, [])
    with pytest.raises(DataError, match="100 tokens"):
        made(teacher, [filler[0][:100]])
    with pytest.raises(DataError, match="100 tokens"):
        made(teacher, filler, 4, context_tokens=100, kinds=("hops",))
    with pytest.raises(TeacherError, match="no tokenizer"):
        retrieval(Teacher(teacher.model, name="wordless"), None, filler, EvaluationConfig())
