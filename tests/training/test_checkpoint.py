"""Checkpoints resume bit for bit, notice any damage, and survive a full disk and `kill -9`."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer

from gistnet.errors import CheckpointError, StorageError
from gistnet.training import checkpoint as checkpoint_module
from gistnet.training.checkpoint import (
    best_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    mark_best,
    prune_checkpoints,
    require_same_run,
    restore_optimiser,
    save_checkpoint,
)
from gistnet.training.config import OptimiserConfig
from gistnet.training.optimiser import build_optimiser

IDENTITY = {"teacher": {"sha256": "ab12", "layers": 30}, "gistnet": {"dim": 3, "betas": [0.9, 0.95]}, "data": "d1"}


class Network(nn.Module):
    """A small stand-in with matrices, vectors and a scalar, saved as the real network is."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.second = nn.Linear(width, 3)
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.gain * self.second(torch.tanh(self.first(inputs)))

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        save_file(self.state_dict(), folder / "model.safetensors")


Kind = Literal["adamw", "muon"]


def make(width: int = 5, kind: Kind = "adamw") -> tuple[Network, Optimizer]:
    network = Network(width)
    return network, build_optimiser(network.named_parameters(), OptimiserConfig(kind=kind, learning_rate=0.01))


def train(network: Network, optimiser: Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimiser.param_groups[0]["lr"] = 0.01 / (step + 1)
        optimiser.zero_grad()
        (network(inputs) - inputs.flip(-1)).square().mean().backward()
        optimiser.step()


def save(run: Path, step: int = 7, **changes: Any) -> Path:
    network, optimiser = make()
    train(network, optimiser, range(2))
    arguments = {"gistnet": network, "optimiser": optimiser, "train_state": {}, "identity": IDENTITY, **changes}
    return save_checkpoint(run, step=step, **arguments)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_training_goes_on_bit_for_bit_after_a_round_trip(tmp_path: Path, kind: Kind) -> None:
    torch.manual_seed(0)
    network, optimiser = make(kind=kind)
    train(network, optimiser, range(5))
    folder = save(tmp_path, 5, gistnet=network, optimiser=optimiser)
    train(network, optimiser, range(5, 12))

    resumed, resumed_optimiser = make(kind=kind)
    checkpoint = load_checkpoint(folder)
    resumed.load_state_dict(load_file(checkpoint.gistnet_folder / "model.safetensors"))
    restore_optimiser(resumed_optimiser, checkpoint)
    train(resumed, resumed_optimiser, range(5, 12))

    for name, parameter in network.state_dict().items():
        assert torch.equal(parameter, resumed.state_dict()[name]), name


def test_the_whole_optimiser_state_comes_back(tmp_path: Path) -> None:
    network, optimiser = make()
    train(network, optimiser, range(3))
    restored = make()[1]
    restore_optimiser(restored, load_checkpoint(save(tmp_path, gistnet=network, optimiser=optimiser)))
    before, after = optimiser.state_dict(), restored.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert len(after["state"]) == 5
    for index, quantities in before["state"].items():
        assert after["state"][index].keys() == quantities.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(after["state"][index][name], tensor) for name, tensor in quantities.items())
    restore_optimiser(restored, load_checkpoint(save(tmp_path, 8, optimiser=make()[1])))  # before its first step
    assert restored.state_dict()["state"] == {}


def test_step_state_and_identity_come_back_and_a_second_of_the_same_step_is_not_saved(tmp_path: Path) -> None:
    train_state = {"spans": 12_345_678_901, "best": None, "averages": {"kl": 0.1 + 0.2}, "stage": "narrative"}
    folder = save(tmp_path, 1000, train_state=train_state)
    assert save(tmp_path, 1000, train_state={"attempt": 2}) == folder
    checkpoint = load_checkpoint(folder)
    assert (checkpoint.folder.name, checkpoint.step) == ("step-00001000", 1000)
    assert checkpoint.train_state == train_state
    assert checkpoint.identity == IDENTITY


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    save(tmp_path, 7)
    names = {str(path.relative_to(tmp_path / "checkpoints")) for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {
        "step-00000007/gistnet/model.safetensors",
        "step-00000007/optimiser.safetensors",
        "step-00000007/state.json",
        "step-00000007/manifest.json",
    }


FILES = ["gistnet/model.safetensors", "optimiser.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-5])
    with pytest.raises(CheckpointError, match=name) as caught:
        load_checkpoint(folder)
    if name != "manifest.json":
        assert f"got {len(content) - 5} bytes" in str(caught.value)
        assert f"expected {len(content)} bytes" in str(caught.value)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path, name: str) -> None:
    """Every 37th byte in turn; in the manifest, white space may change without harm."""
    folder = save(tmp_path)
    content = (folder / name).read_bytes()
    for position in range(0, len(content), 37):
        if name == "manifest.json" and chr(content[position]).isspace():
            continue
        damaged = bytearray(content)
        damaged[position] ^= 1
        (folder / name).write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_checkpoint(folder)
    (folder / name).write_bytes(content)
    assert load_checkpoint(folder).step == 7


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="step-00000009"):
        load_checkpoint(tmp_path / "step-00000009")


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as future:
        future.setattr(checkpoint_module, "_FORMAT", 9)
        folder = save(tmp_path)
    with pytest.raises(CheckpointError, match="format 9, expected 4"):
        load_checkpoint(folder)


def test_the_latest_checkpoint_is_the_one_of_most_steps(tmp_path: Path) -> None:
    """By number, not by name or age: nine digits sort before eight as text."""
    assert latest_checkpoint(tmp_path) is None
    save(tmp_path, 123_456_789)
    save(tmp_path, 99_999_999)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-123456789"


def test_a_damaged_latest_checkpoint_names_itself_and_the_last_good_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for step in (2, 3):
        (save(tmp_path, step) / "optimiser.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-00000003/optimiser.*last good checkpoint is .*step-00000001\."):
        latest_checkpoint(tmp_path)


def test_a_damaged_only_checkpoint_says_there_is_no_other(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json is missing; no earlier checkpoint is good\."):
        latest_checkpoint(tmp_path)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Make the system refuse writing beyond `size` bytes into a file, as it does on a full disk."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("what", ["gistnet", "optimiser", "state"])
def test_a_refused_write_is_one_sentence_and_loses_nothing_earlier(tmp_path: Path, what: str) -> None:
    """The weights, the optimiser or the state, each in turn, is the file that does not fit."""
    save(tmp_path, 1)
    network, optimiser = make(5000 if what == "gistnet" else 5)
    if what == "optimiser":
        large = make(5000)
        train(*large, range(1))
        optimiser = large[1]
    train_state = {"history": list(range(5000))} if what == "state" else {}
    with largest_file(20_000), pytest.raises(StorageError, match=r"^Could not write .*File too large.*\.$"):
        save(tmp_path, 2, gistnet=network, optimiser=optimiser, train_state=train_state)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000001"
    save(tmp_path, 2)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-00000002"


def test_a_full_disk_reported_by_safetensors_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(tensors: object, path: Path) -> None:
        path.write_bytes(b"half of i")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint_module, "save_file", refuse)
    with pytest.raises(StorageError, match=r"Could not write .*step-00000002: .*No space left on device"):
        save(tmp_path, 2)
    assert list((tmp_path / "checkpoints").iterdir()) == []


SAVE_FOREVER = """
import itertools
import sys
from pathlib import Path
import torch
from gistnet.training.checkpoint import mark_best, prune_checkpoints, save_checkpoint
from tests.training.test_checkpoint import IDENTITY, make

run = Path(sys.argv[1])
network, optimiser = make(20_000)
for step in itertools.count(1):
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, step)
    save_checkpoint(
        run, step=step, gistnet=network, optimiser=optimiser, train_state={"step": step}, identity=IDENTITY
    )
    mark_best(run, "narrative", step, 1 / step)
    prune_checkpoints(run, 2)
    print(step, flush=True)
"""


@pytest.mark.parametrize("delay_ms", [0, 11])
def test_a_killed_writer_leaves_a_run_that_resumes(tmp_path: Path, delay_ms: int) -> None:
    """Whatever the moment of `kill -9`, what was acknowledged is there and whole, and later saving sweeps the rest."""
    writer = subprocess.Popen(
        [sys.executable, "-c", SAVE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(4)]
    time.sleep(delay_ms / 1000)
    writer.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in writer.communicate()[0].splitlines()]

    latest = latest_checkpoint(tmp_path)
    assert latest is not None
    checkpoint = load_checkpoint(latest)
    assert checkpoint.step >= acknowledged[-1]
    assert checkpoint.train_state == {"step": checkpoint.step}
    weights = load_file(checkpoint.gistnet_folder / "model.safetensors")
    assert all(torch.equal(weight, torch.full_like(weight, checkpoint.step)) for weight in weights.values())

    newest, best = save(tmp_path, checkpoint.step + 1), best_checkpoint(tmp_path)
    assert best is not None
    prune_checkpoints(tmp_path, 1)
    assert {path.name for path in newest.parent.iterdir()} == {newest.name, best.name, "best.json"}


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10, 11):
        save(tmp_path, step)
    best = tmp_path / "checkpoints" / "step-00000002"
    mark_best(tmp_path, "narrative", 2, 0.25)
    prune_checkpoints(tmp_path, 2)
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert left == ["best.json", "step-00000002", "step-00000010", "step-00000011"]
    assert best_checkpoint(tmp_path) == best
    assert load_checkpoint(best).step == 2


def test_pruning_finishes_what_was_cut_short(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    save(tmp_path, 3).rename(folder.with_name(".deleted-step-00000003"))
    assert latest_checkpoint(tmp_path) == folder
    (folder.parent / ".step-00000002.partial-00000000").mkdir()
    (folder.parent / ".best.json.partial-00000001").mkdir()
    prune_checkpoints(tmp_path, 2)
    assert list(folder.parent.iterdir()) == [folder]


def test_the_best_mark_is_absent_then_moves_and_must_name_what_exists(tmp_path: Path) -> None:
    assert best_checkpoint(tmp_path) is None
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    mark_best(tmp_path, "narrative", 1, 0.5)
    assert best_checkpoint(tmp_path) == first
    mark_best(tmp_path, "narrative", 2, 0.25)
    assert best_checkpoint(tmp_path) == second
    assert json.loads((tmp_path / "checkpoints" / "best.json").read_text()) == {
        "narrative": {"checkpoint": "step-00000002", "value": 0.25}
    }
    shutil.rmtree(second)
    with pytest.raises(CheckpointError, match=r"best\.json names the checkpoint step-00000002"):
        best_checkpoint(tmp_path)


def test_each_stage_keeps_its_best_and_the_latest_stage_gives_the_run_s(tmp_path: Path) -> None:
    folders = [save(tmp_path, step) for step in (1, 2, 3, 4, 5)]
    mark_best(tmp_path, "narrative", 1, 0.5)
    mark_best(tmp_path, "code", 3, 0.9)
    mark_best(tmp_path, "narrative", 2, 0.4)
    prune_checkpoints(tmp_path, 1)
    assert [folder.is_dir() for folder in folders] == [False, True, True, False, True]
    assert best_checkpoint(tmp_path) == folders[2]


def test_a_damaged_best_mark_is_named(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / "best.json").write_text('{"narrative": 3}')
    with pytest.raises(CheckpointError, match=r"best\.json is damaged"):
        best_checkpoint(tmp_path)


def test_the_same_run_is_recognised_and_another_refused_by_what_differs(tmp_path: Path) -> None:
    """Tuples are saved as lists."""
    checkpoint = load_checkpoint(save(tmp_path))
    require_same_run(checkpoint, {**IDENTITY, "gistnet": {"dim": 3, "betas": (0.9, 0.95)}})
    other = {"teacher": {"sha256": "cd34", "layers": 30}, "gistnet": {"dim": 3, "betas": [0.9, 0.95]}, "seed": 1}
    with pytest.raises(CheckpointError) as caught:
        require_same_run(checkpoint, other)
    assert str(caught.value).endswith(
        'data is "d1", expected absent; seed is absent, expected 1; teacher.sha256 is "ab12", expected "cd34".'
    )


def test_an_optimiser_of_other_parameters_or_shapes_is_refused(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save(tmp_path))
    other = build_optimiser([("other", nn.Parameter(torch.ones(2, 2)))], OptimiserConfig())
    with pytest.raises(CheckpointError, match=r"difference in first\.bias, .*other"):
        restore_optimiser(other, checkpoint)
    wider = make(width=6)[1]
    with pytest.raises(CheckpointError, match=r"of shape \(5.*expected \(6"):
        restore_optimiser(wider, checkpoint)
    assert wider.state_dict()["state"] == {}


@pytest.mark.parametrize(("saved", "present"), [("adamw", "muon"), ("muon", "adamw")])
def test_another_kind_of_optimiser_is_refused(tmp_path: Path, saved: Kind, present: Kind) -> None:
    network, optimiser = make(kind=saved)
    train(network, optimiser, range(2))
    checkpoint = load_checkpoint(save(tmp_path, gistnet=network, optimiser=optimiser))
    with pytest.raises(CheckpointError, match=f"of the kind {saved}, expected {present}, which optimiser.kind"):
        restore_optimiser(make(kind=present)[1], checkpoint)
