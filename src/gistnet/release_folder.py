"""Files of a release folder, by name, and the releases that come with the package.

    RELEASE/model.safetensors, config.json, below/   a saved GistNet, see `model.saved_gistnet`
    RELEASE/config.yaml     the resolved configuration of its run, in which no path says anything of a machine
    RELEASE/held-out/       the documents it is evaluated on, a prepared corpus: see `data.dataset`
    RELEASE/metrics.jsonl, results.json, spans.json, report.html     as in a run folder, see `run_folder`
    RELEASE/release.json    what only its maker knows: see `release.contents`
    RELEASE/data.md, limits.md      what its maker says of the documents and of the limits, where there is something
    RELEASE/README.md       the model card, made from the files above

Nothing here imports torch.
"""

from pathlib import Path

from gistnet.errors import CheckpointError
from gistnet.paths import local_path
from gistnet.run_folder import CONFIG_FILE, METRICS_FILE, REPORT_FILE, RESULTS_FILE, SPAN_MAP_FILE

RELEASES = Path(__file__).parent / "released"
"""Folder of the releases that come with the package."""

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
    REPORT_FILE,
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


def find_folder(path: Path | str) -> Path:
    """The folder itself, or the release of that name where it is a plain name and no folder is called so.

    Raises:
        CheckpointError: it is neither.
        ConfigError: it is empty, or names a user without a home folder.
    """
    path = local_path(path)
    if len(path.parts) != 1 or path.name == ".." or path.exists():
        return path
    included = included_releases()
    if path.name in included:
        return included[path.name]
    named = f"or one of the releases {', '.join(included)}" if included else "for this package comes without releases"
    raise CheckpointError(f"There is no folder '{path}' and no release of that name; expected a folder, {named}.")
