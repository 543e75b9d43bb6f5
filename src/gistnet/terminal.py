"""The terminal: printing with control characters escaped, messages of the log, types of arguments.

Results go to the standard output, everything else to the standard error. Documents, names and paths may hold anything,
also the sequences that drive a terminal: all that is printed here has its control characters escaped. What a model
writes is the exception: a streamer of transformers prints it as it is.
"""

import logging
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gistnet.paths import local_path, required_name

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

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as Rich prints it; Rich calls this for every text and every cell."""
        return super().render_str(escaped(text), **options)


out = PlainConsole()
err = PlainConsole(stderr=True)


class _Messages(logging.Handler):
    """Prints each message as one line, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        err.print(record.getMessage())


@contextmanager
def showing_messages() -> Iterator[None]:
    """Print the messages of the logger `gistnet` on the standard error; of several processes only the main one does."""
    logger, handler = logging.getLogger("gistnet"), _Messages()
    is_main = os.environ.get("RANK", "0") == "0"  # set by torchrun and accelerate
    handler.setLevel(logging.INFO if is_main else logging.CRITICAL)
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def quieten() -> None:
    """No progress bars and warnings of libraries between our own lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def at_full_width(table: Table) -> Table:
    """Take the width that the cells need: a narrow terminal breaks the lines, but no digit is left out."""
    table.width = PlainConsole(width=1000).measure(table).maximum
    return table
