"""What a run tells the world: metrics as JSON lines on disk, progress on the terminal."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gistnet import terminal
from gistnet.errors import DataError
from gistnet.files import storage_errors, write_text

# Metric → what it is called on the terminal and how it is written there.
_SHOWN = {
    "loss": ("loss", "{:.4f}"),
    "kl": ("KL", "{:.4f}"),
    "delta_nll": ("ΔNLL", "{:+.4f}"),
    "gist_norm": ("gist norm", "{:.2f}"),
    "spans_per_second": ("spans/s", "{:.1f}"),
}


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


class ProgressDisplay:
    """Shows how a stage proceeds: a live bar on a terminal, elsewhere one plain line every few seconds.

    The plain lines are for log files and batch systems; the first and the last step always get one.
    """

    def __init__(
        self,
        title: str,
        total_steps: int,
        *,
        completed_steps: int = 0,
        every_seconds: float = 10.0,
        console: terminal.PlainConsole | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to show `total_steps` steps, of which an earlier, interrupted run completed `completed_steps`.

        `console` is the standard error unless given; `clock` returns seconds.
        """
        self._title, self._total, self._begun_at = title, total_steps, completed_steps
        self._every, self._clock = every_seconds, clock
        self._console = console or terminal.err
        self._started = clock()
        self._last_line: float | None = None
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[metrics]}", markup=False),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(
                terminal.escaped(title), total=total_steps, completed=completed_steps, metrics=""
            )

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show that `step` steps are complete, and of `metrics` those that a reader follows while waiting."""
        shown = "  ".join(
            f"{label} {form.format(metrics[name])}" for name, (label, form) in _SHOWN.items() if name in metrics
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, metrics=shown)
        elif self._is_time_for_a_line(step):
            self.message(f"{self._title}  step {step}/{self._total}  {shown}  {self._remaining(step)} left")

    def message(self, text: str) -> None:
        """Print `text` as one line, above the bar where there is one."""
        self._console.print(text)

    def _is_time_for_a_line(self, step: int) -> bool:
        now = self._clock()
        if self._last_line is not None and now - self._last_line < self._every and step != self._total:
            return False
        self._last_line = now
        return True

    def _remaining(self, step: int) -> str:
        done = step - self._begun_at
        if done <= 0:
            return "unknown time"
        seconds = (self._clock() - self._started) / done * (self._total - step)
        return str(timedelta(seconds=round(seconds)))

    def __enter__(self) -> Self:
        self._started = self._clock()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
