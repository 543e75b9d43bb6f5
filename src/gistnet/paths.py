"""Paths and names as a user gives them: `~` expanded, empty ones refused."""

import os
from pathlib import Path

from gistnet.errors import ConfigError


def local_path(path: str | Path) -> Path:
    """Path on this machine, with `~` and `~user` expanded; applied twice, it changes nothing more.

    Raises:
        ConfigError: it is empty (a shell variable that is not set), holds NUL, or names a user without a home folder.
    """
    text = os.fspath(path)
    if not text or "\0" in text:
        raise ConfigError(f"Got the path {text!r}, expected the name of a file or folder.")
    expanded = Path(os.path.expanduser(text))  # noqa: PTH111 - a Path has lost the ./ that makes ./~name literal
    if not str(expanded).startswith("~"):
        return expanded
    if text.startswith("~"):
        raise ConfigError(f"Got the path {text!r}, expected ~ or ~USER with a home folder (or ./{text} for a name).")
    return Path.cwd() / expanded


def is_file_name(text: str) -> bool:
    """True for a text that is the name of a file on this machine, and so hardly meant as a text."""
    return 0 < len(text) < 1024 and text.isprintable() and os.path.isfile(text)  # noqa: PTH113 - no path is to be made


def required_name(text: str) -> str:
    """The text, which names something and so is not empty.

    Raises:
        ConfigError: it is empty.
    """
    if not text:
        raise ConfigError("Got an empty name, expected one (a shell variable that is not set gives an empty one).")
    return text
