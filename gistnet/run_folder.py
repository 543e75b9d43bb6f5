"""What lies in a run folder, by name, and its configuration as the file has it.

    RUN/config.yaml      the resolved configuration
    RUN/metrics.jsonl    training and validation, one line each
    RUN/metrics.json     every figure of the evaluation
    RUN/spans.json       the span map
    RUN/report.html      the report page
    RUN/checkpoints/     see `training.checkpoint`
    RUN/trackers/        what experiment trackers keep in files

Nothing here imports torch, so that whoever only reads a run does without it.
"""

from pathlib import Path
from typing import Any

from gistnet.errors import ConfigError
from gistnet.yaml_format import read_yaml

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
FIGURES_FILE = "metrics.json"
SPAN_MAP_FILE = "spans.json"
REPORT_FILE = "report.html"
CHECKPOINTS_FOLDER = "checkpoints"
TRACKERS_FOLDER = "trackers"
BEST_FILE = "best.json"

LEFT_BY_A_RUN = (CHECKPOINTS_FOLDER, TRACKERS_FOLDER, METRICS_FILE, FIGURES_FILE, SPAN_MAP_FILE, REPORT_FILE)
"""What training and evaluation leave; the configuration alone is no run."""

FORMAT_VERSION = 2
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
        raise ConfigError(f"The configuration {path} holds {type(values).__name__}, expected keys with values.")
    version = values.get("format_version", FORMAT_VERSION)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ConfigError(
            f"{path} is of format {version}, written by a newer gistnet; expected at most {FORMAT_VERSION}: "
            "update gistnet."
        )
    return values
