"""Which tokens repeat a word from far back, on a text short enough to check by eye."""

import numpy as np

from gistnet.evaluation.contexts.far_words import repeated_from_far, words_of_tokens


def test_a_token_belongs_to_the_word_of_its_first_visible_character():
    texts = [" Lant", "ern", " of", " the", "", " 1912x", "—Bridge", ".", "\n\n", "na", "ïve"]
    words = ["lantern", "lantern", "", "", "", "", "", "", "", "naïve", "naïve"]
    assert words_of_tokens(texts) == words
    assert words_of_tokens(["", "Bridge"]) == ["bridge", "bridge"]


def test_only_words_of_the_far_part_count_and_only_until_they_are_said_again():
    far = ["sink", "lantern", "river", "bridge", "harbour", ""]
    near = ["river", "stone"]
    judged = ["lantern", "lantern", "", "lantern", "river", "sink", "harbour", "bridge", "stone", "winter", "bridge"]
    found = repeated_from_far([*far, *near, *judged], sink=1, recent=6, scored=len(judged))
    #                    lantern (two tokens of one word), …, harbour, bridge
    assert found.tolist() == [True, True, False, False, False, False, True, True, False, False, False]


def test_where_nothing_is_far_nothing_is_repeated():
    words = ["river", "stone", "river"]
    assert not repeated_from_far(words, sink=0, recent=0, scored=2).any()
    assert repeated_from_far(words, sink=0, recent=1, scored=1).tolist() == [True]
    assert repeated_from_far(words, sink=1, recent=1, scored=1).dtype == np.bool_
