"""A GistNet as the encoder of a tree: the same bits in any portions, level on level, and what is refused."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from gistnet.errors import CheckpointError, DataError, TeacherError
from gistnet.model.teacher import Teacher
from gistnet.tree.gist_encoder import GistEncoder
from tests.gistnets import woken_gistnet
from tests.teachers import tiny_teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return tiny_teacher("llama", torch.float32)


@pytest.fixture(scope="module")
def encoder(teacher: Teacher) -> GistEncoder:
    return GistEncoder(teacher, woken_gistnet(teacher, 2), batch_spans=16)


def test_portions_do_not_change_a_bit(encoder: GistEncoder) -> None:
    tokens = np.random.default_rng(0).integers(0, 97, (64, 8))
    whole = encoder.encode(0, tokens, 0)
    cuts = [0, 1, 2, 15, 17, 40, 64]
    parts = [encoder.encode(0, tokens[a:b], a) for a, b in pairwise(cuts)]
    assert np.array_equal(np.concatenate(parts), whole)
    above = whole.reshape(8, 8, -1)
    one_by_one = [encoder.encode(1, above[n : n + 1], n) for n in range(8)]
    assert np.array_equal(np.concatenate(one_by_one), encoder.encode(1, above, 0))


def test_gists_are_those_of_the_networks(teacher: Teacher, encoder: GistEncoder) -> None:
    tokens = np.random.default_rng(1).integers(0, 97, (8, 8))
    with torch.no_grad():
        level_0, level_1 = woken_gistnet(teacher, 2).levels
        below = level_0(teacher.embed(torch.from_numpy(tokens)))
        above = level_1(below.half()[None])
    assert np.allclose(encoder.encode(0, tokens, 3), below.numpy(), atol=2e-2, rtol=1e-3)
    assert np.allclose(encoder.encode(1, below.half().numpy()[None], 5), above.numpy(), atol=2e-2, rtol=1e-3)


def test_the_fingerprint_names_the_weights_of_every_level(teacher: Teacher, encoder: GistEncoder) -> None:
    same = GistEncoder(teacher, woken_gistnet(teacher, 2))
    assert same.fingerprint == encoder.fingerprint
    assert same.fingerprint.isalnum()
    for level in (0, 1):
        other = woken_gistnet(teacher, 2)
        with torch.no_grad():
            other.levels[level].gain.add_(1e-3)
        assert GistEncoder(teacher, other).fingerprint != encoder.fingerprint
    assert GistEncoder(teacher, woken_gistnet(teacher, 1)).fingerprint != encoder.fingerprint


def test_the_gistnet_of_another_teacher_is_refused(teacher: Teacher) -> None:
    with pytest.raises(CheckpointError, match=r"trained with tiny-llama.*got the teacher tiny-qwen3"):
        GistEncoder(tiny_teacher("qwen3", torch.float32), woken_gistnet(teacher, 1))


def test_what_cannot_be_encoded_is_refused(teacher: Teacher, encoder: GistEncoder) -> None:
    with pytest.raises(DataError, match="level 2, expected one of 0 to 1"):
        encoder.encode(2, np.zeros((1, 8, 32), np.float16), 0)
    with pytest.raises(TeacherError, match="ids 0 to 96"):
        encoder.encode(0, np.full((1, 8), 97), 0)
    with pytest.raises(TeacherError, match="no tokenizer"):
        encoder.tokenize("text")
    huge = woken_gistnet(teacher, 1)
    with torch.no_grad():
        huge.gain.fill_(1e9)
    with pytest.raises(DataError, match="not a finite float16"):
        GistEncoder(teacher, huge).encode(0, np.full((1, 8), 5), 0)
