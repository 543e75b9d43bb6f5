"""What only the maker of a release knows of it: how and where it was trained, and where its figures come from."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gistnet.errors import DataError
from gistnet.release.overlap import DomainOverlap
from gistnet.release_folder import PROVENANCE_FILE
from gistnet.settings import Section


class Provenance(Section):
    """The contents of a release's `release.json`."""

    gistnet_version: str
    """That made the release."""
    command: str
    """What trained it."""
    hardware: str
    """What it was trained on."""
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


def read_provenance(folder: Path) -> Provenance:
    """What a release folder says of how it came about.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = folder / PROVENANCE_FILE
    try:
        return Provenance.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise DataError(f"Could not read {path}: {error.strerror}.") from error
    except (ValueError, ValidationError) as error:
        raise DataError(f"{path} is damaged, or not what a release says of itself.") from error
