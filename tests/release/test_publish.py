"""Publishing: a whole folder goes to the Hub in one commit, and nothing else goes anywhere."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from gistnet.errors import CheckpointError, ConfigError, DataError, GistNetError, StorageError
from gistnet.release.publish import plan_upload, upload
from tests.conftest import Command


class FakeHub:
    """Records what it is asked for; raises an error instead, where it has one."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: dict[str, dict[str, Any]] = {}

    def create_repo(self, repo_id: str, **how: Any) -> str:
        if self.error is not None:
            raise self.error
        self.asked["create_repo"] = {"repo_id": repo_id, **how}
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, **how: Any) -> None:
        self.asked["upload_folder"] = how


def use(monkeypatch: pytest.MonkeyPatch, hub: FakeHub, token: str | None = "secret") -> None:
    monkeypatch.setattr("gistnet.release.publish.get_token", lambda: token)
    monkeypatch.setattr("gistnet.release.publish.HfApi", lambda: hub)


def test_the_folder_goes_up_in_one_commit(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, hub := FakeHub())
    plan = plan_upload(release, "me/tiny", private=True)
    assert upload(plan) == "https://hub.example/me/tiny"
    repository, folder = hub.asked["create_repo"], hub.asked["upload_folder"]
    assert repository == {"repo_id": "me/tiny", "private": True, "repo_type": "model", "exist_ok": True}
    assert (folder["repo_id"], folder["folder_path"]) == ("me/tiny", release)
    assert sorted(folder["allow_patterns"]) == sorted(
        str(path.relative_to(release)) for path in release.rglob("*") if path.is_file()
    )
    assert {"below/model.safetensors", "held-out/tokens.bin", "README.md"} <= plan.files.keys()
    assert plan.files["model.safetensors"] == (release / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    "error",
    [
        OfflineModeIsEnabled("offline mode"),
        HfHubHTTPError.__mro__[1]("offline mode\nof the HTTP library"),  # type: ignore[call-arg]
        HfHubHTTPError("offline mode.", response=SimpleNamespace(headers={}, request=None)),  # type: ignore[arg-type]
    ],
)
def test_a_hub_that_does_not_take_it_is_one_sentence(
    release: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, FakeHub(error))
    with pytest.raises(StorageError, match=r"me/tiny \(offline mode\)"):
        upload(plan_upload(release, "me/tiny"))


def test_without_a_token_nothing_is_asked_of_the_hub(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, hub := FakeHub(), token=None)
    with pytest.raises(ConfigError, match="token"):
        upload(plan_upload(release, "me/tiny"))
    assert hub.asked == {}


def without(name: str, folder: Path) -> None:
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(name: str, folder: Path) -> None:
    os.truncate(folder / name, (folder / name).stat().st_size - 2)  # the last byte may be the end of a line


@pytest.mark.parametrize(
    ("damage", "name", "kind", "words"),
    [
        (without, "held-out", CheckpointError, "no release"),
        (without, "README.md", CheckpointError, "README.md"),
        (without, "results.json", CheckpointError, "results.json"),
        (without, "config.json", CheckpointError, "config.json"),
        (without, "below", CheckpointError, "below"),
        (cut, "model.safetensors", CheckpointError, "model.safetensors is damaged"),
        (cut, "below/model.safetensors", CheckpointError, "model.safetensors is damaged"),
        (cut, "results.json", DataError, "results.json"),
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
    assert "no release" in refused.err
