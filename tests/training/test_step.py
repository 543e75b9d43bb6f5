"""A step's micro-batches of segments, the prefill of its windows, and its dropout keys."""

import dataclasses
import itertools
import weakref

import numpy as np
import pytest
import torch

from gistnet.config import load_config
from gistnet.data.sampling import SpanLayout, WindowSample, sample_batch
from gistnet.errors import TeacherError
from gistnet.session import open_run
from gistnet.training.micro_batch import MicroBatch
from gistnet.training.run import Run
from gistnet.training.trainer import _dropout_key, accumulate_gradient, prefill_tokens, segment_micro_batches


def sample(starts: list[int], gists: list[int]) -> WindowSample:
    return WindowSample(0, 0, 0, np.array(starts), np.array(gists), np.zeros(len(starts), dtype=bool))


def test_segments_of_a_micro_batch_are_those_of_its_windows():
    """With H = 9 they are 9, 11, 9 and 12 vectors long, sorted by that."""
    samples = [sample([10, 20], [1, 3]), sample([30, 5], [1, 4])]
    samples[1] = dataclasses.replace(samples[1], compact=np.array([True, False]))
    tokens = torch.zeros(2, 60, dtype=torch.long)
    found = list(segment_micro_batches(tokens, samples, 33, SpanLayout((8,), horizon_tokens=9)))
    columns = [(s.windows.tolist(), s.starts.tolist(), s.counts.tolist(), compact.tolist()) for s, compact in found]
    assert columns == [
        ([0, 1, 0], [10, 30, 20], [1, 1, 3], [False, True, False]),
        ([1], [5], [4], [False]),
    ]
    assert {(s.span_tokens, s.horizon) for s, _ in found} == {(8, 9)}


def test_every_window_of_every_step_and_seed_has_a_dropout_key_of_its_own():
    """Also where the digits of seed, step and window are the same ones, as in 1, 11 and 11, 1."""
    numbers = (0, 1, 2, 11, 111)
    keys = {_dropout_key(*parts) for parts in itertools.product(numbers, repeat=3)}
    assert len(keys) == len(numbers) ** 3
    assert all(-(2**63) <= key < 2**63 for key in keys)


# Prefill --------------------------------------------------------------------------------------------------------------


def samples_of(run: Run, windows: int) -> list[WindowSample]:
    stage = run.stages[0]
    config = stage.train
    return sample_batch(
        run.pool, stage.layout, config.segments, config.probabilities, seed=0, step=0, items=range(windows)
    )


def test_prefill_tokens_are_those_of_the_windows_up_to_what_the_stage_uses(config_file):
    run = open_run(load_config(config_file))
    samples = samples_of(run, 5)
    for limit in (None, 20):
        tokens = prefill_tokens(run.teacher, run.dataset, samples, limit)
        for row, sample in zip(tokens, samples, strict=True):
            window = run.dataset.read(sample.window)[:limit]
            assert row[: len(window)].tolist() == window.tolist()
            assert row[len(window) :].sum() == 0


def test_token_ids_outside_the_vocabulary_are_refused_before_they_reach_the_device(config_file, monkeypatch):
    run = open_run(load_config(config_file))
    exact = type(run.dataset).read
    monkeypatch.setattr(type(run.dataset), "read", lambda self, window: exact(self, window).astype("int64") + 1000)
    with pytest.raises(TeacherError, match="Token ids run from"):
        prefill_tokens(run.teacher, run.dataset, samples_of(run, 1), None)


def test_windows_are_out_of_memory_before_the_next_are_read(config_file, monkeypatch):
    run = open_run(load_config(config_file))
    stage, prefill, before = run.stages[0], run.teacher.prefill, []

    def recorded(tokens, **options):
        assert all(keys() is None for keys in before)
        read = prefill(tokens, **options)
        before.append(weakref.ref(read.cache.keys[0]))
        return read

    monkeypatch.setattr(run.teacher, "prefill", recorded)
    accumulate_gradient(
        run.teacher,
        run.dataset,
        stage,
        stage.objective,
        samples_of(run, 4),
        branches_in_step=1,
        sizes=MicroBatch(1, 24),
        dropout_seed=(0, 0),
    )
    assert len(before) == 4
