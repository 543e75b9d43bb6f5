"""Token reconstruction on a tiny run: an untrained GistNet is the last token, and held-out documents stay unseen."""

import numpy as np
import pytest
import torch

from gistnet.config import load_config
from gistnet.data.sampling import validation_windows
from gistnet.errors import DataError
from gistnet.evaluation.held_out import HeldOut
from gistnet.evaluation.reconstruction import ReconstructionConfig, reconstruction, training_spans
from gistnet.evaluation.token_decoder import DecoderConfig
from gistnet.session import open_run

DECODER = DecoderConfig(
    width=16, heads=2, steps=150, spans_per_step=16, learning_rate=1e-2, drawn_tokens=64, judge_every_steps=25
)
CONFIG = ReconstructionConfig(documents=24, spans_per_document=11, decoder=DECODER)


@pytest.fixture
def run(config_file):
    return open_run(load_config(config_file))


def held_out_of(run, documents: int = 5) -> HeldOut:
    samples = validation_windows(run.dataset, run.stages[0].layout, documents=documents, spans_per_document=2, seed=0)
    return HeldOut(run.teacher, run.dataset, samples, run.stages[0].layout, cache_gigabytes=0)


def measure(run, **changes):
    return reconstruction(
        run.teacher, run.gistnet, run.dataset, held_out_of(run, **changes), CONFIG, seed=1, resamples=100
    )


def test_an_untrained_gistnet_says_what_its_last_token_says(run):
    records = measure(run)
    names = ["reconstruction_ce", "reconstruction_accuracy", "reconstruction_mse"]
    assert [(r.name, r.part) for r in records[:3]] == [(name, "") for name in names]
    assert [(r.name, r.part) for r in records[3:]] == [("reconstruction_accuracy", f"token {n}") for n in range(1, 9)]
    for record in records:
        assert record.value == record.baselines["last_token"]
        assert (record.domain, record.horizon, record.n_spans, record.n_documents) == ("narrative", None, 10, 5)
        assert record.interval[0] <= record.value <= record.interval[1]
    assert records[1].value == pytest.approx(np.mean([r.value for r in records[3:]]))


def test_the_last_token_knows_itself_and_the_gist_of_another_document_does_not(run):
    """Words and their bytes are random here, so another document says nothing."""
    records = {(r.name, r.part): r for r in measure(run)}
    last = records["reconstruction_accuracy", "token 8"]
    assert last.value > 0.8
    assert last.baselines["shuffled"] < 0.5
    assert records["reconstruction_ce", ""].value < records["reconstruction_ce", ""].baselines["shuffled"]


def test_reconstruction_is_the_same_every_time(run):
    assert measure(run) == measure(run)


def test_decoders_are_trained_on_spans_of_training_documents(run):
    spans = training_spans(run.teacher, run.gistnet, run.dataset, CONFIG, seed=0)
    tokens, documents = torch.cat([window.stretches.replaced for window in spans.windows]), spans.documents
    training = set(run.dataset.documents[run.dataset.window_indices("train")])
    assert set(documents) <= training and len(set(documents)) == 24
    texts = {index: run.dataset.read(index) for index in run.dataset.window_indices("train")}
    for span, document in zip(tokens, documents, strict=True):
        windows = [texts[i] for i in texts if run.dataset.documents[i] == document]
        assert any(torch.equal(span, row) for text in windows for row in torch.from_numpy(text).unfold(0, 8, 1))


def test_one_held_out_document_is_too_few(run):
    with pytest.raises(DataError, match="single document"):
        measure(run, documents=1)
