"""What is kept of a GistNet: its shape, and the two files of a saved one.

FOLDER/model.safetensors   the trained parameters of its level
FOLDER/config.json         all that is needed to rebuild it beside those and the teacher
FOLDER/below/              the GistNet of the level below, likewise
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from gistnet.errors import CheckpointError, ConfigError
from gistnet.files import storage_errors, write_bytes, write_json
from gistnet.model.fingerprint import TeacherFingerprint
from gistnet.settings import Section

FORMAT_VERSION = 6
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
BELOW = "below"
"""The name of the GistNet of the level below: as a submodule, and as a folder beside the saved weights."""


class GistNetConfig(Section):
    """The shape of a GistNet. The size of its input and output is the teacher's and not stated here."""

    architecture: Literal["full", "bottleneck", "teacher_lora"] = "teacher_lora"
    """teacher_lora: the tokens pass through a frozen copy of the teacher's first layers with LoRA adapters, the rest is
    narrow; full: everything trained at the teacher's width; bottleneck: the same stack at a narrow width."""
    reads: Literal["span", "context"] = "span"
    """span: level 0 reads the embeddings of its span and nothing else, so that the gist can be put anywhere; context:
    it reads what the teacher made of the span where it stands, after all that precedes it: the states behind
    `teacher_layers` layers, and for the last token the keys and values of every layer before. That is there for nothing
    where the teacher has read the text, and costs its pass up to that layer where it has not."""
    span_tokens: Literal[8, 16, 32, 64] = 32
    """Vectors that become one gist: tokens at level 0, gists of the level below above it."""
    width: int = Field(default=96, gt=0)
    """Width of slots and expansion, and in `bottleneck` of the token stream, in dimensions; not used by `full`."""
    heads: int = Field(default=8, gt=0)
    """Attention heads everywhere except in a copied teacher; must divide the width into an even size per head."""
    blocks_per_stage: int = Field(default=1, gt=0)
    """Self-attention blocks in each of the two stages; not used by `teacher_lora`."""
    teacher_layers: int | None = Field(default=None, ge=2)
    """`teacher_lora`: the teacher's layers copied. None: two thirds of them where level 0 reads its context, else just
    over half of them with the anchor `state`, just over an eighth with `token`."""
    token_layers: int | None = Field(default=None, ge=2)
    """`teacher_lora`: how many of these layers all tokens pass through; the others only the last token does, for a
    tenth of the compute. None: just over an eighth of the teacher's with the anchor `state`, all with `token`."""
    lora_rank: int = Field(default=8, gt=0)
    """`teacher_lora`: rank of the adapter of each linear layer copied."""
    lora_alpha: float = Field(default=16.0, gt=0)
    """`teacher_lora`: an adapter's output is scaled by lora_alpha / lora_rank."""
    anchor: Literal["token", "state"] | None = None
    """What a gist is before training. token: the span's last vector; state: the direction of the last token's state
    behind the layers that `teacher_lora` copies, as long as a token's embedding. None: state where there is one."""
    gist_scale: float | None = Field(default=None, gt=0)
    """Gists are made so many times as long as token embeddings. The layers of a teacher add little to a long vector, so
    that it reaches the later ones nearly as it was (docs/ablations.md). None: 100 with the anchor `state`, else 1."""

    @model_validator(mode="after")
    def _has_states(self) -> Self:
        if self.reads == "context" and (self.architecture != "teacher_lora" or self.anchor == "token"):
            raise ValueError("reads is context, expected the architecture teacher_lora and the anchor state with it")
        if self.anchor == "state" and self.architecture != "teacher_lora":
            raise ValueError(f"anchor is state in the architecture {self.architecture}, expected teacher_lora")
        if self.token_layers is None or self.teacher_layers is None:
            return self
        if self.token_layers > self.teacher_layers:
            raise ValueError(f"token_layers is {self.token_layers}, expected at most {self.teacher_layers}")
        if self.architecture == "teacher_lora" and self.anchor == "token" and self.token_layers < self.teacher_layers:
            raise ValueError("anchor is token with layers for the last token alone, expected state")
        return self

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.architecture != "full":
            self.slot_width(self.width)
        return self

    def choices(self, n_layers: int) -> "Choices":
        """What is left open, chosen for a teacher of so many layers.

        Raises:
            ConfigError: more layers are for all tokens than are copied.
        """
        anchor = self.anchor or ("state" if self.architecture == "teacher_lora" else "token")
        just_over_an_eighth = max(2, n_layers // 8 + 1)
        if anchor == "state":
            usual = n_layers * 2 // 3 if self.reads == "context" else n_layers // 2 + 1
            layers = self.teacher_layers or max(2, usual)
            token_layers = self.token_layers or min(layers, just_over_an_eighth)
        else:
            layers = self.teacher_layers or just_over_an_eighth
            token_layers = self.token_layers or layers
        if token_layers > layers:
            raise ConfigError(f"token_layers is {token_layers}, expected at most {layers}, as many as are copied.")
        return Choices(anchor, self.gist_scale or (100.0 if anchor == "state" else 1.0), layers, token_layers)

    def for_teacher(self, n_layers: int) -> Self:
        """The same with `choices` stated."""
        return self.model_copy(update=self.choices(n_layers)._asdict())

    def slot_width(self, dim: int) -> int:
        """The width of slots and expansion for a teacher of hidden size `dim`.

        Raises:
            ConfigError: `heads` does not divide the width into heads of an even size, which RoPE needs.
        """
        width = dim if self.architecture == "full" else self.width
        if width % (2 * self.heads) != 0:
            raise ConfigError(f"{self.heads} heads do not fit a width of {width}; expected an even width / heads.")
        return width


class Choices(NamedTuple):
    """What `GistNetConfig` may leave open, by the same names."""

    anchor: Literal["token", "state"]
    gist_scale: float
    teacher_layers: int
    token_layers: int


class SavedGistNet(Section):
    """The contents of a saved GistNet's config.json: all that is needed to rebuild it beside weights and teacher."""

    format_version: int
    gistnet_version: str
    config: GistNetConfig
    dim: int
    """Hidden size of the teacher, in dimensions."""
    level: int = Field(ge=0)
    """0: a gist of tokens; n: a gist of gists of level n - 1."""
    positions: str
    """The position policy, or mixture of policies, it was trained with."""
    teacher: TeacherFingerprint
    trained_on: tuple[str, ...]
    """Content fingerprints of the prepared corpora that it was trained on, those of the weights it began with first."""
    trained_parameters: int
    """Of this level and those below it, as the next two."""
    frozen_parameters: int
    flops_per_span: int
    share_of_teacher: float
    """Compute per span as a fraction of the teacher's on the span's tokens."""
    weights_sha256: str
    """Ties this file to its weights: a damaged or exchanged weights file is noticed."""
    below: str | None = None
    """The fingerprint of the GistNet whose gists this one reads; None at level 0."""


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
