"""Floating-point operations of the engine, counted from the shape of the models; what a utilisation is a share of.

Only what the mathematics needs is counted, two operations to a multiplication with addition: matrix products and
attention. Norms, activations, softmax and whatever an implementation computes twice (attention scores in the backward
pass, layers under gradient checkpointing) are not, so that computing things twice does not look like speed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import nn

from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher


@dataclass(frozen=True)
class TeacherSize:
    """Sizes of a teacher that decide its cost.

    Attributes:
        layers: decoder layers.
        weights: entries of all linear layers within them.
        attention_width: heads times their dimension.
        hidden: the hidden size.
        vocabulary: rows of the head.
    """

    layers: int
    weights: int
    attention_width: int
    hidden: int
    vocabulary: int

    @classmethod
    def of(cls, teacher: Teacher) -> Self:
        """The size of a teacher whose layers all have full attention."""
        shape, decoder = teacher.config, teacher.model.base_model.layers
        head_width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        return cls(
            layers=len(decoder),
            weights=sum(module.weight.numel() for module in decoder.modules() if isinstance(module, nn.Linear)),
            attention_width=shape.num_attention_heads * head_width,
            hidden=shape.hidden_size,
            vocabulary=teacher.vocabulary_size,
        )

    def read(self, tokens: int, prefix: int = 0) -> int:
        """One forward pass over so many tokens after a prefix that has been read: linear layers and attention.

        A token attends to the prefix, to the tokens before it and to itself; each such pair costs a product with the
        key and one with the value.
        """
        pairs = tokens * prefix + tokens * (tokens + 1) // 2
        return 2 * self.weights * tokens + 4 * self.layers * self.attention_width * pairs

    def read_backward(self, tokens: int, prefix: int) -> int:
        """The backward pass of `read` to the input vectors, with weights and prefix frozen.

        Linear layers cost one product and not two. A pair costs gradients of probability and query; within the
        tokens also those of key and value.
        """
        own = tokens * (tokens + 1) // 2
        return 2 * self.weights * tokens + self.layers * self.attention_width * (4 * tokens * prefix + 8 * own)

    def head(self, tokens: int) -> int:
        """Logits of so many tokens, or the way back through them."""
        return 2 * self.hidden * self.vocabulary * tokens


def engine_flops(
    teacher: TeacherSize, gistnet: GistNet, window: int, starts: Sequence[int], horizon: int
) -> dict[str, int]:
    """Operations of the engine on one window, by part.

    Args:
        window: tokens of the window.
        starts: the first token of each span that is replaced by one gist.
        horizon: tokens predicted after each (H); a branch holds the gist and all of them but the last.
    """
    budget, spans = gistnet.parameter_budget(), len(starts)
    # Products with trained weights have two gradients, to input and weight; those with frozen weights only the first
    # (and not even that in the first layer that `teacher_lora` copies, which is counted all the same).
    gistnet_backward = 2 * budget.flops_per_span - 2 * gistnet.branching * budget.frozen
    return {
        "document pass": teacher.read(window),
        "GistNet forward": spans * budget.flops_per_span,
        "branches forward": sum(teacher.read(horizon, start) for start in starts),
        "head and loss": 3 * teacher.head(spans * horizon),  # logits of both contexts, and the gradient's way back
        "branches backward": sum(teacher.read_backward(horizon, start) for start in starts),
        "GistNet backward": spans * gistnet_backward,
    }


def loop_flops(teacher: TeacherSize, gistnet: GistNet, *, window: int, horizon: int) -> int:
    """Operations of the spec's loop for one span: two forward passes over the window and one backward."""
    shorter = window - gistnet.branching + 1
    passes = teacher.read(window) + teacher.read(shorter) + teacher.read_backward(shorter, 0)
    frozen = gistnet.parameter_budget().frozen
    own = 3 * gistnet.parameter_budget().flops_per_span - 2 * gistnet.branching * frozen
    return passes + 3 * teacher.head(horizon) + own
