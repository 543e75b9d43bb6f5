"""Searching against cosines computed in float64 over all gists."""

import numpy as np
import pytest
from numpy.typing import NDArray

from gistnet.errors import ConfigError, DataError
from gistnet.tree.tree import GistTree
from tests.stub_encoder import StubEncoder


def cosines(gists: NDArray[np.float16], query: NDArray[np.generic]) -> NDArray[np.float64]:
    vectors, query = gists.astype(np.float64), query.astype(np.float64)
    return vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)


@pytest.fixture
def filled(tree: GistTree) -> GistTree:
    random = np.random.default_rng(0)
    tree.append(random.integers(0, 1000, 400))
    tree.append(random.integers(0, 1000, 202), "it's")
    tree.append(random.integers(0, 1000, 3))  # completes nothing
    return tree


@pytest.mark.parametrize("level", [0, 1])
def test_hits_are_the_nearest_by_cosine_over_all_documents(filled: GistTree, level: int) -> None:
    query = np.random.default_rng(1).standard_normal(8)
    counts = {"main": (100, 25), "it's": (50, 12)}
    wanted = [
        (float(score), name, index)
        for name, count in counts.items()
        for index, score in enumerate(cosines(filled.document(name).gists(level, 0, count[level]), query))
    ]
    wanted.sort(reverse=True)
    hits = filled.search(query, level, k=12)
    assert [(hit.document, hit.index) for hit in hits] == [(name, index) for _, name, index in wanted[:12]]
    assert np.allclose([hit.score for hit in hits], [score for score, _, _ in wanted[:12]], atol=2e-3)
    per_gist = 4 ** (level + 1)
    assert all(
        (hit.level, hit.start, hit.stop) == (level, hit.index * per_gist, (hit.index + 1) * per_gist) for hit in hits
    )


def test_one_document_can_be_searched_alone(filled: GistTree) -> None:
    query = filled.document().gists(0, 7, 8)[0]
    assert filled.search(query, k=1)[0].document == "main"
    hits = filled.search(query, k=60, document="it's")
    assert sorted(hit.index for hit in hits) == list(range(50))  # fewer than asked for
    best = int(np.argmax(cosines(filled.document("it's").gists(0, 0, 50), query)))
    assert hits[0].index == best


def test_a_text_is_repeated_until_it_fills_a_span(filled: GistTree, stub: StubEncoder) -> None:
    """K = 4: "ab" is searched as "abab", "abcdef" as "abcd" and "efab"; at level 1, K² = 16 tokens."""
    gists = filled.document().gists(0, 0, 100)
    spans = np.frombuffer(b"abababcdefab", dtype=np.uint8).reshape(3, 4).astype(np.int64)
    short = cosines(gists, stub.encode(0, spans[:1], 0)[0])
    (hit,) = filled.search("ab", k=1, document="main")
    assert hit.index == int(np.argmax(short)) and hit.score == pytest.approx(short.max(), abs=2e-3)
    long = np.maximum(*(cosines(gists, query) for query in stub.encode(0, spans[1:], 0)))
    found = filled.search("abcdef", k=5, document="main")
    assert [hit.index for hit in found] == np.argsort(-long)[:5].tolist()
    below = stub.encode(0, np.frombuffer(b"ab" * 8, dtype=np.uint8).reshape(4, 4).astype(np.int64), 0)
    above = cosines(filled.document().gists(1, 0, 25), stub.encode(1, below[None], 0)[0])
    assert filled.search("ab", level=1, k=1, document="main")[0].index == int(np.argmax(above))


def test_queries_that_cannot_be_searched_for(filled: GistTree) -> None:
    for ask, word in (
        (lambda: filled.search(np.zeros(8)), "zero"),
        (lambda: filled.search(np.full(8, np.nan)), "finite"),
        (lambda: filled.search(np.ones(7)), "shape"),
        (lambda: filled.search(np.ones(8), level=2), "level 2"),
        (lambda: filled.search("text", level=2), "level 2"),
        (lambda: filled.search(np.ones(8), k=0), "k = 0"),
        (lambda: filled.search(""), "tokens"),
        (lambda: filled.search(np.ones(8), document="x"), "document 'x'"),
    ):
        with pytest.raises(DataError, match=word):
            ask()


def test_a_text_needs_an_encoder(filled: GistTree) -> None:
    with (
        GistTree.open(filled.info().uri) as reader,
        pytest.raises(ConfigError, match="encoder"),
    ):
        reader.search("text")


def test_an_empty_tree_has_no_hits(tree: GistTree) -> None:
    assert tree.search(np.ones(8)) == []
