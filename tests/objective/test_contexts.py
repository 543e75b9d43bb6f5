"""Training contexts: what a window is laid out to, and the engine beside one plain forward of each context."""

import dataclasses

import numpy as np
import pytest
import torch

from gistnet.data.sampling import ContextSample
from gistnet.errors import DataError
from gistnet.objective.contexts import ContextBatch, contexts_hidden, pack_contexts
from gistnet.objective.reference import _plain_forward
from tests.teachers import FAMILIES, tiny_teacher

SPAN = 8


def context(prefix: int, starts: list[int], n_spans: list[int], end: int, **kind: bool) -> ContextSample:
    return ContextSample(prefix, np.array(starts), np.array(n_spans), end, **kind)


SINGLE = context(5, [5], [1], 5 + SPAN + 6)
ROWS = context(4, [4, 4 + 2 * SPAN + 3], [2, 1], 4 + 3 * SPAN + 3 + 9)
COMPACT = dataclasses.replace(ROWS, compact=True)
WHOLE = context(2, [2], [6], 56)


def tokens() -> torch.Tensor:
    return torch.randint(3, 97, (2, 60), generator=torch.Generator().manual_seed(0))


def test_slots_positions_and_targets_by_hand():
    """K = 4: a gist each for 3–6, 7–10 and 13–16, raw 11, 12 between them and 17, 18 behind; then a single one."""
    rows = [(0, context(3, [3, 13], [2, 1], 19)), (1, context(6, [6], [1], 12))]
    packed = pack_contexts(torch.zeros(2, 20, dtype=torch.long), rows, span_tokens=4, positions="end")
    assert packed.slots.tolist() == [[-1, -2, 11, 12, -3, 17], [-4, 10, 0, 0, 0, 0]]
    assert packed.targets.tolist() == [[-1, 11, 12, -1, 17, 18], [10, 11, -1, -1, -1, -1]]
    assert packed.positions.tolist() == [[6, 10, 11, 12, 16, 17], [9, 10, 11, 12, 13, 14]]
    assert packed.gist_starts.tolist() == [3, 7, 13, 6]
    assert packed.gist_windows.tolist() == [0, 0, 0, 1]
    assert [(sample.targets(4), sample.vectors(4)) for _, sample in rows] == [(4, 6), (2, 2)]
    centred = pack_contexts(torch.zeros(2, 20, dtype=torch.long), rows, span_tokens=4, positions="center")
    assert centred.positions[0].tolist() == [5, 9, 11, 12, 15, 17]
    compact = [(row, dataclasses.replace(sample, compact=True)) for row, sample in rows]
    packed = pack_contexts(torch.zeros(2, 20, dtype=torch.long), compact, span_tokens=4, positions="end")
    assert packed.positions.tolist() == [[3, 4, 5, 6, 7, 8], [6, 7, 8, 9, 10, 11]]


def plain_hidden(teacher, packed: ContextBatch, vectors: torch.Tensor) -> torch.Tensor:
    """The states that predict the targets, from one forward of transformers over each whole context."""
    states = []
    for row, window in enumerate(packed.windows.tolist()):
        prefix, length = int(packed.prefix_lengths[row]), int((packed.targets[row] >= 0).nonzero().max()) + 1
        slots = packed.slots[row, :length]
        own = [vectors[-1 - slot] if slot < 0 else teacher.embed(packed.tokens[window, slot]) for slot in slots]
        whole = torch.cat([teacher.embed(packed.tokens[window, :prefix]), torch.stack(own)])
        positions = torch.cat([torch.arange(prefix), packed.positions[row, :length]])
        states.append(_plain_forward(teacher, whole, positions)[prefix:][packed.targets[row, :length] >= 0])
    return torch.cat(states)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_contexts_equal_a_forward_of_each(family):
    """Values and gradients, in float64, with contexts of both windows and of all lengths in one pass."""
    teacher = tiny_teacher(family)
    rows = [(number % 2, sample) for number, sample in enumerate([SINGLE, ROWS, COMPACT, WHOLE])]
    packed = pack_contexts(tokens(), rows, span_tokens=SPAN, positions="end")
    count = len(packed.gist_starts)
    results = []
    for read in (lambda v: contexts_hidden(teacher, teacher.prefill(tokens()), packed, v), None):
        vectors = torch.randn(
            count, teacher.hidden_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        ).requires_grad_()
        hidden = plain_hidden(teacher, packed, vectors) if read is None else read(vectors)
        (hidden * torch.linspace(1, 2, hidden.numel()).view_as(hidden)).sum().backward()
        results.append((hidden.detach(), vectors.grad))
    for ours, theirs in zip(*results, strict=True):
        assert theirs.abs().min() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


def test_spans_replaced_by_nothing_new_predict_as_before():
    """Where a gist stands for one token and is its embedding, every hidden state is the original one."""
    teacher = tiny_teacher("llama")
    rows = [(0, context(4, [4, 20], [7, 3], 40))]
    packed = pack_contexts(tokens(), rows, span_tokens=1, positions="end")
    prefill = teacher.prefill(tokens())
    own = teacher.embed(tokens()[0, packed.gist_starts])
    torch.testing.assert_close(contexts_hidden(teacher, prefill, packed, own), packed.original_hidden(prefill))
    assert packed.target_tokens.tolist() == [*tokens()[0, 11:20].tolist(), *tokens()[0, 23:40].tolist()]


@pytest.mark.parametrize(
    "broken",
    [
        context(0, [0], [1], 20),
        context(5, [4], [1], 20),
        context(4, [4], [1], 61),
        context(4, [4, 11], [1, 1], 40),
        context(4, [4], [1], 12),
        context(4, [4], [0], 12),
    ],
)
def test_a_context_that_is_not_one_is_refused(broken):
    with pytest.raises(DataError, match="context"):
        pack_contexts(tokens(), [(0, broken)], span_tokens=SPAN, positions="end")
