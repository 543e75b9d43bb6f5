"""One optimiser step: the windows it is made of, their losses, and the gradient."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, WindowSample
from gistnet.errors import TrainingError
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Stretches
from gistnet.objective.objective import BranchLosses, ObjectiveConfig, branch_losses


def accumulate_gradient(
    teacher: Teacher,
    gistnet: GistNet,
    dataset: PreparedDataset,
    samples: Sequence[WindowSample],
    layout: SpanLayout,
    objective: ObjectiveConfig,
    *,
    branches_in_batch: int,
    branches_per_pass: int,
    dropout_rate: float,
    dropout_seed: tuple[int, int],
) -> Tensor:
    """Add the gradient of windows that are read together to GistNet's parameters.

    Args:
        samples: the windows and their stretches.
        branches_in_batch: the branches of the whole step, over all windows and processes; each counts alike.
        branches_per_pass: how many branches run through the teacher at a time; bounds memory.
        dropout_seed: (seed, step).

    Returns:
        The sum over these branches of each of `BranchLosses`' fields, in their order, float64.

    Raises:
        TrainingError: a loss is not finite; names the windows.
    """
    tokens = _pad([dataset.read(sample.window) for sample in samples]).to(teacher.device)
    read = teacher.read_windows(tokens)
    sums = torch.zeros(len(BranchLosses._fields), dtype=torch.float64, device=teacher.device)
    for windows, starts in _passes(samples, branches_per_pass):
        stretches = Stretches(
            tokens=tokens,
            windows=torch.tensor(windows, device=teacher.device),
            starts=torch.tensor(starts, device=teacher.device),
            span_tokens=layout.span_tokens,
            gists=layout.gists_in_a_row,
            horizon=layout.horizon_tokens,
        )
        items = [samples[window].item for window in windows]
        keys = [_dropout_key(*dropout_seed, item, start) for item, start in zip(items, starts, strict=True)]
        losses = branch_losses(
            teacher,
            gistnet,
            read,
            stretches,
            objective,
            dropout_rate=dropout_rate,
            dropout_keys=torch.tensor(keys, device=teacher.device),
        )
        if not bool(torch.isfinite(losses.total).all()):
            described = [dataset.describe(samples[window].window) for window in sorted(set(windows))]
            places = ", ".join(f"{info.document_id} at token {info.offset}" for info in described)
            raise TrainingError(f"The loss is not finite (documents: {places})")
        (losses.total.sum() / branches_in_batch).backward()
        sums += torch.stack([field.detach().double().sum() for field in losses])
    return sums


def _pad(windows: list[np.ndarray]) -> Tensor:
    """`[windows, tokens]`; shorter windows end in zeros, which no branch sees."""
    length = max(len(window) for window in windows)
    return torch.from_numpy(np.stack([np.pad(window, (0, length - len(window))) for window in windows]))


def _passes(samples: Sequence[WindowSample], branches_per_pass: int) -> Iterator[tuple[list[int], list[int]]]:
    """Windows (as rows of the batch) and starts of the branches of each pass."""
    branches = [(row, int(start)) for row, sample in enumerate(samples) for start in sample.starts]
    for first in range(0, len(branches), branches_per_pass):
        windows, starts = zip(*branches[first : first + branches_per_pass], strict=True)
        yield list(windows), list(starts)


def _dropout_key(seed: int, step: int, item: int, start: int) -> int:
    """A signed 64-bit number that no other branch of the run shares."""
    digest = hashlib.blake2b(f"{seed}:{step}:{item}:{start}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
