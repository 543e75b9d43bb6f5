"""A stage's progress on the terminal."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gistnet import terminal

# Metric → what it is called on the terminal and how it is written there.
_SHOWN = {
    "loss": ("loss", "{:.4f}"),
    "kl": ("KL", "{:.4f}"),
    "delta_nll": ("ΔNLL", "{:+.4f}"),
    "gist_norm": ("gist norm", "{:.2f}"),
    "spans_per_second": ("spans/s", "{:.1f}"),
}


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
