"""GistNet: the embeddings of a span of K tokens become one vector of the same space, its gist.

The stack is 32→32→1→32→32→1 (spec, Student Model): the tokens look at each other, a slot reads them, what it read goes
back to the tokens, they look at each other again, and a second slot reads the gist. The three architectures differ only
in how the tokens look at each other. One GistNet serves one level; that of level 1 reads gists of level 0, and so on:
a GistNet of a level above 0 holds the one below it.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn.functional import normalize

from gistnet.errors import CheckpointError, ConfigError, DataError
from gistnet.model.config import GistNetConfig
from gistnet.model.layers import (
    Dropout,
    Expansion,
    Norm,
    SelfAttentionBlock,
    SlotRead,
    StatelessDropout,
    matmul_flops,
    narrowing,
)
from gistnet.model.prefix_attention import BranchPass
from gistnet.model.saved_gistnet import BELOW, FORMAT_VERSION, SavedGistNet, read_saved, take_over, write_saved
from gistnet.model.teacher import PrefillOutput, Teacher
from gistnet.model.teacher_layers import TeacherLayers
from gistnet.paths import local_path
from gistnet.release_folder import find_folder
from gistnet.settings import MAX_BRANCHING, MIN_BRANCHING
from gistnet.version import __version__


@dataclass(frozen=True)
class Cost:
    """Cost of a GistNet: parameters, and floating-point operations of one forward pass over one span."""

    trained: int
    frozen: int
    flops_per_span: int

    def share_of_teacher(self, teacher_flops_per_span: float) -> float:
        """Compute per span as a fraction of what the teacher spends on reading the span's tokens."""
        return self.flops_per_span / teacher_flops_per_span


@dataclass(frozen=True)
class SpanContext:
    """Context of spans: what the teacher made of the windows that they lie in, and where they begin there.

    Attributes:
        read: the pass over the windows, with the states that the GistNet asks for (`GistNet.hidden_state_layer`).
        windows: `[spans]`, the window of each span.
        firsts: `[spans]`, the index of its first token.
    """

    read: PrefillOutput
    windows: Tensor
    firsts: Tensor

    def spans(self, count: int, tokens: int) -> Self:
        """Contexts of the `count` parts of every span, of `tokens` tokens each, `[spans * count]`."""
        order = torch.arange(count, device=self.firsts.device) * tokens
        windows = self.windows[:, None].expand(-1, count).flatten()
        return replace(self, windows=windows, firsts=(self.firsts[:, None] + order).flatten())

    def states(self, tokens: int) -> Tensor:
        """The states of the spans' tokens where they stand, `[spans, tokens, dim]`.

        Raises:
            DataError: the windows were read without keeping states.
        """
        if self.read.states is None:
            raise DataError("The windows were read without keeping states; expected those that the GistNet reads.")
        order = torch.arange(tokens, device=self.firsts.device)
        return self.read.states[self.windows[:, None], self.firsts[:, None] + order]

    def last_states(self, layers: TeacherLayers, last_tokens: Tensor, tokens: int) -> Tensor:
        """The states of the spans' last tokens behind `layers`, which see what the teacher made of all before them.

        Args:
            last_tokens: their embeddings, `[spans, dim]`, in the number format of the layers.
            tokens: of a span.
        """
        last = self.firsts + tokens - 1
        pass_in_context = BranchPass(
            cache=self.read.cache,
            windows=tuple(self.windows.tolist()),
            prefix_lengths=tuple(last.tolist()),
            positions=last[:, None],
        )
        return layers.in_context(last_tokens, pass_in_context)


class GistNet(nn.Module):
    """Compresses spans: [spans, K, dim] → [spans, dim]. Made by `GistNet.build` or `GistNet.from_pretrained`.

    A gist is `scale · (anchor + gain · W_out(latents))`: what it begins as (`GistNetConfig.anchor`), and what training
    adds, a projection of the latent queries' result with a learned gain, zero at first. With the anchor `token`, the
    span's last vector, and scale 1, an untrained GistNet gives the last token's embedding exactly, and only W_out has a
    gradient. With the anchor `state` it gives the direction of the last token's state behind the copied layers; the
    later ones of these need not be run for the other tokens. Where level 0 reads its context (`GistNetConfig.reads`),
    the other tokens are as the teacher's own pass left them, and the copied layers are run for the last token alone.

    Attributes:
        level: 0 for gists of tokens, n for gists of gists of level n - 1.
        below: the GistNet of the level below; None at level 0.
        branching: K, how many vectors become one gist: tokens at level 0, gists of the level below above it.
        branchings: those of all levels, from level 0 to this one.
        tokens_per_gist: how many tokens a gist stands for, the product of the branchings.
        reads_context: whether this level needs a `SpanContext`; those above level 0 never do.
        trained_on: content fingerprints of the prepared corpora that it, or the weights it began with, was trained on.
        longest_row: the most gists of level 0 in a row that its training read; 0 before any.
    """

    embedding_norm: Tensor

    def __init__(
        self, config: GistNetConfig, teacher: Teacher, branching: int, *, below: "GistNet | None", positions: str
    ) -> None:
        super().__init__()
        self.resolved = config.resolved(teacher.n_layers)
        self.config = config.for_teacher(teacher.n_layers)
        self.dim = teacher.hidden_size
        self.level: int = 0 if below is None else below.level + 1
        self.positions = positions
        self.reads_context = config.reads == "context" and below is None
        self.teacher_fingerprint = teacher.fingerprint
        self.trained_on: tuple[str, ...] = () if below is None else below.trained_on
        self.longest_row: int = 0 if below is None else below.longest_row
        self.branching = branching
        self.branchings: tuple[int, ...] = (branching,) if below is None else (*below.branchings, branching)
        self.tokens_per_gist = prod(self.branchings)
        self.teacher_flops_per_span = teacher.flops_per_token * self.tokens_per_gist

        slot_width, heads = config.slot_width(self.dim), config.heads
        self.teacher_layers: TeacherLayers | None = None
        self.entry = nn.Sequential()
        if config.architecture == "teacher_lora":
            tokens_width, self.depth = self.dim, self.resolved.token_layers
            self.teacher_layers = teacher.copy_layers(self.resolved.teacher_layers)
            self.teacher_layers.adapt(config.lora_rank, config.lora_alpha)
            blocks = 0
            if self.reads_context:
                self.depth = 0  # the teacher's own layers have been there
                self.entry = nn.Sequential(Norm(self.dim))
        else:
            tokens_width, self.depth = slot_width, 2 * config.blocks_per_stage
            # Token embeddings are small (entries near 0.13 at dim 576); the stack is made for unit variance.
            self.entry = nn.Sequential(Norm(self.dim), narrowing(self.dim, tokens_width))
            blocks = self.depth
        self.blocks = nn.ModuleList(SelfAttentionBlock(tokens_width, heads, branching) for _ in range(blocks))
        self.first_read = SlotRead(tokens_width, slot_width, heads)
        self.expansion = Expansion(tokens_width, slot_width, heads)
        self.second_read = SlotRead(tokens_width, slot_width, heads)
        # At this scale W_out's input has norm 1, so that an optimiser's step of size η moves an entry of the gist by
        # about η·√width and not η·width: small beside the entries of a token embedding.
        self.final_norm = Norm(slot_width, initial_scale=slot_width**-0.5)
        self.w_out = nn.Linear(slot_width, self.dim, bias=False)
        nn.init.zeros_(self.w_out.weight)
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("embedding_norm", teacher.embedding_norm(), persistent=False)

        dropouts = (module for module in self.modules() if isinstance(module, StatelessDropout))
        for salt, module in enumerate(dropouts):
            module.salt = salt
        self._own_modules = tuple(self.modules())
        self._own_sizes = {name: p.numel() for name, p in self.named_parameters()}
        self._trained_names = tuple(name for name, p in self.named_parameters() if p.requires_grad)
        self.below = below

    @classmethod
    def build(
        cls,
        config: GistNetConfig,
        teacher: Teacher,
        branching: int = 32,
        *,
        below: "GistNet | None" = None,
        positions: str = "end",
        seed: int = 0,
    ) -> "GistNet":
        """A new GistNet on the teacher's device, a function of `seed` and not of the global random state.

        Args:
            config: of the network; what it leaves open is settled for the teacher.
            teacher: whose embeddings it reads and whose layers it copies; it is not changed.
            branching: how many vectors become one gist (K), 2 to 64.
            positions: the policy that it is trained with (docs/concepts.md), which it records.
            seed: of the initial weights.
            below: the GistNet whose gists it reads, which becomes part of it; None makes one of level 0.

        Raises:
            ConfigError: the heads do not fit the width, or there is no such branching.
            TeacherError: the teacher has too few layers to copy, or none that LoRA can adapt.
        """
        if not MIN_BRANCHING <= branching <= MAX_BRANCHING:
            raise ConfigError(f"Got a branching of {branching}, expected {MIN_BRANCHING} to {MAX_BRANCHING} vectors.")
        with torch.random.fork_rng(devices=[]):
            # Every level begins with weights of its own.
            torch.default_generator.manual_seed(seed + (0 if below is None else below.level + 1))
            return cls(config, teacher, branching, below=below, positions=positions).to(teacher.device)

    @property
    def levels(self) -> tuple["GistNet", ...]:
        """The GistNets of all levels, from level 0 to this one."""
        return (self,) if self.below is None else (*self.below.levels, self)

    @property
    def hidden_state_layer(self) -> int | None:
        """Layer behind which level 0 needs the teacher's hidden states; None where it needs none."""
        level_0 = self.levels[0]
        return level_0.resolved.teacher_layers if level_0.reads_context else None

    def forward(self, spans: Tensor, dropout: Dropout | None = None, context: SpanContext | None = None) -> Tensor:
        """Input embeddings of spans [spans, K, dim], of any float type → gists [spans, dim], float32.

        Args:
            context: where the spans stand in windows that the teacher has read; needed where `reads_context`.

        Raises:
            DataError: the shape is another, there is not one dropout key per span, or the context is missing.
        """
        return self.forward_with_attention(spans, dropout, context)[0]

    def forward_with_attention(
        self, spans: Tensor, dropout: Dropout | None = None, context: SpanContext | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gists as by `forward`, and the attention of the two slots over the tokens, [2, spans, heads, K]."""
        self._check(spans, dropout)
        if not self.reads_context:
            spans = spans.to(self.gain.dtype)
            return self._gists(spans, lambda tokens: self._anchor(spans, tokens), dropout)
        if context is None:
            raise DataError("This GistNet reads spans where they stand in a text, but got spans alone.")
        length = self.branching
        assert self.teacher_layers is not None
        state = context.last_states(self.teacher_layers, self._as_teacher(spans[:, -1]), length)
        anchor = self.embedding_norm * normalize(state.to(self.gain.dtype), dim=-1)
        return self._gists(context.states(length).to(self.gain.dtype), lambda _: anchor, dropout)

    def _gists(
        self, spans: Tensor, anchor: Callable[[Tensor], Tensor], dropout: Dropout | None
    ) -> tuple[Tensor, Tensor]:
        """The stack over what was read of each token, [spans, K, dim], in the number format of the weights.

        Args:
            anchor: what gists start from, given the tokens behind the stack.
        """
        half = self.depth // 2
        tokens = self._self_attention(self.entry(spans).to(spans.dtype), 0, half, dropout)
        slot, first_attention = self.first_read(tokens, dropout)
        tokens = self.expansion(slot, tokens, dropout)
        tokens = self._self_attention(tokens, half, self.depth, dropout)
        slot, second_attention = self.second_read(tokens, dropout)
        gists = anchor(tokens) + self.gain * self.w_out(self.final_norm(slot))
        return self.resolved.gist_scale * gists, torch.stack([first_attention, second_attention])

    def _anchor(self, spans: Tensor, tokens: Tensor) -> Tensor:
        """Anchor that gists start from, `[spans, dim]`, as long as token embeddings at every level."""
        if self.resolved.anchor == "state":
            return self.embedding_norm * normalize(self._last_state(tokens), dim=-1)
        return spans[:, -1] / (1.0 if self.below is None else self.below.resolved.gist_scale)

    def _self_attention(self, tokens: Tensor, first: int, last: int, dropout: Dropout | None) -> Tensor:
        """Blocks, or copied layers, `first` to `last - 1`: [spans, K, tokens_width] → the same."""
        if self.teacher_layers is not None and first < last:
            return self.teacher_layers(self._as_teacher(tokens), first, last).to(tokens.dtype)
        for block in self.blocks[first:last]:
            tokens = block(tokens, dropout)
        return tokens

    def _last_state(self, tokens: Tensor) -> Tensor:
        """The state of each span's last token behind all copied layers, `[spans, dim]`."""
        if self.teacher_layers is None or self.depth == self.resolved.teacher_layers:
            return tokens[:, -1]
        state = self.teacher_layers.last_token(self._as_teacher(tokens), self.depth, self.resolved.teacher_layers)
        return state.to(tokens.dtype)

    def _as_teacher(self, tokens: Tensor) -> Tensor:
        """Tokens in the number format of the copied layers."""
        return tokens.to(next(p.dtype for p in self.teacher_layers.parameters() if not p.requires_grad))  # type: ignore[union-attr]

    def _check(self, spans: Tensor, dropout: Dropout | None) -> None:
        expected = (self.branching, self.dim)
        if spans.ndim != 3 or tuple(spans.shape[1:]) != expected:
            raise DataError(
                f"GistNet got spans of shape {list(spans.shape)}; expected [spans, {expected[0]}, {self.dim}]."
            )
        if dropout is not None and len(dropout.keys) != len(spans):
            raise DataError(
                f"GistNet got {len(dropout.keys)} dropout keys for {len(spans)} spans; expected one per span."
            )

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; a copied teacher stays in `eval()`, since it must compute what the teacher does."""
        super().train(mode)
        if self.teacher_layers is not None:
            self.teacher_layers.eval()
        return self

    @property
    def fingerprint(self) -> str:
        """Names the weights and shape of all levels: 16 hexadecimal digits, other ones for any other weights."""
        below = "" if self.below is None else self.below.fingerprint
        shape = f"{self.config.model_dump_json()} {self.branching} {self.level} {below}"
        return hashlib.sha256(shape.encode() + self._weights()).hexdigest()[:16]

    def parameter_budget(self) -> Cost:
        """Parameters, and forward FLOPs of the matrix products per span (norms and activations are not counted)."""
        length = self.branching
        trained = sum(self._own_sizes[name] for name in self._trained_names)
        frozen = sum(self._own_sizes.values()) - trained
        flops = matmul_flops(length, self.entry) + matmul_flops(1, self.w_out)
        own = (m for m in self._own_modules if isinstance(m, SelfAttentionBlock | SlotRead | Expansion))
        flops += sum(part.flops(length) for part in own)
        if self.teacher_layers is not None:
            flops += self.teacher_layers.flops(1 if self.reads_context else length, self.depth, self.dim)
        if self.below is None:
            return Cost(trained, frozen, flops)
        below = self.below.parameter_budget()
        return Cost(trained + below.trained, frozen + below.frozen, flops + length * below.flops_per_span)

    def trained_parameters(self, *, with_below: bool) -> dict[str, nn.Parameter]:
        """The parameters to train, by name: this level's, and those of all levels below where asked for."""
        parameters = dict(self.named_parameters())
        own = {name: parameters[name] for name in self._trained_names}
        if not with_below or self.below is None:
            return own
        below = self.below.trained_parameters(with_below=True)
        return own | {f"{BELOW}.{name}": parameter for name, parameter in below.items()}

    def trainable_state(self) -> dict[str, Tensor]:
        """Parameters that training may change, by name, of all levels; shares memory with the model.

        The frozen copy of the teacher is left out.
        """
        return {name: parameter.detach() for name, parameter in self.trained_parameters(with_below=True).items()}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over the values of a `trainable_state`.

        Raises:
            CheckpointError: a tensor is missing, unknown, or of another shape; the model is then as it was.
        """
        take_over(self.trained_parameters(with_below=True), state)

    def load_saved(self, folder: Path) -> None:
        """Take over the weights of a saved GistNet that has this one's levels and shape, and what they were trained on.

        Raises:
            CheckpointError: a file is missing or damaged, or holds other tensors; the model is then as it was.
        """
        state: dict[str, Tensor] = {}
        prefix = ""
        from_the_top = self.levels[::-1]
        corpora: list[tuple[str, ...]] = []
        for _ in from_the_top:
            saved, own = read_saved(folder)
            corpora.append(saved.trained_on)
            state |= {prefix + name: tensor for name, tensor in own.items()}
            folder, prefix = folder / BELOW, f"{prefix}{BELOW}."
        self.load_trainable_state(state)
        for level, before in zip(from_the_top, corpora, strict=True):
            level.trained_on = tuple(dict.fromkeys((*before, *level.trained_on)))

    @torch.no_grad()
    def round_weights(self, dtype: torch.dtype) -> None:
        """Give every trained parameter of all levels the nearest value that a number format has; they stay float32.

        Raises:
            CheckpointError: a weight is beyond what the format can hold; nothing changes.
        """
        parameters = self.trained_parameters(with_below=True)
        for name, parameter in parameters.items():
            if not bool(torch.isfinite(parameter.to(dtype)).all()):
                raise CheckpointError(f"A weight of '{name}' is not finite in {dtype}; expected one that it can hold.")
        for parameter in parameters.values():
            parameter.copy_(parameter.to(dtype))

    def save_pretrained(self, folder: Path | str, *, dtype: torch.dtype = torch.float32) -> None:
        """Write `model.safetensors` (trained parameters only) and `config.json`, each atomically, the latter last.

        The level below goes into the folder `below`, before. A reader that finds the weights of one save beside the
        config of another refuses them.

        Args:
            dtype: the number format of the file; another than float32 after `round_weights` only, or what is read back
                is another GistNet.

        Raises:
            StorageError: the folder could not be written.
        """
        folder = local_path(folder)
        if self.below is not None:
            self.below.save_pretrained(folder / BELOW, dtype=dtype)
        weights = self._weights(dtype)
        budget = self.parameter_budget()
        saved = SavedGistNet(
            format_version=FORMAT_VERSION,
            gistnet_version=__version__,
            config=self.config,
            branchings=self.branchings,
            dim=self.dim,
            positions=self.positions,
            longest_row=self.longest_row,
            teacher=self.teacher_fingerprint,
            trained_on=self.trained_on,
            trained_parameters=budget.trained,
            frozen_parameters=budget.frozen,
            flops_per_span=budget.flops_per_span,
            share_of_teacher=budget.share_of_teacher(self.teacher_flops_per_span),
            weights_sha256=hashlib.sha256(weights).hexdigest(),
            below=None if self.below is None else self.below.fingerprint,
        )
        write_saved(folder, saved, weights)

    def _weights(self, dtype: torch.dtype = torch.float32) -> bytes:
        """This level's trained parameters as the contents of a safetensors file."""
        own = self.trained_parameters(with_below=False)
        return save_tensors({name: parameter.detach().to(dtype).contiguous().cpu() for name, parameter in own.items()})

    @classmethod
    def from_pretrained(cls, folder: Path | str, teacher: Teacher) -> "GistNet":
        """Load a saved GistNet for the teacher it was trained with.

        Args:
            folder: where it is, the name of a release that comes with the package, or USER/NAME on the Hub.

        Raises:
            CheckpointError: a file is missing or damaged, is of another format, or belongs to another teacher; or there
                is no release of that name.
        """
        folder = find_folder(folder)
        saved, state = read_saved(folder)
        if not saved.teacher.same_model(teacher.fingerprint):
            raise CheckpointError(
                f"The GistNet in {folder} was trained with {saved.teacher.describe()}; "
                f"got the teacher {teacher.fingerprint.describe()}."
            )
        below = cls.from_pretrained(folder / BELOW, teacher) if saved.level > 0 else None
        if below is not None and (below.fingerprint, below.branchings) != (saved.below, saved.branchings[:-1]):
            raise CheckpointError(f"{folder / BELOW} is not the GistNet that the one in {folder} was trained on.")
        model = cls.build(saved.config, teacher, saved.branchings[-1], below=below, positions=saved.positions)
        take_over(model.trained_parameters(with_below=False), state)
        model.trained_on, model.longest_row = saved.trained_on, saved.longest_row
        return model
