"""The quality of gists: equal to the plain two-forward loop, every span once, and what cannot be measured is not."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gistnet.errors import ConfigError, TeacherError
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions, SegmentBatch, gist_replacements
from gistnet.objective.reference import reference_original_hidden, reference_replaced_hidden
from gistnet.tree.document import InMemoryDocument
from gistnet.tree.quality import QualityOptions, _windows, add_quality, measure_quality
from gistnet.tree.tree import GistTree
from tests.stub_encoder import StubEncoder
from tests.teachers import tiny_teacher

SPAN, HORIZON = 4, 5


def random_document(n_tokens: int, levels: int = 2) -> InMemoryDocument:
    """A document of random tokens and random gists."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, 97, n_tokens)
    counts = [n_tokens // SPAN ** (level + 1) for level in range(levels)]
    gists = tuple(draw.normal(size=(n, 32)).astype(np.float16) for n in counts)
    return InMemoryDocument(tokens, gists, (SPAN,) * levels, "center", StubEncoder().info.teacher)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return tiny_teacher("llama")


def by_the_loop(
    teacher: Teacher, document: InMemoryDocument, level: int, index: int, begin: int, positions: Positions
) -> tuple[float, float]:
    """KL and ΔNLL of one gist by two plain forwards over the document from token `begin` on."""
    span = SPAN ** (level + 1)
    tokens = torch.from_numpy(document.tokens(begin, (index + 1) * span + HORIZON))[None]
    start = torch.tensor([index * span - begin])
    segments = SegmentBatch(tokens, torch.tensor([0]), start, span, 1, HORIZON)
    gist = torch.from_numpy(document.gists(level, index, index + 1)).double()[:, None]
    original = reference_original_hidden(teacher, segments, 0)
    replaced = reference_replaced_hidden(teacher, segments, gist_replacements(segments, gist, positions), 0)
    log_p, log_q = (teacher.logits(hidden).log_softmax(-1) for hidden in (original, replaced))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    targets = tokens[0, -HORIZON:, None]
    return float(kl), float((log_p - log_q).gather(1, targets).mean())


@pytest.mark.parametrize("positions", ["center", "compact"])
@pytest.mark.parametrize("level", [0, 1])
def test_quality_is_that_of_two_plain_forwards(teacher: Teacher, level: int, positions: Positions) -> None:
    document = random_document(90)
    options = QualityOptions(horizon_tokens=HORIZON, positions=positions)
    (measured,) = measure_quality(document, teacher, level, options)
    # 22 gists of level 0, of which the last ends 2 tokens before the end; 5 of level 1, all with a horizon.
    assert (measured.first, len(measured.kl)) == ((1, 20) if level == 0 else (1, 4))
    expected = [by_the_loop(teacher, document, level, 1 + n, 0, positions) for n in range(len(measured.kl))]
    assert np.allclose(np.stack([measured.kl, measured.delta_nll], axis=1), expected, atol=1e-5)
    assert measured.kl.min() > 0.01, "random gists cost something"


def test_a_long_document_is_measured_in_windows_with_context(teacher: Teacher) -> None:
    """Windows of 40 tokens: the first serves gists 1 to 7 (its 35 tokens before the horizon hold 8 spans), the next
    begins 12 tokens before gist 8 and serves up to (20 + 40 - 5) // 4 = 13, and so on."""
    document = random_document(100)
    options = QualityOptions(horizon_tokens=HORIZON, positions="center", window_tokens=40, context_tokens=12)
    parts = list(measure_quality(document, teacher, 0, options))
    assert [(part.first, len(part.kl)) for part in parts] == [(1, 7), (8, 5), (13, 5), (18, 5)]
    for part, begin in zip(parts, (0, 20, 40, 60), strict=True):
        for n in (0, len(part.kl) - 1):
            kl, delta_nll = by_the_loop(teacher, document, 0, part.first + n, begin, "center")
            assert part.kl[n] == pytest.approx(kl, abs=1e-5)
            assert part.delta_nll[n] == pytest.approx(delta_nll, abs=1e-5)
    later = list(measure_quality(document, teacher, 0, options, first=18))
    assert np.array_equal(later[0].kl, parts[-1].kl)


def test_the_teachers_positions_bound_the_window(teacher: Teacher) -> None:
    document = random_document(600, levels=4)
    assert sum(len(part.kl) for part in measure_quality(document, teacher, 0)) == (600 - 32) // SPAN - 1
    assert list(measure_quality(document, teacher, 3)) == [], "256 tokens and a horizon exceed 256 positions"


@given(
    st.integers(0, 300),
    st.integers(1, 20),
    st.integers(20, 90),
    st.booleans(),
    st.integers(1, 20),
    st.integers(1, 30),
    st.integers(0, 9),
)
def test_every_gist_is_measured_once_with_its_context_and_horizon(
    n_tokens: int, span: int, body: int, has_prefix: bool, horizon: int, context: int, first: int
) -> None:
    options = QualityOptions(horizon_tokens=horizon, positions="center", context_tokens=context)
    windows = list(_windows(n_tokens, span, body, has_prefix, options, first))
    room = body - span - horizon
    earliest = first if has_prefix else max(1, first)
    measurable = [n for n in range(earliest, n_tokens // span) if (n + 1) * span + horizon <= n_tokens]
    if room < (0 if has_prefix else 1):
        measurable = []
    assert list(chain.from_iterable(range(window.first, window.last) for window in windows)) == measurable
    for window in windows:
        assert window.end - window.begin <= body
        assert window.end <= n_tokens
        assert window.begin == max(0, window.first * span - min(context, room))
        assert window.last * span + horizon <= window.end


def test_what_was_measured_is_kept_with_the_tree_and_measured_once(teacher: Teacher, tmp_path: Path) -> None:
    """A stub makes the gists; the tree's own document is measured. Level 1 stands for 16 tokens."""
    encoder = StubEncoder(dim=32, vocabulary_size=97, teacher=teacher.fingerprint)
    options = QualityOptions(horizon_tokens=HORIZON, positions="center", window_tokens=40, context_tokens=12)
    draw = np.random.default_rng(3)
    with GistTree.create(tmp_path / "tree", encoder) as tree:
        tree.append(draw.integers(0, 97, 70), "a")
        tree.append(draw.integers(0, 97, 9), "short")
        assert add_quality(tree, teacher, options) == 15 + 3, "gists 1 to 15 of level 0, 1 to 3 of level 1"
        assert add_quality(tree, teacher, options) == 0
        tree.append(draw.integers(0, 97, 20), "a")
        assert add_quality(tree, teacher, options) == 5 + 1, "with 90 tokens, 16 to 20 and 4 have a horizon too"
    with GistTree.open(tmp_path / "tree") as tree:
        document = tree.document("a")
        for level, count in [(0, 22), (1, 5)]:
            kept = document.quality(level, 0, count)
            expected = list(measure_quality(document, teacher, level, options))
            assert np.isnan(kept.kl[0])
            assert np.isnan(kept.kl[1:]).sum() == count - 1 - sum(len(part.kl) for part in expected)
            for part in expected[:1]:
                span = slice(part.first, part.first + len(part.kl))
                assert np.allclose(kept.kl[span], part.kl)
                assert np.allclose(kept.delta_nll[span], part.delta_nll)
        with pytest.raises(TeacherError, match="tiny-qwen3"):
            add_quality(tree, tiny_teacher("qwen3"), options)


def test_senseless_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="horizon of 0"):
        QualityOptions(horizon_tokens=0)
