"""Hooks of mkdocs: README.md becomes the home page, and links out of this folder plain text."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
HOME = "index.md"
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")
"""A link to a file of the repository that is no page."""


def on_files(files: Files, config: Any) -> Files:
    """Add the home page."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = re.sub(r"\]\(docs/", "](", readme)
    page = re.sub(r"\]\((?!https?:|#)(?![\w-]+\.(?:md|svg))([^)]+)\)", r"](../\1)", page)
    files.append(File.generated(config, HOME, content=page))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Name a file outside this folder, to which a site has no link."""
    return OUTSIDE.sub(lambda link: f"{link[1]} (`{link[2]}`)", markdown)
