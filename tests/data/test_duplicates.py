import random
import tracemalloc
import unicodedata
from collections.abc import Collection

import numpy as np
import pytest

from gistnet.data.duplicates import NearDuplicates, signature_of


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
    kept = NearDuplicates()
    assert kept.keep(" ".join(text))
    assert not kept.keep("A header, which shifts every word. " + " ".join(text))
    assert not kept.keep("\n".join(text).upper().replace("\n", " -- "))
    assert kept.keep(" ".join(other))
    assert kept.keep(" ".join(text[:1000] + other[1000:])), "similarity 1/3 to each"
    assert not kept.keep(" ".join(other[:1950]))


@pytest.mark.parametrize(("changed", "kept"), [(100, False), (300, True)])
def test_a_similarity_of_four_fifths_decides(changed: int, kept: bool) -> None:
    """1900 of 2100 shingles are shared, or 1700 of 2300."""
    text, duplicates = words(2000, seed=1), NearDuplicates()
    duplicates.keep(" ".join(text))
    assert duplicates.keep(" ".join(words(changed, seed=3) + text[changed:])) is kept


def test_short_and_empty_texts_are_duplicates_only_of_the_same() -> None:
    kept = NearDuplicates()
    texts = ("", "one", "one two", "two one", "Ä", "Ö", " - ", "one")
    assert [kept.keep(text) for text in texts] == [*[True] * 7, False]


def test_minified_json_is_compared_by_its_words_and_not_as_one() -> None:
    numbers = words(500, seed=1)
    kept = NearDuplicates()
    assert kept.keep("[" + ",".join(numbers) + "]")
    assert not kept.keep("[" + ",".join(numbers[:-5]) + "]")


CHINESE = "".join(f"第{n}天，他们去了山里，看到了很多花。" for n in range(200))
THAI = "".join(f"วันนี้พวกเขาไปที่ภูเขาและเห็นดอกไม้มากมาย{n}" for n in range(100))
JAPANESE = "".join(f"{n}日目、彼らは山へ行き、たくさんの花を見た。" for n in range(200))
KHMER = "".join(f"ថ្ងៃទី{n}ពួកគេបានទៅភ្នំហើយឃើញផ្កាជាច្រើន" for n in range(100))


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (CHINESE, CHINESE.replace("第100天", "第一百天"), False),
        (THAI, THAI.replace("เห็น", "พบ", 1), False),
        (JAPANESE, JAPANESE.replace("50日目", "五十日目"), False),
        (KHMER, KHMER.replace("ភ្នំ", "ទន្លេ", 1), False),
        (CHINESE, CHINESE.replace("，", "！ ").replace("。", "\u200b"), False),
        ("\u200b".join(words(300, 1)), " ".join(words(300, 1)), False),
        ("，".join(words(300, 1)), "\u3000".join(words(300, 1)), False),
        ("한국어 문서 é" * 100, unicodedata.normalize("NFD", "한국어 문서 é" * 100), False),
        ("+-><[]., " * 200, "+-><[]., " * 201, False),
        ("+-><[]., " * 200, "|/\\_ " * 300, True),
        (CHINESE, JAPANESE, True),
        ("🂡 🂢 🂣 🂤 🂥 🂦", "🂦 🂥 🂤 🂣 🂢 🂡", True),
    ],
)
def test_near_duplicates_are_found_in_every_script(first: str, second: str, kept: bool) -> None:
    duplicates = NearDuplicates()
    assert [duplicates.keep(first), duplicates.keep(second)] == [True, kept]


def test_memory_does_not_grow_with_the_documents_kept() -> None:
    kept, held = NearDuplicates(), []
    tracemalloc.start()
    for n in range(1100):
        assert kept.keep(f"{n} {n + 1} {n * 7} {n * 13} {n * 31} {n * 37}")
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[-1] - held[100] < 100 * 1000  # bytes of Python's; SQLite has 8 MB of its own
