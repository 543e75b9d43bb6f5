"""Micro-batches of a step: their sizes, a closed-form memory estimate, and halving on out-of-memory.

A step gives the same gradient, up to rounding, however it is cut into micro-batches. The largest sizes that the
estimate lets fit are tried; where the device runs out of memory all the same, the step is done again with half of both.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gistnet.data.sampling import SpanLayout
from gistnet.errors import TrainingError
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.losses import default_chunk_tokens
from gistnet.training.config import Stage, TrainConfig

logger = logging.getLogger(__name__)

MOST_VECTORS = {"cpu": 2_048, "cuda": 32_768}
"""Most vectors of a micro-batch of branches: more of them do not make a CPU faster; on a GPU it was not measured."""
USABLE = 0.9
"""Share of a device's memory that is planned with; the rest is for libraries and fragmentation."""


class MicroBatch(NamedTuple):
    """Sizes of what one process runs at once."""

    windows: int
    """Windows whose KV cache is held at once."""
    vectors: int
    """Vectors of branches that run through the teacher at once; a longer branch goes by itself."""

    def halved(self) -> "MicroBatch | None":
        """Half of both sizes, at least 1 each; None where both are 1."""
        smaller = MicroBatch(max(1, self.windows // 2), max(1, self.vectors // 2))
        return None if smaller == self else smaller

    def __str__(self) -> str:
        return f"{self.windows} window{'s' * (self.windows > 1)} and {self.vectors} vector{'s' * (self.vectors > 1)}"


def largest_micro_batch(train: TrainConfig, *, processes: int, device_type: str) -> MicroBatch:
    """A process's whole share of the windows, and the configured vectors, or else as many as help speed.

    Args:
        device_type: "cpu" or "cuda".
    """
    return MicroBatch(-(-train.windows_per_batch // processes), train.micro_batch_vectors or MOST_VECTORS[device_type])


def choose_micro_batch(
    teacher: Teacher,
    gistnet: GistNet,
    stage: Stage,
    *,
    window_tokens: int,
    processes: int,
    device_type: str,
    recompute: bool,
    room_bytes: float,
) -> tuple[MicroBatch, int]:
    """Largest micro-batch of a stage that is estimated to fit into `room_bytes`, and the bytes that it takes.

    Sizes are halved until they fit, or until both are 1.

    Args:
        gistnet: of the highest level.
        window_tokens: length of the longest window.
        processes: among which a batch is shared.
        device_type: "cpu" or "cuda".
        recompute: whether gradient checkpointing is on.
    """
    sizes = largest_micro_batch(stage.train, processes=processes, device_type=device_type)
    while True:
        parts = estimated_bytes(
            teacher, gistnet, stage, sizes, window_tokens=window_tokens, device_type=device_type, recompute=recompute
        )
        needed, smaller = sum(parts.values()), sizes.halved()
        if needed <= room_bytes or smaller is None:
            return sizes, needed
        sizes = smaller


def run_halving(compute: Callable[[MicroBatch], Tensor], sizes: MicroBatch) -> tuple[Tensor, MicroBatch]:
    """`compute(sizes)`, done again with half the sizes while the device runs out of memory; with the sizes that fit.

    Raises:
        TrainingError: memory runs out with one window and one vector.
    """
    while True:
        try:
            return compute(sizes), sizes
        except torch.OutOfMemoryError:
            pass  # handled below, where the exception is gone, whose frames hold the tensors
        torch.cuda.empty_cache()
        smaller = sizes.halved()
        if smaller is None:
            raise TrainingError(
                f"Memory ran out with a micro-batch of {sizes}, expected room for it: "
                "teacher.gradient_checkpointing=true, shorter windows or a shorter horizon need less"
            )
        logger.info("Memory ran out with a micro-batch of %s; the step is done again with %s.", sizes, smaller)
        sizes = smaller


class LongestBranch(NamedTuple):
    """Sizes of the longest branch of a stage."""

    gists: int
    """Gists that it reads."""
    vectors: int
    """These, and the predicted tokens but the last."""


def longest_branch(stage: Stage, window_tokens: int, tokens_per_gist: int) -> LongestBranch:
    """Longest branch of a stage; no other one has a larger share of gists."""
    horizon = stage.objective.horizon_tokens
    most = (window_tokens - SpanLayout.sink_tokens - horizon) // tokens_per_gist
    gists = max(1, min(stage.train.segments.most, most))
    return LongestBranch(gists, gists + horizon - 1)


def estimated_bytes(
    teacher: Teacher,
    gistnet: GistNet,
    stage: Stage,
    sizes: MicroBatch,
    *,
    window_tokens: int,
    device_type: str,
    recompute: bool,
) -> dict[str, int]:
    """Closed-form estimate of a step's peak memory, in bytes by what takes it.

    Backpropagation through a frozen layer is taken to save, for each vector, twice the layer's input and the output of
    each of its linear maps.

    Args:
        gistnet: of the highest level.
        window_tokens: length of the longest window.
        device_type: "cpu" or "cuda"; decides how many logits exist at once.
        recompute: whether gradient checkpointing is on.
    """
    layer_bytes = _saved_bytes_per_layer(teacher)
    state_bytes = teacher.hidden_size * teacher.dtype.itemsize
    trained = gistnet.levels[stage.train.level]
    longest = longest_branch(stage, window_tokens, trained.tokens_per_gist)
    of_windows = sizes.windows * stage.train.segments_per_window * longest.vectors
    vectors = min(max(sizes.vectors, longest.vectors), of_windows)
    of_vector = layer_bytes + teacher.n_layers * (state_bytes if recompute else layer_bytes)
    # A layer with adapters saves each map's input besides, in float32.
    of_gist = 3 * trained.tokens_per_gist * max(1, trained.depth) * layer_bytes
    of_window = window_tokens * (teacher.n_layers * _cache_bytes_per_layer(teacher) + 2 * state_bytes)
    trainable = sum(parameter.nbytes for parameter in gistnet.parameters() if parameter.requires_grad)
    chunk = default_chunk_tokens(device_type)
    return {
        "teacher weights": sum(parameter.nbytes for parameter in teacher.model.parameters()),
        # A gradient and two moments for each trained weight.
        "GistNet and optimiser": sum(parameter.nbytes for parameter in gistnet.parameters()) + 3 * trainable,
        "KV cache of the windows": sizes.windows * of_window,
        "branches, or prefill": max(
            round(vectors * (of_vector + longest.gists / longest.vectors * of_gist)),
            sizes.windows * window_tokens * layer_bytes,
        ),
        "logits": 3 * 4 * chunk * teacher.vocabulary_size,
    }


def _saved_bytes_per_layer(teacher: Teacher) -> int:
    """Bytes that a decoder layer saves of one vector for its backward pass."""
    linear = [m for m in teacher.model.base_model.layers[0].modules() if isinstance(m, nn.Linear)]
    return (2 * teacher.hidden_size + sum(module.out_features for module in linear)) * teacher.dtype.itemsize


def _cache_bytes_per_layer(teacher: Teacher) -> int:
    """Bytes of a layer's key and value of one token."""
    config = teacher.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or teacher.hidden_size // config.num_attention_heads
    return 2 * heads * width * teacher.dtype.itemsize
