import random
from collections.abc import Collection

import numpy as np
import pytest

from gistnet.data.deduplicate import NearDuplicates, signature_of


def words(count: int, seed: int) -> list[str]:
    return [f"w{random.Random(f'{seed}:{place}').randrange(10**6)}" for place in range(count)]


def shingles(text: list[str]) -> set[tuple[str, ...]]:
    return {tuple(text[place : place + 5]) for place in range(len(text) - 4)}


@pytest.mark.parametrize("changed", [[], range(50), range(400), range(0, 1000, 7), range(0, 1000, 50), range(1000)])
def test_share_of_equal_hashes_estimates_the_jaccard_similarity_of_word_5_grams(changed: Collection[int]) -> None:
    first, other = words(1000, seed=1), words(1000, seed=2)
    second = [other[place] if place in changed else first[place] for place in range(1000)]
    a, b = shingles(first), shingles(second)
    exact = len(a & b) / len(a | b)
    estimate = np.mean(signature_of(" ".join(first)) == signature_of(" ".join(second)))
    # Five standard errors of a mean of 128 draws.
    assert estimate == pytest.approx(exact, abs=5 * (exact * (1 - exact) / 128) ** 0.5 + 1e-9)


def test_first_of_near_duplicates_is_kept() -> None:
    text, other = words(2000, seed=1), words(2000, seed=2)
    kept = NearDuplicates(similarity=0.8)
    assert kept.keep(" ".join(text))
    assert not kept.keep("A header, which shifts every word. " + " ".join(text))
    assert not kept.keep("\n".join(text).upper().replace("\n", " -- "))
    assert kept.keep(" ".join(other))
    assert kept.keep(" ".join(text[:1000] + other[1000:])), "similarity 1/3 to each"
    assert not kept.keep(" ".join(other[:1950]))


def test_similarity_decides() -> None:
    text = words(2000, seed=1)
    changed = " ".join(words(300, seed=3) + text[300:])  # 1700 of 2300 shingles are shared: 0.74
    for similarity, expected in ((0.6, False), (0.9, True)):
        kept = NearDuplicates(similarity)
        kept.keep(" ".join(text))
        assert kept.keep(changed) is expected


def test_short_and_empty_texts_are_duplicates_only_of_the_same() -> None:
    kept = NearDuplicates(similarity=0.5)
    assert [kept.keep(text) for text in ("", "one", "one two", "two one", "Ä", "Ö", "one", " - ")] == [
        *[True] * 6,
        *[False] * 2,
    ]


def test_minified_json_is_compared_by_its_words_and_not_as_one() -> None:
    numbers = words(500, seed=1)
    kept = NearDuplicates(similarity=0.8)
    assert kept.keep("[" + ",".join(numbers) + "]")
    assert not kept.keep("[" + ",".join(numbers[:-5]) + "]")
