"""A step's micro-batches of contexts, the prefill of its windows, and its dropout keys."""

import itertools
import weakref

import numpy as np
import pytest

from gistnet.config import load_config
from gistnet.data.sampling import ContextSample, SpanLayout, WindowSample, sample_batch
from gistnet.errors import TeacherError
from gistnet.session import open_run
from gistnet.training.micro_batch import MicroBatch
from gistnet.training.run import Run
from gistnet.training.trainer import _dropout_key, accumulate_gradient, context_micro_batches, prefill_tokens


def sample(starts: list[int], gists: list[int], *others: ContextSample) -> WindowSample:
    compact = np.zeros(len(starts), dtype=bool)
    return WindowSample(0, 0, 0, np.array(starts), np.array(gists), compact, others)


def cut(samples: list[WindowSample], vectors: int, horizon: int) -> list[list[tuple[int, int, int]]]:
    """The window, first start and gists of each context, by micro-batch."""
    layout = SpanLayout((8,), horizon_tokens=horizon)
    return [
        [(row, int(context.starts[0]), int(context.n_spans.sum())) for row, context in together]
        for together in context_micro_batches(samples, vectors, layout)
    ]


def test_single_gists_keep_their_order_and_fill_micro_batches():
    """With H = 32 each is a gist and 31 tokens."""
    samples = [sample([10, 20, 30], [1, 1, 1]), sample([5, 15], [1, 1])]
    assert (
        cut(samples, 64, 32)
        == cut(samples, 95, 32)
        == [
            [(0, 10, 1), (0, 20, 1)],
            [(0, 30, 1), (1, 5, 1)],
            [(1, 15, 1)],
        ]
    )


def test_a_micro_batch_ends_before_a_context_more_than_a_quarter_longer_than_its_shortest():
    """With H = 9 contexts are k + 8 long: 9 and 11 go together (11.25 at most), 12 and 15 (15 at most), then 16."""
    samples = [sample([10, 20], [8, 3]), sample([30, 40], [1, 7]), sample([50], [4])]
    assert cut(samples, 640, 9) == [
        [(1, 30, 1), (0, 20, 3)],
        [(2, 50, 4), (1, 40, 7)],
        [(0, 10, 8)],
    ]


def test_one_token_of_horizon_leaves_only_the_gists():
    """Contexts are k long: 4 and 5 fit together, 3 fits neither."""
    assert cut([sample([1, 2, 3], [5, 4, 3])], 640, 1) == [[(0, 3, 3)], [(0, 2, 4), (0, 1, 5)]]


def test_vectors_are_counted_with_padding_and_a_context_that_is_longer_goes_by_itself():
    """With H = 9: 9 and 11 take 22 padded, 12 alone is more than 11."""
    samples = [sample([10, 20, 30], [1, 3, 4])]
    assert cut(samples, 22, 9) == [[(0, 10, 1), (0, 20, 3)], [(0, 30, 4)]]
    assert cut(samples, 21, 9) == cut(samples, 11, 9) == [[(0, 10, 1)], [(0, 20, 3)], [(0, 30, 4)]]


def test_interleaved_contexts_are_read_beside_single_ones():
    """With H = 16 and K = 8 single ones are a gist and 15 tokens long, the interleaved one two gists and 15."""
    interleaved = ContextSample(4, np.array([4, 20]), np.array([1, 1]), 36)
    samples = [sample([10], [1], interleaved), sample([30], [1])]
    assert cut(samples, 640, 16) == [[(0, 10, 1), (1, 30, 1), (0, 4, 2)]]


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
        targets_in_step=1,
        sizes=MicroBatch(1, 24),
        dropout_seed=(0, 0),
    )
    assert len(before) == 4
