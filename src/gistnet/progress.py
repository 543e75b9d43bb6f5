"""Progress of a command: a live bar on a terminal, elsewhere one plain line every few seconds."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Self, TypeVar

from rich.progress import BarColumn, Progress, TextColumn

from gistnet import terminal

T = TypeVar("T")

BAR_COLUMNS = 16
TITLE_COLUMNS = 20
"""Longest title beside a bar; a longer one, such as the path of a document, is cut."""
_displays = 0  # open ones; a display within another shows nothing


class ProgressDisplay:
    """Shows how many of so many steps are done, the time left, and then what else there is room for.

    The plain lines are for log files and batch systems; the first and the last step always get one, unless `brief`.
    """

    def __init__(
        self,
        title: str,
        total: int,
        *,
        completed: int = 0,
        brief: bool = False,
        every_seconds: float = 10.0,
        console: terminal.PlainConsole | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare to show `total` steps, of which an earlier, interrupted run completed `completed`.

        `brief` is for what may last a second: the bar vanishes, and only what lasts longer gets lines. `console` is the
        standard error unless given; `clock` returns seconds.
        """
        self._title, self._total, self._begun_at, self._brief = terminal.escaped(title), total, completed, brief
        self._every, self._clock = every_seconds, clock
        self._console = console or terminal.err
        self._started = clock()
        self._last_line: float | None = None
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (BarColumn(bar_width=BAR_COLUMNS), TextColumn("{task.fields[line]}", markup=False))
            self._bar = Progress(*columns, console=self._console, transient=brief)
            self._task = self._bar.add_task("", total=total, completed=completed, line=self._line(completed))

    def begin_at(self, step: int) -> None:
        """Estimate the time left by the steps behind this one, from now on."""
        self._begun_at, self._started = step, self._clock()

    def leave_out(self, seconds: float) -> None:
        """Leave out time that went to something else than the steps when estimating the time left."""
        self._started += seconds

    def update(self, step: int, details: Sequence[str] = (), title: str | None = None) -> None:
        """Show that `step` steps are done, and as many of the `details` as fit, the most telling first."""
        self._title = self._title if title is None else terminal.escaped(title)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, line=self._line(step, details))
        elif self._is_time_for_a_line(step):
            self._console.print("  ".join([self._title, *self._state(step), *details]))

    def _line(self, step: int, details: Sequence[str] = ()) -> str:
        """Text beside the bar: whole parts only, as many as the terminal has columns for."""
        title = self._title if len(self._title) <= TITLE_COLUMNS else f"…{self._title[1 - TITLE_COLUMNS :]}"
        line = "  ".join([*self._state(step), *([title] if title else [])])
        for part in details:
            if BAR_COLUMNS + 1 + len(line) + 2 + len(part) >= self._console.width:
                break
            line += f"  {part}"
        return line

    def _state(self, step: int) -> list[str]:
        return [f"{step:,}/{self._total:,}", f"{self._remaining(step)} left"]

    def _is_time_for_a_line(self, step: int) -> bool:
        now = self._clock()
        last = self._started if self._brief and self._last_line is None else self._last_line
        if last is not None and now - last < self._every and (self._brief or step != self._total):
            return False
        self._last_line = now
        return True

    def _remaining(self, step: int) -> str:
        done = step - self._begun_at
        if done <= 0:
            return "-:--:--"
        seconds = (self._clock() - self._started) / done * (self._total - step)
        return str(timedelta(seconds=round(seconds)))

    def __enter__(self) -> Self:
        global _displays
        terminal.stop_waiting()
        _displays += 1
        self._started = self._clock()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        global _displays
        _displays -= 1
        if self._bar is not None:
            self._bar.stop()


def track(items: Iterable[T], total: int, title: str) -> Iterator[T]:
    """Yield the items; while a command runs, show how many of them are done.

    Shows nothing to a program that calls the library, nor within another display.
    """
    with ExitStack() as stack:
        display = None
        if terminal.is_showing() and not _displays and total > 1:
            display = stack.enter_context(ProgressDisplay(title, total, brief=True))
        for done, item in enumerate(items, start=1):
            yield item
            if display is not None:
                display.update(done)
