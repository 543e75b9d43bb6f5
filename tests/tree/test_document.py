"""Compressed documents in memory: complete blocks only, and each level from the stored gists below."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from gistnet.errors import DataError, TeacherError
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.tree.compress import TextFiles, compress_files
from gistnet.tree.document import compress
from gistnet.tree.gist_encoder import GistEncoder
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
    document = compress(tokens, encoder)
    assert (document.n_tokens, document.branchings, document.levels) == (157, (SPAN, SPAN), 2)
    assert [gists.shape for gists in document.level_gists] == [(19, 32), (2, 32)]
    assert np.array_equal(document.tokens(3, 150), tokens[3:150])
    # One span at a time, and level 1 from float16 gists.
    for index in (0, 7, 18):
        alone = encoder.encode(0, tokens[None, index * SPAN : (index + 1) * SPAN], index)
        assert np.array_equal(document.gists(0, index, index + 1), alone)
    assert np.array_equal(document.gists(1, 1, 2), encoder.encode(1, document.gists(0, 8, 16)[None], 1))
    assert np.array_equal(compress(tokens.tolist(), encoder).level_gists[1], document.level_gists[1])


def test_a_text_shorter_than_a_span_stays_tokens(encoder: GistEncoder) -> None:
    document = compress([5, 6, 7], encoder)
    assert document.tokens(0, 3).tolist() == [5, 6, 7]
    assert document.gists(0, 0, 0).shape == document.gists(1, 0, 0).shape == (0, 32)


def test_a_text_has_the_tokens_and_gists_of_a_tree_however_long_it_is(tmp_path: Path) -> None:
    """Beyond the length at which a tree tokenises in pieces; and the same where it is appended in pieces."""
    teacher = tiny_teacher("llama", torch.float32)
    for tokenizer in (merging(), sentencepiece_like()):
        teacher.tokenizer = Below(tokenizer, 97)
        encoder = GistEncoder(teacher, woken_gistnet(teacher, 2))
        text = "".join(f"a bee ate {'an apple' * (n % 3)}.\n\n" for n in range(12_000))
        (tmp_path / "text.txt").write_text(text)
        document = compress(text, encoder)
        whole = teacher.tokenizer.encode_batch([text])[0]
        assert document.token_ids.tolist() == whole
        with GistTree.create(tmp_path / f"{len(whole)}", encoder) as tree:
            files = TextFiles(paths=(str(tmp_path / "text.txt"),))
            compress_files(files, tree, encoder)
            (name,) = tree.documents()
            cuts = [0, *(text.index("\n\n", near) for near in (7, 190_000)), len(text)]
            for start, stop in pairwise(cuts):
                tree.append(text[start:stop], "appended")
            for kept in (tree.document(name), tree.document("appended")):
                assert np.array_equal(kept.tokens(0, kept.n_tokens), document.token_ids)
                for level, gists in enumerate(document.level_gists):
                    assert np.array_equal(kept.gists(level, 0, len(gists)), gists)


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


@pytest.mark.parametrize(
    ("text", "error", "word"),
    [
        ([], DataError, "empty"),
        ([5, 97], DataError, "97"),
        ([5, -1], DataError, "-1"),
        (np.array([1.5]), DataError, "float64"),
        (np.array([[1, 2]]), DataError, "shape"),
        ("text", TeacherError, "tokenizer"),
    ],
)
def test_what_is_no_text_is_refused(encoder: GistEncoder, text: object, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        compress(text, encoder)  # type: ignore[arg-type]


def test_ranges_that_are_not_there_are_refused(encoder: GistEncoder) -> None:
    document = compress(np.arange(3, 40), encoder)
    for start, stop in ((0, 38), (-1, 2), (3, 2)):
        with pytest.raises(DataError, match="tokens"):
            document.tokens(start, stop)
    for level, start, stop in ((0, 4, 5), (2, 0, 0), (-1, 0, 0)):
        with pytest.raises(DataError, match="level"):
            document.gists(level, start, stop)
