"""Imports run one way, and a configuration is read without the libraries that hold models."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gistnet
from gistnet.extras import EXTRAS

PACKAGE = Path(gistnet.__file__).parent
ABOVE = {
    "data": {"model", "objective", "tree", "context", "training", "evaluation"},
    "model": {"objective", "tree", "context", "training", "evaluation"},
    "objective": {"tree", "context", "training", "evaluation"},
    "tree": {"context", "training", "evaluation"},
    "context": {"training", "evaluation"},
    "training": {"tree", "context", "evaluation"},
    "evaluation": {"training"},
}
"""Package → the packages that it imports nothing of."""


def imported(module: Path) -> Iterator[str]:
    """The modules that a module imports anywhere in it, by their full names."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively, which this test does not follow"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", ABOVE)
def test_a_package_imports_nothing_from_above(package: str) -> None:
    modules = list((PACKAGE / package).rglob("*.py"))
    assert modules
    packages = {
        (module.name, name.split(".")[1])
        for module in modules
        for name in imported(module)
        if name.startswith("gistnet.")
    }
    assert {(module, other) for module, other in packages if other in ABOVE[package]} == set()


def loaded_by(statements: str) -> set[str]:
    """The modules that a new interpreter has loaded after these statements."""
    program = f"import sys\n{statements}\nprint(*sys.modules, file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(ended.stderr.split())


def test_a_configuration_is_read_without_torch_numpy_and_what_reads_data(config_file: Path) -> None:
    loaded = loaded_by(f"from pathlib import Path\nimport gistnet\ngistnet.load_config(Path({str(config_file)!r}))")
    assert "gistnet.config" in loaded
    assert loaded & {"torch", "transformers", "accelerate", "numpy", "pyarrow", "gistnet.data.sources"} == set()


def test_help_loads_neither_torch_nor_a_configuration() -> None:
    loaded = loaded_by("import gistnet\nfrom gistnet import cli\ncli.app(['--help'], standalone_mode=False)")
    assert "gistnet.cli" in loaded
    assert loaded & {"torch", "transformers", "accelerate", "numpy", "pyarrow", "lance", "gistnet.config"} == set()


def test_gists_in_memory_need_no_extra_and_what_does_names_it(teacher_folder: Path) -> None:
    """Tokens are encoded and an answer is generated; trees and corpora are refused in a sentence."""
    missing = [name for modules in EXTRAS.values() for name in modules]
    program = f"""
for name in {missing}:
    sys.modules[name] = None
import gistnet
from gistnet.errors import MissingPackageError
from gistnet.model.config import GistNetConfig
teacher = gistnet.Teacher.from_pretrained({str(teacher_folder)!r})
config = GistNetConfig(architecture="bottleneck", width=16, heads=2)
model = gistnet.Compressor(teacher, gistnet.GistNet.build(config, teacher, 8, positions="end"))
document = model.compress("seven quiet lanterns over a bridge " * 8)
assert len(model.encode("seven quiet lanterns").vectors) == 2
assert len(model.generate(document, "lantern?", budget=64, max_new_tokens=2).tokens) == 2
for extra, use in (("tree", lambda: gistnet.GistTree), ("data", lambda: gistnet.data.dataset.read_documents("x"))):
    try:
        use()
    except MissingPackageError as error:
        assert f"pip install 'gistnet[{{extra}}]'" in str(error)
    else:
        raise AssertionError(extra)
"""
    assert "gistnet.compressor" in loaded_by(program)


def test_preparing_a_corpus_loads_no_module_of_gistnet_that_is_made_of_torch(config_file: Path) -> None:
    """The tokenizer's library may load torch by itself."""
    made_of_torch = {
        ".".join(("gistnet", *module.relative_to(PACKAGE).with_suffix("").parts))
        for module in PACKAGE.rglob("*.py")
        if re.search(r"^(import|from) torch\b", module.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert "gistnet.model.teacher" in made_of_torch
    loaded = loaded_by(
        f"from gistnet import cli\ncli.app(['prepare', '-c', {str(config_file)!r}], standalone_mode=False)"
    )
    assert "gistnet.data.prepare" in loaded
    assert loaded & made_of_torch == set()
