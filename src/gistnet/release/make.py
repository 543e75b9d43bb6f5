"""Making a release folder out of a finished run.

    gistnet release RUN --out src/gistnet/released/NAME

The network, the configuration and a few held-out documents are written into a new folder, and evaluated there:
`gistnet evaluate` gives the same figures of the folder again, without any other data.
"""

import hashlib
import logging
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from gistnet.config import RunConfig, config_text, load_config
from gistnet.data.config import DataConfig, FilesSource
from gistnet.data.dataset import DocumentLabels, PreparedDataset, SplitStatistics
from gistnet.data.duplicates import MOST_SHARED, Overlap
from gistnet.data.prepare import DatasetWriter
from gistnet.data.sampling import SpanLayout, fixed_windows
from gistnet.data.sources import read_text
from gistnet.errors import CheckpointError, ConfigError, DataError
from gistnet.evaluation.config import ContextsConfig, EvaluationConfig
from gistnet.evaluation.evaluator import evaluate
from gistnet.evaluation.records import MetricRecord, write_records
from gistnet.files import atomic_folder, write_json, write_text
from gistnet.machine import describe_machine
from gistnet.model.gistnet import GistNet
from gistnet.model.loading import load_tokenizer
from gistnet.release.card import card, on_card
from gistnet.release.contents import DomainOverlap, Provenance, record_identity, released_records
from gistnet.release_folder import CARD_FILE, DATA_NOTES_FILE, HELD_OUT_FOLDER, LIMITS_FILE, PROVENANCE_FILE
from gistnet.run_folder import CHECKPOINTS_FOLDER, CONFIG_FILE, METRICS_FILE, RESULTS_FILE, SPAN_MAP_FILE
from gistnet.session import open_trained
from gistnet.training.checkpoint import load_checkpoint
from gistnet.version import __version__

logger = logging.getLogger(__name__)

MOST_MEGABYTES = 10
"""Weights of a release stay below so many, of all its levels together: it belongs into a repository."""
WEIGHTS_DTYPE = torch.float16
"""Half the bytes of what was trained. What is measured is the network as it is after rounding."""


def make_release(
    run: Path,
    out: Path,
    settings: Sequence[str] = (),
    *,
    command: str,
    hardware: str,
    data_notes: Path | None = None,
    limits: Path | None = None,
    also: Sequence[Sequence[str]] = (),
) -> list[MetricRecord]:
    """Write the release of a run's best network into the new folder `out`.

    Args:
        run: a run folder, or one of its checkpoints.
        settings: `key=value` changes to how it is evaluated, and on what device.
        command: what trained it, for its card.
        hardware: what it was trained on, for its card.
        data_notes: file of what its card says of the documents and their licences, Markdown.
        limits: file of what its card says it cannot do, Markdown.
        also: further changes to the settings, for each of which it is evaluated once more. What `gistnet evaluate`
            measures of the release without settings is the first evaluation; of the others `results.json` has what
            the card shows.

    Returns:
        What was measured of it, as `results.json` has it.

    Raises:
        ConfigError: `out` is there already, or a setting is about something else than evaluation.
        CheckpointError: the weights are too large, or see `open_trained`.
        DataError: the run has no log, there are too few held-out documents, or a file of notes is not text.
        StorageError: the folder cannot be written; nothing is left of it.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already, expected a new folder; delete it to make that release anew.")
    for setting in (*settings, *chain.from_iterable(also)):
        if not setting.startswith(("evaluation.", "device=")):
            raise ConfigError(f"Got the setting '{setting}', expected one of evaluation: the rest is as in training.")
    paths = {DATA_NOTES_FILE: data_notes, LIMITS_FILE: limits}
    notes = {name: "".join(read_text(path)) for name, path in paths.items() if path is not None}
    # As the release is evaluated later (`portable_config`): compiled layers give other last digits.
    trained = open_trained(run, ("teacher.compile=false", *settings))
    if trained.is_released:
        raise ConfigError(f"{run} is a release already, expected a run folder.")
    require_small(trained.gistnet)
    trained.gistnet.round_weights(WEIGHTS_DTYPE)  # before anything is measured: the figures are of what is released
    log = trained.run_folder / METRICS_FILE
    if not log.is_file():
        raise DataError(f"{trained.run_folder} has no {METRICS_FILE}, expected the log of its training.")
    dataset = trained.dataset()
    config = portable_config(trained.config, out.name)
    further = [
        portable_config(load_config(trained.run_folder / CONFIG_FILE, [*settings, *more]), out.name).evaluation
        for more in also
    ]
    windows = choose_windows(dataset, trained.gistnet, config.evaluation)
    with atomic_folder(out) as folder:
        trained.gistnet.save_pretrained(folder, dtype=WEIGHTS_DTYPE)
        write_text(folder / CONFIG_FILE, config_text(config))
        write_held_out(folder / HELD_OUT_FOLDER, dataset, windows, config.data)
        shutil.copyfile(log, folder / METRICS_FILE)
        held_out = PreparedDataset.open(folder / HELD_OUT_FOLDER)
        first = evaluate(trained.teacher, trained.gistnet, held_out, config.evaluation)
        records = list(first.records)
        for evaluation in further:
            known = {record_identity(record) for record in records}
            more = evaluate(trained.teacher, trained.gistnet, held_out, evaluation).records
            records += [record for record in more if on_card(record) and record_identity(record) not in known]
        records = released_records(records)
        write_records(folder / RESULTS_FILE, records)
        first.span_map.write(folder / SPAN_MAP_FILE)
        logger.info("Comparing the held-out documents with those it was trained on.")
        checkpoint = load_checkpoint(trained.folder.parent)
        provenance = Provenance(
            gistnet_version=__version__,
            command=command,
            hardware=hardware,
            spans_seen=checkpoint.train_state["spans_seen"],
            steps=checkpoint.step,
            also_evaluated=tuple(map(shlex.join, also)),
            overlap=measure_overlap(held_out, dataset, load_tokenizer(trained.config.teacher).decode),
            # The gists of a GistNet that reads its context differ in their last digits between numbers of threads.
            evaluated_on=describe_machine() | {"threads": torch.get_num_threads()},
        )
        write_json(folder / PROVENANCE_FILE, provenance.model_dump(mode="json"))
        for name, text in notes.items():
            write_text(folder / name, text)
        write_text(folder / CARD_FILE, card(folder, config.run_folder))
    return records


def require_small(gistnet: GistNet) -> None:
    """Refuse weights that do not belong into a repository.

    Raises:
        CheckpointError: those of all levels together are not below `MOST_MEGABYTES`.
    """
    parameters = gistnet.trained_parameters(with_below=True).values()
    size = WEIGHTS_DTYPE.itemsize * sum(p.numel() for p in parameters)  # a file adds its header, a few kilobytes
    if size >= MOST_MEGABYTES * 10**6:
        raise CheckpointError(
            f"The weights have {size / 1e6:.1f} MB, expected less than {MOST_MEGABYTES} MB in a release: train a "
            "smaller GistNet, as the architectures bottleneck and teacher_lora are."
        )


def portable_config(config: RunConfig, name: str) -> RunConfig:
    """Configuration of the release `name`, for any machine and for the documents that the release brings.

    Of files only their names are left, of a GistNet that the run started from its run and checkpoint. The teacher is
    not compiled, which needs a compiler. A decoder and long contexts are not asked for: a release has neither training
    documents nor whole ones.
    """
    sources = [
        source.model_copy(update={"paths": tuple(Path(path).name for path in source.paths)})
        if isinstance(source, FilesSource)
        else source
        for source in config.data.sources
    ]
    start_from = config.start_from
    if start_from is not None:
        parts = start_from.parts  # RUN/checkpoints/STEP/gistnet of a checkpoint's network, or any other folder
        first = parts.index(CHECKPOINTS_FOLDER) - 1 if CHECKPOINTS_FOLDER in parts else len(parts) - 1
        start_from = Path(*parts[max(first, 0) :])
    default_folder = DataConfig.model_fields["folder"].default
    without = {"reconstruction": False, "contexts": ContextsConfig()}
    return config.model_copy(
        update={
            "run_folder": Path("runs") / name,
            "device": "auto",
            "teacher": config.teacher.model_copy(update={"compile": False}),
            "data": config.data.model_copy(update={"folder": default_folder, "sources": tuple(sources)}),
            "start_from": start_from,
            "evaluation": config.evaluation.model_copy(update=without),
        }
    )


def choose_windows(dataset: PreparedDataset, gistnet: GistNet, evaluation: EvaluationConfig) -> list[int]:
    """Indices of one window of each of `evaluation.documents` held-out documents of each domain, by domain.

    Of every domain, evaluated or not: others may want to. The documents are those that the evaluation would take of the
    whole corpus. Where a document has windows with room for a gist of the highest level, it is one of them.

    Raises:
        DataError: a domain has no held-out window with room for a gist of level 0.
    """
    chosen: dict[int, int] = {}
    for level in gistnet.levels:
        layout = SpanLayout(
            level.branchings,
            horizon_tokens=max(evaluation.horizons),
            sink_tokens=evaluation.sink_tokens,
        )
        for domain in dataset.domains("held_out"):
            try:
                samples = fixed_windows(
                    dataset,
                    layout,
                    documents=evaluation.documents,
                    segments_per_window=1,
                    seed=evaluation.seed,
                    n_spans=evaluation.spans_per_segment,
                    domains=[domain],
                )
            except DataError:
                if level.level == 0:
                    raise
                continue  # the evaluation leaves a level out that has no room either
            for window in (sample.window for sample in samples):
                document = int(dataset.documents[window])
                if level.level == 0 or document in chosen:
                    chosen[document] = window
    return list(chosen.values())


def write_held_out(folder: Path, dataset: PreparedDataset, windows: Sequence[int], config: DataConfig) -> None:
    """Write a prepared corpus in which each of some held-out windows is a document of its own, in their order.

    Args:
        folder: where; made, and expected not to exist.
        windows: indices of windows, each of another document.
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
        statistics = []
        for (source, domain), n in windows_of.items():
            counts = {"read": n, "kept": n, "windows": n, "tokens": tokens_of[source, domain]}
            statistics.append(SplitStatistics(source=source, domain=domain, split="held_out", **counts))
        writer.finish(
            fingerprint=identity.hexdigest()[:16],
            window_prefix=described.window_prefix,
            config=config,
            statistics=statistics,
        )


def measure_overlap(
    held_out: PreparedDataset, trained_on: PreparedDataset, decode: Callable[[list[int]], str]
) -> dict[str, DomainOverlap]:
    """Compare the held-out documents of a release with the training documents of its run, by domain.

    All word 10-grams count; `decode` makes text of tokens.

    Raises:
        OSError: the 10-grams cannot be spooled to a temporary folder.
    """
    domains = held_out.domains("held_out")
    counts: list[int] = []
    with Overlap(sampled=1) as overlap:
        for domain in domains:
            texts = [decode(tokens.tolist()) for _, tokens in held_out.whole_documents("held_out", domain)]
            counts.append(len(texts))
            for text in texts:
                overlap.add_held_out(text)
        for _, tokens in trained_on.whole_documents("train"):
            overlap.add_training(decode(tokens.tolist()))
        shares = np.split(overlap.shares(), np.cumsum(counts)[:-1])
    return {
        domain: DomainOverlap(
            documents=len(found), above_a_tenth=int((found > MOST_SHARED).sum()), largest=round(float(found.max()), 3)
        )
        for domain, found in zip(domains, shares, strict=True)
    }
