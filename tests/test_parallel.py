"""Who does what among processes, and sums over them; real runs of several are in tests/training/test_processes.py."""

import pytest
import torch

from gistnet.errors import ConfigError, DataError, ProcessError, TrainingError
from gistnet.training.parallel import (
    ProcessDevice,
    Processes,
    losing_processes,
    require_one_kind,
    require_room_on_gpus,
)


def process(rank: int, count: int) -> Processes:
    """What `Processes` is in the process `rank` of a run of `count`."""
    one = Processes("cpu")
    one.rank, one.count = rank, count
    return one


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 9])
def test_the_shares_are_together_the_batch_in_order_and_as_equal_as_they_can_be(count):
    shares = [process(rank, count).share(range(12, 18)) for rank in range(count)]
    assert [item for share in shares for item in share] == [12, 13, 14, 15, 16, 17]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [process(rank, count).is_main for rank in range(count)] == [True] + [False] * (count - 1)


def test_eight_windows_are_three_three_and_two():
    assert [process(rank, 3).share(range(8)) for rank in range(3)] == [range(3), range(3, 6), range(6, 8)]


def test_a_process_without_data_is_refused_and_told_what_would_do():
    process(0, 4).require_work(4)
    with pytest.raises(ConfigError, match=r"3 windows leaves some of the 4 processes without .* 4 or more"):
        process(0, 4).require_work(3)


def test_one_process_sums_to_what_it_has():
    alone, tensor = Processes("cpu"), torch.tensor([1.0, 2.0])
    alone.sum_in_place([tensor])
    assert tensor.tolist() == [1.0, 2.0]
    assert alone.any(True) is True
    assert alone.any(False) is False
    assert alone.gather("here") == ["here"]
    assert alone.from_main("here") == "here"
    assert alone.main_first(lambda: "made") == "made"


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


def others_hold(monkeypatch: pytest.MonkeyPatch, *values: object) -> None:
    """The processes after this one hold `values` in whatever is gathered."""

    def all_gather_object(gathered, mine, group):
        gathered[:] = [mine, *values]

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)


@pytest.mark.parametrize(("mine", "others", "expected"), [(0, 0, False), (0, 1, True), (1, 0, True), (1, 1, True)])
def test_a_flag_of_one_process_is_seen_by_all(monkeypatch, mine, others, expected):
    others_hold(monkeypatch, bool(others))
    assert process(0, 2).any(bool(mine)) is expected


def test_an_error_of_another_process_is_raised_here_too(monkeypatch):
    others_hold(monkeypatch, None, TrainingError("The loss is not finite (documents: a)"))
    with pytest.raises(TrainingError, match="documents: a"), process(0, 3).failing_together():
        pass


def test_of_several_errors_all_processes_raise_the_first(monkeypatch):
    others_hold(monkeypatch, TrainingError("theirs"))
    with pytest.raises(DataError, match="mine"), process(0, 2).failing_together():
        raise DataError("mine")


def test_nothing_is_agreed_upon_once_a_process_is_gone(monkeypatch):
    """Asking the others would only take as long again."""
    monkeypatch.delattr(torch.distributed, "all_gather_object")
    with pytest.raises(ProcessError, match="gone"), process(0, 2).failing_together():
        raise ProcessError("gone")


def test_a_broken_connection_becomes_a_sentence_and_other_errors_stay_what_they_are():
    with (
        pytest.raises(
            ProcessError, match=r"gone or cannot be reached \(Connection closed by peer \[127.0.0.1\]:80\)\."
        ),
        losing_processes(),
    ):
        raise RuntimeError("[/third_party/gloo/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:80. Typically")
    with pytest.raises(RuntimeError, match="shape"), losing_processes():
        raise RuntimeError("mat1 and mat2 have another shape")


def gpu(uuid: str) -> ProcessDevice:
    return ProcessDevice("cuda", "cuda:0 of node", uuid)


def test_processes_may_share_a_cpu_but_not_a_gpu():
    require_one_kind([ProcessDevice.of(torch.device("cpu"))] * 3)
    # Both call theirs the first, and each sees another.
    require_one_kind([gpu("a"), gpu("b")])
    with pytest.raises(ConfigError, match="Processes 1 and 2 are on the same GPU, cuda:0 of node"):
        require_one_kind([gpu("a"), gpu("b"), gpu("b")])


def test_different_kinds_of_devices_are_refused():
    with pytest.raises(ConfigError, match=r"process 0 is on cuda:0 of node, process 1 on cpu of .*the same kind"):
        require_one_kind([gpu("a"), ProcessDevice.of(torch.device("cpu"))])


def test_more_processes_than_gpus_are_refused_before_they_meet():
    require_room_on_gpus(8, 8)
    require_room_on_gpus(2, 0)  # that there is no GPU is told elsewhere
    with pytest.raises(ConfigError, match="3 processes were started on a machine with 2 GPUs"):
        require_room_on_gpus(3, 2)
    with pytest.raises(ConfigError, match="with 1 GPU;"):
        require_room_on_gpus(2, 1)
