"""Which passages of which documents are read."""

import json
from pathlib import Path

import numpy as np
import pytest

from gistnet.data.config import DataConfig
from gistnet.data.prepare import prepare, split_of
from gistnet.data.sources import Document
from gistnet.errors import DataError
from gistnet.evaluation.contexts.long_documents import held_out_passages, long_passages
from tests.data.byte_tokenizer import ByteTokenizer


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


def test_held_out_documents_are_read_beyond_their_windows(tmp_path: Path):
    texts = {f"d{n}": "".join(chr(97 + (7 * n + k * k) % 26) for k in range(150 + 30 * n)) for n in range(20)}
    file = tmp_path / "tales.jsonl"
    file.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in texts.items()))
    source = {"kind": "files", "name": "tales", "domain": "narrative", "paths": [str(file)]}
    sizes = {"window_tokens": 100, "min_tokens": 40, "held_out_fraction": 0.5, "deduplicate": False}
    dataset = prepare(DataConfig(sources=[source], folder=tmp_path / "prepared", **sizes), ByteTokenizer())
    found = held_out_passages(dataset, "narrative", documents=3, min_tokens=300, max_tokens=1000, seed=0)
    assert len(found) == 3
    for passage in found:
        assert bytes(passage.tokens.tolist()).decode() == texts[passage.name]
        key = Document(passage.name, "tales", "narrative", texts[passage.name]).key
        assert split_of(key, 0.5) == "held_out" and len(passage.tokens) >= 300
    with pytest.raises(DataError, match="0 held-out documents of narrative with 5000 tokens or more, expected 2"):
        held_out_passages(dataset, "narrative", documents=3, min_tokens=5000, max_tokens=8000, seed=0)
