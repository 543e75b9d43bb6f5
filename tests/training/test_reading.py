"""Windows are read in groups, one of which is in memory at a time."""

import weakref

import pytest

from gistnet.config import load_config
from gistnet.data.sampling import sample_batch
from gistnet.errors import TeacherError
from gistnet.session import open_run
from gistnet.training.fitting import PassSizes
from gistnet.training.reading import read_groups
from gistnet.training.run import Progress
from gistnet.training.step import accumulate_gradient


def samples_of(run, windows):
    stage = run.stages[0]
    config = stage.train
    return sample_batch(run.pool, stage.layout, config.runs, config.probabilities, seed=0, step=0, items=range(windows))


def test_groups_hold_the_windows_in_order_each_as_read_alone(config_file):
    run = open_run(load_config(config_file))
    samples = samples_of(run, 5)
    groups = list(read_groups(run.teacher, run.dataset, samples, 2, ahead=True))  # ahead changes nothing on a CPU
    assert [sample.item for group in groups for sample in group.samples] == [0, 1, 2, 3, 4]
    assert [len(group.samples) for group in groups] == [2, 2, 1]
    for group in groups:
        for row, sample in enumerate(group.samples):
            window = run.dataset.read(sample.window)
            assert group.tokens[row, : len(window)].tolist() == window.tolist()
            assert group.tokens[row, len(window) :].sum() == 0


def test_a_group_is_out_of_memory_before_the_next_is_read(config_file, monkeypatch):
    run = open_run(load_config(config_file))
    stage, read_windows, before = run.stages[0], run.teacher.read_windows, []

    def recorded(tokens, **options):
        assert all(keys() is None for keys in before)
        read = read_windows(tokens, **options)
        before.append(weakref.ref(read.document.keys[0]))
        return read

    monkeypatch.setattr(run.teacher, "read_windows", recorded)
    accumulate_gradient(
        run.teacher,
        run.trained_gistnet(Progress()),
        run.dataset,
        samples_of(run, 4),
        stage.layout,
        stage.objective,
        train_below=False,
        branches_in_batch=1,
        sizes=PassSizes(1, 2),
        dropout_rate=0.0,
        dropout_seed=(0, 0),
    )
    assert len(before) == 4


def test_token_ids_outside_the_vocabulary_are_refused_before_they_reach_the_device(config_file, monkeypatch):
    run = open_run(load_config(config_file))
    exact = type(run.dataset).read
    monkeypatch.setattr(type(run.dataset), "read", lambda self, window: exact(self, window).astype("int64") + 1000)
    with pytest.raises(TeacherError, match="Token ids run from"):
        next(read_groups(run.teacher, run.dataset, samples_of(run, 1), 1, ahead=False))


def test_of_each_window_no_more_is_read_than_the_stage_uses(config_file):
    run = open_run(load_config(config_file))
    (group,) = read_groups(run.teacher, run.dataset, samples_of(run, 3), 3, ahead=False, window_tokens=20)
    assert group.tokens.shape == (3, 20)
    for row, sample in enumerate(group.samples):
        assert group.tokens[row].tolist() == run.dataset.read(sample.window)[:20].tolist()
