import ast
import subprocess
import sys
import sysconfig
from itertools import islice
from pathlib import Path

import pytest

from gistnet.data import installation
from gistnet.data.config import InstallationDomain
from gistnet.data.installation import installation_identity, read_installation


def test_code_is_the_standard_library_without_tests_or_site_packages() -> None:
    documents = dict(read_installation("code"))
    assert documents["stdlib:json/decoder.py"] == Path(sysconfig.get_path("stdlib"), "json/decoder.py").read_text(
        "utf-8"
    )
    assert list(documents) == [f"stdlib:{name}" for name in sorted_as_walked(documents)]
    folders = {part for name in documents for part in name.removeprefix("stdlib:").split("/")[:-1]}
    assert not folders & {"site-packages", "test", "tests", "idlelib", "lib2to3"}


def sorted_as_walked(documents: dict[str, str]) -> list[str]:
    """A folder's files come before its folders, each sorted."""
    paths = [name.removeprefix("stdlib:").split("/") for name in documents]
    return [
        "/".join(path) for path in sorted(paths, key=lambda path: [(1, part) for part in path[:-1]] + [(0, path[-1])])
    ]


def test_narrative_begins_with_the_manual_and_has_no_absolute_names() -> None:
    from pydoc_data.topics import topics

    documents = list(islice(read_installation("narrative"), 200))
    assert documents[: len(topics)] == [(f"pydoc:{topic}", topics[topic]) for topic in sorted(topics)]
    assert "description:pytest" in dict(documents)
    assert not any(sys.prefix in name or name.split(":")[1].startswith("/") for name, _ in documents)


def test_long_docstrings_of_a_module_are_one_document_in_source_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = ("m" * 1000, "c" * 700, "f" * 400)
    body = f'''"""{first}"""
raise SystemExit("must not be imported")
class C:
    """{second}"""
    def short(self):
        """Too short to keep."""
    async def f(self):
        """{third}

            indented
        """
'''
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").write_text(body)
    (tmp_path / "package" / "broken.py").write_text(f'def f(:\n    """{first}"""')
    (tmp_path / "package" / "latin.py").write_bytes(b'"""\xe4"""')
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "module.py").write_text(body)
    monkeypatch.setattr(installation.sysconfig, "get_path", lambda name: str(tmp_path))
    documents = dict(read_installation("narrative"))
    found = {name: text for name, text in documents.items() if name.startswith("docstrings:")}
    assert found == {"docstrings:package/module.py": f"{first}\n\n\n{second}\n\n\n{third}\n\nindented"}


def test_structured_files_are_json_or_yaml_and_large_ones_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.yaml").write_text("x: 1")
    (tmp_path / "c.txt").write_text("no")
    (tmp_path / "d.json").write_text(" " * 2_000_001)
    monkeypatch.setattr(installation.sysconfig, "get_path", lambda name: str(tmp_path))
    assert list(read_installation("structured")) == [("package:a.json", "{}"), ("package:b.yaml", "x: 1")]


@pytest.mark.parametrize("domain", ["narrative", "structured"])
def test_files_of_gistnet_itself_are_no_documents(
    domain: InstallationDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("gistnet", "other"):
        (tmp_path / package / "data").mkdir(parents=True)
        (tmp_path / package / "data" / "templates.yaml").write_text("words: []")
        (tmp_path / package / "data" / "module.py").write_text(f'"""{"m" * 3000}"""')
    monkeypatch.setattr(installation.sysconfig, "get_path", lambda name: str(tmp_path))
    names = {name for name, _ in read_installation(domain) if not name.startswith(("pydoc:", "description:"))}
    assert len(names) == 1 and "other/data/" in names.pop()


def test_identity_names_the_interpreter_and_each_package_once() -> None:
    identity = installation_identity()
    assert identity[0] == sys.version
    assert identity[1:] == sorted(set(identity[1:]))
    assert f"pytest=={pytest.__version__}" in identity


def test_reading_imports_none_of_what_it_reads() -> None:
    script = (
        "import sys\nfrom gistnet.data.installation import read_installation\nbefore = set(sys.modules)\n"
        "for name, _ in read_installation('narrative'):\n    if name.startswith('docstrings:argparse'): break\n"
        "print(sorted(set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    imported = {name.split(".")[0] for name in ast.literal_eval(result.stdout)}
    assert not imported & {"antigravity", "this", "argparse", "pandas", "scipy"}
