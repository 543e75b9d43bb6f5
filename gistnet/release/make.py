"""Making a release folder out of a finished run.

    gistnet release RUN --out released/NAME

The network, the configuration and a few held-out documents are written into a new folder, and evaluated there: whoever
has the folder gets the same figures from `gistnet evaluate` without any other data.
"""

import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from gistnet.config import config_text, load_config
from gistnet.data.dataset import PreparedDataset
from gistnet.errors import CheckpointError, ConfigError, DataError
from gistnet.evaluation.evaluator import Evaluation, evaluate
from gistnet.evaluation.records import MetricRecord
from gistnet.files import atomic_folder, storage_errors, write_json, write_text
from gistnet.machine import describe_machine
from gistnet.model.gistnet import GistNet
from gistnet.model.loading import load_tokenizer
from gistnet.release.card import write_card
from gistnet.release.comparison import what_it_is
from gistnet.release.held_out import choose_windows, write_held_out
from gistnet.release.neutral import neutral_config
from gistnet.release.overlap import DomainOverlap, measure_overlap
from gistnet.release.provenance import Provenance
from gistnet.release_folder import DATA_NOTES_FILE, HELD_OUT_FOLDER, LIMITS_FILE, PROVENANCE_FILE
from gistnet.report.report import write_report
from gistnet.run_folder import CONFIG_FILE, FIGURES_FILE, METRICS_FILE
from gistnet.session import TrainedGistNet, open_trained
from gistnet.training.checkpoint import load_checkpoint
from gistnet.version import __version__

MOST_MEGABYTES = 10
"""Weights of a release stay below so many, of all its levels together: it belongs into a repository."""
WEIGHTS_DTYPE = torch.float16
"""Half the bytes of what was trained. What is measured is the network as it is after rounding."""
_SETTINGS = ("evaluation.", "device=")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Told:
    """What the maker tells of a release that no file of the run says."""

    command: str
    """What trained it."""
    hardware: str
    """What it was trained on."""
    data_notes: str | None = None
    """Of the documents and their licences, Markdown."""
    limits: str | None = None
    """Of what it cannot do, Markdown."""


def make_release(
    run: Path,
    out: Path,
    told: Told,
    settings: Sequence[str] = (),
    say: Say = lambda message: None,
    *,
    also: Sequence[Sequence[str]] = (),
) -> list[MetricRecord]:
    """Write the release of a run's best network into the new folder `out`.

    Args:
        run: a run folder, or one of its checkpoints.
        settings: `key=value` changes to how it is evaluated, and on what device.
        say: is called with a sentence before each longer part.
        also: further changes to these, for each of which it is evaluated once more. What `gistnet evaluate` measures of
            the release where nothing is said is the first evaluation; the figures of all stand in `metrics.json`.

    Returns:
        What was measured of it, as `metrics.json` has it.

    Raises:
        ConfigError: `out` is there already, or a setting is about something else than evaluation.
        CheckpointError: the weights are too large, or see `open_trained`.
        DataError: the run has no log, or there are too few held-out documents.
        StorageError: the folder cannot be written; nothing is left of it.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already, expected a new folder; delete it to make that release anew.")
    everything = [*settings, *chain.from_iterable(also)]
    if wrong := next((setting for setting in everything if not setting.startswith(_SETTINGS)), None):
        raise ConfigError(f"Got the setting '{wrong}', expected one of evaluation: the rest is as it was trained.")
    # As whoever evaluates the release has it (`neutral_config`): compiled layers give other last digits.
    trained = open_trained(run, ("teacher.compile=false", *settings))
    if trained.is_released:
        raise ConfigError(f"{run} is a release already, expected a run folder.")
    require_small(trained.gistnet)
    trained.gistnet.round_weights(WEIGHTS_DTYPE)  # before anything is measured: the figures are of what is released
    log = trained.run_folder / METRICS_FILE
    if not log.is_file():
        raise DataError(f"{trained.run_folder} has no {METRICS_FILE}, expected the log of its training.")
    dataset = trained.dataset(say)
    config = neutral_config(trained.config, out.name)
    further = [
        neutral_config(load_config(trained.run_folder / CONFIG_FILE, [*settings, *more]), out.name).evaluation
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
            known = {what_it_is(record) for record in records}
            more = evaluate(trained.teacher, trained.gistnet, held_out, evaluation).records
            records += [record for record in more if what_it_is(record) not in known]
        Evaluation(records, first.span_map).write(folder / FIGURES_FILE)
        say("Comparing the held-out documents with those it was trained on.")
        overlap = measure_overlap(held_out, dataset, load_tokenizer(trained.config.teacher).decode)
        write_json(folder / PROVENANCE_FILE, _provenance(trained, told, also, overlap).model_dump(mode="json"))
        for name, text in ((DATA_NOTES_FILE, told.data_notes), (LIMITS_FILE, told.limits)):
            if text is not None:
                write_text(folder / name, text)
        write_report(folder, shown_as=config.run_folder)
        write_card(folder, config.run_folder)
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


def read_notes(path: Path | None) -> str | None:
    """The text of a file of notes, where one is given.

    Raises:
        StorageError: it cannot be read.
        DataError: it is not UTF-8.
    """
    if path is None:
        return None
    with storage_errors("read", path):
        content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error.reason}), expected Markdown.") from error


def _provenance(
    trained: TrainedGistNet, told: Told, also: Sequence[Sequence[str]], overlap: dict[str, DomainOverlap]
) -> Provenance:
    checkpoint = load_checkpoint(trained.folder.parent)
    return Provenance(
        gistnet_version=__version__,
        command=told.command,
        hardware=told.hardware,
        spans_seen=checkpoint.progress["spans_seen"],
        steps=checkpoint.step,
        also_evaluated=tuple(map(shlex.join, also)),
        overlap=overlap,
        # The gists of a GistNet that reads its context differ in their last digits between numbers of threads.
        evaluated_on=describe_machine() | {"threads": torch.get_num_threads()},
    )
