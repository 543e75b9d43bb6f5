"""Figures measured again are compared with those of the same spans alone."""

import pytest

from gistnet.release.comparison import compare_figures
from tests.release.test_card import record


def test_what_is_equal_different_and_of_other_spans() -> None:
    released = [record("kl", 0.5), record("delta_nll", 0.4), record("kl", 0.9, level=1), record("gist_norm", 2.0)]
    measured = [
        record("kl", 0.5, interval=(0.1, 0.9)),
        record("delta_nll", 0.375),
        record("kl", 0.8875, level=1),
        record("gist_norm", 2.5, positions="center"),
    ]
    found = compare_figures(measured, released)
    assert (found.equal, found.different, found.others) == (1, 2, 1)
    assert found.largest is not None
    assert found.largest[0] == pytest.approx(0.025)  # 0.4 - 0.375
    assert found.sentence() == (
        "1 of 3 figures are those of the release to the digit, the others are at most 0.025 off (delta_nll, "
        "narrative); 1 are of other spans than the release's, or not in it."
    )
    same = compare_figures(released, released)
    assert same.sentence() == "4 of 4 figures are those of the release to the digit."
