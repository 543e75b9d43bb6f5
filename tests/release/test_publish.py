"""Publishing: a whole folder goes to the Hub in one commit, and nothing else goes anywhere."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from gistnet.errors import CheckpointError, ConfigError, DataError, GistNetError, StorageError
from gistnet.release.publish import ClientError, plan_upload, upload
from tests.conftest import Command


class FakeHub:
    """Records what it is asked for; raises an error instead, where it has one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **how: Any) -> str:
        if self.error is not None:
            raise self.error
        self.asked.append(("create_repo", {"repo_id": repo_id, **how}))
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, **how: Any) -> None:
        self.asked.append(("upload_folder", how))


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gistnet.release.publish.get_token", lambda: "secret")


def test_the_folder_goes_up_in_one_commit(release: Path, token: None) -> None:
    hub = FakeHub()
    plan = plan_upload(release, "me/tiny", private=True)
    assert upload(plan, lambda: hub) == "https://hub.example/me/tiny"
    (created, repository), (uploaded, folder) = hub.asked
    assert (created, uploaded) == ("create_repo", "upload_folder")
    assert repository == {"repo_id": "me/tiny", "private": True, "repo_type": "model", "exist_ok": True}
    assert folder["repo_id"] == "me/tiny"
    assert folder["folder_path"] == release
    assert sorted(folder["allow_patterns"]) == sorted(
        str(path.relative_to(release)) for path in release.rglob("*") if path.is_file()
    )
    assert {"below/model.safetensors", "held-out/tokens.bin", "README.md"} <= plan.files.keys()
    assert plan.files["model.safetensors"] == (release / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            OfflineModeIsEnabled("offline mode"),
            StorageError,
            "Could not reach the Hugging Face Hub .offline mode.; exp",
        ),
        (ClientError("nobody\nanswers"), StorageError, "Could not reach the Hugging Face Hub .nobody.; expected"),
        (
            HfHubHTTPError("403 Forbidden.", response=SimpleNamespace(headers={}, request=None)),
            ConfigError,
            r"The Hub refused me/tiny \(403 Forbidden\); expected a repository that the token may write",
        ),
    ],
)
def test_a_hub_that_does_not_take_it_is_named(
    release: Path, token: None, error: Exception, kind: type[GistNetError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        upload(plan_upload(release, "me/tiny"), lambda: FakeHub(error))


def test_without_a_token_nothing_is_asked_of_the_hub(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gistnet.release.publish.get_token", lambda: None)
    hub = FakeHub()
    with pytest.raises(ConfigError, match="no token for the Hugging Face Hub; expected one"):
        upload(plan_upload(release, "me/tiny"), lambda: hub)
    assert hub.asked == []


def without(name: str, folder: Path) -> None:
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(name: str, folder: Path) -> None:
    os.truncate(folder / name, (folder / name).stat().st_size - 2)  # the last byte may be the end of a line


@pytest.mark.parametrize(
    ("damage", "name", "kind", "words"),
    [
        (without, "held-out", CheckpointError, "is no release"),
        (without, "README.md", CheckpointError, "not complete: README.md is missing"),
        (without, "results.json", CheckpointError, "not complete: results.json is missing"),
        (without, "config.json", CheckpointError, "expected a file config.json"),
        (without, "below", CheckpointError, "below is not a saved GistNet"),
        (cut, "model.safetensors", CheckpointError, "model.safetensors is damaged"),
        (cut, "below/model.safetensors", CheckpointError, "model.safetensors is damaged"),
        (cut, "results.json", DataError, "results.json does not hold records"),
        (cut, "config.yaml", ConfigError, "config.yaml"),
        (cut, "release.json", DataError, "release.json is damaged"),
        (cut, "held-out/tokens.bin", DataError, "tokens.bin is damaged"),
    ],
)
def test_a_release_that_is_not_whole_is_refused(
    release: Path, tmp_path: Path, damage: Any, name: str, kind: type[GistNetError], words: str
) -> None:
    folder = shutil.copytree(release, tmp_path / "tiny-32")
    damage(name, folder)
    with pytest.raises(kind, match=words):
        plan_upload(folder, "me/tiny")


@pytest.mark.parametrize("repository", ["tiny", "me/tiny/more", "me/..", "/tiny"])
def test_a_repository_must_have_an_owner_and_a_name(release: Path, repository: str) -> None:
    with pytest.raises(ConfigError, match="expected USER/NAME"):
        plan_upload(release, repository)


def test_a_dry_run_lists_the_files_and_touches_no_network(
    gistnet: Command, release: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path
) -> None:
    def refuse(*arguments: Any, **more: Any) -> None:
        raise AssertionError("asked for the network")

    monkeypatch.setattr("gistnet.release.publish.HfApi", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    outcome = gistnet("publish", release, "--to", "me/tiny", "--dry-run")
    assert outcome.status == 0, outcome.err
    count = sum(path.is_file() for path in release.rglob("*"))
    size = f"{(release / 'model.safetensors').stat().st_size:,}"
    assert any("model.safetensors" in line and size in line for line in outcome.out.splitlines())
    assert f"Would make the public repository me/tiny where there is none, and upload {count} files" in outcome.out
    refused = gistnet("publish", finished_run, "--to", "me/tiny", "--dry-run")
    assert refused.status == 1
    assert refused.err.startswith(f"gistnet: {finished_run} is no release: expected a folder as")
