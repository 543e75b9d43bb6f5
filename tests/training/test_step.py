"""How the branches of a step are cut into passes, and from what their dropout derives."""

import itertools

import numpy as np

from gistnet.data.sampling import WindowSample
from gistnet.training.step import _dropout_key, _passes


def sample(starts: list[int], gists: list[int]) -> WindowSample:
    return WindowSample(item=0, window=0, phase=0, starts=np.array(starts), gists=np.array(gists))


def test_single_gists_keep_their_order_and_fill_passes():
    samples = [sample([10, 20, 30], [1, 1, 1]), sample([5, 15], [1, 1])]
    assert list(_passes(samples, 2, 32)) == [[(0, 10, 1), (0, 20, 1)], [(0, 30, 1), (1, 5, 1)], [(1, 15, 1)]]


def test_a_pass_ends_before_a_branch_more_than_a_quarter_longer_than_its_shortest():
    """With H = 9 branches are k + 8 long: 9 and 11 go together (11.25 at most), 12 and 15 (15 at most), then 16."""
    samples = [sample([10, 20], [8, 3]), sample([30, 40], [1, 7]), sample([50], [4])]
    assert list(_passes(samples, 64, 9)) == [[(1, 30, 1), (0, 20, 3)], [(2, 50, 4), (1, 40, 7)], [(0, 10, 8)]]


def test_one_token_of_horizon_leaves_only_the_gists():
    """Branches are k long: 4 and 5 fit together, 3 fits neither."""
    assert list(_passes([sample([1, 2, 3], [5, 4, 3])], 64, 1)) == [[(0, 3, 3)], [(0, 2, 4), (0, 1, 5)]]


def test_every_window_of_every_step_and_seed_has_a_dropout_key_of_its_own():
    """Also where the digits of seed, step and window are the same ones, as in 1, 11 and 11, 1."""
    numbers = (0, 1, 2, 11, 111)
    keys = {_dropout_key(*parts) for parts in itertools.product(numbers, repeat=3)}
    assert len(keys) == len(numbers) ** 3
    assert all(-(2**63) <= key < 2**63 for key in keys)
