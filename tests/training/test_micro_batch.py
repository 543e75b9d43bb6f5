"""Micro-batch sizes: what is chosen, the memory estimate beside what a step allocates, and halving."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.profiler import profile
from transformers import LlamaConfig, LlamaForCausalLM

from gistnet.data.sampling import SpanLayout, WindowSample, sample_batch
from gistnet.errors import TrainingError
from gistnet.model.config import GistNetConfig
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.config import ObjectiveConfig
from gistnet.training import micro_batch, trainer
from gistnet.training.config import Stage, TrainConfig
from gistnet.training.micro_batch import (
    MicroBatch,
    choose_micro_batch,
    estimated_bytes,
    largest_micro_batch,
    longest_branch,
)
from gistnet.training.recording import Recorder
from gistnet.training.run import Run, StageRun, TrainState
from gistnet.training.trainer import accumulate_gradient, fit, restore, train_step
from tests.training.runs import MIXED, assert_same
from tests.training.test_trainer import stop_after, woken_run

VOCABULARY = 4000


def stage_of(segments_per_window: int, horizon: int = 32, **train: object) -> Stage:
    return Stage(
        name="only",
        train=TrainConfig(segments_per_window=segments_per_window, **train),
        objective=ObjectiveConfig(horizon_tokens=horizon),
    )


# Choice ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "processes", "device", "expected"),
    [
        ({}, 1, "cpu", (7, 2_048)),
        ({}, 2, "cpu", (4, 2_048)),  # the larger share of 7 windows
        ({}, 1, "cuda", (7, 32_768)),
        ({"micro_batch_vectors": 5}, 1, "cuda", (7, 5)),
        ({"micro_batch_vectors": 50_000}, 1, "cpu", (7, 50_000)),
    ],
)
def test_the_largest_micro_batch_is_what_was_asked_for_or_what_helps(train, processes, device, expected):
    config = TrainConfig(windows_per_batch=7, **train)
    assert largest_micro_batch(config, processes=processes, device_type=device) == expected


def test_sizes_are_halved_until_the_estimate_fits_or_nothing_is_left_to_halve(monkeypatch):
    """Ten bytes always, four a window, two a vector: 8 and 64 take 170, 4 and 32 take 90, 2 and 16 take 50."""
    teacher = small_llama(torch.float32)
    gistnet = GistNet.build(GistNetConfig(architecture="bottleneck", width=64), teacher)
    monkeypatch.setattr(
        micro_batch, "estimated_bytes", lambda *given, **_: {"all": 10 + 4 * given[3].windows + 2 * given[3].vectors}
    )
    options = {"window_tokens": 512, "processes": 1, "device_type": "cpu", "recompute": False}
    stage = stage_of(8, windows_per_batch=8, micro_batch_vectors=64)
    rooms = {170: ((8, 64), 170), 169: ((4, 32), 90), 50: ((2, 16), 50), 16: ((1, 1), 16), 3: ((1, 1), 16)}
    assert {room: choose_micro_batch(teacher, gistnet, stage, room_bytes=room, **options) for room in rooms} == rooms


# How a step is cut up -------------------------------------------------------------------------------------------------


def test_the_longest_branch_holds_its_gists_and_all_but_the_last_predicted_token():
    stage = stage_of(4, horizon=16, segments={"lengths": {1: 0.5, 8: 0.5}})
    assert longest_branch(stage, 1024, 32) == (8, 8 + 15)
    assert longest_branch(stage, 4 + 3 * 32 + 16, 32) == (3, 3 + 15)


def test_no_branch_that_is_drawn_is_longer_or_fuller_of_gists_than_the_longest(config_file):
    run = woken_run(config_file, MIXED, "train.segments.longest=5")
    (stage,) = run.stages
    longest = longest_branch(Stage(name="only", train=stage.train, objective=stage.objective), 96, 8)
    train, counts = stage.train, []
    for step in range(50):
        samples = sample_batch(
            run.pool, stage.layout, train.segments, train.probabilities, seed=0, step=step, items=range(4)
        )
        counts += [int(count) for sample in samples for count in sample.n_spans]
    assert len(counts) == 200 * 3
    for gists in counts:
        vectors = gists + stage.layout.horizon_tokens - 1
        assert vectors <= longest.vectors
        assert gists / vectors <= longest.gists / longest.vectors


# The estimate beside what a step allocates ----------------------------------------------------------------------------


def small_llama(dtype: torch.dtype) -> Teacher:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
    )
    return Teacher(LlamaForCausalLM(config).to(dtype), name="small-llama")


class RandomWindows:
    """Windows of random tokens, all of one length."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def read(self, window: int) -> np.ndarray:
        return np.random.default_rng(window).integers(0, VOCABULARY, self.tokens)


def most_allocated(compute: Callable[[], object]) -> int:
    """Bytes that PyTorch's allocator held at most while `compute` ran, over those before, by the profiler's record."""
    with profile(profile_memory=True) as recorded:
        compute()
    held = most = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize(
    ("windows", "tokens", "spans", "horizon", "architecture", "dtype", "recompute"),
    [
        (4, 1024, 2, 16, "bottleneck", torch.float32, False),  # windows are most of it
        (1, 512, 16, 64, "bottleneck", torch.float32, False),  # branches are most of it
        (1, 512, 16, 64, "bottleneck", torch.bfloat16, True),
        (2, 512, 8, 32, "teacher_lora", torch.float32, False),
        (2, 512, 8, 32, "teacher_lora", torch.bfloat16, True),
    ],
)
def test_the_estimate_is_near_what_a_step_allocates(windows, tokens, spans, horizon, architecture, dtype, recompute):
    """Never below three quarters of it, never above two and a half times."""
    teacher = small_llama(dtype)
    teacher.enable_gradient_checkpointing(recompute)
    gistnet = GistNet.build(GistNetConfig(architecture=architecture, width=64), teacher)
    for parameter in gistnet.parameters():
        parameter.grad = torch.zeros_like(parameter)
    stage, sizes = stage_of(spans, horizon, dropout=0.1), MicroBatch(windows, windows * spans * horizon)
    layout = SpanLayout((32,), horizon_tokens=horizon, segments_per_window=spans)
    starts = np.linspace(4, tokens - 32 - horizon, spans).astype(np.int64)
    ones, none = np.ones_like(starts), np.zeros_like(starts, dtype=bool)
    samples = [WindowSample(item, item, 0, starts, ones, none) for item in range(windows)]
    seen = most_allocated(
        lambda: accumulate_gradient(
            teacher,
            RandomWindows(tokens),
            StageRun(stage.name, stage.train, stage.objective, stage.targets, gistnet, layout, sizes),
            stage.objective,
            samples,
            branches_in_step=windows * spans,
            sizes=sizes,
            dropout_seed=(0, 0),
        )
    )
    parts = estimated_bytes(
        teacher, gistnet, stage, sizes, window_tokens=tokens, device_type="cpu", recompute=recompute
    )
    there_before = parts["teacher weights"] + parts["GistNet and optimiser"]
    assert 0.75 < (sum(parts.values()) - there_before) / seen < 2.5


# Memory that runs out -------------------------------------------------------------------------------------------------


def room_for(vectors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has room for so many vectors at a time, and finds that out when most of the work is done."""

    def accumulate(*arguments: object, sizes: MicroBatch, **others: object) -> torch.Tensor:
        sums = accumulate_gradient(*arguments, sizes=sizes, **others)
        if sizes.vectors > vectors:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return sums

    monkeypatch.setattr(trainer, "accumulate_gradient", accumulate)


def gradients(run: Run, state: TrainState) -> dict[str, torch.Tensor]:
    (stage,) = run.stages
    train_step(run, stage, state, stage.optimiser())
    return {name: p.grad.clone() for name, p in run.gistnet.named_parameters() if p.grad is not None}


def test_where_memory_runs_out_the_step_is_done_again_with_half_the_sizes(config_file, monkeypatch, caplog):
    """Seven times, from 2,048 vectors to 16, where branches of 12 go one at a time."""
    expected = gradients(woken_run(config_file), TrainState(0.0, micro_batch=MicroBatch(1, 1)))
    caplog.set_level("INFO", "gistnet")
    run, state = woken_run(config_file), TrainState(0.0)
    room_for(24, monkeypatch)
    found = gradients(run, state)
    assert_same(found, expected)
    assert (state.micro_batch, state.step) == (MicroBatch(1, 16), 1)
    assert len([message for message in caplog.messages if "ran out" in message]) == 7
    gradients(run, state)
    assert len([message for message in caplog.messages if "ran out" in message]) == 7


def test_where_nothing_is_left_to_halve_the_run_stops_and_keeps_what_it_had(config_file, monkeypatch):
    run = woken_run(config_file)
    record = Recorder.record

    def fill(self: Recorder, stage: StageRun, state: TrainState, metrics: dict, interrupted: bool) -> None:
        record(self, stage, state, metrics, interrupted)
        if state.step == 3:
            room_for(0, monkeypatch)

    monkeypatch.setattr(Recorder, "record", fill)
    with pytest.raises(TrainingError, match=r"ran out.*step-00000003"):
        fit(run)


def test_a_resumed_run_takes_the_sizes_that_it_had(config_file):
    """The rounding of a sum depends on them. Others are chosen for another number of processes, or where asked for."""
    fit(woken_run(config_file, "train.micro_batch_vectors=30", "train.steps=2"))
    run = woken_run(config_file)
    assert run.stages[0].micro_batch == (2, 2_048)
    assert restore(run)[0].micro_batch == (2, 30)
    assert restore(woken_run(config_file, "train.micro_batch_vectors=50"))[0].micro_batch == (2, 50)
    run.processes.count = 2
    assert restore(run)[0].micro_batch is None


def test_a_run_that_found_less_room_ends_with_the_same_bits_when_resumed_with_more(config_file, tmp_path, monkeypatch):
    """Memory ran out in the first step; resumed after the fourth, when there is plenty, the run goes on as it did."""
    with monkeypatch.context() as patched:
        room_for(24, patched)
        whole = woken_run(config_file, f"run_folder={tmp_path / 'whole'}")
        fit(whole)
        stop_after(4, patched)
        assert fit(woken_run(config_file)).step == 4
    resumed = woken_run(config_file)
    assert fit(resumed, resume=True).micro_batch == (1, 16)
    assert_same(whole.gistnet.trainable_state(), resumed.gistnet.trainable_state())
