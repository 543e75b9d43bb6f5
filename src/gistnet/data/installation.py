"""Real text that every Python installation carries, so that a first run needs no download.

Narrative: the manual's topics, descriptions of the installed packages, long docstrings. Code: the standard library.
Structured: the JSON and YAML files of the packages. Nothing is imported, only read; files that are unreadable, not
UTF-8 or larger than 2 MB are skipped. Names are relative and the order is sorted, so that the same installation gives
the same documents anywhere.
"""

import ast
import importlib.metadata
import inspect
import os
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from gistnet.data.config import InstallationDomain

MAX_FILE_BYTES = 2_000_000
# Shorter docstrings say what a name already says; a module with few long ones is no document.
MIN_DOCSTRING_CHARACTERS = 300
MIN_DOCSTRINGS_CHARACTERS = 2000
# Tests and tables are not written to be read; `site-packages` may lie within the standard library's folder.
SKIPPED_FOLDERS = {
    *("site-packages", "dist-packages", "__pycache__", "ensurepip", "pydoc_data", "encodings"),
    *("test", "tests", "idlelib", "lib2to3", "turtledemo"),
    "gistnet",  # sentences of the minimal pairs that it is evaluated on, figures of its releases
}


def read_installation(domain: InstallationDomain) -> Iterator[tuple[str, str]]:
    """Yield `(name, text)` of the installation's documents of one domain, such as `stdlib:asyncio/events.py`."""
    match domain:
        case "narrative":
            yield from _manual()
            yield from _descriptions()
            yield from _docstrings()
        case "code":
            yield from _files("stdlib:", [sysconfig.get_path("stdlib")], ".py")
        case "structured":
            yield from _files("package:", _package_folders(), ".json", ".yaml", ".yml")


def installation_identity() -> list[str]:
    """The version of Python and `name==version` of each installed package, sorted: what decides the documents."""
    packages = {f"{package.name}=={package.version}" for package in _distributions()}
    return [sys.version, *sorted(packages)]


def _manual() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    for topic, text in sorted(topics.items()):
        yield f"pydoc:{topic}", text


def _descriptions() -> Iterator[tuple[str, str]]:
    for package in sorted(_distributions(), key=lambda package: package.name):
        description = package.metadata.json.get("description")
        if isinstance(description, str):
            yield f"description:{package.name}", description


def _docstrings() -> Iterator[tuple[str, str]]:
    """The long docstrings of each module that has many, in the order of its source."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for name, source in _files("docstrings:", [sysconfig.get_path("stdlib"), *_package_folders()], ".py"):
        if '"""' not in source:
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # other people's code may have invalid escapes
                tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
        nodes.sort(key=lambda node: getattr(node, "lineno", 0))
        found = [inspect.cleandoc(ast.get_docstring(node, clean=False) or "") for node in nodes]
        text = "\n\n\n".join(text for text in found if len(text) >= MIN_DOCSTRING_CHARACTERS)
        if len(text) >= MIN_DOCSTRINGS_CHARACTERS:
            yield name, text


def _package_folders() -> list[str]:
    # The two are one folder, except on systems that keep compiled packages apart.
    return list(dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))))


def _distributions() -> list[importlib.metadata.Distribution]:
    return list(importlib.metadata.distributions(path=_package_folders()))


def _files(prefix: str, roots: list[str], *suffixes: str) -> Iterator[tuple[str, str]]:
    """Name and text of the readable files with one of the suffixes below some folders."""
    for root in roots:
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = sorted(name for name in subfolders if name not in SKIPPED_FOLDERS)
            for path in (Path(folder, name) for name in sorted(names) if name.endswith(suffixes)):
                try:
                    if path.stat().st_size <= MAX_FILE_BYTES:
                        yield f"{prefix}{path.relative_to(root).as_posix()}", path.read_bytes().decode("utf-8")
                except (OSError, UnicodeDecodeError):
                    continue
