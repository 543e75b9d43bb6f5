"""Which passages of which documents are read."""

import numpy as np

from gistnet.evaluation.long_documents import long_passages


def test_short_documents_are_left_out_and_long_ones_cut():
    documents = [("short", range(9)), ("whole", range(10)), ("long", range(1000)), ("also long", range(1000))]
    found = list(long_passages(documents, min_tokens=10, max_tokens=20, seed=0))
    assert [document.name for document in found] == ["whole", "long", "also long"]
    assert found[0].tokens.tolist() == list(range(10))
    for passage in found[1:]:
        assert 10 <= len(passage.tokens) <= 20
        assert np.array_equal(passage.tokens, np.arange(passage.tokens[0], passage.tokens[0] + len(passage.tokens)))
    assert found[1].tokens[0] != found[2].tokens[0]  # the name is a part of the draw
    again = list(long_passages(documents[2:3], min_tokens=10, max_tokens=20, seed=0))
    assert np.array_equal(again[0].tokens, found[1].tokens)  # whatever else there is
    assert not np.array_equal(
        next(long_passages(documents[2:3], min_tokens=10, max_tokens=20, seed=1)).tokens, again[0].tokens
    )


def test_every_length_and_place_can_be_drawn():
    documents = [(str(n), range(12)) for n in range(200)]
    found = {tuple(p.tokens[[0, -1]]) for p in long_passages(documents, min_tokens=10, max_tokens=11, seed=0)}
    assert found == {(0, 9), (1, 10), (2, 11), (0, 10), (1, 11)}


def test_documents_are_read_only_as_far_as_they_are_asked_for():
    def documents():
        yield "first", range(10)
        raise AssertionError("read too far")

    assert next(long_passages(documents(), min_tokens=5, max_tokens=10, seed=0)).name == "first"
