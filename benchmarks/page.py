"""Fills the tables of README.md and of docs, and the cards of releases, so that no figure is copied by hand.

    python benchmarks/page.py             after measuring, plotting or `gistnet release`; takes seconds
    python benchmarks/page.py --check     exits with 1, and names the pages that are not what the results make

A block of a page begins with `<!-- table: NAME -->` and ends with `<!-- /table -->`; what is between is replaced, by
what `benchmarks/page_tables.py` makes.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.page_tables import BLOCKS, Sources
from gistnet.release.card import card
from gistnet.release_folder import CARD_FILE, releases_in

ROOT = Path(__file__).parent.parent
FILLED = ("README.md", "docs/performance.md", "docs/ablations.md")
"""The pages that have blocks."""
_BLOCK = re.compile(r"(<!-- table: (?P<name>\S+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def pages(root: Path) -> dict[Path, str]:
    """Every page of a checkout that is made, or has blocks that are, as it should be.

    Raises:
        KeyError: there is no block of such a name.
        GistNetError: a release is damaged.
    """
    sources = Sources.of(root)
    filled = {root / name: fill((root / name).read_text(encoding="utf-8"), sources) for name in FILLED}
    return filled | {folder / CARD_FILE: card(folder) for folder in releases_in(sources.released).values()}


def fill(text: str, sources: Sources) -> str:
    """A page with every block made anew.

    Raises:
        KeyError: there is no block of such a name.
    """
    return _BLOCK.sub(lambda block: f"{block[1]}{BLOCKS[block['name']](sources)}\n{block[3]}", text)


def main() -> int:
    """Fill the pages, or say which are not filled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    changed = {path: text for path, text in pages(ROOT).items() if path.read_text(encoding="utf-8") != text}
    for path, text in changed.items():
        if arguments.check:
            print(f"{path.relative_to(ROOT)} is not what the results make: run `python benchmarks/page.py`.")
        else:
            path.write_text(text, encoding="utf-8")
    return int(arguments.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
