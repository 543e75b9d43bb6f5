"""Contents of a release folder: its network, figures and provenance, and whether it is whole."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from gistnet.config import RunConfig, load_config
from gistnet.data.dataset import PreparedDataset
from gistnet.errors import CheckpointError, DataError
from gistnet.evaluation.records import MetricRecord, read_records, rounded_record
from gistnet.model.saved_gistnet import BELOW, SavedGistNet, read_saved
from gistnet.positions import policies_of
from gistnet.release_folder import ALWAYS_THERE, HELD_OUT_FOLDER, PROVENANCE_FILE, is_release
from gistnet.run_folder import CONFIG_FILE, RESULTS_FILE
from gistnet.settings import Section

DECIMALS = 6
"""Decimals of a release's figures: more than its card and its page show."""


class DomainOverlap(Section):
    """Shares of word 10-grams of the held-out documents of a domain that are in training documents."""

    documents: int
    above_a_tenth: int
    """Documents of which training documents have more than a tenth."""
    largest: float
    """Share of the document that has most, 0 to 1."""


class Provenance(Section):
    """Contents of `release.json`: what only the maker of a release knows of it."""

    gistnet_version: str
    """Version that made the release."""
    command: str
    """Command that trained it."""
    hardware: str
    """Machine that it was trained on."""
    spans_seen: int
    """By the released weights, in their own run."""
    steps: int
    """Optimiser steps of that run up to the released weights."""
    also_evaluated: tuple[str, ...] = ()
    """The changes to the evaluation with which further figures were measured, as words of a command line."""
    overlap: dict[str, DomainOverlap]
    """By domain, how much of the held-out documents its training documents have."""
    evaluated_on: dict[str, Any]
    """The machine that its figures come from, as `machine.describe_machine` puts it, and the number of threads."""


class Release(NamedTuple):
    """Contents of a release folder that its card and its results are made of."""

    network: SavedGistNet
    records: list[MetricRecord]
    provenance: Provenance
    config: RunConfig

    @property
    def shown(self) -> list[MetricRecord]:
        """Figures under the position policies that it was trained for; those of rows under all."""
        policies = policies_of(self.network.positions)
        return [of for of in self.records if of.positions in policies or of.name.startswith("row_")]


def read_release(folder: Path) -> Release:
    """Read what a release folder says.

    Raises:
        CheckpointError, ConfigError, DataError: its network, configuration, figures or provenance are missing or
            damaged.
    """
    path = folder / PROVENANCE_FILE
    try:
        provenance = Provenance.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise DataError(f"Could not read {path}: {error.strerror}.") from error
    except (ValueError, ValidationError) as error:
        raise DataError(f"{path} is damaged, or not what a release says of itself.") from error
    network, _ = read_saved(folder)
    return Release(network, read_records(folder / RESULTS_FILE), provenance, load_config(folder / CONFIG_FILE))


def check_release(folder: Path) -> None:
    """Read all that a release must have.

    Raises:
        CheckpointError: the folder is no release, lacks a file, or its weights are not those that its configuration
            describes.
        ConfigError, DataError: the configuration, figures, documents or provenance are damaged.
    """
    if not is_release(folder):
        raise CheckpointError(f"{folder} is no release: expected a folder as `gistnet release` makes it.")
    if missing := [name for name in ALWAYS_THERE if not (folder / name).exists()]:
        raise CheckpointError(f"The release {folder} is not complete: {', '.join(missing)} is missing.")
    for level in range(1, read_release(folder).network.level + 1):
        read_saved(folder.joinpath(*[BELOW] * level))
    PreparedDataset.open(folder / HELD_OUT_FOLDER)


def released_records(records: Iterable[MetricRecord]) -> list[MetricRecord]:
    """The figures that a release keeps of an evaluation, rounded: all but those of single heads and tokens."""
    return [rounded_record(record, DECIMALS) for record in records if record.index is None]


def compare_results(measured: Sequence[MetricRecord], released: Sequence[MetricRecord]) -> str:
    """A sentence that compares figures measured again with those that a release came with.

    Figures of the same measure and of as many spans and documents are compared by their values, rounded alike.
    """
    measured = released_records(measured)
    before = {record_identity(record): record.value for record in released}
    pairs = [(record, before[record_identity(record)]) for record in measured if record_identity(record) in before]
    if not pairs:
        return "These figures are of other spans than the release's, or not in it: none can be compared."
    different = [(abs(record.value - value), record) for record, value in pairs if record.value != value]
    sentence = f"{len(pairs) - len(different)} of {len(pairs)} figures are those of the release to the digit"
    if different:
        size, record = max(different, key=lambda pair: pair[0])
        sentence += f", the others are at most {size:.2g} off ({record.name}, {record.domain})"
    if others := len(measured) - len(pairs):
        sentence += f"; {others} are of other spans than the release's, or not in it"
    return sentence + "."


def record_identity(record: MetricRecord) -> tuple[Any, ...]:
    """Everything that a record says but what was found: equal for two measurements of the same."""
    return tuple(record.model_dump(exclude={"value", "interval", "baselines", "unit", "met", "target"}).values())
