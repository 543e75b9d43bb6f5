"""Checkpoints of a training run: saved atomically, verified when read, resumed bit for bit.

    RUN/checkpoints/step-00001000/gistnet/               the network, as `GistNet.save_pretrained` writes it
    RUN/checkpoints/step-00001000/optimiser.safetensors  the optimiser's tensors, by parameter name
    RUN/checkpoints/step-00001000/state.json             step, trainer's state, identity of run, optimiser settings
    RUN/checkpoints/step-00001000/manifest.json          size and SHA-256 of each file above
    RUN/checkpoints/best.json                            which of them validated best, in each stage

The frozen teacher is named in the identity, by its fingerprint, and never saved. Nothing is pickled: reading a
checkpoint runs no code from it.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from gistnet.errors import CheckpointError, StorageError
from gistnet.files import atomic_folder, storage_errors, sweep_leftovers, write_json
from gistnet.model.saved_gistnet import CONFIG_FILE, WEIGHTS_FILE
from gistnet.run_folder import BEST_FILE, CHECKPOINTS_FOLDER

_FORMAT = 4
_OPTIMISER = "optimiser.safetensors"
_MANIFEST = "manifest.json"
_FOLDER_NAME = re.compile(r"step-(\d{8,})")


class Saveable(Protocol):
    """A network that writes its own weights and configuration, as `GistNet` does."""

    def save_pretrained(self, folder: Path, /) -> object: ...


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were verified. The tensors stay on disk until they are asked for."""

    folder: Path
    step: int
    """Completed optimiser steps."""
    train_state: dict[str, Any]
    """The trainer's state: spans seen, the stage's validations; anything JSON can hold."""
    identity: dict[str, Any]
    """Identity of the run: teacher and its precision, network configuration, fingerprint of the corpus."""
    optimiser_groups: list[dict[str, Any]]
    """The optimiser's parameter groups: names of the parameters and settings."""

    @property
    def gistnet_folder(self) -> Path:
        """Folder of the network, for `GistNet.from_pretrained`."""
        return self.folder / "gistnet"


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` completed steps, whether or not it exists."""
    return _checkpoints(run_folder) / f"step-{step:08d}"


# Saving ---------------------------------------------------------------------------------------------------------------


def save_checkpoint(
    run_folder: Path,
    *,
    step: int,
    gistnet: Saveable,
    optimiser: Optimizer,
    train_state: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> Path:
    """Save the state after `step` completed steps and return its folder; a checkpoint of that step is kept as it is.

    The optimiser must know its parameters by name, as those of `optimiser.build_optimiser` do.

    Raises:
        StorageError: the disk is full or refused. Nothing of this checkpoint is left, and earlier ones are untouched.
    """
    folder = checkpoint_folder(run_folder, step)
    if folder.is_dir():
        return folder
    tensors, groups = _flatten(optimiser)
    state = {
        "format": _FORMAT,
        "step": step,
        "train_state": train_state,
        "identity": identity,
        "optimiser_groups": groups,
    }
    with atomic_folder(folder) as temporary:
        try:
            gistnet.save_pretrained(temporary / "gistnet")
            save_file(tensors, temporary / _OPTIMISER)
        except SafetensorError as error:  # not an OSError, although a full disk is what it reports
            raise StorageError(f"Could not write {folder}: {error}.") from error
        write_json(temporary / "state.json", state)
        _write_manifest(temporary)
    return folder


def copy_checkpoint(
    source: Path,
    target: Path,
    dtype: torch.dtype,
    *,
    with_optimiser: bool = True,
    dataset: Mapping[str, Any] | None = None,
) -> None:
    """Copy a checkpoint with its tensors in another number format; scalars, such as counts of steps, stay as they are.

    Args:
        source: a checkpoint's folder; verified.
        target: the new folder; where it exists, it stays as it is.
        with_optimiser: False leaves the optimiser's tensors out: what is left can be loaded, and not be resumed.
        dataset: identity of the corpus that a run of the copy goes on with; None is that of the source.

    Raises:
        CheckpointError: the source is missing or damaged.
        StorageError: the copy could not be written; nothing is left of it.
    """
    state = _state(source)
    with atomic_folder(target) as temporary:
        for name in _file_names(source):
            copy = temporary / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            if not name.endswith(".safetensors"):
                shutil.copyfile(source / name, copy)
            elif with_optimiser or name != _OPTIMISER:
                tensors = load_file(source / name)
                save_file({key: tensor.to(dtype) if tensor.ndim else tensor for key, tensor in tensors.items()}, copy)
        for weights in sorted(temporary.rglob(WEIGHTS_FILE)):
            config = weights.with_name(CONFIG_FILE)
            digest = hashlib.sha256(weights.read_bytes()).hexdigest()
            write_json(config, _read_json(config) | {"weights_sha256": digest})
        identity = state["identity"] if dataset is None else state["identity"] | {"dataset": dict(dataset)}
        write_json(temporary / "state.json", state | {"identity": identity})
        _write_manifest(temporary)


def copy_with_network(source: Path, target: Path, gistnet: Saveable) -> None:
    """Copy a checkpoint with another network, and without the optimiser's tensors: it can be loaded, not be resumed.

    Raises:
        CheckpointError: the source is missing or damaged.
        StorageError: the copy could not be written; nothing is left of it.
    """
    state = _state(source)
    with atomic_folder(target) as temporary:
        gistnet.save_pretrained(temporary / "gistnet")
        write_json(temporary / "state.json", state)
        _write_manifest(temporary)


def mark_best(run_folder: Path, stage: str, step: int, value: float) -> None:
    """Record the checkpoint of `step` as the best of a stage so far, with the validation loss (nats per token) it had.

    Raises:
        StorageError: the mark could not be written; the earlier one stands.
    """
    marks = _best_marks(run_folder)
    marks[stage] = {"checkpoint": checkpoint_folder(run_folder, step).name, "value": value}
    write_json(_checkpoints(run_folder) / BEST_FILE, marks)


def prune_checkpoints(run_folder: Path, keep_last: int) -> None:
    """Delete all checkpoints but the `keep_last` newest and each stage's best, and what killed writers left.

    Raises:
        StorageError: a folder could not be deleted.
    """
    checkpoints = _checkpoints(run_folder)
    kept = {folder.name for _, folder in sorted(_folders_by_step(run_folder).items(), reverse=True)[:keep_last]}
    kept |= {mark["checkpoint"] for mark in _best_marks(run_folder).values()}
    for folder in _folders_by_step(run_folder).values():
        if folder.name not in kept:
            # Renamed first: a kill while its files go must not leave a damaged checkpoint under a checkpoint's name.
            with storage_errors("delete", folder):
                folder.rename(folder.with_name(f".deleted-{folder.name}"))
    sweep_leftovers(checkpoints)
    for deleted in checkpoints.glob(".deleted-*"):
        with storage_errors("delete", deleted):
            shutil.rmtree(deleted)


# Loading --------------------------------------------------------------------------------------------------------------


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify the checkpoint in `folder`.

    Raises:
        CheckpointError: the folder is missing, or a file in it is missing, truncated, altered or of another format.
    """
    state = _state(folder)
    return Checkpoint(folder, state["step"], state["train_state"], state["identity"], state["optimiser_groups"])


def latest_checkpoint(run_folder: Path) -> Path | None:
    """The newest checkpoint of a run, verified, or None where the run has none yet.

    Raises:
        CheckpointError: the newest one is damaged. It is not skipped silently, for that would repeat work unasked; the
            message names the newest good one before it, which can be loaded instead.
    """
    newest_first = [folder for _, folder in sorted(_folders_by_step(run_folder).items(), reverse=True)]
    if not newest_first:
        return None
    try:
        _verify(newest_first[0])
    except CheckpointError as error:
        good = next((folder for folder in newest_first[1:] if _is_good(folder)), None)
        advice = f"the last good checkpoint is {good}" if good else "no earlier checkpoint is good"
        raise CheckpointError(f"{str(error).rstrip('.')}; {advice}.") from error
    return newest_first[0]


def best_checkpoint(run_folder: Path) -> Path | None:
    """The checkpoint last marked best, that of the latest stage, or None where none was.

    Raises:
        CheckpointError: the mark is damaged, or names a checkpoint that is gone.
    """
    marks = _best_marks(run_folder)
    if not marks:
        return None
    folder = _checkpoints(run_folder) / list(marks.values())[-1]["checkpoint"]
    if not folder.is_dir():
        best = _checkpoints(run_folder) / BEST_FILE
        raise CheckpointError(f"{best} names the checkpoint {folder.name}, which does not exist.")
    return folder


def restore_optimiser(optimiser: Optimizer, checkpoint: Checkpoint) -> None:
    """Give `optimiser` the state and settings saved in `checkpoint`, bit for bit.

    Raises:
        CheckpointError: the optimiser has other parameters, or of other shapes, than the checkpoint, or this was saved
            without its optimiser.
    """
    if not (checkpoint.folder / _OPTIMISER).exists():
        raise CheckpointError(
            f"{checkpoint.folder} has no {_OPTIMISER}: expected a checkpoint of a training. A copy, or a mean of "
            "weights, can be begun with, by start_from, and not be resumed."
        )
    current = optimiser.state_dict()["param_groups"]
    saved_names = [group["param_names"] for group in checkpoint.optimiser_groups]
    names = [group["param_names"] for group in current]
    if saved_names != names:
        difference = sorted({name for group in saved_names for name in group} ^ {n for group in names for n in group})
        raise CheckpointError(
            f"{checkpoint.folder} has the optimiser of other parameters: expected those of this network, "
            f"got a difference in {', '.join(difference) or 'their order'}."
        )
    parameters = dict(zip(_flat(names), _flat([group["params"] for group in optimiser.param_groups]), strict=True))
    index_of = dict(zip(_flat(names), _flat([group["params"] for group in current]), strict=True))
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(checkpoint.folder / _OPTIMISER).items():
        name, _, quantity = key.rpartition(".")
        if tensor.ndim and tensor.shape != parameters[name].shape:
            raise CheckpointError(
                f"{checkpoint.folder} has {key} of shape {tuple(tensor.shape)}, "
                f"expected {tuple(parameters[name].shape)}."
            )
        state.setdefault(index_of[name], {})[quantity] = tensor
    groups = []
    for saved, group in zip(checkpoint.optimiser_groups, current, strict=True):
        if (kind := _optimiser_kind(saved)) != (expected := _optimiser_kind(group)):
            raise CheckpointError(
                f"{checkpoint.folder} has the state of an optimiser of the kind {kind}, expected {expected}, which "
                "optimiser.kind asks for."
            )
        # JSON has no tuples.
        tuples = {key: tuple(saved[key]) for key, value in group.items() if isinstance(value, tuple)}
        groups.append({**saved, **tuples, "params": group["params"]})
    optimiser.load_state_dict({"state": state, "param_groups": groups})


def require_same_run(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Make sure that `checkpoint` belongs to the run described by `identity`.

    Raises:
        CheckpointError: it does not; the message names each entry that differs.
    """
    saved = dict(_leaves(checkpoint.identity))
    expected = dict(_leaves(identity))
    differences = [
        f"{name} is {saved.get(name, 'absent')}, expected {expected.get(name, 'absent')}"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name, "absent") != expected.get(name, "absent")
    ]
    if differences:
        raise CheckpointError(f"{checkpoint.folder} belongs to another run: {'; '.join(differences)}.")


# Details --------------------------------------------------------------------------------------------------------------


def _checkpoints(run_folder: Path) -> Path:
    return run_folder / CHECKPOINTS_FOLDER


def _best_marks(run_folder: Path) -> dict[str, dict[str, Any]]:
    """Stage → its best checkpoint's name and validation loss, in the order of the stages."""
    path = _checkpoints(run_folder) / BEST_FILE
    if not path.exists():
        return {}
    marks = _read_json(path)
    if not all(isinstance(mark, dict) and isinstance(mark.get("checkpoint"), str) for mark in marks.values()):
        raise CheckpointError(f"{path} is damaged: expected the name of a checkpoint for each stage.")
    return marks


def _folders_by_step(run_folder: Path) -> dict[int, Path]:
    folders = _checkpoints(run_folder).iterdir() if _checkpoints(run_folder).is_dir() else ()
    return {int(match[1]): folder for folder in folders if (match := _FOLDER_NAME.fullmatch(folder.name))}


def _flatten(optimiser: Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The optimiser's tensors as `parameter.quantity`, and its groups without them."""
    saved = optimiser.state_dict()
    tensors = {
        f"{name}.{quantity}": tensor.contiguous()
        for group in saved["param_groups"]
        for name, index in zip(group["param_names"], group["params"], strict=True)
        for quantity, tensor in saved["state"].get(index, {}).items()
    }
    groups = [{key: value for key, value in group.items() if key != "params"} for group in saved["param_groups"]]
    return tensors, groups


def _optimiser_kind(group: Mapping[str, Any]) -> str:
    """Kind of optimiser that moves a group of parameters, by the settings that it has."""
    return "muon" if "momentum" in group else "adamw"


def _flat(groups: list[list[Any]]) -> list[Any]:
    return [item for group in groups for item in group]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values as JSON, in which a tuple equals the list it was saved as."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value)


def _file_names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _write_manifest(folder: Path) -> None:
    names = (name for name in _file_names(folder) if name != _MANIFEST)
    write_json(folder / _MANIFEST, {name: _digest(folder / name) for name in names})


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"{path.stat().st_size} bytes with SHA-256 {hashlib.file_digest(file, 'sha256').hexdigest()}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged: got a {type(value).__name__}, expected a JSON object.")
    return value


def _verify(folder: Path) -> None:
    """Compare each file with the manifest, which also covers `state.json`."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no checkpoint: expected a folder.")
    for name, expected in _read_json(folder / _MANIFEST).items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing.")
        with storage_errors("read", path):
            got = _digest(path)
        if got != expected:
            raise CheckpointError(f"{path} is damaged: got {got}, expected {expected}.")


def _state(folder: Path) -> dict[str, Any]:
    """Contents of `state.json` of a checkpoint whose files were verified."""
    _verify(folder)
    state = _read_json(folder / "state.json")
    if state["format"] != _FORMAT:
        raise CheckpointError(f"{folder} has checkpoint format {state['format']}, expected {_FORMAT}.")
    return state


def _is_good(folder: Path) -> bool:
    try:
        _verify(folder)
    except CheckpointError:
        return False
    return True
