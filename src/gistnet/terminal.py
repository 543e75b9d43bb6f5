"""The terminal: printing with control characters escaped, messages of the log, types of arguments.

Results go to the standard output, everything else to the standard error. Documents, names and paths may hold anything,
also the sequences that drive a terminal: all that is printed here has its control characters escaped. What a model
writes is the exception: a streamer of transformers prints it as it is.
"""

import logging
import os
import shlex
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gistnet.paths import local_path, required_name

if TYPE_CHECKING:
    from rich.status import Status

PATH: dict[str, Any] = {"parser": local_path, "metavar": "PATH"}
"""Options of a `typer` argument that is a path."""

NAME: dict[str, Any] = {"parser": required_name, "metavar": "TEXT"}
"""Options of a `typer` argument that may not be empty."""

# Control characters, halves of surrogate pairs, line and paragraph separators; and what turns the direction of text.
_UNSEEN = ("Cc", "Cs", "Zl", "Zp")
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def escaped(text: str) -> str:
    r"""The text on one line, with control characters as `\n`, `\x1b` or `\u202e`: each is seen and none acts."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _UNSEEN or char in _TURNING else char
        for char in text
    )


class PlainConsole(Console):
    """A console that prints each text as one line, as it is but for control characters.

    No markup, emoji codes, colours of numbers, or wrapping; control characters are escaped, in the cells of tables too.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; where it is no terminal, a table has neither lines nor broken ones, for programs that read it."""
        if not self.is_terminal:
            for table in objects:
                if isinstance(table, Table):
                    table.box = None
                    at_full_width(table)
        super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as Rich prints it; Rich calls this for every text and every cell."""
        return super().render_str(escaped(text), **options)


class _Results(PlainConsole):
    """The standard output, on which nothing is printed while something waits on the standard error."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print, without a spinner in between."""
        stop_waiting()
        super().print(*objects, **options)


out = _Results()
err = PlainConsole(stderr=True)


class _Messages(logging.Handler):
    """Prints each message as one line, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        err.print(record.getMessage())


_showing = False
_waiting: "Status | None" = None


def is_showing() -> bool:
    """True while a command runs in the main process, which shows its progress; a library's caller is shown nothing."""
    return _showing


def shows_bars() -> bool:
    """True while a command runs whose standard error is a terminal."""
    return _showing and err.is_terminal


@contextmanager
def showing_messages() -> Iterator[None]:
    """Print the messages of the logger `gistnet` on the standard error; of several processes only the main one does."""
    logger, handler = logging.getLogger("gistnet"), _Messages()
    is_main = os.environ.get("RANK", "0") == "0"  # set by torchrun and accelerate
    handler.setLevel(logging.INFO if is_main else logging.CRITICAL)
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    global _showing
    _showing = is_main
    try:
        yield
    finally:
        _showing = False
        stop_waiting()
        logger.removeHandler(handler)
        logger.setLevel(before)


def start_loading() -> None:
    """Show on a terminal that a command has begun, before it imports what takes seconds; silence other libraries.

    What shows that it goes on, a result or a bar, takes the place of the spinner. A pipe is told nothing: there the
    sentence of an error stands alone.
    """
    global _waiting
    if shows_bars() and _waiting is None:
        _waiting = err.status("Loading …")
        _waiting.start()
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def stop_waiting() -> None:
    """Take away the spinner of `start_loading`, where there is one."""
    global _waiting
    if _waiting is not None:
        _waiting.stop()
        _waiting = None


def next_command(*words: object) -> None:
    """Print the command that one would type next; a word in capitals is to be filled in."""
    out.print(f"Next: gistnet {' '.join(shlex.quote(str(word)) for word in words)}")


@contextmanager
def interruptible(kept: str) -> Iterator[None]:
    """End a command that is interrupted with a sentence that says what is kept, and status 130."""
    try:
        yield
    except KeyboardInterrupt as error:
        stop_waiting()
        err.print(f"gistnet: Interrupted. {kept}")
        raise typer.Exit(130) from error


def at_full_width(table: Table) -> Table:
    """Take the width that the cells need: a narrow terminal breaks the lines, but no digit is left out."""
    table.width = PlainConsole(width=1000).measure(table).maximum
    return table
