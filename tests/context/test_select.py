"""Passages of a text, and plans that open what a question needs; with a tiny teacher over bytes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gistnet.context.generate import generate
from gistnet.context.plan import Gists, Raw
from gistnet.context.select import select
from gistnet.context.selectors import Hit, by_words, fused, word_scores
from gistnet.context.states import ByStates, find_by_meaning
from gistnet.errors import ConfigError
from gistnet.model.config import GistNetConfig, TeacherConfig
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.tree.document import InMemoryDocument, compress
from gistnet.tree.gist_encoder import GistEncoder
from gistnet.tree.passages import LONGEST, Passage, split_passages
from gistnet.tree.tree import GistTree
from tests.stub_encoder import StubEncoder

FILLER = "Nothing much was said of it that day, and the rain went on. " * 8
FACT = "The password of Ada Quill is 7341."
TEXT = f"{FILLER}\n\n{FACT}\n\n{FILLER}"


@pytest.fixture(scope="module")
def teacher(teacher_folder: Path) -> Teacher:
    return Teacher.from_pretrained(TeacherConfig(name=str(teacher_folder), precision="float32"))


@pytest.fixture(scope="module")
def document(teacher: Teacher) -> InMemoryDocument:
    config = GistNetConfig(architecture="bottleneck", width=16, heads=2)
    return compress(TEXT, GistEncoder(teacher, GistNet.build(config, teacher, 8)))


def texts(teacher: Teacher, text: str) -> list[str]:
    tokens = teacher.tokenizer.encode(text)
    return [teacher.tokenizer.decode(tokens[of.start : of.stop]) for of in split_passages(tokens, teacher.tokenizer)]


def test_passages_end_with_sentences_lines_and_paragraphs(teacher: Teacher) -> None:
    sentence, quoted = "A sentence of a usual length. ", 'She said: "This is not the end." '
    assert texts(teacher, f"{sentence}Short one. {quoted}") == [
        sentence + "Short one.",
        f" {quoted[:-1]}",
        " ",
    ]
    rows = [f"- the row number {number}, of many goods\n" for number in range(3)]
    assert texts(teacher, "".join(rows)) == rows
    assert texts(teacher, "Few words\n\nA heading of 20\n\n\nmore") == [
        "Few words\n\nA heading of 20\n\n\n",
        "more",
    ]
    assert [len(of) for of in texts(teacher, "x" * 150)] == [LONGEST, LONGEST, 150 - 2 * LONGEST]


@given(st.text(alphabet="ab.\n\"' é", max_size=400))
def test_passages_cover_any_text(teacher: Teacher, text: str) -> None:
    tokens = teacher.tokenizer.encode(text)
    passages = split_passages(tokens, teacher.tokenizer)
    bounds = [(of.start, of.stop) for of in passages]
    assert [start for start, _ in bounds] + [len(tokens)] == [0] + [stop for _, stop in bounds]
    for of in passages:
        assert of.paragraph_start <= of.start < of.stop <= min(of.paragraph_stop, of.start + LONGEST)
    longer = split_passages(np.append(tokens, teacher.tokenizer.encode(" and more")), teacher.tokenizer)
    assert [(of.start, of.stop) for of in longer][: len(bounds) - 1] == bounds[:-1]  # an append changes the last only


def test_ids_that_the_tokenizer_does_not_know_end_nothing(teacher: Teacher) -> None:
    tokens = np.array([ord("a"), 10**6, *teacher.tokenizer.encode(".\n\n"), 10**6])
    assert [(of.start, of.stop) for of in split_passages(tokens, teacher.tokenizer)] == [(0, len(tokens))]


def test_words_are_scored_but_for_stop_words() -> None:
    scores = word_scores(["the cat sat", "a dog of Ann's", "Ann and the dog sat"], "Where is the dog?")
    assert scores[0] == 0 < scores[2] < scores[1]
    assert not word_scores(["the cat", "the dog"], "what is the").any()
    assert not word_scores(["the", "of"], "cat").any()


def test_what_a_question_needs_is_opened(teacher: Teacher, document: InMemoryDocument) -> None:
    selection = select(document, "What is the password of Ada Quill?", 150, tokenizer=teacher.tokenizer)
    opened = selection.opened[0]
    assert FACT in teacher.tokenizer.decode(document.tokens(opened.start, opened.stop))
    assert Raw(0, 4) in selection.plan.order
    *_, last = selection.plan.pieces
    assert isinstance(last, Raw)
    assert last.stop == document.n_tokens
    assert last.stop - last.start >= 150 // 4
    assert all(isinstance(piece, Raw) for piece in selection.plan.pieces)
    explained = selection.explain(document, teacher.tokenizer)
    assert len(explained) == len(selection.plan.order)
    assert any("opened" in line and "password" in line for line in explained)


def test_gists_beside_what_is_opened_have_their_room(teacher: Teacher, document: InMemoryDocument) -> None:
    question = "What is the password of Ada Quill?"
    selection = select(document, question, 150, tokenizer=teacher.tokenizer, gists_beside=1)
    beside = [piece for piece in selection.plan.pieces if isinstance(piece, Gists)]
    behind = min(8 * piece.start for piece in beside if 8 * piece.start >= selection.opened[0].stop)
    assert behind - selection.opened[0].stop < 8  # the first whole span behind it
    assert selection.plan.vectors <= 150


@pytest.mark.parametrize("query", [None, "what is the", "zebra", ""])
def test_a_query_that_finds_nothing_leaves_the_budget_to_recent_text(
    teacher: Teacher, document: InMemoryDocument, query: str | None
) -> None:
    plan = select(document, query, 100, tokenizer=teacher.tokenizer).plan
    assert plan.order == (Raw(0, 4), Raw(document.n_tokens - 96, document.n_tokens))


@pytest.mark.parametrize(
    ("budget", "longest_row", "share", "gists"),
    [(100, 64, 1 / 8, 12), (100, 5, 1 / 8, 5), (100, 0, 1 / 8, 0), (100, 64, 0, 0), (11, 64, 1 / 8, 0)],
)
def test_a_row_that_training_has_shown_stands_before_recent_text(
    teacher: Teacher, document: InMemoryDocument, budget: int, longest_row: int, share: float, gists: int
) -> None:
    trained = replace(document, longest_row=longest_row)
    plan = select(trained, None, budget, tokenizer=teacher.tokenizer, row_share=share).plan
    rows = [piece for piece in plan.pieces if isinstance(piece, Gists)]
    recent = plan.pieces[-1]
    assert (recent.start, recent.stop) == (document.n_tokens - (budget - 4 - gists), document.n_tokens)
    assert sum(piece.stop - piece.start for piece in rows) == gists and plan.vectors == budget
    assert all(0 <= recent.start - 8 * piece.stop < 8 for piece in rows)  # up to the last whole span before it


def test_a_row_is_no_longer_than_the_text_before_recent_text(teacher: Teacher, document: InMemoryDocument) -> None:
    n, trained = document.n_tokens, replace(document, longest_row=64)
    for left_out in range(1, 60):
        plan = select(trained, None, n - left_out, tokenizer=teacher.tokenizer, row_share=1).plan
        assert plan.vectors == n - left_out
        assert len(plan.pieces) == 1 or plan.pieces[0].start in (
            0,
            1,
        )  # from the beginning on, but for less than a span


@given(st.data())
def test_no_plan_is_above_its_budget_and_none_leaves_much_of_it(
    teacher: Teacher, document: InMemoryDocument, data: st.DataObject
) -> None:
    budget = data.draw(st.integers(5, document.n_tokens - 1))
    options = {"gists_beside": data.draw(st.integers(0, 3)), "recent_share": data.draw(st.floats(0, 1))}
    query = data.draw(st.sampled_from(["password Ada", "rain day", "Nothing was said", FACT]))
    plan = select(document, query, budget, tokenizer=teacher.tokenizer, **options).plan
    # Left over are the sink, where it is read anyway, and less than a gist's tokens, which would take its place.
    assert budget - 4 - (8 - 1) <= plan.vectors <= budget


def test_a_document_within_the_budget_is_read_whole(teacher: Teacher, document: InMemoryDocument) -> None:
    plan = select(document, "Ada", document.n_tokens, tokenizer=teacher.tokenizer).plan
    assert plan.order == (Raw(0, document.n_tokens),)


def test_bad_sizes_are_refused(teacher: Teacher, document: InMemoryDocument) -> None:
    with pytest.raises(ConfigError, match="budget of 4"):
        select(document, "Ada", 4, tokenizer=teacher.tokenizer)
    with pytest.raises(ConfigError, match="share of 2"):
        select(document, "Ada", 50, tokenizer=teacher.tokenizer, recent_share=2)
    with pytest.raises(ConfigError, match="-1 gists"):
        select(document, "Ada", 50, tokenizer=teacher.tokenizer, gists_beside=-1)
    with pytest.raises(ConfigError, match="at most 3, the longest row"):
        select(replace(document, longest_row=3), "Ada", 50, tokenizer=teacher.tokenizer, gists_beside=4)


def test_generate_reads_what_its_prompt_needs(teacher: Teacher, document: InMemoryDocument) -> None:
    generation = generate(document, "Ada Quill", teacher=teacher, budget=150, max_new_tokens=2)
    assert generation.selection is not None
    assert generation.context.plan == generation.selection.plan
    nothing = generate(document, "Ada Quill", teacher=teacher, budget=150, max_new_tokens=2, selector=lambda *_: [])
    assert nothing.selection is not None
    assert not nothing.selection.opened
    # Without a chat template the prompt continues the text, and half of the budget is recent text.
    chosen = select(document, "Ada Quill", 141, tokenizer=teacher.tokenizer, selector=by_words, recent_share=0.5)
    assert generation.selection.opened[0] == chosen.opened[0]


def test_states_are_compared_token_by_token(teacher: Teacher, document: InMemoryDocument) -> None:
    def states(tokens: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            read = teacher.model.base_model(torch.from_numpy(tokens)[None], output_hidden_states=True)
        return torch.nn.functional.normalize(read.hidden_states[1][0], dim=-1)  # behind the first of two layers

    tokens = document.tokens(0, document.n_tokens)  # fewer than are read together
    own, asked = states(tokens), states(teacher.tokenizer.encode(FACT))
    common = own.mean(dim=0)
    cosine = torch.nn.functional.cosine_similarity((asked - common)[:, None], (own - common)[None], dim=-1)
    hits = ByStates(teacher)(document, FACT, teacher.tokenizer)
    assert [hit.passage for hit in sorted(hits)] == split_passages(tokens, teacher.tokenizer)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for passage, score in hits:
        nearest = [max(row[passage.start : passage.stop].tolist()) for row in cosine[1:]]  # nothing precedes the first
        assert score == pytest.approx(np.mean(nearest), abs=1e-5)
    assert ByStates(teacher)(document, "", teacher.tokenizer) == []


def test_words_and_states_rank_passages_of_a_tree(teacher: Teacher, tmp_path: Path) -> None:
    """Words find both; states rank the passage that is the query itself first, and the fused rank with it."""
    texts = {"near": "Rain fell on the harbour all night.", "far": "harbour harbour harbour, 1912, harbour. " * 2}
    with GistTree.create(tmp_path / "tree", stub := StubEncoder(vocabulary_size=teacher.vocabulary_size)) as tree:
        stub.tokenizer = teacher.tokenizer  # type: ignore[assignment]
        for name, text in texts.items():
            tree.append(teacher.tokenizer.encode(text), name)
        hits = find_by_meaning(tree, texts["near"], teacher, k=2)
        passages = [tree.document(hit.document).tokens(*hit.passage[:2]) for hit in hits]
        scores = ByStates(teacher).scores(teacher.tokenizer.encode(texts["near"]), passages)
        assert hits[0].document == "near" and scores[0] == max(scores) == pytest.approx(1, abs=1e-2)
        assert hits[0].score == pytest.approx(2 / 6)  # the first of both ranks
        assert find_by_meaning(tree, "harbour", teacher, document="far", k=1)[0].document == "far"
        assert find_by_meaning(tree, "zebra", teacher) == []


def test_a_selector_forgets_the_document_before(teacher: Teacher, document: InMemoryDocument) -> None:
    other = InMemoryDocument(document.token_ids[::-1].copy(), (), (8,), "end", document.teacher)
    selector = ByStates(teacher)
    expected = ByStates(teacher)(other, "rain", teacher.tokenizer)
    selector(document, "rain", teacher.tokenizer)
    assert selector(other, "rain", teacher.tokenizer) == expected


def test_ranks_are_fused(teacher: Teacher, document: InMemoryDocument) -> None:
    first, second, third = (Passage(start, start + 1, start, start + 1) for start in range(3))
    ranked = ([Hit(first, 9), Hit(second, 8)], [Hit(second, 0.3), Hit(third, 0.2), Hit(first, 0.1)])
    hits = fused(*(lambda *_, hits=hits: hits for hits in ranked))(document, "any", teacher.tokenizer)
    assert [hit.passage for hit in hits] == [second, first, third]
    assert hits[0].score == pytest.approx(1 / 7 + 1 / 6)


def test_what_recent_text_has_is_not_opened_for_it(teacher: Teacher, document: InMemoryDocument) -> None:
    """The best hit is the end of the document itself, which is read anyway: the budget goes to the next."""
    ending = Hit(Passage(*(document.n_tokens - 40, document.n_tokens) * 2), 2.0)
    early = Hit(Passage(*(80, 120) * 2), 1.0)
    selection = select(
        document, "any", 150, tokenizer=teacher.tokenizer, selector=lambda *_: [ending, early], recent_share=0.5
    )
    assert [of.start for of in selection.opened] == [80]
