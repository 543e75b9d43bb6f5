"""What the parts of a step allocate, counted by running them on tensors that have shapes and no contents.

The teacher's own layers, GistNet and the losses run forward and backward as they are written, so that the counts are
right for any family and follow every change of the code; only attention, whose kernels need contents, is replaced by
what such a kernel allocates: its output, and for its backward pass queries, keys, values, output and denominators. All
of it grows in proportion to tokens, so a small count gives the rate. Autocast does not reach such tensors: what GistNet
holds in bfloat16 is counted as float32.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from gistnet.model.attention_passes import DocumentPass
from gistnet.model.gistnet import GistNet
from gistnet.model.layers import Dropout
from gistnet.model.prefix_attention import equally_wide
from gistnet.model.span_context import SpanContext
from gistnet.model.teacher import ReadWindows, Teacher
from gistnet.model.teacher_layers import TeacherLayers
from gistnet.objective.losses import token_losses
from gistnet.training.live_bytes import Use, use_of

_COUNTED_ATTENTION = "gistnet_counted"


@dataclass(frozen=True)
class Counts:
    """What a teacher, a GistNet of some level and the loss take.

    Attributes:
        reading: of a window's token, whose keys, values and final hidden state are kept.
        branch: of a branch's vector.
        recomputed_branch: likewise, with gradient checkpointing.
        gist: of one gist that is encoded with its gradient, with what it takes from the levels below.
        prediction: of one predicted token, whose logits exist while its loss is computed.
    """

    reading: Use
    branch: Use
    recomputed_branch: Use
    gist: Use
    prediction: Use


_counted: dict[tuple[Any, ...], Counts] = {}


def count(
    teacher: Teacher,
    gistnet: GistNet,
    *,
    train_below: bool,
    differentiate: tuple[str, ...],
    losses_by_kernel: bool = False,
) -> Counts:
    """Count what a step takes with this teacher, a GistNet of the level that is trained, and a loss.

    Args:
        differentiate: as for `token_losses`.
        losses_by_kernel: whether a GPU's kernel turns logits into losses where they are.
    """
    teacher_key = (teacher.fingerprint.config_hash, teacher.dtype)
    key = (*teacher_key, gistnet.config, gistnet.level, train_below, differentiate, losses_by_kernel)
    if key not in _counted:  # some runs are opened many times in one process
        shape = _shape_of(teacher)
        loss = _prediction(shape, differentiate)
        loss = Use(loss.kept, _kernel_bytes(shape)) if losses_by_kernel else loss
        gist = _gist(gistnet, teacher.dtype, train_below=train_below)
        shape.model.set_attn_implementation(_COUNTED_ATTENTION)
        reading, branch = _through_all_layers(shape, _reading), _through_all_layers(shape, _branch)
        shape.enable_gradient_checkpointing()
        _counted[key] = Counts(reading, branch, _through_all_layers(shape, _branch), gist, loss)
    return _counted[key]


def _shape_of(teacher: Teacher) -> Teacher:
    """A teacher of the same shape on the device `meta`; a sharded one is whole there."""
    with torch.device("meta"):
        model = type(teacher.model)._from_config(copy.deepcopy(teacher.model.config), dtype=teacher.dtype)
    return Teacher(model, name=teacher.name)


class _CountedAttention(torch.autograd.Function):
    """Allocates what attention of branches over shared prefixes does, and computes nothing."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        denominators = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, out, denominators)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    running_pass: object,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    value_dim = value.shape[-1]
    query, key, value = equally_wide(query, key, value)
    if isinstance(running_pass, DocumentPass):
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        running_pass.keys[layer], running_pass.values[layer] = key, value
    out: Tensor = _CountedAttention.apply(query, key, value)
    return out[..., :value_dim].transpose(1, 2).contiguous(), None


AttentionInterface.register(_COUNTED_ATTENTION, _attention)
AttentionMaskInterface.register(_COUNTED_ATTENTION, sdpa_mask)


def _through_all_layers(shape: Teacher, use: Callable[[Teacher], Use]) -> Use:
    """From what one and two layers take: the layers of a teacher are alike in what they allocate."""
    base = shape.model.base_model
    layers = base.layers
    try:
        base.layers = layers[:1]
        one = use(shape)
        base.layers = layers[:2]
        two = use(shape)
    finally:
        base.layers = layers
    kept = one.kept + (two.kept - one.kept) * (len(layers) - 1)
    return Use(kept, two.forward, two.backward)


def _reading(shape: Teacher) -> Use:
    def read(tokens: int) -> object:
        document = DocumentPass()
        vectors = torch.empty(1, tokens, shape.hidden_size, dtype=shape.dtype, device="meta")
        with torch.no_grad():
            return document, _forward(shape, vectors, document)

    return use_of(read)


def _branch(shape: Teacher) -> Use:
    def read(tokens: int) -> Tensor:
        vectors = torch.empty(1, tokens, shape.hidden_size, dtype=shape.dtype, device="meta", requires_grad=True)
        return _forward(shape, vectors, None)

    return use_of(read)


def _forward(shape: Teacher, vectors: Tensor, running_pass: DocumentPass | None) -> Tensor:
    output = shape.model.base_model(
        inputs_embeds=vectors,
        position_ids=torch.arange(vectors.shape[1], device="meta")[None],
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device="meta"),
        use_cache=False,
        running_pass=running_pass,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def _prediction(shape: Teacher, differentiate: tuple[str, ...]) -> Use:
    """In two chunks of half the tokens: while the logits of one are made, some of the one before may still be there."""

    def losses(tokens: int) -> object:
        original = torch.empty(1, tokens, shape.hidden_size, dtype=shape.dtype, device="meta")
        replaced = torch.empty_like(original, requires_grad=True)
        targets = torch.empty(1, tokens, dtype=torch.int64, device="meta")
        compared = token_losses(
            shape, original, replaced, targets, differentiate=differentiate, chunk_tokens=tokens // 2
        )
        return original, replaced, compared

    both = use_of(losses)
    return Use(both.kept, 2 * both.forward)


def _kernel_bytes(shape: Teacher) -> float:
    """Two tables of logits, whose places their gradients take, and one that is left of the chunk before."""

    def make(tokens: int) -> Tensor:
        with torch.no_grad():
            return shape.logits(torch.empty(tokens, shape.hidden_size, dtype=shape.dtype, device="meta"))

    table = use_of(make)
    return 3 * table.kept + table.forward


def _gist(gistnet: GistNet, token_dtype: torch.dtype, *, train_below: bool) -> Use:
    """What one gist takes, with the gists below that it is made of; one level after the other is encoded."""
    own = _encoding(gistnet, token_dtype, gradient=True)
    if gistnet.below is None:
        return own
    spans = gistnet.config.span_tokens
    if not train_below:
        return Use(own.kept, max(own.forward, spans * _without_gradient(gistnet.below, token_dtype)), own.backward)
    below = _gist(gistnet.below, token_dtype, train_below=True)
    return Use(
        own.kept + spans * below.kept,
        max(own.forward, spans * below.forward),
        max(own.backward, spans * below.backward),
    )


def _without_gradient(gistnet: GistNet, token_dtype: torch.dtype) -> float:
    """Bytes at the peak of encoding a gist, with those below."""
    own = _encoding(gistnet, token_dtype, gradient=False)
    below = 0.0
    if gistnet.below is not None:
        below = gistnet.config.span_tokens * _without_gradient(gistnet.below, token_dtype)
    return max(own.kept + own.forward, below)


class _CountedContext(SpanContext):
    """The context of spans in windows whose keys, values and states are counted where the windows are."""

    def states(self, tokens: int) -> Tensor:
        return self.read.hidden

    def last_states(self, layers: TeacherLayers, last_tokens: Tensor, tokens: int) -> Tensor:
        return layers(last_tokens[:, None], 0, len(layers.layers))[:, 0]


def _encoding(gistnet: GistNet, token_dtype: torch.dtype, *, gradient: bool) -> Use:
    """What a level by itself takes for a gist."""
    shapes = {
        name: tensor.detach().to("meta").requires_grad_(tensor.requires_grad)
        for name, tensor in (*gistnet.named_parameters(), *gistnet.named_buffers())
    }
    for shape in shapes.values():
        if shape.requires_grad:
            shape.grad = torch.empty_like(shape)  # the gradients of weights are counted elsewhere

    def encode(spans: int) -> object:
        dtype = token_dtype if gistnet.below is None else torch.float32
        vectors = torch.empty(spans, gistnet.config.span_tokens, gistnet.dim, dtype=dtype, device="meta")
        dropout = Dropout(0.1, torch.empty(spans, dtype=torch.int64, device="meta"))
        context = None
        if gistnet.reads_context:
            context = _CountedContext(ReadWindows(DocumentPass(), vectors), dropout.keys, dropout.keys)
        with torch.set_grad_enabled(gradient):
            return vectors, functional_call(gistnet, shapes, (vectors, dropout, context))

    return use_of(encode)
