"""The frozen language model that reads gists in place of tokens, and whose predictions they must preserve.

Three passes are all that training and evaluation need of it:

- `prefill`: whole windows of tokens, without gradient; gives the keys and values that branches share, and the
  final hidden states, from which the original predictions follow;
- `read_branches`: short continuations of those windows, with gradient to their input vectors;
- `logits`: the head, at chosen hidden states.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from gistnet.errors import TeacherError
from gistnet.model.config import TeacherConfig
from gistnet.model.fingerprint import Precision, TeacherFingerprint
from gistnet.model.loading import load_tokenizer, loading_errors, source_of
from gistnet.model.prefix_attention import ATTENTION_NAME, BranchPass, PrefixCache
from gistnet.model.teacher_layers import TeacherLayers
from gistnet.model.teacher_support import refuse_unsupported, require_compiler
from gistnet.model.tokenizer import TeacherTokenizer


@dataclass(frozen=True)
class PrefillOutput:
    """Output of one pass over windows: keys and values for branches, and final hidden states.

    Attributes:
        cache: keys and values of every layer.
        hidden: `[windows, tokens, dim]`, after the model's last norm, no gradient.
        states: `[windows, tokens, dim]`, behind the layer that was asked for; None where none was.
    """

    cache: PrefixCache
    hidden: Tensor
    states: Tensor | None = None

    def tensors(self) -> Iterator[Tensor]:
        """All tensors of the pass."""
        yield self.hidden
        if self.states is not None:
            yield self.states
        yield from self.cache.keys.values()
        yield from self.cache.values.values()


class _EnoughLayers(Exception):
    """Ends a pass whose later layers nobody asks for."""


class Teacher:
    """A causal language model of transformers, frozen, in `eval()`, with the passes that GistNet needs.

    Args:
        model: the language model; its weights are frozen in place.
        tokenizer: its tokenizer; None where only token ids are used.
        name: what to call it in fingerprints and messages.
        revision: the commit or version the weights come from.

    Raises:
        TeacherError: a kind of model for which the shared-prefix engine is not exact, named with its reason; or it is
            held in a number format that is no `Precision`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: TeacherTokenizer | None = None,
        *,
        name: str,
        revision: str | None = None,
    ) -> None:
        refuse_unsupported(model.config, name)
        self.model = model.requires_grad_(False).eval()
        self.model.set_attn_implementation(ATTENTION_NAME)
        self.tokenizer = tokenizer
        self.config = model.config.get_text_config()
        self.fingerprint = _fingerprint(model, name, revision)
        self.name = name

    @classmethod
    def from_pretrained(cls, config: TeacherConfig | str, device: torch.device | str = "cpu") -> "Teacher":
        """Load a teacher and its tokenizer from safetensors.

        Args:
            config: which model; a string is a name with every other setting at its default.
            device: where the weights go.

        Raises:
            TeacherError: there is no such model, it is not a causal language model, its kind is not supported, or it
                has no safetensors weights.
        """
        if isinstance(config, str):
            config = TeacherConfig(name=config)
        source, revision, options = source_of(config)
        with loading_errors(config):
            model_config = AutoConfig.from_pretrained(source, **options)
        refuse_unsupported(model_config, config.name)
        with loading_errors(config):
            model, loading = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=getattr(torch, config.precision),
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name and shape
                **options,
            )
        if mismatched := sorted(loading["mismatched_keys"]):
            weight, got, expected = mismatched[0]
            raise TeacherError(
                f"'{config.name}' cannot be a teacher: {len(mismatched)} of its weights have another shape than its "
                f"configuration says, first {weight}, {list(got)} and not {list(expected)}."
            )
        if missing := sorted(loading["missing_keys"]):
            # transformers makes up what it does not find.
            raise TeacherError(
                f"'{config.name}' cannot be a teacher: {len(missing)} of its weights are missing, first {missing[0]}."
            )
        tokenizer = load_tokenizer(config)
        revision = revision or getattr(model_config, "_commit_hash", None)
        try:
            model = model.to(device)
        except torch.OutOfMemoryError as error:
            size = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
            raise TeacherError(
                f"'{config.name}' has {size:.1f} GB of weights in {config.precision}, more than there is room for on "
                f"{device}; expected a smaller teacher or a device with more memory."
            ) from error
        teacher = cls(model, tokenizer, name=config.name, revision=revision)
        if config.gradient_checkpointing:
            teacher.enable_gradient_checkpointing()
        if config.compile:
            require_compiler(teacher.device)
            teacher.compile_layers()
        return teacher

    @classmethod
    def without_weights(cls, config: TeacherConfig) -> "Teacher":
        """The teacher's shape alone, on the device `meta`: for what can be planned before anything is downloaded.

        Raises:
            TeacherError: there is no such model, it is not a causal language model, or its kind is not supported.
        """
        source, revision, options = source_of(config)
        with loading_errors(config):
            model_config = AutoConfig.from_pretrained(source, **options)
        refuse_unsupported(model_config, config.name)
        with loading_errors(config), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                model_config, dtype=getattr(torch, config.precision), trust_remote_code=config.trust_remote_code
            )
        teacher = cls(model, name=config.name, revision=revision)
        if config.gradient_checkpointing:
            teacher.enable_gradient_checkpointing()
        return teacher

    @property
    def hidden_size(self) -> int:
        """The dimension of the input embeddings, and so of a gist."""
        return int(self.config.hidden_size)

    @property
    def vocabulary_size(self) -> int:
        """The number of token ids that have an embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def max_positions(self) -> int:
        """The longest context the teacher was trained for, in tokens."""
        return int(self.config.max_position_embeddings)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the embeddings."""
        return self.model.get_input_embeddings().weight.dtype

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.model.base_model.layers)

    @property
    def late_layers(self) -> int:
        """Number of first layers behind which a state serves best as a gist: two thirds (docs/ablations.md)."""
        return max(1, self.n_layers * 2 // 3)

    @property
    def flops_per_token(self) -> int:
        """Forward floating-point operations of one token, without attention scores and without the head."""
        return 2 * sum(p.numel() for p in self.model.base_model.layers.parameters())

    def embed(self, tokens: Tensor) -> Tensor:
        """Input embeddings: token ids `[...]` → `[..., dim]`, scaled as the model scales them.

        Raises:
            TeacherError: a token id, not yet on a GPU, is outside the vocabulary.
        """
        if tokens.device.type == "cpu":  # ids on a GPU were looked at before they got there
            self.require_in_vocabulary(tokens)
        with torch.no_grad():
            return self.model.get_input_embeddings()(tokens.to(self.device))

    def embedding_norm(self) -> Tensor:
        """The mean length of token embeddings, over tokens spread evenly over the vocabulary, float32 `[]`."""
        tokens = torch.linspace(0, self.vocabulary_size - 1, min(self.vocabulary_size, 4096), device=self.device)
        return self.embed(tokens.long()).float().norm(dim=-1).mean()

    def require_in_vocabulary(self, tokens: Tensor) -> None:
        """Refuse token ids that have no embedding.

        Raises:
            TeacherError: a token id is outside the vocabulary.
        """
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.vocabulary_size:
            raise TeacherError(
                f"Token ids run from {int(tokens.min())} to {int(tokens.max())}, "
                f"but {self.name} has ids 0 to {self.vocabulary_size - 1}."
            )

    @torch.no_grad()
    def prefill(
        self, tokens: Tensor, *, hidden_state_layer: int | None = None, to_the_end: bool = True
    ) -> PrefillOutput:
        """Read windows of tokens, `[windows, tokens]`, at positions 0, 1, …

        Shorter windows may be padded at the end with any token: what follows a token does not change it.

        Args:
            hidden_state_layer: keep the states behind so many layers; None keeps none.
            to_the_end: False stops at that layer; `hidden` is then its states, without the last norm.

        Raises:
            TeacherError: a token is outside the vocabulary.
        """
        cache = PrefixCache()
        positions = torch.arange(tokens.shape[1], device=self.device).expand(tokens.shape)
        with self._keeping_states(hidden_state_layer, to_the_end) as kept:
            hidden = self._run(self.embed(tokens), positions, cache)
            return PrefillOutput(cache, hidden, kept[0] if kept else None)
        return PrefillOutput(cache, kept[0], kept[0])

    @contextmanager
    def _keeping_states(self, layers: int | None, to_the_end: bool) -> Iterator[list[Tensor]]:
        """The list holds, after a pass, the states behind so many layers, where it may end."""
        kept: list[Tensor] = []
        if layers is None:
            yield kept
            return

        def keep(layer: nn.Module, inputs: object, output: Tensor) -> None:
            kept.append(output)
            if not to_the_end:
                raise _EnoughLayers

        hook = self.model.base_model.layers[layers - 1].register_forward_hook(keep)
        try:
            with suppress(_EnoughLayers):
                yield kept
        finally:
            hook.remove()

    def read_branches(self, vectors: Tensor, branches: BranchPass) -> Tensor:
        """Final hidden states of branches, `[branches, length, dim]`, differentiable in their input vectors.

        Args:
            vectors: `[branches, length, dim]`, input embeddings (gists and tokens) in the teacher's number format.
            branches: what each branch continues, and the positions of its vectors.
        """
        return self._run(vectors, branches.positions, branches)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits of final hidden states, `[..., dim]` → `[..., vocab]`, softcap included."""
        logits = self.model.get_output_embeddings()(hidden)
        cap = self.final_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    @property
    def head_weight(self) -> Tensor:
        """The output embedding table, `[vocab, dim]`."""
        return self.model.get_output_embeddings().weight

    @property
    def final_softcap(self) -> float | None:
        """The bound of the logits, where the family has one (Gemma)."""
        return getattr(self.config, "final_logit_softcapping", None)

    def copy_layers(self, n_layers: int) -> TeacherLayers:
        """A frozen, independent copy of the first layers.

        Raises:
            TeacherError: the teacher has fewer layers.
        """
        if not 0 < n_layers <= self.n_layers:
            raise TeacherError(f"Cannot copy {n_layers} layers of {self.name}: it has {self.n_layers}.")
        return TeacherLayers(self.model.base_model, n_layers)

    def enable_gradient_checkpointing(self, on: bool = True) -> None:
        """Trade time for memory in `read_branches`, or no longer.

        The switch of transformers does nothing on a model in `eval()`, and leaving `eval()` would turn dropout on. So
        only the decoder layers themselves are told that they train; nothing inside them is.
        """
        for layer in self.model.base_model.layers:
            layer.gradient_checkpointing = on
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            layer.training = on

    def compile_layers(self, backend: str = "inductor") -> None:
        """Compile each layer; its attention stays as it is, and splits the layer into what is before and after.

        Lengths and numbers of branches change from pass to pass, so shapes are compiled as variables.
        """
        for layer in self.model.base_model.layers:
            layer.compile(backend=backend, dynamic=True)

    def _run(self, vectors: Tensor, positions: Tensor, attention_input: PrefixCache | BranchPass) -> Tensor:
        # A mask of four dimensions is taken as it is, so that transformers builds none (and does not take the gaps of
        # the positions for borders of packed documents); our attention works out who sees whom by itself.
        output = self.model.base_model(
            inputs_embeds=vectors,
            position_ids=positions,
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=vectors.device),
            use_cache=False,
            attention_input=attention_input,
        )
        return output.last_hidden_state


# Fields that do not change what the model computes, or that the way of loading it changes.
_VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "_attn_implementation", "use_cache")


def _fingerprint(model: PreTrainedModel, name: str, revision: str | None) -> TeacherFingerprint:
    precision = str(model.get_input_embeddings().weight.dtype).removeprefix("torch.")
    if precision not in get_args(Precision):
        raise TeacherError(f"'{name}' is held in {precision}, expected one of {', '.join(get_args(Precision))}.")
    described = {key: value for key, value in model.config.to_diff_dict().items() if key not in _VOLATILE}
    return TeacherFingerprint(
        name=name,
        revision=revision,
        precision=precision,
        config_hash=hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode()).hexdigest(),
        weights_hash="unknown" if model.device.type == "meta" else _weights_hash(model),
    )


def _weights_hash(model: PreTrainedModel) -> str:
    """Digest of a diagonal through every tensor, which meets each row and each column; milliseconds, not seconds.

    Rounded to bfloat16, so that the same weights held in another precision have the same digest.
    """
    samples = []
    for tensor in model.state_dict().values():
        table = tensor.reshape(-1, tensor.shape[-1] if tensor.ndim else 1)
        diagonal = torch.arange(max(table.shape), device=table.device)
        samples.append(table[diagonal % table.shape[0], diagonal % table.shape[1]].to(torch.bfloat16))
    return hashlib.sha256(torch.cat(samples).cpu().view(torch.uint8).numpy().tobytes()).hexdigest()
