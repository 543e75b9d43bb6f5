"""Token reconstruction on a tiny run: untrained, a gist is the last token; no probe is judged where it was trained."""

import numpy as np
import pytest
import torch

from gistnet.config import load_config
from gistnet.errors import DataError
from gistnet.evaluation import evaluator
from gistnet.evaluation.config import EvaluationConfig
from gistnet.evaluation.held_out import HeldOut
from gistnet.evaluation.probes import reconstruction as module
from gistnet.evaluation.probes.reconstruction import Training, reconstruction, train_probe
from gistnet.session import open_run

TRAINING = Training(documents=24, segments_per_window=11, width=32, steps=300, tokens_per_step=64, learning_rate=1e-2)


@pytest.fixture
def run(config_file):
    return open_run(load_config(config_file, ("data.held_out_fraction=0.5",)))


def measure(run, training=TRAINING):
    return reconstruction(run.teacher, run.gistnet, run.dataset, training=training, seed=1, resamples=100)


def test_an_untrained_gistnet_says_what_its_last_token_says(run):
    records = measure(run)
    names = ["reconstruction_ce", "reconstruction_accuracy", "reconstruction_mse"]
    assert [(r.name, r.index) for r in records[:3]] == [(name, None) for name in names]
    assert [(r.name, r.index) for r in records[3:]] == [("reconstruction_accuracy", n) for n in range(1, 9)]
    for record in records:
        assert record.value == record.baselines["last_token"]
        assert record.interval[0] <= record.value <= record.interval[1]
    assert records[1].value == pytest.approx(np.mean([r.value for r in records[3:]]))


def test_the_last_token_knows_itself_and_the_gist_of_another_document_does_not(run):
    """Words and their bytes are random here, so another document says nothing."""
    records = {(r.name, r.index): r for r in measure(run)}
    last = records["reconstruction_accuracy", 8]
    assert last.value > 0.8
    assert last.baselines["shuffled"] < 0.5
    assert records["reconstruction_ce", None].value < records["reconstruction_ce", None].baselines["shuffled"]


def test_reconstruction_is_the_same_every_time(run):
    assert measure(run) == measure(run)


def test_no_probe_is_judged_on_documents_that_it_was_trained_on(run, monkeypatch):
    trained, judged = [], []
    read_tokens = module.read_tokens

    def training(vectors, tokens, *rest):
        trained.append(tokens)
        return train_probe(vectors, tokens, *rest)

    def judging(probe, vectors, tokens):
        judged.append(tokens)
        return read_tokens(probe, vectors, tokens)

    monkeypatch.setattr(module, "train_probe", training)
    monkeypatch.setattr(module, "read_tokens", judging)
    measure(run, TRAINING._replace(steps=1))
    samples = module.choose_windows(run.dataset, run.gistnet, 1, TRAINING)
    held_out = HeldOut(run.teacher, run.dataset, samples, module._layout(run.gistnet), cache_gigabytes=0)
    everything = torch.cat([window.segments.replaced for window in held_out.windows])
    for one, other in zip(trained, judged, strict=True):
        assert len(one) + len(other) == len(everything)
        assert torch.equal(torch.cat([one, other]).sort(dim=0).values, everything.sort(dim=0).values)
    assert torch.equal(trained[0], judged[1])
    assert torch.equal(trained[1], judged[0])


def test_three_held_out_documents_are_too_few(run):
    with pytest.raises(DataError, match="four"):
        measure(run, TRAINING._replace(documents=3))


def test_an_evaluation_says_so_before_it_measures_anything(run, monkeypatch):
    def choosing(dataset, gistnet, seed):
        return module.choose_windows(dataset, gistnet, seed, TRAINING._replace(documents=3))

    monkeypatch.setattr(evaluator, "choose_windows", choosing)
    monkeypatch.setattr(evaluator, "_measure", None)
    with pytest.raises(DataError, match="four"):
        evaluator.evaluate(run.teacher, run.gistnet, run.dataset, EvaluationConfig(reconstruction=True))
