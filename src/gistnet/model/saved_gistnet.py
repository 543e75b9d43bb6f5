"""Files of a saved GistNet: its configuration and its weights.

FOLDER/model.safetensors   the trained parameters of its level
FOLDER/config.json         all that is needed to rebuild it beside those and the teacher
FOLDER/below/              the GistNet of the level below, likewise
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from gistnet.errors import CheckpointError, ConfigError
from gistnet.files import storage_errors, write_bytes, write_json
from gistnet.model.config import GistNetConfig
from gistnet.model.fingerprint import TeacherFingerprint
from gistnet.settings import Branching, Section

FORMAT_VERSION = 8
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
BELOW = "below"
"""The name of the GistNet of the level below: as a submodule, and as a folder beside the saved weights."""


class SavedGistNet(Section):
    """The contents of a saved GistNet's config.json: all that is needed to rebuild it beside weights and teacher."""

    format_version: int
    gistnet_version: str
    config: GistNetConfig
    branchings: tuple[Branching, ...] = Field(min_length=1)
    """Branching of each level, from level 0 to its own: how many vectors become one gist."""
    dim: int
    """Hidden size of the teacher, in dimensions."""
    positions: str
    """The position policy, or mixture of policies, it was trained with."""
    longest_row: int = Field(ge=0)
    """The most gists of level 0 in a row that its training read; 0 before any."""
    teacher: TeacherFingerprint
    trained_on: tuple[str, ...]
    """Content fingerprints of the prepared corpora that it was trained on, those of the weights it began with first."""
    trained_parameters: int
    """Number for this level and those below it, as are the next two."""
    frozen_parameters: int
    flops_per_span: int
    share_of_teacher: float
    """Compute per span as a fraction of the teacher's on the span's tokens."""
    weights_sha256: str
    """Ties this file to its weights: a damaged or exchanged weights file is noticed."""
    below: str | None = None
    """The fingerprint of the GistNet whose gists this one reads; None at level 0."""

    @property
    def level(self) -> int:
        """0: a gist of tokens; n: a gist of gists of level n - 1."""
        return len(self.branchings) - 1


def write_saved(folder: Path, saved: SavedGistNet, weights: bytes) -> None:
    """Write both files, each atomically, the configuration last.

    Raises:
        StorageError: the folder could not be written.
    """
    write_bytes(folder / WEIGHTS_FILE, weights)
    write_json(folder / CONFIG_FILE, saved.model_dump(mode="json"))


def read_saved(folder: Path) -> tuple[SavedGistNet, dict[str, Tensor]]:
    """The configuration and the weights of a saved GistNet's level, checked to belong together.

    Raises:
        CheckpointError: a file is missing or damaged, or is of another format.
    """
    saved = _read_config(folder)
    weights = _read_bytes(folder / WEIGHTS_FILE)
    if hashlib.sha256(weights).hexdigest() != saved.weights_sha256:
        raise CheckpointError(f"{folder / WEIGHTS_FILE} is damaged, or not the weights that {CONFIG_FILE} describes.")
    try:
        return saved, load_tensors(weights)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS_FILE} is not a safetensors file ({error}).") from error


def _read_config(folder: Path) -> SavedGistNet:
    path = folder / CONFIG_FILE
    try:
        content: Any = json.loads(_read_bytes(path))
        version = content["format_version"]
        if version != FORMAT_VERSION:  # its other fields may mean anything
            raise CheckpointError(f"{path} is of format {version}, expected {FORMAT_VERSION}.")
        return SavedGistNet.model_validate(content)
    except (ValueError, KeyError, TypeError, ValidationError, ConfigError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is not the configuration of a saved GistNet ({reason}).") from error


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is not a saved GistNet: expected a file {path.name} in it.")
    with storage_errors("read", path):
        return path.read_bytes()


def take_over(parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
    """Give the parameters the values of a state; where the two do not fit, nothing changes.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of another shape.
    """
    if different := sorted(parameters.keys() ^ state.keys()):
        raise CheckpointError(
            f"The GistNet state has {len(state)} tensors and {len(parameters)} were expected; "
            f"'{different[0]}' is in one of them only."
        )
    for name, parameter in parameters.items():
        if parameter.shape != state[name].shape:
            got, expected = list(state[name].shape), list(parameter.shape)
            raise CheckpointError(f"The GistNet tensor '{name}' has shape {got}; expected {expected}.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
