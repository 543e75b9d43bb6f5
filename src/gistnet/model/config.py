"""Configuration of the teacher and of the shape of a GistNet; without torch."""

from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from gistnet.errors import ConfigError
from gistnet.model.embedded_teacher import EMBEDDED_TEACHER
from gistnet.model.fingerprint import Precision
from gistnet.settings import ModelName, Name, Section


class TeacherConfig(Section):
    """Language model, and how it is held in memory."""

    name: ModelName = EMBEDDED_TEACHER
    """The embedded teacher's name, a model id of the Hugging Face Hub, or a local folder."""
    revision: Name | None = None
    """Branch, tag or commit of the Hub repository; None is its main branch."""
    precision: Precision = "bfloat16"
    """Number format of weights and activations; float16 is not offered, its range is too narrow for logits."""
    trust_remote_code: bool = False
    """True if code in the model's repository may run."""
    gradient_checkpointing: bool = False
    """Recompute the teacher's layers in the backward pass instead of keeping their activations: slower by about a third
    pass through the layers, with less memory."""
    compile: bool = False
    """Fuse with torch.compile what the layers do beside their attention; the first step takes a minute longer. Needs a
    C++ compiler on a CPU, Triton on a GPU."""


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
    """Gist before training. token: the span's last vector; state: the direction of the last token's state
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

    def resolved(self, n_layers: int) -> "ResolvedConfig":
        """Defaults of what is left open, for a teacher of so many layers.

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
        return ResolvedConfig(anchor, self.gist_scale or (100.0 if anchor == "state" else 1.0), layers, token_layers)

    def for_teacher(self, n_layers: int) -> Self:
        """Copy with `resolved` stated."""
        return self.model_copy(update=self.resolved(n_layers)._asdict())

    def slot_width(self, dim: int) -> int:
        """The width of slots and expansion for a teacher of hidden size `dim`.

        Raises:
            ConfigError: `heads` does not divide the width into heads of an even size, which RoPE needs.
        """
        width = dim if self.architecture == "full" else self.width
        if width % (2 * self.heads) != 0:
            raise ConfigError(f"{self.heads} heads do not fit a width of {width}; expected an even width / heads.")
        return width


class ResolvedConfig(NamedTuple):
    """Fields of `GistNetConfig` that may be left open, with their values for a teacher."""

    anchor: Literal["token", "state"]
    gist_scale: float
    teacher_layers: int
    token_layers: int
