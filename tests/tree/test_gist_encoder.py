"""GistNets as the encoder of a tree: the same bits in any portions, level on level, and what is refused."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from gistnet.errors import CheckpointError, DataError, TeacherError
from gistnet.model.gistnet import GistNet, GistNetConfig
from gistnet.model.teacher import Teacher
from gistnet.tree.gist_encoder import GistEncoder
from tests.teachers import tiny_teacher

CONFIG = GistNetConfig(architecture="bottleneck", span_tokens=8, width=16, heads=2)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return tiny_teacher("llama", torch.float32)


def trained(teacher: Teacher, level: int, config: GistNetConfig = CONFIG) -> GistNet:
    net = GistNet.build(config, teacher, level=level, seed=level)
    torch.nn.init.normal_(net.w_out.weight, generator=torch.Generator().manual_seed(level))
    return net


@pytest.fixture(scope="module")
def encoder(teacher: Teacher) -> GistEncoder:
    return GistEncoder(teacher, [trained(teacher, 0), trained(teacher, 1)], batch_spans=16)


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
        below = trained(teacher, 0)(teacher.embed(torch.from_numpy(tokens)))
        above = trained(teacher, 1)(below.half()[None])
    assert np.allclose(encoder.encode(0, tokens, 3), below.numpy(), atol=2e-2, rtol=1e-3)
    assert np.allclose(encoder.encode(1, below.half().numpy()[None], 5), above.numpy(), atol=2e-2, rtol=1e-3)


def test_the_fingerprint_names_the_weights_of_every_level(teacher: Teacher, encoder: GistEncoder) -> None:
    same = GistEncoder(teacher, [trained(teacher, 0), trained(teacher, 1)])
    assert same.fingerprint == encoder.fingerprint
    assert same.fingerprint.isalnum()
    other = trained(teacher, 1)
    with torch.no_grad():
        other.gain.add_(1e-3)
    assert GistEncoder(teacher, [trained(teacher, 0), other]).fingerprint != encoder.fingerprint
    assert GistEncoder(teacher, [trained(teacher, 0)]).fingerprint != encoder.fingerprint


def test_levels_must_follow_each_other_and_fit_the_teacher(teacher: Teacher) -> None:
    with pytest.raises(CheckpointError, match=r"levels \[1\], expected 0"):
        GistEncoder(teacher, [trained(teacher, 1)])
    wide = CONFIG.model_copy(update={"span_tokens": 16})
    with pytest.raises(CheckpointError, match=r"spans of \[8, 16\]"):
        GistEncoder(teacher, [trained(teacher, 0), trained(teacher, 1, wide)])
    with pytest.raises(CheckpointError, match="trained with tiny-llama"):
        GistEncoder(tiny_teacher("qwen3", torch.float32), [trained(teacher, 0)])


def test_what_cannot_be_encoded_is_refused(teacher: Teacher, encoder: GistEncoder) -> None:
    with pytest.raises(DataError, match="level 2, expected one of 0 to 1"):
        encoder.encode(2, np.zeros((1, 8, 32), np.float16), 0)
    with pytest.raises(TeacherError, match="ids 0 to 96"):
        encoder.encode(0, np.full((1, 8), 97), 0)
    with pytest.raises(TeacherError, match="no tokenizer"):
        encoder.tokenize("text")
    huge = trained(teacher, 0)
    with torch.no_grad():
        huge.gain.fill_(1e9)
    with pytest.raises(DataError, match="not a finite float16"):
        GistEncoder(teacher, [huge]).encode(0, np.full((1, 8), 5), 0)
