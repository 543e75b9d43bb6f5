"""Uploading a release folder to the Hugging Face Hub, once it is certain that it is whole."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from gistnet.config import load_config
from gistnet.data.dataset import PreparedDataset
from gistnet.errors import CheckpointError, ConfigError, StorageError
from gistnet.model.saved_gistnet import BELOW, SavedGistNet, read_saved
from gistnet.release.provenance import read_provenance
from gistnet.release.results import read_released
from gistnet.release_folder import ALWAYS_THERE, HELD_OUT_FOLDER, find_folder, is_release
from gistnet.run_folder import CONFIG_FILE

ClientError: type[BaseException] = HfHubHTTPError.__mro__[1]
"""What the Hub's client raises beside OSError when nobody answers: the base of its HTTP library's errors."""


@dataclass(frozen=True)
class UploadPlan:
    """What would be uploaded, and where to."""

    folder: Path
    repository: str
    private: bool
    files: dict[str, int]
    """The size in bytes of each file, by its name relative to the folder."""

    @property
    def megabytes(self) -> float:
        """Of all files together."""
        return sum(self.files.values()) / 1e6

    @property
    def visibility(self) -> str:
        """Who sees the repository."""
        return "private" if self.private else "public"


def plan_upload(folder: Path, repository: str, *, private: bool = False) -> UploadPlan:
    """Check that a release folder is complete and undamaged, and list its files; nothing is sent.

    Args:
        folder: where it is, or the name of a release that comes with the package.
        repository: USER/NAME on the Hub.

    Raises:
        ConfigError: the repository has no such name, or the configuration of the run is damaged.
        CheckpointError: the folder is no release, or its weights are not those that its configuration describes.
        DataError: another file is damaged.
    """
    folder = find_folder(folder)
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"Got the repository '{repository}', expected USER/NAME ({error}).") from error
    if repository.count("/") != 1:
        raise ConfigError(f"Got the repository '{repository}', expected USER/NAME.")
    check_release(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    return UploadPlan(folder, repository, private, files)


def check_release(folder: Path) -> SavedGistNet:
    """Read all that a release must have, and return what it says of its network.

    Raises:
        CheckpointError: the folder is no release, lacks a file, or its weights are not those that its configuration
            describes.
        ConfigError: the configuration of its run is damaged.
        DataError: figures, documents or what it says of itself are damaged.
    """
    if not is_release(folder):
        raise CheckpointError(f"{folder} is no release: expected a folder as `gistnet release` makes it.")
    if missing := [name for name in ALWAYS_THERE if not (folder / name).exists()]:
        raise CheckpointError(f"The release {folder} is not complete: {', '.join(missing)} is missing.")
    level = folder
    highest, _ = read_saved(level)
    for _ in range(highest.level):
        level = level / BELOW
        read_saved(level)
    load_config(folder / CONFIG_FILE)
    read_released(folder)
    read_provenance(folder)
    PreparedDataset.open(folder / HELD_OUT_FOLDER)
    return highest


def upload(plan: UploadPlan, make_client: Callable[[], Any] = HfApi) -> str:
    """Make the repository where there is none, upload the files in one commit, and return its address.

    Args:
        make_client: makes what talks to the Hub.

    Raises:
        ConfigError: there is no token, or the Hub does not let its owner write there.
        StorageError: the Hub cannot be reached.
    """
    if get_token() is None:
        raise ConfigError("There is no token for the Hugging Face Hub; expected one, from `hf auth login` or HF_TOKEN.")
    try:
        client = make_client()
        address = client.create_repo(plan.repository, private=plan.private, repo_type="model", exist_ok=True)
        client.upload_folder(
            repo_id=plan.repository,
            folder_path=plan.folder,
            repo_type="model",
            allow_patterns=list(plan.files),
            commit_message=f"Release {plan.folder.resolve().name}",
        )
    except HfHubHTTPError as error:
        raise ConfigError(
            f"The Hub refused {plan.repository} ({_reason(error)}); expected a repository that the token may write."
        ) from error
    except (OSError, ClientError) as error:
        raise StorageError(f"Could not reach the Hugging Face Hub ({_reason(error)}); expected a network.") from error
    return str(address)


def _reason(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
