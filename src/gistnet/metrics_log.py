"""The metrics of a run as JSON lines on disk: written while it trains, and read back; without torch."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from gistnet.errors import DataError
from gistnet.files import storage_errors, write_text


class MetricsLog:
    """The metrics of a run, one JSON object a line, each on disk before `record` returns.

    A record's `step` counts completed steps. Opened for a run that resumes after step n of a stage, the log first drops
    what an interrupted run wrote beyond it, in that stage or a later one, and a last line cut off by a kill, so that
    no step appears twice. A run must therefore record step n before it saves the checkpoint of step n.
    """

    def __init__(self, path: Path, *, resumed_after: tuple[int, int] | None = None) -> None:
        """Open the log; a run that starts anew (`resumed_after`, a stage and a step, is None) begins with an empty one.

        Raises:
            StorageError: the file cannot be written.
            DataError: the file is damaged elsewhere than in its last line.
        """
        self.path = path
        kept = []
        if resumed_after is not None and path.exists():
            kept = [
                line
                for line, record in _parsed_lines(path)
                if (record.get("stage", 1), record["step"]) <= resumed_after
            ]
        write_text(path, "".join(kept))
        with storage_errors("open", path):
            self._file = path.open("a", encoding="utf-8")

    def record(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append `metrics`, which may be nested. A number that is not finite becomes null; its key stays.

        Raises:
            StorageError: the line could not be written.
        """
        line = json.dumps(_plain({"step": step, **metrics}), ensure_ascii=False, allow_nan=False)
        with storage_errors("append to", self.path):
            self._file.write(line + "\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with storage_errors("close", self.path):
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file in order, also while a run still writes it: an unfinished last line is left out.

    Raises:
        DataError: there is no such file, or a finished line is not a record.
    """
    return [record for _, record in _parsed_lines(path)]


def _parsed_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise DataError(f"There are no metrics at {path}.")
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line end is empty, or cut off
    return [(line.decode(errors="replace") + "\n", _parsed(line, path, n)) for n, line in enumerate(lines, start=1)]


def _parsed(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise DataError(f"Line {number} of {path} is damaged: expected a JSON object with a step.")
    return record


def _plain(value: Any) -> Any:
    """`value` as strict JSON has it: NumPy numbers as Python's, and null for NaN and the infinities."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
