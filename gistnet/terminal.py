"""What commands print with: results to the standard output, everything else to the standard error."""

from rich.console import Console
from rich.table import Table

out = Console(highlight=False, soft_wrap=True, markup=False)
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def quieten() -> None:
    """No progress bars and warnings of libraries between our own lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def at_full_width(table: Table) -> Table:
    """Take the width that the cells need: a narrow terminal breaks the lines, but no digit is left out."""
    table.width = Console(width=1000, markup=False).measure(table).maximum
    return table
