"""Where a cue stands in a context, and how arms are written."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.cue import Arm, context_of, parse
from gistnet.errors import ConfigError
from gistnet.objective.branches import Replacements

START, CONTINUATION = 4, 20
ROW = SimpleNamespace(segments=SimpleNamespace(starts=torch.tensor([START])))
GISTS = Replacements(torch.ones(1, 2, 3), torch.tensor([[11, 19]]), torch.tensor([CONTINUATION]))


def test_a_cue_before_gists_stands_within_their_first_span() -> None:
    context = context_of(ROW, GISTS, behind=False)(torch.zeros(2, 3))

    assert context.positions.tolist() == [[4, 5, 11, 19]]
    assert context.vectors[0, :, 0].tolist() == [0, 0, 1, 1]
    assert context.continuation.tolist() == [CONTINUATION]


def test_a_cue_behind_gists_moves_on_what_follows() -> None:
    context = context_of(ROW, GISTS, behind=True)(torch.zeros(2, 3))

    assert context.positions.tolist() == [[11, 19, 20, 21]]
    assert context.vectors[0, :, 0].tolist() == [1, 1, 0, 0]
    assert context.continuation.tolist() == [CONTINUATION + 2]


@pytest.mark.parametrize("behind", [False, True])
def test_without_a_cue_a_context_is_as_it_was(behind: bool) -> None:
    context = context_of(ROW, GISTS, behind=behind)(torch.zeros(0, 3))

    assert torch.equal(context.positions, GISTS.positions)
    assert torch.equal(context.vectors, GISTS.vectors)
    assert torch.equal(context.continuation, GISTS.continuation)


def test_an_arm_says_on_which_side_of_what_a_cue_stands() -> None:
    assert parse("4+gists") == Arm("gists", 4, behind=False)
    assert parse("recent+16") == Arm("recent", 16, behind=True)
    for wrong in ("4", "gists", "+4", "4+words", "four+gists"):
        with pytest.raises(ConfigError, match="expected one as 4\\+gists or gists\\+4"):
            parse(wrong)
