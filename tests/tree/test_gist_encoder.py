"""A GistNet as the encoder of a tree: the same bits in any portions, level on level, and what is refused."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from gistnet.errors import CheckpointError, DataError, TeacherError
from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import GistNet, SpanContext
from gistnet.model.teacher import Teacher
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.tree.gist_encoder import GistEncoder
from gistnet.tree.tree import GistTree
from tests.gistnets import context_gistnet, woken_gistnet
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


def test_spans_are_read_where_they_stand(teacher: Teacher) -> None:
    """The third batch: gists of spans 8 to 11, in a window from span 5 on."""
    gistnet = context_gistnet(teacher)
    encoder = GistEncoder(teacher, gistnet, batch_spans=4, context_spans=3)
    assert [encoder.info.reads_from(0, first) for first in (0, 3, 4, 7, 8, 11)] == [0, 0, 1, 1, 5, 5]
    tokens = np.random.default_rng(1).integers(0, 97, (12, 8))
    window = torch.from_numpy(tokens[5:]).view(1, -1)
    read = teacher.prefill(window, hidden_state_layer=gistnet.hidden_state_layer)
    firsts = 8 * torch.arange(3, 7)
    with torch.no_grad():
        context = SpanContext(read, torch.zeros_like(firsts), firsts)
        expected = gistnet(teacher.embed(torch.from_numpy(tokens[8:])), context=context)
    assert np.allclose(encoder.encode(0, tokens[5:], 8), expected.numpy(), atol=2e-2, rtol=1e-3)
    whole = encoder.encode(0, tokens, 0)
    assert np.array_equal(encoder.encode(0, tokens[5:], 9), whole[9:])
    assert np.array_equal(encoder.encode(0, tokens[:6], 2), whole[2:6])
    changed = tokens.copy()
    changed[5, 0] = (changed[5, 0] + 1) % 97
    again = encoder.encode(0, changed, 0)
    assert np.flatnonzero((again != whole).any(axis=1)).tolist() == list(range(5, 12))
    wide = GistEncoder(teacher, gistnet)  # 256 positions are 32 spans
    assert [wide.info.reads_from(0, first) for first in (15, 16, 31, 32)] == [0, 0, 0, 16]


def test_what_begins_a_text_is_read_before_its_spans() -> None:
    """With two tokens before every text, the spans begin at the third."""
    teacher = tiny_teacher("llama", torch.float32)
    teacher.tokenizer = TeacherTokenizer(Beginning())
    gistnet = context_gistnet(teacher)
    encoder = GistEncoder(teacher, gistnet, batch_spans=4, context_spans=3)
    tokens = np.random.default_rng(1).integers(0, 97, (12, 8))
    for first, read_from in ((0, 0), (4, 1), (8, 5)):
        window = torch.tensor([[3, 5, *tokens[read_from : first + 4].ravel()]])
        starts = 2 + 8 * torch.arange(first - read_from, first - read_from + 4)
        context = SpanEncoder(teacher, gistnet).context(window, starts)
        with torch.no_grad():
            expected = gistnet(teacher.embed(torch.from_numpy(tokens[first : first + 4])), context=context)
        got = encoder.encode(0, tokens[read_from : first + 4], first)
        assert np.allclose(got, expected.numpy(), atol=2e-2, rtol=1e-3)


class Beginning:
    """Puts the tokens 3 and 5 before every text."""

    def __call__(self, texts, add_special_tokens=True, **options):
        return {"input_ids": [3, 5, 7] if add_special_tokens else [7]}


def test_the_fingerprint_says_what_is_read_of_a_text(teacher: Teacher) -> None:
    def fingerprint(batch: int, context: int, gistnet: GistNet) -> str:
        return GistEncoder(teacher, gistnet, batch_spans=batch, context_spans=context).info.fingerprint

    in_context, alone = context_gistnet(teacher), woken_gistnet(teacher)
    assert len({fingerprint(*sizes, in_context) for sizes in ((4, 3), (4, 2), (3, 3))}) == 3
    assert fingerprint(4, 3, alone) == fingerprint(8, 2, alone), (
        "such gists have the same bits in other batches, but for rounding"
    )


def test_the_fingerprint_names_the_weights_of_every_level(teacher: Teacher, encoder: GistEncoder) -> None:
    same = GistEncoder(teacher, woken_gistnet(teacher, 2))
    assert same.info.fingerprint == encoder.info.fingerprint
    assert same.info.fingerprint.isalnum()
    for level in (0, 1):
        other = woken_gistnet(teacher, 2)
        with torch.no_grad():
            other.levels[level].gain.add_(1e-3)
        assert GistEncoder(teacher, other).info.fingerprint != encoder.info.fingerprint
    assert GistEncoder(teacher, woken_gistnet(teacher, 1)).info.fingerprint != encoder.info.fingerprint


def test_the_gistnet_of_another_teacher_is_refused(teacher: Teacher) -> None:
    with pytest.raises(CheckpointError, match="tiny-qwen3"):
        GistEncoder(tiny_teacher("qwen3", torch.float32), woken_gistnet(teacher, 1))


def test_a_tree_is_continued_in_its_precision_alone_and_keeps_that_of_gists_made_anew(
    teacher: Teacher, encoder: GistEncoder, tmp_path: Path
) -> None:
    wide_teacher = tiny_teacher("llama", torch.float64)
    wide = GistEncoder(wide_teacher, woken_gistnet(wide_teacher, 2))
    tokens = np.random.default_rng(0).integers(0, 97, 100)
    with GistTree.create(tmp_path / "tree", encoder) as tree:
        tree.append(tokens)
        assert tree.info().teacher.precision == "float32"
    with pytest.raises(CheckpointError, match=r"float32.*float64"):
        GistTree.open(tmp_path / "tree", wide, writable=True)
    with GistTree.open(tmp_path / "tree", writable=True) as tree:
        tree.reencode(wide)
    with GistTree.open(tmp_path / "tree", wide, writable=True) as tree:
        assert tree.info().teacher == wide.info.teacher
        assert tree.verify().ok


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
