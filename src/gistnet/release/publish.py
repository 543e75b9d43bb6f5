"""Uploading a release folder to the Hugging Face Hub, once it is certain that it is whole."""

from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from gistnet.errors import ConfigError, StorageError
from gistnet.release.contents import check_release
from gistnet.release_folder import find_folder


class UploadPlan(NamedTuple):
    """Files to upload, and where to."""

    folder: Path
    repository: str
    private: bool
    files: dict[str, int]
    """The size in bytes of each file, by its name relative to the folder."""

    @property
    def megabytes(self) -> float:
        """Size of all files together."""
        return sum(self.files.values()) / 1e6


def plan_upload(folder: Path, repository: str, *, private: bool = False) -> UploadPlan:
    """Check that a release folder is complete and undamaged, and list its files; nothing is sent.

    Args:
        folder: where it is, or the name of a release that comes with the package.
        repository: USER/NAME on the Hub.

    Raises:
        ConfigError: the repository has no such name, or the configuration of the run is damaged.
        CheckpointError, DataError: as `check_release`.
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


def upload(plan: UploadPlan) -> str:
    """Make the repository where there is none, upload the files in one commit, and return its address.

    Raises:
        ConfigError: there is no token.
        StorageError: the Hub cannot be reached, or does not let the token's owner write there.
    """
    if get_token() is None:
        raise ConfigError("There is no token for the Hugging Face Hub; expected one, from `hf auth login` or HF_TOKEN.")
    client = HfApi()
    try:
        address = client.create_repo(plan.repository, private=plan.private, repo_type="model", exist_ok=True)
        client.upload_folder(
            repo_id=plan.repository,
            folder_path=plan.folder,
            repo_type="model",
            allow_patterns=list(plan.files),
            commit_message=f"Release {plan.folder.resolve().name}",
        )
    except Exception as error:  # the client's own, and those of its HTTP library, which another version may replace
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise StorageError(
            f"The Hugging Face Hub did not take {plan.repository} ({reason}); expected a network, and a repository "
            "that the token may write."
        ) from error
    return str(address)
