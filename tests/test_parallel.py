"""Who does what among processes, and sums over them; a real two-process run is in tests/training/test_trainer.py."""

import pytest
import torch

from gistnet.errors import ConfigError
from gistnet.training.parallel import Processes


def process(rank: int, count: int) -> Processes:
    """What `Processes` is in the process `rank` of a run of `count`."""
    one = Processes("cpu")
    one.rank, one.count = rank, count
    return one


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_the_shares_are_equal_and_together_the_batch_in_order(count):
    shares = [process(rank, count).share(range(12, 18)) for rank in range(count)]
    assert [item for share in shares for item in share] == [12, 13, 14, 15, 16, 17]
    assert {len(share) for share in shares} == {6 // count}
    assert [process(rank, count).is_main for rank in range(count)] == [True] + [False] * (count - 1)


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(ConfigError, match="6 windows cannot be shared among 4 processes"):
        process(0, 4).share(range(6))


def test_one_process_sums_to_what_it_has():
    alone, tensor = Processes("cpu"), torch.tensor([1.0, 2.0])
    alone.sum_in_place([tensor])
    assert tensor.tolist() == [1.0, 2.0]
    assert alone.any(True) is True
    assert alone.any(False) is False


def test_tensors_of_any_shape_are_summed_in_one_message(monkeypatch):
    """The other process holds ten times this one's values."""
    messages = []

    def all_reduce(flat):
        messages.append(len(flat))
        flat.mul_(11)

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    matrix, column = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0]]).T
    process(0, 2).sum_in_place(part for part in (matrix, column))
    assert messages == [6]
    assert matrix.tolist() == [[11.0, 22.0], [33.0, 44.0]]
    assert column.tolist() == [[55.0], [66.0]]


@pytest.mark.parametrize(("mine", "others", "expected"), [(0, 0, False), (0, 1, True), (1, 0, True), (1, 1, True)])
def test_a_flag_of_one_process_is_seen_by_all(monkeypatch, mine, others, expected):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(others))
    assert process(0, 2).any(bool(mine)) is expected
