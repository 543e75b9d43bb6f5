"""The mean of GistNets: `gistnet average RUN OTHER… --out FOLDER`.

Fine-tuning gains where it was aimed at, and loses elsewhere. The mean of weights before, during and after it may keep
what both had (Wortsman et al., 2022: 2203.05482, 2109.01903; docs/ablations.md).
"""

import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch

from gistnet.errors import CheckpointError, ConfigError
from gistnet.files import atomic_folder
from gistnet.model.gistnet import GistNet
from gistnet.model.saved_gistnet import WEIGHTS_FILE
from gistnet.paths import local_path
from gistnet.release_folder import find_folder
from gistnet.run_folder import CONFIG_FILE, METRICS_FILE
from gistnet.session import open_gistnet, open_trained
from gistnet.training.checkpoint import checkpoint_folder, copy_with_network, load_checkpoint


def average(run: Path | str, others: Sequence[Path | str], out: Path | str) -> list[Path]:
    """Write a run whose GistNet is the mean of a run's and of others, at every level.

    It has the configuration, the log and the step of `run`, and no state of an optimiser: it can be evaluated, released
    and begun with (`start_from`), and not be resumed.

    Args:
        run: a checkpoint, or a run folder, of which the best is taken (the newest, where none was validated).
        others: run folders, checkpoints, folders of saved GistNets, releases. One that is named twice counts twice.
        out: the new run folder.

    Returns:
        The folders of the GistNets that it is the mean of: of runs, those of checkpoints.

    Raises:
        ConfigError: `out` is there already, `run` is a release, there are no others, or levels or networks differ.
        CheckpointError: one of them is missing or damaged, or belongs to another teacher.
        StorageError: the folder cannot be written; nothing is left of it.
    """
    out = local_path(out)
    if out.exists():
        raise ConfigError(f"{out} is there already, expected a new folder.")
    if not others:
        raise ConfigError(f"Got {run} alone, expected at least one other GistNet to take the mean with.")
    trained = open_trained(run)
    if trained.is_released:
        raise ConfigError(f"{run} is a release, expected a run folder or a checkpoint first; others may be releases.")
    gistnets, folders = [trained.gistnet], [trained.folder.parent]
    for other in others:
        gistnet, folder = _open(other)
        gistnets.append(gistnet)
        folders.append(folder)
    mean = mean_of(gistnets, [str(run), *map(str, others)])
    checkpoint = load_checkpoint(trained.folder.parent)
    with atomic_folder(out) as made:
        copy_with_network(checkpoint.folder, checkpoint_folder(made, checkpoint.step), mean)
        for name in (CONFIG_FILE, METRICS_FILE):
            if (trained.run_folder / name).exists():
                shutil.copyfile(trained.run_folder / name, made / name)
    return folders


def _open(path: Path | str) -> tuple[GistNet, Path]:
    """A GistNet, and the folder that it was found in: of a run, that of a checkpoint."""
    found = find_folder(path)
    if (found / WEIGHTS_FILE).is_file():
        return open_gistnet(found)[1], found
    trained = open_trained(found)
    return trained.gistnet, trained.folder.parent


def mean_of(gistnets: Sequence[GistNet], names: Sequence[str]) -> GistNet:
    """The first GistNet with the mean of all weights, at every level, and with all corpora that they were trained on.

    Args:
        gistnets: of one configuration and teacher; the first one is changed.
        names: of them, for a message.

    Raises:
        ConfigError: their levels or networks differ.
        CheckpointError: one belongs to another teacher.
    """
    first = gistnets[0]
    networks = [[level.config for level in gistnet.levels] for gistnet in gistnets]
    for name, gistnet, network in zip(names, gistnets, networks, strict=True):
        if (network, gistnet.branchings) != (networks[0], first.branchings):
            raise ConfigError(
                f"{name} has the levels {list(gistnet.branchings)} and the networks {network}, expected those of "
                f"{names[0]}: {list(first.branchings)} and {networks[0]}."
            )
        if not gistnet.teacher_fingerprint.same_model(first.teacher_fingerprint):
            raise CheckpointError(
                f"{name} has the teacher {gistnet.teacher_fingerprint.describe()}, expected that of {names[0]}, "
                f"{first.teacher_fingerprint.describe()}."
            )
    states = [gistnet.trainable_state() for gistnet in gistnets]
    first.load_trainable_state({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    for i, level in enumerate(first.levels):
        same = [gistnet.levels[i] for gistnet in gistnets]
        level.trained_on = tuple(dict.fromkeys(chain.from_iterable(gistnet.trained_on for gistnet in same)))
        level.longest_row = max(gistnet.longest_row for gistnet in same)
    return first
