"""Files of a run folder, by name, and its configuration as the file has it.

    RUN/config.yaml      the resolved configuration
    RUN/metrics.jsonl    training and validation, one line each
    RUN/results.json     every measure of the evaluation
    RUN/spans.json       the span map
    RUN/report.html      the report page
    RUN/checkpoints/     see `training.checkpoint`
    RUN/trackers/        what experiment trackers keep in files
    RUN/writer.lock      locked by the process that trains

Nothing here imports torch, so that reading a run does without it.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gistnet.errors import ConfigError
from gistnet.files import storage_errors
from gistnet.yaml_format import read_yaml

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
RESULTS_FILE = "results.json"
SPAN_MAP_FILE = "spans.json"
REPORT_FILE = "report.html"
CHECKPOINTS_FOLDER = "checkpoints"
TRACKERS_FOLDER = "trackers"
BEST_FILE = "best.json"
CHECKPOINT_FILES = {"gistnet", "optimiser.safetensors", "state.json", "manifest.json"}

FORMAT_VERSION = 4
"""The format of run folders: raised where an older gistnet could not read what a newer one writes."""


def read_config_values(path: Path) -> dict[str, Any]:
    """A configuration's own keys and values, which may be incomplete or wrong.

    Raises:
        ConfigError: the file is missing, is not YAML or has a key twice, or a newer gistnet wrote it.
    """
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Could not read the configuration {path}: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"The configuration {path} is not valid YAML in UTF-8: {error}.") from error
    if not isinstance(values, dict):
        got = "is empty" if values is None else f"holds {type(values).__name__}"
        raise ConfigError(f"The configuration {path} {got}, expected keys with values.")
    version = values.get("format_version", FORMAT_VERSION)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ConfigError(
            f"{path} is of format {version}, written by a newer gistnet; expected at most {FORMAT_VERSION}: "
            "update gistnet."
        )
    return values


def left_by_a_run(folder: Path) -> list[Path]:
    """Files and folders that training and evaluation left in a run folder; the configuration alone is no run.

    Raises:
        ConfigError: another program wrote something there under the same name, which a run would overwrite or delete.
    """
    config = folder / CONFIG_FILE
    if config.exists() and "format_version" not in read_config_values(config):
        raise _of_another_program(config)
    marks: list[tuple[Path, Callable[[Path], bool]]] = [
        (folder / METRICS_FILE, _is_log),
        (folder / RESULTS_FILE, _is_results),
        (folder / SPAN_MAP_FILE, _is_span_map),
        (folder / REPORT_FILE, _is_report),
        *((path, _is_checkpoint) for path in _entries(folder / CHECKPOINTS_FOLDER)),
        *((path, _is_of_tracker) for path in _entries(folder / TRACKERS_FOLDER)),
    ]
    left = [(path, is_ours) for path, is_ours in marks if path.exists() or path.is_symlink()]
    for path, is_ours in left:
        with storage_errors("read", path):
            if not config.exists() or not is_ours(path):
                raise _of_another_program(path)
    return [path for path, _ in left]


def remove_run(folder: Path) -> None:
    """Delete what training and evaluation left in a run folder; a link to another disk stays, emptied.

    Raises:
        ConfigError: as `left_by_a_run`; nothing was deleted.
        StorageError: something could not be deleted.
    """
    for path in left_by_a_run(folder):
        with storage_errors("delete", path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    for path in (folder / CHECKPOINTS_FOLDER, folder / TRACKERS_FOLDER):
        with storage_errors("delete", path):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()


def _of_another_program(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} was not written by a run of gistnet; expected a run folder without anything of another program: use "
        "another run_folder, or move it away."
    )


def _entries(folder: Path) -> list[Path]:
    """Entries of a folder, or of the folder that a link leads to; what is no folder, itself."""
    with storage_errors("read", folder):
        return sorted(folder.iterdir()) if folder.is_dir() else [folder]


def _is_log(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline()
    # A line without an end was cut off.
    return not first.endswith(b"\n") or (isinstance(_json(first), dict) and "step" in _json(first))


def _is_results(path: Path) -> bool:
    records = _json(path.read_bytes())
    return isinstance(records, list) and all(
        isinstance(r, dict) and {"name", "value", "n_spans"} <= r.keys() for r in records
    )


def _is_span_map(path: Path) -> bool:
    content = _json(path.read_bytes())
    return isinstance(content, dict) and {"format_version", "documents", "distribution"} <= content.keys()


def _is_report(path: Path) -> bool:
    return b" gistnet</title>" in path.read_bytes()


def _is_checkpoint(path: Path) -> bool:
    """Also one that is being written or deleted, or the mark of the best."""
    if re.fullmatch(r"step-\d{8,}", path.name):
        return path.is_dir() and {entry.name for entry in path.iterdir()} <= CHECKPOINT_FILES
    return re.fullmatch(r"best\.json|\.deleted-step-\d+|\.(step-\d+|best\.json)\.partial-.*", path.name) is not None


def _is_of_tracker(path: Path) -> bool:
    files = [file for file in (path, *path.rglob("*")) if not file.is_dir()]
    return all(file.name.startswith("events.out.tfevents.") for file in files)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None
