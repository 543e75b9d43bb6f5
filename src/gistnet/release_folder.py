"""Files of a release folder, by name, and finding one: on disk, in the package, or on the Hugging Face Hub.

    RELEASE/model.safetensors, config.json, below/   a saved GistNet, see `model.saved_gistnet`
    RELEASE/config.yaml     the resolved configuration of its run, in which no path says anything of a machine
    RELEASE/held-out/       the documents it is evaluated on, a prepared corpus: see `data.dataset`
    RELEASE/metrics.jsonl, results.json, spans.json     as in a run folder, see `run_folder`
    RELEASE/release.json    what only its maker knows: see `release.contents`
    RELEASE/data.md, limits.md      what its maker says of the documents and of the limits, where there is something
    RELEASE/README.md       the model card, made from the files above

Nothing here imports torch.
"""

import json
import logging
from pathlib import Path

from gistnet.errors import CheckpointError, ConfigError
from gistnet.paths import local_path
from gistnet.run_folder import CONFIG_FILE, METRICS_FILE, RESULTS_FILE, SPAN_MAP_FILE

logger = logging.getLogger(__name__)

RELEASES = Path(__file__).parent / "released"
"""Folder of the releases that come with the package."""

GISTNET_CONFIG_FILE = "config.json"
"""File of a saved GistNet; `model.saved_gistnet`, which has it too, imports torch."""
HELD_OUT_FOLDER = "held-out"
PROVENANCE_FILE = "release.json"
DATA_NOTES_FILE = "data.md"
LIMITS_FILE = "limits.md"
CARD_FILE = "README.md"

ALWAYS_THERE = (
    CONFIG_FILE,
    HELD_OUT_FOLDER,
    METRICS_FILE,
    RESULTS_FILE,
    SPAN_MAP_FILE,
    PROVENANCE_FILE,
    CARD_FILE,
)
"""Files of every release beside its saved GistNet."""


def is_release(folder: Path) -> bool:
    """True if a folder is a release: it brings the documents that it is evaluated on."""
    return (folder / HELD_OUT_FOLDER).is_dir()


def included_releases() -> dict[str, Path]:
    """The releases that come with the package, by name."""
    return releases_in(RELEASES)


def releases_in(home: Path) -> dict[str, Path]:
    """The releases in a folder, by name; one that is being made, whose name begins with a dot, is not among them."""
    return {folder.name: folder for folder in sorted(home.glob("[!.]*")) if is_release(folder)}


def find_folder(path: Path | str, *, revision: str | None = None) -> Path:
    """The folder itself where it exists; or the release of that name; or the copy of a repository of the Hub.

    A repository USER/NAME is downloaded to the client's cache, with the token of the environment where there is one.
    Without a network, or with HF_HUB_OFFLINE=1, what the cache has is used. Other paths, and those in a folder that is
    here, are returned as they are.

    Args:
        path: of a folder, a release's name, or USER/NAME.
        revision: branch, tag or commit of the repository; None is its main branch.

    Raises:
        CheckpointError: it is none of them; or the repository cannot be reached, or holds no GistNet.
        ConfigError: it is empty, or names a user without a home folder; or a revision of what is not on the Hub.
    """
    path = local_path(path)
    # Where USER is a folder here, as in runs/demo, somebody mistyped NAME.
    on_the_hub = not path.parent.is_dir() and _is_repository(path)
    if revision is not None and not on_the_hub:
        raise ConfigError(f"Got the revision '{revision}' of '{path}', expected one of a repository USER/NAME only.")
    if on_the_hub:
        return _from_hub(path.as_posix(), revision)
    if len(path.parts) != 1 or path.name == ".." or path.exists():
        return path
    included = included_releases()
    if path.name in included:
        return included[path.name]
    named = f"or one of the releases {', '.join(included)}" if included else "for this package comes without releases"
    raise CheckpointError(f"There is no folder '{path}' and no release of that name; expected a folder, {named}.")


def _is_repository(path: Path) -> bool:
    """True for USER/NAME, as the Hub allows them."""
    if len(path.parts) != 2 or path.is_absolute() or ".." in path.parts:
        return False
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(path.as_posix())
    except HFValidationError:
        return False
    return True


def _from_hub(repository: str, revision: str | None) -> Path:
    """The folder of the client's cache with a repository that holds a GistNet.

    Raises:
        CheckpointError: as `find_folder`.
    """
    from huggingface_hub import errors, hf_hub_download, snapshot_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # it tells of every attempt
    where = repository if revision is None else f"{repository} at revision '{revision}'"
    logger.info("Looking for %s on the Hugging Face Hub.", where)
    try:
        # The configuration first: the files of what is no GistNet may be large.
        config = Path(hf_hub_download(repository, GISTNET_CONFIG_FILE, revision=revision))
        if "gistnet_version" not in json.loads(config.read_bytes()):
            raise CheckpointError(f"The repository {where} holds a model that is no GistNet, expected a saved GistNet.")
        return Path(snapshot_download(repository, revision=revision))
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no folder '{repository}', and no repository of that name on the Hugging Face Hub that is public "
            "or open to the token."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"The repository {repository} has no revision '{revision}'.") from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"There is no folder '{repository}', and the Hugging Face Hub cannot be asked for {where}, which is not in "
            "the cache; expected a network (or, with HF_HUB_OFFLINE=1, an earlier download)."
        ) from error
    except (errors.EntryNotFoundError, ValueError) as error:  # the latter: no JSON
        raise CheckpointError(
            f"The repository {where} holds no GistNet, expected one, as `gistnet publish` uploads it."
        ) from error
    except OSError as error:  # the client's errors of the HTTP library, and of the disk
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise CheckpointError(f"Could not download {where} from the Hugging Face Hub ({reason}).") from error
