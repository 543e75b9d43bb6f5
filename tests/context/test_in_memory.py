"""Compression in memory: complete blocks only, each level from the stored gists below, and the History it makes."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from gistnet.context.in_memory import compress
from gistnet.errors import DataError, TeacherError
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.tree.compress import compress_files
from gistnet.tree.gist_encoder import GistEncoder
from gistnet.tree.texts import TextFiles
from gistnet.tree.tree import GistTree
from tests.gistnets import SPAN, woken_gistnet
from tests.teachers import tiny_teacher
from tests.tokenizers import merging, sentencepiece_like


@pytest.fixture(scope="module")
def encoder() -> GistEncoder:
    teacher = tiny_teacher("llama", torch.float32)
    return GistEncoder(teacher, woken_gistnet(teacher, levels=2), batch_spans=4)


def test_levels_are_made_of_complete_blocks_and_of_stored_gists(encoder: GistEncoder) -> None:
    tokens = np.random.default_rng(0).integers(3, 97, 2 * SPAN**2 + 3 * SPAN + 5)
    history = compress(tokens, encoder)
    assert (history.n_tokens, history.span_tokens, history.levels) == (157, SPAN, 2)
    assert [gists.shape for gists in history.level_gists] == [(19, 32), (2, 32)]
    assert np.array_equal(history.tokens(3, 150), tokens[3:150])
    # One span at a time, and level 1 from float16 gists.
    for index in (0, 7, 18):
        alone = encoder.encode(0, tokens[None, index * SPAN : (index + 1) * SPAN], index)
        assert np.array_equal(history.gists(0, index, index + 1), alone)
    assert np.array_equal(history.gists(1, 1, 2), encoder.encode(1, history.gists(0, 8, 16)[None], 1))
    assert np.array_equal(compress(tokens.tolist(), encoder).level_gists[1], history.level_gists[1])


def test_a_text_shorter_than_a_span_stays_tokens(encoder: GistEncoder) -> None:
    history = compress([5, 6, 7], encoder)
    assert history.tokens(0, 3).tolist() == [5, 6, 7]
    assert history.gists(0, 0, 0).shape == history.gists(1, 0, 0).shape == (0, 32)


def test_a_text_has_the_tokens_and_gists_of_a_tree_however_long_it_is(tmp_path: Path) -> None:
    """Beyond the length at which a tree tokenises in pieces; and the same where it is appended in pieces."""
    teacher = tiny_teacher("llama", torch.float32)
    for tokenizer in (merging(), sentencepiece_like()):
        teacher.tokenizer = Below(tokenizer, 97)
        encoder = GistEncoder(teacher, woken_gistnet(teacher, 2))
        text = "".join(f"a bee ate {'an apple' * (n % 3)}.\n\n" for n in range(12_000))
        (tmp_path / "text.txt").write_text(text)
        history = compress(text, encoder)
        whole = teacher.tokenizer.encode_batch([text])[0]
        assert history.token_ids.tolist() == whole
        with GistTree.create(tmp_path / f"{len(whole)}", encoder) as tree:
            files = TextFiles(paths=(str(tmp_path / "text.txt"),))
            compress_files(files, tree, encoder)
            (name,) = tree.documents()
            cuts = [0, *(text.index("\n\n", near) for near in (7, 190_000)), len(text)]
            for start, stop in pairwise(cuts):
                tree.append(text[start:stop], "appended")
            for document in (tree.document(name), tree.document("appended")):
                assert np.array_equal(document.tokens(0, document.n_tokens), history.token_ids)
                for level, gists in enumerate(history.level_gists):
                    assert np.array_equal(document.gists(level, 0, len(gists)), gists)


class Below(TeacherTokenizer):
    """A tokenizer whose ids are taken below a limit, for a teacher of few tokens."""

    window_prefix = ()

    def __init__(self, of: TeacherTokenizer, limit: int) -> None:
        super().__init__(of.inner)
        self._of, self._limit = of, limit

    def encode_batch(self, texts: Sequence[str], **options: bool) -> list[list[int]]:
        return [[token % self._limit for token in tokens] for tokens in self._of.encode_batch(texts, **options)]


def test_half_a_surrogate_pair_is_refused() -> None:
    teacher = tiny_teacher("llama", torch.float32)
    teacher.tokenizer = Below(merging(), 97)
    with pytest.raises(DataError, match="Unicode"):
        compress("\ud800 a bee", GistEncoder(teacher, woken_gistnet(teacher)))


def test_bad_input_is_refused(encoder: GistEncoder) -> None:
    with pytest.raises(DataError, match="empty text"):
        compress([], encoder)
    with pytest.raises(DataError, match="ids from 5 to 97, expected ids from 0 to 96"):
        compress([5, 97], encoder)
    with pytest.raises(DataError, match="ids from -1 to 5"):
        compress([5, -1], encoder)
    with pytest.raises(DataError, match="type float64"):
        compress(np.array([1.5]), encoder)
    with pytest.raises(DataError, match=r"shape \(1, 2\)"):
        compress(np.array([[1, 2]]), encoder)
    with pytest.raises(TeacherError, match="no tokenizer"):
        compress("text", encoder)
    history = compress(np.arange(3, 40), encoder)
    with pytest.raises(DataError, match="range 0 to 38 of tokens"):
        history.tokens(0, 38)
    with pytest.raises(DataError, match="range 4 to 5 of gists of level 0"):
        history.gists(0, 4, 5)
    for level in (2, -1):
        with pytest.raises(DataError, match=f"level {level}, expected one of the 2"):
            history.gists(level, 0, 0)
