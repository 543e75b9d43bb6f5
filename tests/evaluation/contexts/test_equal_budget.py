"""Contexts of equal budgets: how many vectors, of what."""

import numpy as np
import pytest
import torch

from gistnet.context.plan import Gists, Raw
from gistnet.errors import ConfigError
from gistnet.evaluation.contexts.equal_budget import (
    gist_plan,
    truncated_plan,
    with_gists_of,
    with_mean_embeddings,
)
from gistnet.tree.document import InMemoryDocument
from tests.teachers import tiny_teacher


def history(tokens: int, seed: int = 0) -> InMemoryDocument:
    draw = np.random.default_rng(seed)
    levels = (tokens // 4, tokens // 16)
    gists = tuple(draw.normal(size=(count, 32)).astype(np.float16) for count in levels)
    return InMemoryDocument(draw.integers(0, 97, tokens), gists, 4, "center", tiny_teacher("llama").fingerprint)


@pytest.mark.parametrize("tokens", [3584, 5001, 7680])
@pytest.mark.parametrize("tokens_per_vector", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("levels", [1, 2])
def test_both_fill_the_budget(tokens, tokens_per_vector, levels):
    budget = tokens // tokens_per_vector
    cut, plan = truncated_plan(tokens, 32, tokens_per_vector, 4), gist_plan(tokens, 32, levels, tokens_per_vector, 4)
    assert cut.vectors == cut.tokens_covered == budget
    assert cut.order == (Raw(0, 4), Raw(tokens - budget + 4, tokens))
    assert budget - 32 < plan.vectors <= budget  # what is left over is less than one more raw span
    assert plan.end == tokens
    gists = {piece.level for piece in plan.pieces if isinstance(piece, Gists)}
    assert gists == ({0, 1} if levels == 2 and tokens_per_vector == 32 else {0})
    reaches = tokens_per_vector < 32 or levels == 2
    assert (plan.tokens_covered == tokens) == reaches


def test_a_budget_for_the_sink_alone_is_refused():
    with pytest.raises(ConfigError, match="budget of 4 vectors"):
        truncated_plan(64, 32, 16, 4)


def test_borrowed_gists_leave_the_tokens():
    own, other = history(80), history(48, seed=1)
    mixed = with_gists_of(own, other)
    assert np.array_equal(mixed.tokens(0, 80), own.tokens(0, 80))
    assert np.array_equal(mixed.gists(0, 0, 12), other.gists(0, 0, 12))
    assert np.array_equal(mixed.gists(0, 12, 20), other.gists(0, 0, 8))  # again from its beginning
    assert np.array_equal(mixed.gists(1, 0, 5), other.gists(1, 0, 3)[[0, 1, 2, 0, 1]])


def test_means_are_of_the_embeddings_of_each_level():
    own, teacher = history(50), tiny_teacher("llama")
    means = with_mean_embeddings(own, teacher)
    embedded = teacher.embed(torch.from_numpy(own.token_ids)).numpy()
    assert means.gists(0, 0, 12)[3] == pytest.approx(embedded[12:16].mean(axis=0), rel=1e-3)
    assert means.gists(1, 0, 3)[1] == pytest.approx(embedded[16:32].mean(axis=0), abs=1e-3)
    assert means.level_gists[0].dtype == np.float16 and means.level_gists[0].shape == (12, 32)
