"""A small prepared corpus of the held-out windows that a release is evaluated on, so that it needs no other data."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gistnet.data.config import DataConfig
from gistnet.data.dataset import DatasetStatistics, DocumentLabels, PreparedDataset, SplitStatistics
from gistnet.data.prepare import DatasetWriter
from gistnet.data.sampling import SpanLayout, validation_windows
from gistnet.errors import DataError
from gistnet.evaluation.config import EvaluationConfig
from gistnet.model.gistnet import GistNet


def choose_windows(dataset: PreparedDataset, gistnet: GistNet, evaluation: EvaluationConfig) -> list[int]:
    """The number of one window of each of `evaluation.documents` held-out documents of each domain, by domain.

    Of every domain, evaluated or not: others may want to. The documents are those that the evaluation would take of the
    whole corpus. Where a document has windows with room
    for a gist of the highest level, it is one of them.

    Raises:
        DataError: a domain has no held-out window with room for a gist of level 0.
    """
    chosen: dict[int, int] = {}
    for level in gistnet.levels:
        for window in _windows_of_level(dataset, level, evaluation):
            document = int(dataset.documents[window])
            if level.level == 0 or document in chosen:
                chosen[document] = window
    return list(chosen.values())


def _windows_of_level(dataset: PreparedDataset, gistnet: GistNet, evaluation: EvaluationConfig) -> Iterator[int]:
    layout = SpanLayout(
        span_tokens=gistnet.config.span_tokens,
        level=gistnet.level,
        horizon_tokens=max(evaluation.horizons),
        sink_tokens=evaluation.sink_tokens,
    )
    for domain in dataset.domains("held_out"):
        try:
            samples = validation_windows(
                dataset,
                layout,
                documents=evaluation.documents,
                spans_per_document=1,
                seed=evaluation.seed,
                gists=evaluation.gists_in_a_row,
                domains=[domain],
            )
        except DataError:
            if gistnet.level == 0:
                raise
            continue  # the evaluation leaves a level out that has no room either
        yield from (sample.window for sample in samples)


def write_held_out(folder: Path, dataset: PreparedDataset, windows: Sequence[int], config: DataConfig) -> None:
    """Write a prepared corpus in which each of some held-out windows is a document of its own, in their order.

    Args:
        folder: where; made, and expected not to exist.
        windows: numbers of windows, each of another document.
        config: the configuration that the description gives.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir()
    described = dataset.description
    identity = hashlib.sha256(described.fingerprint.encode())
    tokens_of, windows_of = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    with DatasetWriter(folder, described.token_type) as writer:
        for window in windows:
            info = dataset.describe(window)
            tokens = dataset.read(window)[len(described.window_prefix) :]
            identity.update(f"{info.key}:{info.offset}".encode() + tokens.tobytes())
            labels = DocumentLabels(info.document_id, info.key, info.source, info.domain, "held_out")
            writer.add(labels, tokens, np.array([[0, info.length]]))
            tokens_of[info.source, info.domain] += len(tokens)
            windows_of[info.source, info.domain] += 1
        statistics = tuple(
            SplitStatistics(
                source=source,
                domain=domain,
                split="held_out",
                read=n,
                kept=n,
                windows=n,
                tokens=tokens_of[source, domain],
            )
            for (source, domain), n in windows_of.items()
        )
        writer.finish(
            fingerprint=identity.hexdigest()[:16],
            tokenizer_fingerprint=described.tokenizer_fingerprint,
            window_prefix=described.window_prefix,
            config=config,
            statistics=DatasetStatistics(splits=statistics, domains_without_held_out=()),
        )
