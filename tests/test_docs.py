"""The documentation's links into the code point at the lines that define what they name.

`python tests/test_docs.py` writes the line numbers anew.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\[`([\w.]+)`\]\(\.\./([\w/.]+\.py)#L(\d+)\)")


def line_of(symbol: str, path: str) -> int:
    """Line of the definition of `name`, `Class.method` or the file itself; 0 where there is none."""
    if symbol.endswith(".py"):
        return 1 if Path(path).name == symbol else 0
    *outer, name = symbol.split(".")
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    first = line_of(outer[0], path) if outer else 0
    definition = re.compile(rf"\s*(def|class) {name}\b|{name}(: [^=]+)? = ")
    return next((n for n, line in enumerate(lines, start=1) if n > first and definition.match(line)), 0)


def renumbered(text: str) -> str:
    return LINK.sub(lambda m: f"[`{m[1]}`](../{m[2]}#L{line_of(m[1], m[2])})", text)


def test_links_into_the_code_name_their_line() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        wrong = [m[0] for m in LINK.finditer(text) if int(m[3]) != line_of(m[1], m[2]) or int(m[3]) == 0]
        assert not wrong, f"{page.name}: run `python tests/test_docs.py`"


if __name__ == "__main__":
    for page in (ROOT / "docs").glob("*.md"):
        page.write_text(renumbered(page.read_text(encoding="utf-8")), encoding="utf-8")
