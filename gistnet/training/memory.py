"""What a step takes of a device's memory, as a function of how much of it runs at once."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.losses import default_chunk_tokens
from gistnet.objective.objective import DIFFERENTIATED
from gistnet.training.counting import count
from gistnet.training.live_bytes import Use
from gistnet.training.optimiser import is_moved_by_muon
from gistnet.training.stage import Stage, TrainConfig


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one process's device at the peak of a step.

    First a group of windows is read, whose keys and values stay. Then pass after pass of their branches runs forward
    and backward: gists are encoded, the teacher reads the branches, and the losses are computed in chunks.

    Attributes:
        fixed: what is there all the time, by what it is.
        shortest_window: tokens of the shortest window that has room for a branch.
        window: of one window: `kept` are keys, values and final hidden states, `forward` what reading takes besides.
        branch_tokens: vectors of a branch.
        branch: of one branch.
        recomputed_branch: likewise, with gradient checkpointing.
        prediction: of one predicted token whose logits exist.
        chunk_tokens: predicted tokens whose logits exist at a time.
        horizon_tokens: predicted tokens of a branch.
    """

    fixed: Mapping[str, int]
    shortest_window: int
    window: Use
    branch_tokens: int
    branch: Use
    recomputed_branch: Use
    prediction: Use
    chunk_tokens: int
    horizon_tokens: int

    def parts(self, windows: int, branches: int, *, recompute: bool) -> dict[str, int]:
        """Bytes by what takes them; their sum is the peak.

        Args:
            windows: windows that are held at once.
            branches: branches of a pass.
            recompute: whether the teacher's layers are computed again in the backward pass (gradient checkpointing).
        """
        branch = self.recomputed_branch if recompute else self.branch
        activations = branches * branch.kept
        logits = min(self.chunk_tokens, branches * self.horizon_tokens) * self.prediction.forward
        # None of these needs memory while another one does; the backward pass and the encoding find no logits.
        besides = max(windows * self.window.forward - activations, branches * max(branch.forward, branch.backward))
        return {
            **self.fixed,
            "keys and values of the windows": round(windows * self.window.kept),
            "activations of the branches": round(activations),
            "logits of a chunk": round(logits),
            "working space": round(max(0.0, besides - logits)),
        }

    def peak(self, windows: int, branches: int, *, recompute: bool) -> int:
        """The sum of the `parts`."""
        return sum(self.parts(windows, branches, recompute=recompute).values())


def step_memory(
    teacher: Teacher, gistnet: GistNet, stage: Stage, *, window_tokens: int, device_type: str
) -> StepMemory:
    """Count what a step of a stage takes.

    Weights are those of the teacher and of all levels of GistNet; activations, logits and working space are counted by
    running the code on tensors without contents (`counting`). Branches are taken to be as long as the longest.

    Args:
        gistnet: of the highest level.
        window_tokens: the length of the longest window.
        device_type: of the device that will train, "cuda" or "cpu"; decides how many logits exist at a time, and in
            what form: a GPU's kernel for them is taken to work.
    """
    train, objective = stage.train, stage.objective
    trained = gistnet.levels[train.level]
    counts = count(
        teacher,
        trained,
        train_below=train.train_below,
        differentiate=DIFFERENTIATED[objective.loss],
        losses_by_kernel=device_type == "cuda" and teacher.dtype != torch.float64,
    )
    room = window_tokens - train.sink_tokens - objective.horizon_tokens
    longest = min(train.runs.most, room // trained.tokens_per_gist)
    gists = longest + (objective.contrastive_weight > 0)
    vectors = longest + objective.horizon_tokens - 1
    predictions = objective.horizon_tokens
    if objective.reconstruction_weight > 0:
        replaced = longest * trained.tokens_per_gist
        vectors += longest + replaced - 1
        predictions += replaced

    def branch_of(vector: Use) -> Use:
        return Use(
            vectors * vector.kept + gists * counts.gist.kept + predictions * counts.prediction.kept,
            max(vectors * vector.forward, gists * counts.gist.forward),
            max(vectors * vector.backward, gists * counts.gist.backward),
        )

    held_at_once = 2 if train.read_ahead and device_type == "cuda" else 1
    window = Use(held_at_once * window_tokens * counts.reading.kept, window_tokens * counts.reading.forward)
    return StepMemory(
        fixed=_fixed(teacher, gistnet, train, window_tokens * counts.reading.kept),
        shortest_window=window_tokens - room + max(train.runs.lengths) * trained.tokens_per_gist,
        window=window,
        branch_tokens=vectors,
        branch=branch_of(counts.branch),
        recomputed_branch=branch_of(counts.recomputed_branch),
        prediction=counts.prediction,
        chunk_tokens=objective.chunk_tokens or default_chunk_tokens(device_type),
        horizon_tokens=predictions,
    )


def _fixed(teacher: Teacher, gistnet: GistNet, train: TrainConfig, window_bytes: float) -> dict[str, int]:
    parameters = list(gistnet.parameters())
    trained = gistnet.levels[train.level].trained_parameters(with_below=train.train_below).values()
    trainable = sum(p.nbytes for p in parameters if p.requires_grad)
    validation, domains = train.validation, sum(share > 0 for share in train.probabilities.values())
    held_out = min(validation.cache_gigabytes * 1e9, domains * validation.documents * window_bytes)
    return {
        "teacher weights": held_by_teacher(teacher) + 2 * _largest_gathered_layer(teacher),
        # A gradient for each weight that the stage trains, and AdamW's two moments or Muon's one.
        "GistNet weights, gradient and optimiser": trainable
        + sum((2 if is_moved_by_muon(p, train.optimiser) else 3) * p.nbytes for p in trained),
        "GistNet's frozen copy": sum(p.nbytes for p in parameters if not p.requires_grad),
        "held-out windows kept for validation": round(held_out),
    }


def held_by_teacher(teacher: Teacher) -> int:
    """Bytes of the teacher's weights that this process holds: where it is sharded, its part of them."""
    return sum(_local_bytes(parameter) for parameter in teacher.model.parameters())


def _largest_gathered_layer(teacher: Teacher) -> int:
    """Bytes of the largest sharded layer when it is whole, as the one in use is, and the next one; 0 where none is."""
    layers = ([p for p in layer.parameters() if isinstance(p, DTensor)] for layer in teacher.model.base_model.layers)
    return max(sum(parameter.nbytes for parameter in layer) for layer in layers)


def _local_bytes(parameter: Tensor) -> int:
    return parameter.to_local().nbytes if isinstance(parameter, DTensor) else parameter.nbytes
