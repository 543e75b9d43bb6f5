import re
from collections import Counter

from gistnet.data.adversarial import AdversarialPair, adversarial_pairs
from gistnet.data.synthetic import synthetic_document
from gistnet.data.templates import templates
from gistnet.model.tokenizer import TeacherTokenizer

PAIRS = list(adversarial_pairs(seed=5, count=600))


def changed_words(pair: AdversarialPair) -> tuple[list[str], list[str]]:
    """The words that only one of the spans has at a place: from `span_a`, from `span_b`."""
    first, second = pair.span_a.split(), pair.span_b.split()
    while first and second and first[0] == second[0]:
        del first[0], second[0]
    while first and second and first[-1] == second[-1]:
        del first[-1], second[-1]
    return first, second


def bare(word: str) -> str:
    return word.strip(".,")


def test_more_pairs_continue_fewer_and_another_seed_gives_others() -> None:
    assert list(adversarial_pairs(5, 20)) == PAIRS[:20]
    assert not set(adversarial_pairs(6, 600)) & set(PAIRS)


def test_spans_of_a_pair_differ_in_one_number_name_or_negation() -> None:
    assert Counter(pair.kind for pair in PAIRS) == {"number": 200, "name": 200, "negation": 200}
    for pair in PAIRS:
        first, second = (list(map(bare, words)) for words in changed_words(pair))
        match pair.kind:
            case "number":
                assert len(first) == len(second) == 1
                assert first[0].isdigit() and second[0].isdigit() and len(first[0]) == len(second[0])
            case "name":
                assert len(first) == len(second) == 1
                assert first[0].istitle() and second[0].istitle() and abs(len(first[0]) - len(second[0])) <= 1
            case "negation":
                assert (first, second) in [(["not"], []), (["never"], [])]


def test_continuations_restate_what_differs_and_nothing_else_gives_it_away() -> None:
    for pair in PAIRS:
        first, second = (" ".join(map(bare, words)) for words in changed_words(pair))
        words_a, words_b = (list(map(bare, text.split())) for text in (pair.continuation_a, pair.continuation_b))
        assert first in words_a and first not in words_b and pair.continuation_a != pair.continuation_b
        assert abs(len(words_a) - len(words_b)) <= 2
        assert first not in map(bare, pair.prefix.split())
        if pair.kind != "negation":
            assert words_b == [second if word == first else word for word in words_a]
            assert second not in map(bare, pair.prefix.split())
            assert Counter(map(bare, pair.span_a.split()))[first] == 1


def test_spans_are_long_enough_and_the_word_that_differs_has_no_fixed_place() -> None:
    places = []
    for pair in PAIRS:
        first, second = pair.span_a.split(), pair.span_b.split()
        assert min(len(first), len(second)) >= 32
        places.append(next(place for place, word in enumerate(first) if place >= len(second) or word != second[place]))
    assert max(Counter(places).values()) <= 90
    assert min(places) < 5 and max(places) > 35
    assert all(part.startswith(" ") for pair in PAIRS for part in (pair.span_a, pair.continuation_a, pair.span_b))
    assert not re.search(r"[{}]| {2}", "".join(pair.prefix + pair.span_a + pair.continuation_a for pair in PAIRS))


def test_there_are_many_families_and_hardly_two_pairs_alike() -> None:
    assert min(map(len, templates().families.values())) >= 10
    keys = [family.key for families in templates().families.values() for family in families]
    assert len(set(keys)) == len(keys) == 33
    assert len({pair.continuation_a for pair in PAIRS}) > 550
    assert len({pair.span_a for pair in PAIRS} | {pair.span_b for pair in PAIRS}) == 2 * len(PAIRS)


def test_a_document_of_pairs_holds_texts_that_differ_from_another_by_a_few_words() -> None:
    paragraphs = synthetic_document(0, "pairs", 0).split("\n\n")[:-1]
    texts = paragraphs[::2]
    assert len(texts) >= 10
    for text in texts:
        words = text.split()
        others = (other.split() for other in texts if other != text)
        # Prefix and most of the span come again; so an alignment of the two keeps at least 60 words of the beginning.
        assert any(sum((Counter(words) & Counter(other)).values()) >= len(words) - 6 for other in others)


def test_spans_fill_a_gist_of_the_embedded_teacher_and_parts_are_tokenised_apart_as_together(
    embedded_tokenizer: TeacherTokenizer,
) -> None:
    spans = embedded_tokenizer.encode_batch([span for pair in PAIRS for span in (pair.span_a, pair.span_b)])
    assert min(map(len, spans)) >= 32
    assert max(map(len, spans)) <= 80
    for pair in PAIRS[:30]:
        parts = embedded_tokenizer.encode_batch([pair.prefix, pair.span_a, pair.continuation_a])
        assert embedded_tokenizer.encode_batch([pair.texts[0]]) == [[token for part in parts for token in part]]
