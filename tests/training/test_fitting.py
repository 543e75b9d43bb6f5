"""How much of a step runs at once: what fits, what is refused, and what happens when memory runs out all the same."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gistnet.config import load_config
from gistnet.errors import ConfigError, ProcessError, TrainingError
from gistnet.session import open_run
from gistnet.training import trainer
from gistnet.training.fitting import Batch, Fit, PassSizes, find_fit, require_fit
from gistnet.training.live_bytes import Use
from gistnet.training.memory import StepMemory
from gistnet.training.recorder import Recorder
from gistnet.training.run import Progress, Run
from gistnet.training.step import accumulate_gradient
from gistnet.training.trainer import fit, restore, train_step
from tests.training.test_trainer import stop_after

# Ten bytes are always taken, four by a window, two by a branch of 32 vectors or one where its layers are recomputed.
MEMORY = StepMemory(
    fixed={"weights": 10},
    shortest_window=100,
    window=Use(4, 0),
    branch_tokens=32,
    branch=Use(2, 0),
    recomputed_branch=Use(1, 0),
    prediction=Use(0, 0),
    chunk_tokens=1,
    horizon_tokens=32,
)


@pytest.mark.parametrize(
    ("room", "windows", "branches", "recompute"),
    [
        (10 + 8 * 4 + 64 * 2, 8, 64, False),  # all of the batch
        (10 + 8 * 4 + 64 * 2 - 1, 8, 32, False),  # two passes
        (10 + 8 * 4 + 32 * 2 - 1, 4, 32, False),  # two passes, over four windows each: their branches are 32
        (10 + 4 + 8 * 2, 1, 8, False),
        (10 + 4 + 2, 1, 1, False),
        (10 + 4 + 1, 1, 1, True),
    ],
)
def test_the_fewest_passes_that_fit_are_taken(room, windows, branches, recompute):
    """Eight windows of eight branches, on a CPU, where recomputing is the last resort."""
    found = find_fit(MEMORY, Batch(windows=8, spans_per_window=8), room_bytes=room, device_type="cpu")
    assert found == Fit(PassSizes(windows, branches), recompute)


def test_on_a_cpu_a_pass_has_at_most_64_branches_and_all_windows():
    assert find_fit(MEMORY, Batch(7, 30), room_bytes=1e9, device_type="cpu") == Fit(PassSizes(7, 64), False)


def test_a_gpu_takes_as_many_vectors_as_make_it_faster():
    """32,768 vectors are 1024 branches of 32."""
    assert find_fit(MEMORY, Batch(32, 64), room_bytes=1e9, device_type="cuda") == Fit(PassSizes(32, 1024), False)


def test_a_gpu_recomputes_layers_where_it_would_not_be_busy_otherwise():
    """1024 vectors, 32 branches, keep it busy: with room for those nothing is recomputed, with room for fewer it is."""
    batch = Batch(8, 8)
    assert not find_fit(MEMORY, batch, room_bytes=10 + 16 + 64, device_type="cuda").gradient_checkpointing
    found = find_fit(MEMORY, batch, room_bytes=10 + 16 + 63, device_type="cuda")
    assert found == Fit(PassSizes(8, 32), True)
    assert find_fit(MEMORY, batch, room_bytes=10 + 16 + 63, device_type="cpu") == Fit(PassSizes(8, 16), False)


def test_what_is_asked_for_is_taken_and_the_rest_is_found():
    batch = Batch(8, 8, branches_per_pass=4)
    assert find_fit(MEMORY, batch, room_bytes=10 + 5 * 4 + 8, device_type="cpu").sizes == (4, 4)
    assert find_fit(MEMORY, replace(batch, windows_per_pass=2), room_bytes=1e9, device_type="cpu").sizes == (2, 4)
    assert find_fit(MEMORY, Batch(2, 3, branches_per_pass=100), room_bytes=1e9, device_type="cuda").sizes == (2, 6)
    asked = replace(batch, gradient_checkpointing=True)
    assert find_fit(MEMORY, asked, room_bytes=1e9, device_type="cpu").gradient_checkpointing


@given(st.integers(1, 12), st.integers(1, 20), st.floats(10, 500), st.sampled_from(["cpu", "cuda"]))
def test_whatever_is_found_fits_and_more_room_makes_no_more_passes(windows, spans, room, device):
    batch = Batch(windows, spans)
    found = find_fit(MEMORY, batch, room_bytes=room, device_type=device)
    if found is None:
        assert room < 10 + 4 + 1
        return
    assert MEMORY.peak(*found.sizes, recompute=found.gradient_checkpointing) <= room
    assert found.sizes.windows <= windows
    assert found.sizes.branches <= found.sizes.windows * spans
    again = find_fit(MEMORY, batch, room_bytes=room + 10, device_type=device)
    if again.gradient_checkpointing == found.gradient_checkpointing:
        assert batch.passes(again.sizes) <= batch.passes(found.sizes)


def test_passes_are_counted_with_the_last_and_smaller_group_of_windows():
    """Seven windows in groups of three have 15, 15 and 5 branches: 2 + 2 + 1 passes of ten."""
    assert Batch(7, 5).passes(PassSizes(3, 10)) == (5, 3)


# Refusals -------------------------------------------------------------------------------------------------------------

GIGABYTES = StepMemory(
    fixed={"weights": 6 * 10**9},
    shortest_window=500,
    window=Use(0, 0),
    branch_tokens=32,
    branch=Use(2e9, 0),
    recomputed_branch=Use(1e9, 0),
    prediction=Use(0, 0),
    chunk_tokens=1,
    horizon_tokens=32,
)


def refusal(batch: Batch, room_gigabytes: float, window_tokens: int = 16_384) -> str:
    """A window takes a gigabyte for each 1024 of its tokens."""
    with pytest.raises(ConfigError) as refused:
        require_fit(
            lambda tokens: replace(GIGABYTES, window=Use(tokens / 1024 * 1e9, 0)),
            batch,
            window_tokens=window_tokens,
            room_bytes=room_gigabytes * 1e9,
            device=torch.device("cuda:1"),
        )
    return str(refused.value)


def test_windows_that_are_too_long_are_refused_with_what_would_fit():
    """16 GB of window, 6 of weights, 1 of a branch; 4096 tokens would need 11."""
    assert refusal(Batch(8, 8), 12) == (
        "A step of 1 window of 16,384 tokens and 1 branch needs 23.0 GB on cuda:1, which has 12.0 GB for it; windows "
        "of up to 4,096 tokens would fit."
    )


def test_sizes_that_are_asked_for_and_too_large_are_refused_with_those_that_would_fit():
    message = refusal(Batch(8, 8, windows_per_pass=4), 30)
    assert "A step of 4 windows of 16,384 tokens and 1 branch needs 71.0 GB" in message
    assert "windows_per_pass=1 and branches_per_pass=8 would fit, which are found where they are left open." in message


def test_gradient_checkpointing_is_named_where_it_was_switched_off_and_would_do():
    message = refusal(Batch(1, 8, gradient_checkpointing=False), 23.5)
    assert message.endswith("needs 24.0 GB on cuda:1, which has 23.5 GB for it; it would fit with "
                            "teacher.gradient_checkpointing=true.")  # fmt: skip


def test_a_device_too_small_for_any_window_is_refused_with_what_is_always_taken():
    message = refusal(Batch(8, 8), 7)
    assert message.endswith("6.0 GB are taken whatever the window, so that only another device or teacher would do.")


def test_a_run_for_which_there_is_no_memory_is_refused_before_its_first_step(
    gistnet, config_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("gistnet.training.run.free_bytes", lambda device: 0)
    outcome = gistnet("train", "--config", config_file)
    assert (outcome.status, outcome.out) == (1, "")
    assert "gistnet: A step of 1 window of 96 tokens and 1 branch needs 0.0 GB on cpu" in outcome.err
    assert not (tmp_path / "run").exists()


# Memory that runs out -------------------------------------------------------------------------------------------------


def run_of(config_file: Path, *settings: str, said: list[str] | None = None) -> Run:
    run = open_run(load_config(config_file, settings), [].append if said is None else said.append)
    torch.nn.init.normal_(run.gistnet.w_out.weight, generator=torch.Generator().manual_seed(0))
    return run


def room_for(branches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has room for so many branches at a time, and finds that out when most of the work is done."""

    def accumulate(*arguments: object, sizes: PassSizes, **others: object) -> torch.Tensor:
        sums = accumulate_gradient(*arguments, sizes=sizes, **others)
        if sizes.branches > branches:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return sums

    monkeypatch.setattr(trainer, "accumulate_gradient", accumulate)


def gradients(run: Run, progress: Progress) -> dict[str, torch.Tensor]:
    train_step(run, progress, run.optimiser(progress))
    return {name: p.grad.clone() for name, p in run.gistnet.named_parameters() if p.grad is not None}


def test_where_memory_runs_out_the_step_is_done_again_in_smaller_passes(config_file, monkeypatch):
    """Two batches of six branches: passes of six, then three, then one; the gradient is that of one branch a pass."""
    expected = gradients(run_of(config_file, "train.branches_per_pass=1", "train.windows_per_pass=1"), Progress())
    said: list[str] = []
    run, progress = run_of(config_file, said=said), Progress()
    room_for(2, monkeypatch)
    found = gradients(run, progress)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert (progress.sizes, progress.step) == (PassSizes(1, 1), 1)
    assert [message for message in said if "ran out" in message] == [
        "Memory of cpu ran out in step 1 with 2 windows and 6 branches at a time; the step is done again with 1 window "
        "and 3 branches, and the run goes on so.",
        "Memory of cpu ran out in step 1 with 1 window and 3 branches at a time; the step is done again with 1 window "
        "and 1 branch, and the run goes on so.",
    ]
    gradients(run, progress)
    assert len([message for message in said if "ran out" in message]) == 2


def test_where_nothing_is_left_to_halve_the_run_stops_and_keeps_what_it_had(config_file, monkeypatch):
    run = run_of(config_file)
    record = Recorder.record

    def fill(self: Recorder, run: Run, progress: Progress, metrics: dict, interrupted: bool) -> None:
        record(self, run, progress, metrics, interrupted)
        if progress.step == 3:
            room_for(0, monkeypatch)

    monkeypatch.setattr(Recorder, "record", fill)
    with pytest.raises(
        TrainingError,
        match=r"ran out in step 4 with 1 window and 1 branch at a time.*last good checkpoint is .*step-00000003",
    ):
        fit(run)


def test_a_pass_of_a_sharded_teacher_is_not_done_again(config_file, monkeypatch):
    """The other processes would wait for it with the next."""
    run, progress = run_of(config_file), Progress()
    room_for(2, monkeypatch)
    monkeypatch.setattr("gistnet.training.out_of_memory.is_sharded", lambda teacher: True)
    with pytest.raises(ProcessError, match="with 2 windows and 6 branches at a time, and passes of a sharded"):
        gradients(run, progress)
    assert progress.step == 0


def test_a_resumed_run_cuts_its_batches_up_as_before(config_file):
    """The rounding of a sum depends on it. Others are found for another number of processes, or where asked for."""
    fit(run_of(config_file, "train.branches_per_pass=2", "train.steps=2"))
    run = run_of(config_file)
    assert run.stages[0].fit.sizes == (2, 6)
    assert restore(run)[0].sizes == (2, 2)
    assert restore(run_of(config_file, "train.branches_per_pass=5"))[0].sizes == (2, 5)
    run.processes.count = 2
    assert restore(run)[0].sizes is None


def test_a_run_that_found_less_room_ends_with_the_same_bits_when_resumed_with_more(config_file, tmp_path, monkeypatch):
    """Memory ran out in the first step; resumed after the fourth, when there is plenty, the run goes on as it did."""
    with monkeypatch.context() as patched:
        room_for(2, patched)
        whole = run_of(config_file, f"run_folder={tmp_path / 'whole'}")
        fit(whole)
        stop_after(4, patched)
        assert fit(run_of(config_file)).step == 4
    resumed = run_of(config_file)
    assert fit(resumed, resume=True).sizes == (1, 1)
    for name, tensor in whole.gistnet.trainable_state().items():
        assert torch.equal(tensor, resumed.gistnet.trainable_state()[name]), name


def test_processes_with_less_memory_left_decide_for_all():
    fits = [Fit(PassSizes(4, 8), False), Fit(PassSizes(2, 16), True)]
    assert Fit.in_all(fits) == Fit(PassSizes(2, 8), True)
    assert Fit.in_all(fits[:1]) == fits[0]
