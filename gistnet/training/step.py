"""One optimiser step: the windows it is made of, their losses, and the gradient."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, WindowSample
from gistnet.errors import TrainingError
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import LONGEST_TO_SHORTEST, Stretches
from gistnet.objective.objective import BranchLosses, ObjectiveConfig, branch_losses
from gistnet.training.fitting import PassSizes
from gistnet.training.reading import read_groups


def accumulate_gradient(
    teacher: Teacher,
    gistnet: GistNet,
    dataset: PreparedDataset,
    samples: Sequence[WindowSample],
    layout: SpanLayout,
    objective: ObjectiveConfig,
    *,
    train_below: bool,
    branches_in_batch: int,
    sizes: PassSizes,
    read_ahead: bool = False,
    dropout_rate: float,
    dropout_seed: tuple[int, int],
) -> Tensor:
    """Add the gradient of windows that are read together to GistNet's parameters.

    Args:
        gistnet: of the level that is trained.
        samples: the windows and their stretches.
        train_below: whether the levels below are trained, too.
        branches_in_batch: the branches of the whole step, over all windows and processes; each counts alike.
        sizes: how many windows and branches run through the teacher at a time; bounds memory.
        read_ahead: whether the next windows are read beside the branches of the present ones, see `read_groups`.
        dropout_seed: (seed, step).

    Returns:
        The sum over these branches of each of `BranchLosses`' fields, in their order, float64.

    Raises:
        TrainingError: a loss is not finite; names the windows.
    """
    sums = torch.zeros(len(BranchLosses._fields), dtype=torch.float64, device=teacher.device)
    for group, tokens, read in read_groups(teacher, dataset, samples, sizes.windows, ahead=read_ahead):
        keys = torch.tensor([_dropout_key(*dropout_seed, sample.item) for sample in group], device=teacher.device)
        for branches in _passes(group, sizes.branches, layout.horizon_tokens):
            windows, starts, gists = torch.tensor(branches, device=teacher.device).T
            stretches = Stretches(tokens, windows, starts, layout.tokens_per_gist, gists, layout.horizon_tokens)
            losses = branch_losses(
                teacher,
                gistnet,
                read,
                stretches,
                objective,
                train_below=train_below,
                dropout_rate=dropout_rate,
                dropout_keys=keys,
            )
            if not bool(torch.isfinite(losses.total).all()):
                described = [dataset.describe(group[window].window) for window in windows.unique().tolist()]
                places = ", ".join(f"{info.document_id} at token {info.offset}" for info in described)
                raise TrainingError(f"The loss is not finite (documents: {places})")
            (losses.total.sum() / branches_in_batch).backward()
            sums += torch.stack([field.detach().double().sum() for field in losses])
        del read, losses  # the next windows are read first, and these would be held meanwhile
    return sums


def _passes(
    samples: Sequence[WindowSample], branches_per_pass: int, horizon: int
) -> Iterator[list[tuple[int, int, int]]]:
    """The branches of each pass, those of similar length together: window (row of the batch), start and gists."""
    branches = [
        (row, int(start), int(gists))
        for row, sample in enumerate(samples)
        for start, gists in zip(sample.starts, sample.gists, strict=True)
    ]
    together: list[tuple[int, int, int]] = []
    for branch in sorted(branches, key=lambda branch: branch[2]):
        if together:
            longest, shortest = (gists + horizon - 1 for _, _, gists in (branch, together[0]))
            if len(together) == branches_per_pass or longest > LONGEST_TO_SHORTEST * shortest:
                yield together
                together = []
        together.append(branch)
    yield together


def _dropout_key(seed: int, step: int, item: int) -> int:
    """A signed 64-bit number that no other window of the run shares."""
    digest = hashlib.blake2b(f"{seed}:{step}:{item}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
