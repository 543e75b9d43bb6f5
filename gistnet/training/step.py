"""One optimiser step: the windows it is made of, their losses, and the gradient."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, WindowSample
from gistnet.errors import TrainingError
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import LONGEST_TO_SHORTEST, Stretches
from gistnet.objective.objective import BranchLosses, ObjectiveConfig, branch_losses, states_wanted
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
    passes_to_make: Callable[[list[int]], list[int]] = list,
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
        passes_to_make: from the number of passes of branches of each group of windows to that which must be made. All
            processes call a sharded teacher equally often, or some would wait for layers that no other process reads:
            what one lacks, it repeats with weight zero.

    Returns:
        The sum over these branches of each of `BranchLosses`' fields, in their order, float64.

    Raises:
        TrainingError: a loss is not finite; names the windows.
    """
    sums = torch.zeros(len(BranchLosses._fields), dtype=torch.float64, device=teacher.device)
    groups = [samples[first : first + sizes.windows] for first in range(0, len(samples), sizes.windows)]
    passes = [list(_passes(group, sizes.branches, layout.horizon_tokens)) for group in groups]
    read = partial(
        read_groups,
        teacher,
        dataset,
        window_tokens=layout.window_tokens,
        states_after=states_wanted(objective, gistnet, teacher),
    )
    reading = read(samples, sizes.windows, ahead=read_ahead)
    broken: set[int] = set()
    for place, count in enumerate(passes_to_make([len(of_group) for of_group in passes])):
        if place >= len(groups):
            reading = read(groups[-1], sizes.windows, ahead=False)
        group, tokens, windows_read = next(reading)
        of_group = passes[min(place, len(groups) - 1)]
        keys = torch.tensor([_dropout_key(*dropout_seed, sample.item) for sample in group], device=teacher.device)
        for number in range(count):
            is_repeated = place >= len(groups) or number >= len(of_group)
            windows, starts, gists = torch.tensor(of_group[min(number, len(of_group) - 1)], device=teacher.device).T
            stretches = Stretches(tokens, windows, starts, layout.tokens_per_gist, gists, layout.horizon_tokens)
            losses = branch_losses(
                teacher,
                gistnet,
                windows_read,
                stretches,
                objective,
                train_below=train_below,
                dropout_rate=dropout_rate,
                dropout_keys=keys,
            )
            if not bool(torch.isfinite(losses.total).all()):
                broken |= {group[window].window for window in windows.unique().tolist()}
            ((0 if is_repeated else 1) * losses.total.sum() / branches_in_batch).backward()
            if not is_repeated:
                sums += torch.stack([field.detach().double().sum() for field in losses])
        del windows_read, losses  # the next windows are read first, and these would be held meanwhile
    # Told only now, where all processes have made all their passes.
    if broken:
        places = (f"{info.document_id} at token {info.offset}" for info in map(dataset.describe, sorted(broken)))
        raise TrainingError(f"The loss is not finite (documents: {', '.join(places)})")
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
