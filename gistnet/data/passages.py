"""Passages of real prose and code from the Python installation, for synthetic documents to repeat, damage and mix."""

import ast
from functools import lru_cache

from gistnet.data.installation import read_installation
from gistnet.errors import DataError

PASSAGE_WORDS = range(40, 200)
FUNCTION_LINES = range(6, 36)
MIN_PASSAGES = 50
MODULES = (
    *("argparse", "bisect", "calendar", "configparser", "csv", "difflib", "fractions", "ftplib", "gettext", "heapq"),
    *("inspect", "mailbox", "pprint", "shutil", "statistics", "string", "tarfile", "textwrap", "tokenize", "zipfile"),
)


@lru_cache(maxsize=1)
def prose_passages() -> tuple[str, ...]:
    """Paragraphs of the manual, each on one line, in the manual's order.

    Raises:
        DataError: this Python was installed without its manual.
    """
    passages: dict[str, None] = {}
    for name, text in read_installation("narrative"):
        if not name.startswith("pydoc:"):
            break  # the manual comes first
        for block in text.split("\n\n"):
            paragraph = " ".join(block.split())
            if len(paragraph.split()) in PASSAGE_WORDS and _is_prose(paragraph):
                passages[paragraph] = None
    return _enough(passages, "paragraphs in its manual (pydoc_data)")


@lru_cache(maxsize=1)
def code_passages() -> tuple[str, ...]:
    """Top-level functions of well-known modules of the standard library.

    Raises:
        DataError: this Python was installed without the source code of its library.
    """
    wanted = {f"stdlib:{module}.py" for module in MODULES}
    passages: dict[str, None] = {}
    for name, source in read_installation("code"):
        if name in wanted:
            lines = source.splitlines()
            for node in ast.parse(source).body:
                if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 in FUNCTION_LINES:
                    passages["\n".join(lines[node.lineno - 1 : node.end_lineno])] = None
    return _enough(passages, "functions in the source code of its standard library")


def _is_prose(paragraph: str) -> bool:
    """Whether it is a full sentence or more, and nearly all letters: neither grammar nor code."""
    letters = sum(character.isalpha() or character.isspace() for character in paragraph)
    return paragraph[0].isupper() and paragraph.endswith((".", "!", "?")) and letters > 0.9 * len(paragraph)


def _enough(passages: dict[str, None], what: str) -> tuple[str, ...]:
    if len(passages) < MIN_PASSAGES:
        raise DataError(f"Synthetic documents need at least {MIN_PASSAGES} {what}; this Python has {len(passages)}.")
    return tuple(passages)
