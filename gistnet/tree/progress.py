"""How compressing proceeds, on the terminal: a live bar there, elsewhere one plain line every few seconds."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Self

from rich import progress as rich_progress

from gistnet import terminal
from gistnet.tree.compress import Progress


class CompressionDisplay:
    """Shows the tokens appended, the rate, and the time left; what the tree held already counts as no time.

    Args:
        every_seconds: between two plain lines; the last portion always gets one.
        console: the standard error unless given.
        clock: returns seconds.
    """

    def __init__(
        self,
        *,
        every_seconds: float = 10.0,
        console: terminal.PlainConsole | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every, self._clock = every_seconds, clock
        self._console = console or terminal.err
        self._started = self._last_line = clock()
        self._bar: rich_progress.Progress | None = None
        if self._console.is_terminal:
            self._bar = rich_progress.Progress(
                rich_progress.BarColumn(bar_width=20),
                rich_progress.TaskProgressColumn(),
                rich_progress.TextColumn("{task.fields[shown]}", markup=False),
                console=self._console,
            )
            self._task = self._bar.add_task("", total=None, shown="")

    def update(self, progress: Progress) -> None:
        """Show how far a run has come."""
        if not progress.appended_tokens:
            self._started = self._clock()
        if self._bar is not None:
            total, done = progress.total.characters, progress.characters
            self._bar.update(self._task, total=total, completed=done, shown=self._describe(progress))
            return
        now = self._clock()
        if now - self._last_line >= self._every or progress.characters == progress.total.characters:
            self._last_line = now
            share = f"{progress.characters / progress.total.characters:.0%}"
            self._console.print(f"{share}  {self._describe(progress)}")

    def _describe(self, progress: Progress) -> str:
        seconds = self._clock() - self._started
        rate = progress.appended_tokens / seconds if seconds > 0 else 0.0
        left = "unknown time"
        if progress.appended_characters:
            remaining = progress.total.characters - progress.characters
            left = str(timedelta(seconds=round(seconds / progress.appended_characters * remaining)))
        return (
            f"{terminal.escaped(progress.document)}  documents {progress.documents}/{progress.total.documents}  "
            f"{progress.appended_tokens:,} tokens  {rate:,.0f} tokens/s  {left} left"
        )

    def __enter__(self) -> Self:
        self._started = self._last_line = self._clock()
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
