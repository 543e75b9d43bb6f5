"""Plans: what they cost and cover, the default one for any size and budget, and nodes expanded and collapsed."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gistnet.context.plan import Gists, Plan, Raw, collapse, default_plan, expand
from gistnet.errors import ConfigError, DataError

TWO = (32, 32)


def covered_tokens(plan: Plan) -> list[tuple[int, int]]:
    """(token, level) of everything in the pieces, written out one by one."""
    tokens = []
    for piece in plan.pieces:
        size = 1 if isinstance(piece, Raw) else prod(plan.branchings[: piece.level + 1])
        tokens += [(token, piece.level) for token in range(piece.start * size, piece.stop * size)]
    return tokens


def fewest_vectors(n_tokens: int, branchings: Sequence[int]) -> int:
    """The fewest vectors that cover a document: the digits of its length, as a number of those bases."""
    vectors = 0
    for branching in branchings:
        vectors, n_tokens = vectors + n_tokens % branching, n_tokens // branching
    return vectors + n_tokens


def test_costs_and_coverage_by_hand() -> None:
    plan = Plan([Gists(1, 0, 2), Gists(0, 64, 70), Raw(2240, 2300)], TWO, 4)
    assert plan.vectors == 4 + 2 + 6 + 60
    assert plan.tokens_covered == plan.end == 2300
    assert plan.order == (Raw(0, 4), *plan.pieces)
    truncated = Plan([Raw(1000, 1200)], TWO, 4)
    assert (truncated.vectors, truncated.tokens_covered, truncated.end) == (204, 204, 1200)
    assert Plan([Raw(0, 50)], TWO, 4).order == (Raw(0, 50),)
    assert Plan([Raw(2, 50)], TWO, 4).order == (Raw(0, 2), Raw(2, 50))
    assert (Plan([], ()).vectors, Plan([], ()).tokens_covered, Plan([], ()).end) == (0, 0, 0)


def test_plans_that_mean_the_same_are_equal() -> None:
    written_out = [Raw(0, 0), Gists(0, 0, 1), Gists(0, 1, 3), Gists(0, 3, 3), Raw(96, 97), Raw(97, 99), Raw(105, 106)]
    assert Plan(written_out, TWO) == Plan([Gists(0, 0, 3), Raw(96, 99), Raw(105, 106)], list(TWO))


@pytest.mark.parametrize(
    "pieces",
    [
        [Raw(40, 50), Raw(0, 10)],
        [Gists(0, 0, 2), Raw(63, 70)],
        [Gists(1, 0, 1), Gists(0, 31, 33)],
        [Raw(5, 4)],
        [Raw(-1, 4)],
    ],
)
def test_disorder_and_overlaps_are_refused(pieces: list[Raw | Gists]) -> None:
    with pytest.raises(DataError, match="in the order of the document"):
        Plan(pieces, TWO)


@pytest.mark.parametrize("level", [-2, 2])
def test_a_level_that_there_is_not_is_refused(level: int) -> None:
    with pytest.raises(DataError, match=f"level {level}"):
        Plan([Gists(level, 0, 1)], TWO)


def test_the_default_plan_by_hand() -> None:
    """K = 32: a document that fits is raw; gists of level 0 while they fit with the raw share; then level 1."""
    assert default_plan(500, TWO, 500) == Plan([Raw(0, 500)], TWO, 4)
    # 161 beside the sink: 61 gists stand for 1952 tokens and 96 are raw; a raw span more would cost 31, 4 are left.
    assert default_plan(2048, TWO, 165) == Plan([Gists(0, 0, 61), Raw(1952, 2048)], TWO, 4)
    # 124 beside the sink: a quarter, 31, makes one raw span; 92 vectors for 127 blocks: 2 gists of level 1 and 63.
    expected = Plan([Gists(1, 0, 2), Gists(0, 64, 127), Raw(4064, 4096)], TWO, 4)
    assert default_plan(4096, TWO, 128) == expected
    # 252 beside the sink: 64 raw; 188 vectors for 253 blocks: 3 gists of level 1 and 157.
    assert default_plan(8160, TWO, 256) == Plan([Gists(1, 0, 3), Gists(0, 96, 253), Raw(8096, 8160)], TWO, 4)
    # Covering goes before the raw share: 4 beside the sink hold the 4096 tokens in 4 gists of level 1.
    assert default_plan(4096, TWO, 8) == Plan([Gists(1, 0, 4)], TWO, 4)
    # Without gists: truncated, behind the sink.
    assert default_plan(5000, (), 100) == Plan([Raw(4904, 5000)], (), 4)
    # Not even gists cover it: of 28 vectors beside the sink the tail takes 8, 20 gists remain.
    dropped = default_plan(32_008, (32,), 32)
    assert dropped == Plan([Gists(0, 980, 1000), Raw(32_000, 32_008)], (32,), 4)
    assert dropped.tokens_covered == 4 + 20 * 32 + 8


def test_the_default_plan_fades_from_tokens_over_three_rates() -> None:
    """Vectors of 1024, 32, 8 tokens and one: 15 · 1024 + 128 · 32 + 56 · 8 + 96 = 20,000 in 4 + 295 vectors."""
    plan = default_plan(20_000, (8, 4, 32), 300)
    faded = [Gists(2, 0, 15), Gists(1, 480, 608), Gists(0, 2432, 2488), Raw(19_904, 20_000)]
    assert plan == Plan(faded, (8, 4, 32), 4)
    assert (plan.tokens_covered, plan.vectors) == (20_000, 299)
    assert [token for token, _ in covered_tokens(plan)] == list(range(20_000))


@settings(max_examples=400, deadline=None)
@given(
    st.integers(0, 6000),
    st.lists(st.sampled_from([4, 8, 32]), max_size=3),
    st.integers(5, 700),
    st.integers(0, 2),
    st.floats(0, 1),
)
def test_default_plans_hold_their_promises(
    n_tokens: int, branchings: list[int], budget: int, sink: int, share: float
) -> None:
    plan = default_plan(n_tokens, branchings, budget, sink_tokens=sink, raw_share=share)
    tokens = covered_tokens(plan)
    assert plan.vectors <= budget
    # In order and without overlaps, up to the newest token; coarser never newer than finer.
    assert [token for token, _ in tokens] == list(range(n_tokens - len(tokens), n_tokens))
    assert all(older >= newer for (_, older), (_, newer) in pairwise(tokens))
    assert all(piece.level < len(branchings) for piece in plan.pieces)
    # The whole document wherever that is possible; else the budget is used up to less than a block of each level.
    possible = n_tokens <= budget or sink + fewest_vectors(n_tokens, branchings) <= budget
    assert (len(tokens) == n_tokens) == possible
    assert plan.tokens_covered == len(set(range(min(sink, n_tokens))) | {token for token, _ in tokens})
    if not possible:
        assert plan.vectors == budget
    # What is left over opens no gist.
    assert all(piece.level < 0 or budget - plan.vectors < branchings[piece.level] - 1 for piece in plan.pieces)
    # Recent tokens are raw: their share, rounded to where gists begin, wherever the rest can be covered beside it.
    raw = sum(level == -1 for _, level in tokens)
    span = branchings[0] if branchings else 0
    wished = int(share * (budget - sink)) - span // 2
    beside = fewest_vectors((n_tokens - wished) // span, branchings[1:]) if branchings else 0
    room = sink + wished + span + beside + sum(branchings[1:]) <= budget
    if n_tokens > budget and (room or not possible):
        assert raw >= wished


def test_a_budget_or_size_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="sink"):
        default_plan(100, (32,), 4)
    with pytest.raises(ConfigError, match="sink of 17 tokens, expected 0 to 16"):
        default_plan(100, (32,), 50, sink_tokens=17)
    with pytest.raises(ConfigError, match=r"raw share of 1\.5"):
        default_plan(100, (32,), 50, raw_share=1.5)
    with pytest.raises(ConfigError, match="branchings"):
        default_plan(100, (32, 1), 50)


def test_expanding_and_collapsing_by_hand() -> None:
    plan = Plan([Gists(1, 0, 3), Raw(3072, 3080)], TWO, 4)
    one = expand(plan, 1, 1)
    assert one.pieces == (Gists(1, 0, 1), Gists(0, 32, 64), Gists(1, 2, 3), Raw(3072, 3080))
    two = expand(one, 0, 40)
    assert two.pieces[1:4] == (Gists(0, 32, 40), Raw(1280, 1312), Gists(0, 41, 64))
    assert two.vectors == plan.vectors + 31 + 31
    assert two.tokens_covered == plan.tokens_covered
    assert collapse(two, 0, 40) == one
    assert collapse(one, 1, 1) == collapse(two, 1, 1) == plan
    assert expand(Plan([Gists(0, 0, 1)], TWO, 4), 0, 0).order == (Raw(0, 32),)


@settings(max_examples=100, deadline=None)
@given(st.integers(100, 3000), st.integers(20, 200), st.data())
def test_collapse_undoes_expand(n_tokens: int, budget: int, data: st.DataObject) -> None:
    start = plan = default_plan(n_tokens, (4, 2, 8), budget, sink_tokens=2)
    opened = []
    for _ in range(3):
        nodes = [(p.level, i) for p in plan.pieces if isinstance(p, Gists) for i in range(p.start, p.stop)]
        if nodes:
            opened.append((data.draw(st.sampled_from(nodes)), plan))
            plan = expand(plan, *opened[-1][0])
            assert [token for token, _ in covered_tokens(plan)] == [token for token, _ in covered_tokens(start)]
    for node, before in reversed(opened):
        plan = collapse(plan, *node)
        assert plan == before


def test_nodes_that_are_not_there_are_refused() -> None:
    plan = Plan([Gists(1, 1, 2), Gists(0, 64, 70), Raw(2300, 2340)], TWO)
    for level, index in ((1, 0), (1, 2), (0, 40), (2, 0), (-1, 2300)):
        with pytest.raises(DataError, match="expected one that the plan holds"):
            expand(plan, level, index)
    with pytest.raises(DataError, match="holds it or one above it"):
        collapse(plan, 1, 1)
    with pytest.raises(DataError, match="holds it or one above it"):
        collapse(plan, 0, 40)
    with pytest.raises(DataError, match="leaves out some of its text"):
        collapse(plan, 1, 2)
    with pytest.raises(DataError, match="leaves out some of its text"):
        collapse(plan, 0, 0)
    with pytest.raises(DataError, match="from 0 on"):
        collapse(plan, -1, 2300)
