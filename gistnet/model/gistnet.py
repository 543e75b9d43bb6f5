"""GistNet: the embeddings of a span of K tokens become one vector of the same space, its gist.

The stack is 32→32→1→32→32→1 (spec, Student Model): the tokens look at each other, a slot reads them, what it read goes
back to the tokens, they look at each other again, and a second slot reads the gist. The three architectures differ only
in how the tokens look at each other. One GistNet serves one level; that of level 1 reads gists of level 0.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from gistnet.errors import CheckpointError, ConfigError, DataError, TeacherError
from gistnet.files import storage_errors, write_bytes, write_json
from gistnet.model.fingerprint import TeacherFingerprint
from gistnet.model.layers import (
    Dropout,
    Expansion,
    Norm,
    SelfAttentionBlock,
    SlotRead,
    StatelessDropout,
    attention_flops,
    matmul_flops,
    narrowing,
)
from gistnet.model.teacher import Teacher
from gistnet.model.teacher_layers import TeacherLayers
from gistnet.settings import Section
from gistnet.version import __version__

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


class GistNetConfig(Section):
    """The shape of a GistNet. The size of its input and output is the teacher's and not stated here."""

    architecture: Literal["full", "bottleneck", "teacher_lora"] = "full"
    """full: everything trained at the teacher's width; bottleneck: the same stack at a narrow width; teacher_lora: the
    tokens pass through a frozen copy of the teacher's first layers with LoRA adapters, the rest is narrow."""
    span_tokens: Literal[8, 16, 32, 64] = 32
    """Vectors that become one gist: tokens at level 0, gists of the level below above it."""
    width: int = Field(default=96, gt=0)
    """Width of slots and expansion, and in `bottleneck` of the token stream, in dimensions; not used by `full`."""
    heads: int = Field(default=8, gt=0)
    """Attention heads everywhere except in a copied teacher; must divide the width into an even size per head."""
    blocks_per_stage: int = Field(default=1, gt=0)
    """Self-attention blocks in each of the two stages; not used by `teacher_lora`."""
    teacher_layers: int = Field(default=4, ge=2)
    """`teacher_lora`: the teacher's layers copied, the first half for the first stage, the others for the second."""
    lora_rank: int = Field(default=8, gt=0)
    """`teacher_lora`: rank of the adapter of each linear layer copied."""
    lora_alpha: float = Field(default=16.0, gt=0)
    """`teacher_lora`: an adapter's output is scaled by lora_alpha / lora_rank."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.architecture != "full":
            self.slot_width(self.width)
        return self

    def slot_width(self, dim: int) -> int:
        """The width of slots and expansion for a teacher of hidden size `dim`.

        Raises:
            ConfigError: `heads` does not divide the width into heads of an even size, which RoPE needs.
        """
        width = dim if self.architecture == "full" else self.width
        if width % (2 * self.heads) != 0:
            raise ConfigError(f"{self.heads} heads do not fit a width of {width}; expected an even width / heads.")
        return width


@dataclass(frozen=True)
class Budget:
    """What a GistNet costs: parameters, and floating-point operations of one forward pass over one span."""

    trained: int
    frozen: int
    flops_per_span: int

    def share_of_teacher(self, teacher_flops_per_span: float) -> float:
        """Compute per span as a fraction of what the teacher spends on reading the span's tokens."""
        return self.flops_per_span / teacher_flops_per_span


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
    trained_parameters: int
    frozen_parameters: int
    flops_per_span: int
    share_of_teacher: float
    """Compute per span as a fraction of the teacher's on the span's tokens."""
    weights_sha256: str
    """Ties this file to its weights: a damaged or exchanged weights file is noticed."""


class GistNet(nn.Module):
    """Compresses spans: [spans, K, dim] → [spans, dim]. Made by `GistNet.build` or `GistNet.from_pretrained`.

    `g = e_last + gain · W_out(…)` with e_last the span's last vector and W_out zero at first: an untrained GistNet
    gives the last token's embedding exactly, the strongest cheap stand-in. Until W_out moves, only it has a gradient.
    """

    def __init__(self, config: GistNetConfig, teacher: Teacher, *, level: int, positions: str) -> None:
        super().__init__()
        self.config = config
        self.dim = teacher.hidden_size
        self.level = level
        self.positions = positions
        self.teacher_fingerprint = teacher.fingerprint
        self.teacher_flops_per_span = teacher.flops_per_token * config.span_tokens ** (level + 1)

        slot_width, heads = config.slot_width(self.dim), config.heads
        self.teacher_layers: TeacherLayers | None = None
        self.entry = nn.Sequential()
        if config.architecture == "teacher_lora":
            tokens_width, self.depth = self.dim, config.teacher_layers
            self.teacher_layers = _adapted_copy(teacher, config)
            blocks = 0
        else:
            tokens_width, self.depth = slot_width, 2 * config.blocks_per_stage
            # Token embeddings are small (entries near 0.13 at dim 576); the stack is made for unit variance.
            self.entry = nn.Sequential(Norm(self.dim), narrowing(self.dim, tokens_width))
            blocks = self.depth
        self.blocks = nn.ModuleList(SelfAttentionBlock(tokens_width, heads, config.span_tokens) for _ in range(blocks))
        self.first_read = SlotRead(tokens_width, slot_width, heads)
        self.expansion = Expansion(tokens_width, slot_width, heads)
        self.second_read = SlotRead(tokens_width, slot_width, heads)
        # At this scale W_out's input has norm 1, so that an optimiser's step of size η moves an entry of the gist by
        # about η·√width and not η·width: small beside the entries of a token embedding.
        self.final_norm = Norm(slot_width, initial_scale=slot_width**-0.5)
        self.w_out = nn.Linear(slot_width, self.dim, bias=False)
        nn.init.zeros_(self.w_out.weight)
        self.gain = nn.Parameter(torch.tensor(1.0))

        dropouts = (module for module in self.modules() if isinstance(module, StatelessDropout))
        for salt, module in enumerate(dropouts):
            module.salt = salt
        self._trained_names = tuple(name for name, p in self.named_parameters() if p.requires_grad)

    @classmethod
    def build(
        cls, config: GistNetConfig, teacher: Teacher, *, level: int = 0, positions: str = "center", seed: int = 0
    ) -> "GistNet":
        """A new GistNet on the teacher's device, a function of `seed` and not of the global random state.

        Raises:
            ConfigError: the heads do not fit the width, or the level is negative.
            TeacherError: the teacher has too few layers to copy, or none that LoRA can adapt.
        """
        if level < 0:
            raise ConfigError(f"The level of a GistNet is {level}; expected 0 or more.")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return cls(config, teacher, level=level, positions=positions).to(teacher.device)

    def forward(self, spans: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Input embeddings of spans [spans, K, dim], of any float type → gists [spans, dim], float32.

        Raises:
            DataError: the shape is another, or there is not one dropout key per span.
        """
        return self.forward_with_attention(spans, dropout)[0]

    def forward_with_attention(self, spans: Tensor, dropout: Dropout | None = None) -> tuple[Tensor, Tensor]:
        """As `forward`, and the probabilities [2, spans, heads, K] with which the two slots read the tokens."""
        self._check(spans, dropout)
        spans = spans.to(self.gain.dtype)
        half = self.depth // 2
        tokens = self._self_attention(self.entry(spans).to(spans.dtype), 0, half, dropout)
        slot, first_attention = self.first_read(tokens, dropout)
        tokens = self.expansion(slot, tokens, dropout)
        tokens = self._self_attention(tokens, half, self.depth, dropout)
        slot, second_attention = self.second_read(tokens, dropout)
        gists = spans[:, -1] + self.gain * self.w_out(self.final_norm(slot))
        return gists, torch.stack([first_attention, second_attention])

    def _self_attention(self, tokens: Tensor, first: int, last: int, dropout: Dropout | None) -> Tensor:
        """Blocks, or copied layers, `first` to `last - 1`: [spans, K, tokens_width] → the same."""
        if self.teacher_layers is not None:
            dtype = next(p.dtype for p in self.teacher_layers.parameters() if not p.requires_grad)
            return self.teacher_layers(tokens.to(dtype), first, last).to(tokens.dtype)
        for block in self.blocks[first:last]:
            tokens = block(tokens, dropout)
        return tokens

    def _check(self, spans: Tensor, dropout: Dropout | None) -> None:
        expected = (self.config.span_tokens, self.dim)
        if spans.ndim != 3 or tuple(spans.shape[1:]) != expected:
            raise DataError(
                f"GistNet got spans of shape {list(spans.shape)}; expected [spans, {expected[0]}, {self.dim}]."
            )
        if dropout is not None and len(dropout.keys) != len(spans):
            raise DataError(
                f"GistNet got {len(dropout.keys)} dropout keys for {len(spans)} spans; expected one per span."
            )

    def train(self, mode: bool = True) -> Self:
        """As for any module, except that a copied teacher stays in `eval()`: it must compute what the teacher does."""
        super().train(mode)
        if self.teacher_layers is not None:
            self.teacher_layers.eval()
        return self

    @property
    def fingerprint(self) -> str:
        """Names these weights and their shape: 16 hexadecimal digits, other ones for any other weights."""
        shape = f"{self.config.model_dump_json()} {self.level}"
        return hashlib.sha256(shape.encode() + self._weights()).hexdigest()[:16]

    def parameter_budget(self) -> Budget:
        """Parameters, and forward FLOPs of the matrix products per span (norms and activations are not counted)."""
        length = self.config.span_tokens
        sizes = {name: p.numel() for name, p in self.named_parameters()}
        trained = sum(sizes[name] for name in self._trained_names)
        flops = matmul_flops(length, self.entry) + matmul_flops(1, self.w_out)
        own = (m for m in self.modules() if isinstance(m, SelfAttentionBlock | SlotRead | Expansion))
        flops += sum(part.flops(length) for part in own)
        if self.teacher_layers is not None:
            flops += matmul_flops(length, self.teacher_layers)
            flops += self.depth * attention_flops(length, length, self.dim)
        return Budget(trained=trained, frozen=sum(sizes.values()) - trained, flops_per_span=flops)

    def trainable_state(self) -> dict[str, Tensor]:
        """The trained parameters by name, sharing memory with the model; the frozen copy of the teacher is left out."""
        parameters = dict(self.named_parameters())
        return {name: parameters[name].detach() for name in self._trained_names}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the values of a `trainable_state`.

        Raises:
            CheckpointError: a tensor is missing, unknown, or of another shape; the model is then as it was.
        """
        own = self.trainable_state()
        if different := sorted(own.keys() ^ state.keys()):
            raise CheckpointError(
                f"The GistNet state has {len(state)} tensors and {len(own)} were expected; "
                f"'{different[0]}' is in one of them only."
            )
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                got, expected = list(state[name].shape), list(tensor.shape)
                raise CheckpointError(f"The GistNet tensor '{name}' has shape {got}; expected {expected}.")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `model.safetensors` (trained parameters only) and `config.json`, each atomically, the latter last.

        A reader that finds the weights of one save beside the config of another refuses them.

        Raises:
            StorageError: the folder could not be written.
        """
        folder = Path(folder)
        weights = self._weights()
        budget = self.parameter_budget()
        saved = SavedGistNet(
            format_version=FORMAT_VERSION,
            gistnet_version=__version__,
            config=self.config,
            dim=self.dim,
            level=self.level,
            positions=self.positions,
            teacher=self.teacher_fingerprint,
            trained_parameters=budget.trained,
            frozen_parameters=budget.frozen,
            flops_per_span=budget.flops_per_span,
            share_of_teacher=budget.share_of_teacher(self.teacher_flops_per_span),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
        )
        write_bytes(folder / WEIGHTS_FILE, weights)
        write_json(folder / CONFIG_FILE, saved.model_dump(mode="json"))

    def _weights(self) -> bytes:
        """The trained parameters as the contents of a safetensors file."""
        return save_tensors({name: tensor.contiguous().cpu() for name, tensor in self.trainable_state().items()})

    @classmethod
    def from_pretrained(cls, folder: Path | str, teacher: Teacher) -> "GistNet":
        """Load a saved GistNet for the teacher it was trained with.

        Raises:
            CheckpointError: a file is missing or damaged, is of a newer format, or belongs to another teacher.
        """
        folder = Path(folder)
        saved = _read_saved(folder)
        if not saved.teacher.same_model(teacher.fingerprint):
            raise CheckpointError(
                f"The GistNet in {folder} was trained with {saved.teacher.describe()}; "
                f"got the teacher {teacher.fingerprint.describe()}."
            )
        weights = _read_bytes(folder / WEIGHTS_FILE)
        if hashlib.sha256(weights).hexdigest() != saved.weights_sha256:
            raise CheckpointError(
                f"{folder / WEIGHTS_FILE} is damaged, or not the weights that {CONFIG_FILE} describes."
            )
        try:
            state = load_tensors(weights)
        except SafetensorError as error:
            raise CheckpointError(f"{folder / WEIGHTS_FILE} is not a safetensors file ({error}).") from error
        model = cls.build(saved.config, teacher, level=saved.level, positions=saved.positions)
        model.load_trainable_state(state)
        return model


def _adapted_copy(teacher: Teacher, config: GistNetConfig) -> TeacherLayers:
    """A frozen copy of the teacher's first layers, its linear layers adapted by LoRA (Hu et al., 2021) in float32."""
    from peft import LoraConfig, inject_adapter_in_model  # slow to import, and only this architecture needs it

    copy = teacher.copy_layers(config.teacher_layers)
    targets = [name for name, module in copy.named_modules() if isinstance(module, nn.Linear)]
    if not targets:
        raise TeacherError(f"{teacher.name} has no linear layers that LoRA could adapt; use another architecture.")
    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=targets)
    inject_adapter_in_model(lora, copy)
    for parameter in copy.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return copy


def _read_saved(folder: Path) -> SavedGistNet:
    path = folder / CONFIG_FILE
    try:
        content: Any = json.loads(_read_bytes(path))
        version = content["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise CheckpointError(
                f"{path} is of format {version}; this version of gistnet reads up to {FORMAT_VERSION}."
            )
        return SavedGistNet.model_validate(content)
    except (ValueError, KeyError, TypeError, ValidationError, ConfigError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is not the configuration of a saved GistNet ({reason}).") from error


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise CheckpointError(f"{path.parent} is not a saved GistNet: expected a file {path.name} in it.")
    with storage_errors("read", path):
        return path.read_bytes()
