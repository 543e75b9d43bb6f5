"""One optimiser step: the windows it is made of, their losses, and the gradient."""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, WindowSample
from gistnet.errors import TrainingError
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import LONGEST_TO_SHORTEST, SegmentBatch
from gistnet.objective.config import ObjectiveConfig
from gistnet.objective.objective import BranchLosses, branch_losses
from gistnet.training.micro_batch import MicroBatch


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
    sizes: MicroBatch,
    dropout_rate: float,
    dropout_seed: tuple[int, int],
) -> Tensor:
    """Add the gradient of windows that are read together to GistNet's parameters.

    Args:
        gistnet: of the level that is trained.
        samples: the windows and their segments.
        train_below: whether the levels below are trained, too.
        branches_in_batch: the branches of the whole step, over all windows and processes; each counts alike.
        sizes: how many windows and branches run through the teacher at once; bounds memory.
        dropout_seed: (seed, step).

    Returns:
        The sum over these branches of each of `BranchLosses`' fields, in their order, float64.

    Raises:
        TrainingError: a loss is not finite; names the windows.
    """
    sums = torch.zeros(len(BranchLosses._fields), dtype=torch.float64, device=teacher.device)
    for first in range(0, len(samples), sizes.windows):
        group = samples[first : first + sizes.windows]
        tokens = prefill_tokens(teacher, dataset, group, layout.window_tokens)
        read = teacher.prefill(tokens, hidden_state_layer=gistnet.hidden_state_layer)
        keys = torch.tensor([_dropout_key(*dropout_seed, sample.item) for sample in group], device=teacher.device)
        for branches in branch_micro_batches(group, sizes.branches, layout.horizon_tokens):
            windows, starts, gists = torch.tensor(branches, device=teacher.device).T
            segments = SegmentBatch(tokens, windows, starts, layout.tokens_per_gist, gists, layout.horizon_tokens)
            losses = branch_losses(
                teacher,
                gistnet,
                read,
                segments,
                objective,
                train_below=train_below,
                dropout_rate=dropout_rate,
                dropout_keys=keys,
            )
            if not bool(torch.isfinite(losses.total).all()):
                infos = [dataset.describe(group[row].window) for row in windows.unique().tolist()]
                where = (f"{info.document_id} at token {info.offset}" for info in infos)
                raise TrainingError(f"The loss is not finite (documents: {', '.join(where)})")
            (losses.total.sum() / branches_in_batch).backward()
            sums += torch.stack([field.detach().double().sum() for field in losses])
        del read, losses  # or they would be held while the next windows are read
    return sums


def prefill_tokens(
    teacher: Teacher, dataset: PreparedDataset, samples: Sequence[WindowSample], window_tokens: int | None
) -> Tensor:
    """Token ids of windows on the teacher's device, `[windows, tokens]`.

    Shorter windows end in zeros, which no branch sees.

    Args:
        window_tokens: tokens taken of each window, from its first on; None takes all.

    Raises:
        TeacherError: a token id is outside the vocabulary.
    """
    windows = [torch.from_numpy(dataset.read(sample.window)[:window_tokens]) for sample in samples]
    tokens = pad_sequence(windows, batch_first=True)
    teacher.require_in_vocabulary(tokens)
    if teacher.device.type == "cuda":
        tokens = tokens.pin_memory()
    return tokens.to(teacher.device, non_blocking=True)


def branch_micro_batches(
    samples: Sequence[WindowSample], branches_at_once: int, horizon: int
) -> Iterator[list[tuple[int, int, int]]]:
    """Branches of windows in micro-batches of similar length: (row of the window, start, gists) of each branch."""
    branches = [
        (row, int(start), int(gists))
        for row, sample in enumerate(samples)
        for start, gists in zip(sample.starts, sample.gists, strict=True)
    ]
    together: list[tuple[int, int, int]] = []
    for branch in sorted(branches, key=lambda branch: branch[2]):
        if together:
            longest, shortest = (gists + horizon - 1 for _, _, gists in (branch, together[0]))
            if len(together) == branches_at_once or longest > LONGEST_TO_SHORTEST * shortest:
                yield together
                together = []
        together.append(branch)
    yield together


def _dropout_key(seed: int, step: int, item: int) -> int:
    """A signed 64-bit number that no other window of the run shares."""
    digest = hashlib.blake2b(f"{seed}:{step}:{item}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
