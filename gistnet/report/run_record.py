"""What a run left in its folder, read back for people to look at: configuration, log, figures, span map.

Nothing here imports torch, so that a report is written in a second.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gistnet.errors import DataError
from gistnet.evaluation.probes.span_map import SpanMap
from gistnet.evaluation.records import MetricRecord
from gistnet.metrics_log import read_metrics
from gistnet.run_folder import (
    BEST_FILE,
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    FIGURES_FILE,
    METRICS_FILE,
    SPAN_MAP_FILE,
    read_config_values,
)

NETWORK_FILE = "config.json"
"""What `GistNet.save_pretrained` writes. Importing that room would import torch."""


@dataclass(frozen=True)
class RunRecord:
    """A run's own words and numbers, as they lie in its folder."""

    folder: Path
    config: dict[str, Any]
    """The resolved configuration as plain values, so that keys of another version are shown too."""
    log: list[dict[str, Any]]
    """The lines of `metrics.jsonl`, at least one of them a validation."""
    figures: list[MetricRecord] | None
    """The evaluation, or None before there is one."""
    span_map: SpanMap | None
    """The span map, or None before there is one."""
    best: str | None
    """Name of the best checkpoint."""
    network: dict[str, Any]
    """What the best checkpoint, or a release, says of its network: trained parameters, compute; empty without one."""


def read_run(folder: Path) -> RunRecord:
    """Read a run folder; what evaluation adds to it may be absent, and the checkpoints may be gone.

    Raises:
        ConfigError: there is no configuration in YAML.
        DataError: the folder or its log is missing, it has no validation yet, or a file is damaged or of a newer
            version.
    """
    if not folder.is_dir():
        raise DataError(f"There is no run folder at {folder}.")
    log = read_metrics(folder / METRICS_FILE)
    if not any(isinstance(line.get("validation"), dict) for line in log):
        raise DataError(f"{folder / METRICS_FILE} holds no validation, expected one at least: train the run first.")
    figures, span_map = folder / FIGURES_FILE, folder / SPAN_MAP_FILE
    checkpoints = folder / CHECKPOINTS_FOLDER
    # The best of each stage, in order: that of the latest is the run's.
    marks = [mark for mark in _read_if_there(checkpoints / BEST_FILE).values() if isinstance(mark, dict)]
    best = marks[-1].get("checkpoint") if marks else None
    return RunRecord(
        folder=folder,
        config=read_config_values(folder / CONFIG_FILE),
        log=log,
        figures=read_figures(figures) if figures.exists() else None,
        span_map=SpanMap.read(span_map) if span_map.exists() else None,
        best=best if isinstance(best, str) else None,
        network=_read_if_there((folder if best is None else checkpoints / str(best) / "gistnet") / NETWORK_FILE),
    )


def read_figures(path: Path) -> list[MetricRecord]:
    """The records of a `metrics.json`.

    Raises:
        DataError: it cannot be read, is damaged, or holds a record that this version does not know.
    """
    try:
        return TypeAdapter(list[MetricRecord]).validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"Could not read {path}: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ", ".join(str(part) for part in first["loc"])
        reason = f"{place}: {first['msg']}" if place else first["msg"]
        raise DataError(
            f"{path} does not hold records of this version of gistnet ({reason.replace('Value error, ', '')}): it is "
            "damaged, or a newer version wrote it."
        ) from error


def _read_if_there(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint; empty where it is gone or damaged, for a page that does without."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
