"""Token reconstruction: what gists say of the very tokens they stand for (spec, Diagnostic Metrics, 7)."""

from typing import cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, validation_windows
from gistnet.errors import DataError
from gistnet.evaluation import baselines
from gistnet.evaluation.held_out import HeldOut
from gistnet.evaluation.metrics import bootstrap_over_documents
from gistnet.evaluation.records import Baseline, MetricRecord
from gistnet.evaluation.token_decoder import Decoded, DecoderConfig, decode, train_decoder
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.settings import Section


class ReconstructionConfig(Section):
    """On what the decoder is trained."""

    documents: int = Field(default=192, ge=2)
    """Training documents per domain, one window of each; every tenth decides how long to train."""
    spans_per_document: int = Field(default=12, ge=1)
    """Spans of each window."""
    decoder: DecoderConfig = DecoderConfig()
    """The decoder and its training; the same for gists and baselines."""


def reconstruction(
    teacher: Teacher,
    gistnet: GistNet,
    dataset: PreparedDataset,
    held_out: HeldOut,
    config: ReconstructionConfig,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> list[MetricRecord]:
    """How well a small decoder, trained on the gists of training documents, tells the tokens of held-out spans.

    Returns:
        for each domain of the held-out spans `reconstruction_ce`, `reconstruction_accuracy` (of all tokens, and of each
        place as a part, `token 1` to `token K`), and `reconstruction_mse` (see `decode`); with `last_token` and
        `shuffled` (the gist of another document), each told by a decoder of its own that was trained alike.

    Raises:
        DataError: the training or the held-out spans are from fewer than two documents.
    """
    judged, documents, domains = _spans_of(held_out)
    training = training_spans(teacher, gistnet, dataset, config, seed)
    trained, trained_documents, _ = _spans_of(training)
    _, ranks = np.unique(trained_documents, return_inverse=True)
    vectors = _vectors(teacher, gistnet, training, seed)
    vectors_judged = _vectors(teacher, gistnet, held_out, seed)
    table = teacher.embed(torch.arange(teacher.vocabulary_size, device=teacher.device)).float()
    set_aside = torch.from_numpy(ranks % 10 == 0).to(teacher.device)
    decoded = {}
    for name, known in vectors.items():
        decoder = train_decoder(known, trained, set_aside, table, config.decoder, seed)
        decoded[name] = decode(decoder, vectors_judged[name], judged)
    return [
        record
        for domain in sorted(set(domains))
        for record in _records(decoded, str(domain), domains == domain, documents, gistnet, seed, resamples)
    ]


def training_spans(
    teacher: Teacher, gistnet: GistNet, dataset: PreparedDataset, config: ReconstructionConfig, seed: int
) -> HeldOut:
    """Spans of training documents of all domains."""
    layout = SpanLayout(span_tokens=gistnet.config.span_tokens, horizon_tokens=1)
    samples = validation_windows(
        dataset,
        layout,
        documents=config.documents,
        spans_per_document=config.spans_per_document,
        seed=seed,
        split="train",
    )
    return HeldOut(teacher, dataset, samples, layout, cache_gigabytes=0, states_after=gistnet.states_after)


def _spans_of(held_out: HeldOut) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Token ids `[spans, K]` of spans, of which a stretch may be several, and the document and the domain of each."""
    stretches = [window.stretches for window in held_out.windows]
    tokens = torch.cat([each.replaced.view(-1, each.span_tokens) for each in stretches])
    times = len(tokens) // len(held_out)
    return tokens, np.repeat(held_out.documents, times), np.repeat(held_out.domains, times)


def _vectors(teacher: Teacher, gistnet: GistNet, held_out: HeldOut, seed: int) -> dict[str, Tensor]:
    """What decoders read, `[spans, dim]` by name, float32."""
    tokens, documents, _ = _spans_of(held_out)
    if len(np.unique(documents)) < 2:
        raise DataError("Reconstruction got spans of a single document, expected two at least, for shuffled gists.")
    gists = held_out.encode(gistnet)[0].flatten(0, 1).float()
    others = baselines.other_documents(torch.from_numpy(documents), seed)
    return {"gist": gists, "last_token": teacher.embed(tokens[:, -1]).float(), "shuffled": gists[others]}


def _records(
    decoded: dict[str, Decoded],
    domain: str,
    rows: np.ndarray,
    documents: np.ndarray,
    gistnet: GistNet,
    seed: int,
    resamples: int,
) -> list[MetricRecord]:
    """The records of one domain, of the spans `rows` `[spans]`."""

    def record(name: str, part: str, columns: dict[str, np.ndarray]) -> MetricRecord:
        means = {stand_in: float(column.mean()) for stand_in, column in columns.items()}
        return MetricRecord(
            name=name,
            part=part,
            domain=domain,
            positions=gistnet.positions,
            level=gistnet.level,
            value=means.pop("gist"),
            n_spans=int(rows.sum()),
            n_documents=len(np.unique(documents[rows])),
            interval=bootstrap_over_documents(columns["gist"], documents[rows], resamples=resamples, seed=seed),
            baselines=cast(dict[Baseline, float], means),
        )

    tables = {
        field: {name: getattr(values, field)[rows].double().cpu().numpy() for name, values in decoded.items()}
        for field in Decoded._fields
    }
    named = (
        ("reconstruction_ce", "cross_entropy"),
        ("reconstruction_accuracy", "correct"),
        ("reconstruction_mse", "squared_error"),
    )
    records = [
        record(name, "", {stand_in: values.mean(axis=1) for stand_in, values in tables[field].items()})
        for name, field in named
    ]
    for place in range(gistnet.config.span_tokens):
        at = {stand_in: values[:, place] for stand_in, values in tables["correct"].items()}
        records.append(record("reconstruction_accuracy", f"token {place + 1}", at))
    return records
