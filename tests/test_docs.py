"""README and docs: their Python runs and prints what they say, their commands exist, and their links lead somewhere.

`python -m tests.test_docs` writes the line numbers of links into the code anew.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.main import get_command

import gistnet
from gistnet.cli import app
from tests.conftest import Command

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[`([\w.]+)`\]\(\.\./([\w/.]+\.py)#L(\d+)\)")
PYTHON = re.compile(r"^```python\n(.*?)^```\n+((?:^ {4}[^\n]*\n)*)", re.MULTILINE | re.DOTALL)
"""A block of Python, and the indented block behind it, which is what it prints."""
LIKE_PYTHON = ("spec.md", "decisions.md")
"""Pages whose Python is pseudocode."""


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


def commands(page: Path) -> list[list[str]]:
    """Commands of `gistnet` in a page, each as its words."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^(?: {4}|\$ )(gistnet .*)$", text, re.MULTILINE)
    lines += re.findall(r"-m gistnet\.cli (.*)$", text, re.MULTILINE)
    spoken = [words for line in lines for part in line.split("&&") if (words := shlex.split(part, comments=True))]
    return [words[words[0] == "gistnet" :] for words in spoken]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = [m[0] for m in LINK.finditer(text) if int(m[3]) != line_of(m[1], m[2]) or int(m[3]) == 0]
    assert not wrong, f"{page.name}: run `python -m tests.test_docs`"
    local = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    assert not [link for link in local if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in commands(page):
        command, context = get_command(app), None
        while hasattr(command, "commands"):  # a group, such as `gistnet tree`
            name, *words = words
            command = command.commands[name]
        context = command.make_context(name, words)  # refuses what the command does not take
        assert context.params


def test_the_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    named = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}
    assert {name for name in gistnet.__all__ if not name.startswith("__")} <= named


def python_pages() -> list[Path]:
    return [page for page in PAGES if page.name not in LIKE_PYTHON and PYTHON.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", python_pages(), ids=lambda page: page.name)
def test_python_runs_and_prints_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "examples" / "eddystone.txt", tmp_path / "book.txt")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in PYTHON.finditer(page.read_text(encoding="utf-8")):
        capsys.readouterr()
        exec(compile(block[1], page.name, "exec"), names)
        printed = capsys.readouterr().out
        if block[2]:
            assert printed == "".join(line[4:] + "\n" for line in block[2].splitlines())


def test_the_terminal_of_the_readme(gistnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    quick = [words for words in commands(ROOT / "README.md") if words[0] in ("show", "compress", "tree", "generate")]
    assert len(quick) == 4
    for words in quick:
        outcome = gistnet(*words)
        assert outcome.status == 0, outcome.err
        assert outcome.out


if __name__ == "__main__":
    for page in (ROOT / "docs").glob("*.md"):
        page.write_text(renumbered(page.read_text(encoding="utf-8")), encoding="utf-8")
