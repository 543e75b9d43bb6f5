"""The wheel brings the releases that the repository has, and they are found there by name."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_wheel_brings_the_releases(release: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    source, out, installed = tmp_path / "source", tmp_path / "out", tmp_path / "installed"
    package = source / "src" / "gistnet"
    shutil.copytree(ROOT / "src" / "gistnet", package, ignore=shutil.ignore_patterns("__pycache__", "smollm2*"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(release, package / "released" / "tiny-32")
    build = f"import setuptools.build_meta as backend; backend.build_wheel({str(out)!r})"
    out.mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)

    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    modules = {path.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("*.py")}
    assert {path.relative_to(installed) for path in (installed / "gistnet").rglob("*.py")} == modules
    assert (installed / "gistnet" / "report" / "page" / "template.html").is_file()
    assert (installed / "gistnet" / "data" / "templates.yaml").is_file()
    for path in release.rglob("*"):
        if path.is_file():
            brought = installed / "gistnet" / "released" / "tiny-32" / path.relative_to(release)
            assert brought.read_bytes() == path.read_bytes()
    look = "from gistnet.release_folder import find_folder; print(find_folder('tiny-32'))"
    found = subprocess.run(
        [sys.executable, "-c", look], cwd=tmp_path, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    assert found.stdout.strip() == str(installed / "gistnet" / "released" / "tiny-32"), found.stderr
