"""The commands about trees, with a trained checkpoint: what they write, what they say, what they refuse."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
import yaml
from click.testing import Result
from numpy.typing import NDArray
from safetensors import safe_open
from typer.testing import CliRunner

from gistnet import terminal
from gistnet.cli import trees as commands
from gistnet.config import load_config
from gistnet.context.generate import generate
from gistnet.errors import ConfigError, DataError, GistNetError, StorageError
from gistnet.model.teacher import Teacher
from gistnet.session import LoadEncoder, open_gistnet, open_trained, train
from gistnet.terminal import PlainConsole
from gistnet.tree.compress import CompressTotals, TextFiles, compress_files
from gistnet.tree.ray_compress import ReadyGists
from gistnet.tree.tree import GistTree
from tests.stub_encoder import StubEncoder

BOOK = "the river and the stone walked over a quiet bridge, seven lanterns " * 12
APP = typer.Typer()
APP.command()(commands.compress)
APP.command()(commands.generate)
APP.add_typer(commands.tree_app, name="tree")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, corpus_file: Path) -> Path:
    """A run of one step with a teacher over bytes and spans of 8 tokens."""
    folder = tmp_path_factory.mktemp("trained")
    source = {"kind": "files", "name": "stories", "domain": "narrative", "paths": [str(corpus_file)]}
    config = {
        "run_folder": str(folder / "run"),
        "device": "cpu",
        "teacher": {"name": str(teacher_folder), "precision": "float32"},
        "data": {"folder": str(folder), "window_tokens": 96, "min_tokens": 64, "sources": [source]},
        "gistnet": {"architecture": "bottleneck", "width": 16, "heads": 2},
        "levels": [8],
        "objective": {"horizon_tokens": 12, "positions": "end"},
        "train": {"steps": 1, "windows_per_batch": 1, "segments_per_window": 2, "validation": {"documents": 1}},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    train(load_config(folder / "run.yaml"))
    return folder / "run"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A text of 804 bytes."""
    path = tmp_path / "library" / "book.txt"
    path.parent.mkdir()
    path.write_text(BOOK)
    return path


@pytest.fixture(scope="module")
def compressed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of two documents, not to be written to."""
    folder = tmp_path_factory.mktemp("compressed")
    (folder / "a.txt").write_text(BOOK)
    (folder / "b.txt").write_text("never seven\n" * 9)
    assert run("compress", checkpoint, folder / "*.txt", "--tree", folder / "tree").exit_code == 0
    return folder / "tree"


def tokens_of(teacher: Teacher) -> NDArray[np.int64]:
    assert teacher.tokenizer is not None
    return np.array(teacher.tokenizer.encode_batch([BOOK])[0])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(APP, list(map(str, arguments)))


def refused(*arguments: object) -> GistNetError:
    """The error with which a command ended."""
    result = run(*arguments)
    assert isinstance(result.exception, GistNetError), result.output
    return result.exception


def test_compress_makes_a_tree_and_a_second_call_finds_it(checkpoint: Path, book: Path, tmp_path: Path) -> None:
    first = run("compress", checkpoint, book, "--tree", tmp_path / "tree")
    assert first.exit_code == 0, first.output
    assert first.stdout == f"1 of 1 documents are in {tmp_path / 'tree'}: 804 tokens appended, 0 found there.\n"
    second = run("compress", checkpoint, book, "--tree", tmp_path / "tree")
    assert "0 tokens appended, 804 found there." in second.stdout
    trained = open_trained(checkpoint)
    spans = tokens_of(trained.teacher)[:800].reshape(100, 8)
    with GistTree.open(tmp_path / "tree") as tree:
        gists = tree.document("library/book.txt").gists(0, 0, 100)
    assert np.array_equal(gists, LoadEncoder(checkpoint)().encode(0, spans, 0))
    expected = trained.gistnet(trained.teacher.embed(torch.from_numpy(spans)))
    assert np.allclose(gists, expected.detach().numpy(), atol=2e-2, rtol=1e-3)


def test_documents_change_and_come_by_name_and_from_the_input(checkpoint: Path, book: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    arguments = ("compress", str(checkpoint), "-", "--tree", str(tree), "--name", "notes")
    assert CliRunner().invoke(APP, arguments, input="a quiet bridge").exit_code == 0
    assert "--replace" in str(CliRunner().invoke(APP, arguments, input="a quiet river").exception)
    result = CliRunner().invoke(APP, (*arguments, "--replace"), input="a quiet river")
    assert "5 tokens appended, 8 found there. 1 took the place" in result.stdout, result.output
    assert run("compress", checkpoint, book.parent, "--tree", tree).exit_code == 0
    with GistTree.open(tree) as opened:
        assert {name: opened.document(name).n_tokens for name in opened.documents()} == {
            "notes": 13,
            "library/book.txt": 804,
        }


def test_documents_without_text_are_counted_apart(checkpoint: Path, book: Path, tmp_path: Path) -> None:
    lines = [{"id": "a", "text": "the river"}, {"id": "b", "text": ""}, {"id": "c", "text": "a stone"}]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for _ in range(2):  # the second finds what the first made
        result = run("compress", checkpoint, tmp_path / "docs.jsonl", "--tree", tmp_path / "tree")
        assert "2 of 3 documents are in" in result.stdout
        assert "1 without text" in result.stdout
    with GistTree.open(tmp_path / "tree") as tree:
        assert tree.documents() == ["a", "c"]


def test_workers_are_those_of_ray(
    checkpoint: Path, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def compress(
        files: TextFiles,
        tree: GistTree,
        ready: ReadyGists,
        make_encoder: LoadEncoder,
        **options: float,
    ) -> CompressTotals:
        asked.update(options, paths=files.paths, encoder=make_encoder().info.fingerprint)
        return compress_files(files, tree, ready)

    monkeypatch.setattr("gistnet.tree.ray_compress.compress_files_with_ray", compress)
    options = ("--workers", 3, "--gpus-per-worker", 0.5)
    assert run("compress", checkpoint, book, "--tree", tmp_path / "tree", *options).exit_code == 0
    fingerprint = LoadEncoder(checkpoint)().info.fingerprint
    expected = {"workers": 3, "gpus_per_worker": 0.5, "replace": False}
    assert asked == expected | {"paths": (str(book),), "encoder": fingerprint}


def test_info_counts_documents_tokens_and_gists(compressed: Path) -> None:
    lines = [line.replace("│", " ").split() for line in run("tree", "info", compressed).stdout.splitlines()]
    assert next(line[:2] for line in lines if line[:1] == ["tokens"]) == ["tokens", "912"]
    assert next(line[4:6] for line in lines if line[:1] == ["gists"]) == ["113", "8"], "100 and 13"
    assert ["documents", "2"] in lines


def test_verify_reads_everything_and_makes_the_gists_again(compressed: Path, checkpoint: Path) -> None:
    result = run("tree", "verify", compressed, "--checkpoint", checkpoint)
    assert result.exit_code == 0, result.output
    assert "Read 2 documents, 912 tokens, 113 gists of level 0." in result.stdout
    assert "Made 113 gists again." in result.stdout
    assert "Nothing is damaged." in result.stdout


def test_verify_finds_a_flipped_bit_and_exits_with_1(tmp_path: Path) -> None:
    encoder = StubEncoder()
    with GistTree.create(tmp_path / "tree", encoder) as tree:
        tree.append(np.arange(400))
    (data,) = (tmp_path / "tree" / "tokens.lance" / "data").iterdir()
    content = bytearray(data.read_bytes())
    place = content.find(np.arange(100, 110, dtype="<u4").tobytes())
    assert place >= 0
    content[place] ^= 1
    data.write_bytes(content)
    result = run("tree", "verify", tmp_path / "tree")
    assert result.exit_code == 1
    assert "The table tokens is damaged at token 0 of 'main'" in result.stderr
    assert "Nothing is damaged" not in result.stdout


def test_search_shows_passages_with_their_documents(compressed: Path) -> None:
    result = run("tree", "search", compressed, "never", "-k", 2)
    assert result.exit_code == 0, result.output
    assert "b.txt" in result.stdout and "never seven" in result.stdout
    assert "a.txt" not in result.stdout
    nothing = run("tree", "search", compressed, "the of")
    assert nothing.stdout == "" and "No passage" in nothing.stderr
    assert "in its index" in run("tree", "index", compressed).stdout
    meant = run("tree", "search", compressed, "never", "--meaning", "--document", "b.txt", "-k", 1)
    assert "never seven" in meant.stdout, meant.output


@pytest.mark.parametrize("is_terminal", [True, False])
def test_search_marks_words_that_count_and_escapes_what_drives_a_terminal(
    is_terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GistTree.create(tmp_path / "tree", StubEncoder()) as tree:
        tree.append("the seven lanterns \x1b]0;x\x07 of the bridge", "a\x1bb")
    output = io.StringIO()
    monkeypatch.setattr(terminal, "out", PlainConsole(file=output, force_terminal=is_terminal, width=60))
    assert run("tree", "search", tmp_path / "tree", "the lanterns").exit_code == 0
    shown = output.getvalue()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "\x1b" not in plain and "\x07" not in plain
    assert "\\x1b]0;x\\x07" in plain and "a\\x1bb" in plain
    assert ("\x1b[1;7mlanterns" in shown) == is_terminal and "7mthe" not in shown


def test_list_names_the_documents(compressed: Path) -> None:
    lines = [line.replace("│", " ").split() for line in run("tree", "list", compressed).stdout.splitlines()]
    assert ["a.txt", "804"] in lines and ["b.txt", "108"] in lines


def test_documents_are_removed_all_or_none(tmp_path: Path) -> None:
    with GistTree.create(tmp_path / "tree", StubEncoder()) as tree:
        for name in ("one", "two", "three"):
            tree.append("some words of " + name, name)
    assert "did you mean 'three'" in str(refused("tree", "remove", tmp_path / "tree", "one", "thre"))
    result = run("tree", "remove", tmp_path / "tree", "one", "three", "one")
    assert result.stdout == f"Removed 2 of 3 documents from {tmp_path / 'tree'}.\n"
    with GistTree.open(tmp_path / "tree") as tree:
        assert tree.documents() == ["two"] and tree.verify().ok


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_export_writes_what_the_tree_holds(compressed: Path, checkpoint: Path, tmp_path: Path, suffix: str) -> None:
    name = "a.txt"
    tokens, gists = tmp_path / f"tokens{suffix}", tmp_path / f"gists{suffix}"
    range_ = ("--document", name, "--start", 5)
    assert "tokens of shape [799]" in run("tree", "export", compressed, tokens, *range_).stdout
    assert (
        "gists of shape [2, 32]" in run("tree", "export", compressed, gists, *range_, "--stop", 7, "--level", 0).stdout
    )
    with GistTree.open(compressed) as tree:
        expected = tree.document(name).gists(0, 5, 7)
        version = tree.info().gist_version
    if suffix == ".npy":
        assert np.array_equal(np.load(tokens), tokens_of(open_trained(checkpoint).teacher)[5:])
        assert np.array_equal(np.load(gists), expected)
        return
    with safe_open(gists, "numpy") as file:
        assert np.array_equal(file.get_tensor("gists"), expected)
        metadata = file.metadata()
    assert metadata.items() >= {"document": name, "level": "0", "start": "5", "stop": "7"}.items()
    assert metadata["gist_version"] == version


def test_the_model_answers_from_a_document_of_the_tree(
    checkpoint: Path, compressed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer and its context are those of `generate` for the same document of the tree."""
    name = "a.txt"
    caplog.set_level("INFO", "gistnet")
    result = run("generate", "The river", "--tree", compressed, "--document", name, "--budget", 150,
                 "--max-new-tokens", 9, "--explain")  # fmt: skip
    teacher, _ = open_gistnet(checkpoint)
    with GistTree.open(compressed) as tree:
        document = tree.document(name)
        expected = generate(document, "The river", teacher=teacher, budget=150, max_new_tokens=9)
    assert expected.context.positions == "compact"  # 804 tokens are more than the teacher's 256 positions
    assert len(expected.tokens) == 9
    assert result.stdout.strip() == expected.text.strip()
    covered = expected.context.plan.tokens_covered
    assert f"Read {covered:,} of 804 tokens as {len(expected.context)} vectors" in caplog.text
    assert expected.selection is not None
    assert f"opened for the prompt: {expected.selection.sources}" in caplog.text
    explained = expected.selection.explain(document, teacher.tokenizer)
    assert result.stderr.splitlines()[: len(explained)] == explained


def test_settings_are_those_of_transformers(compressed: Path) -> None:
    asked = "generate", "The river", "--tree", compressed, "--document", "a.txt", "--budget", 99, "--max-new-tokens", 3
    assert run(*asked, "eos_token_id=[0]", "do_sample=true", "temperature=0.5").exit_code == 0
    assert "transformers refuses" in str(refused(*asked, "temperature=-1", "do_sample=true"))


def test_a_question_without_a_document_is_put_to_all_of_them(
    compressed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first passages with the word are those of b.txt, and nothing of the others' ends is read."""
    caplog.set_level("INFO", "gistnet")
    result = run("generate", "seven", "--tree", compressed, "--budget", 80, "--max-new-tokens", 3, "--explain")
    assert result.exit_code == 0, result.output
    assert "opened for the prompt: b.txt" in caplog.text
    assert "a.txt" not in result.stderr.split("Read ")[0]


def test_a_saved_gistnet_is_a_checkpoint_too(checkpoint: Path, book: Path, tmp_path: Path) -> None:
    folder = open_trained(checkpoint).folder
    teacher, gistnet = open_gistnet(folder)
    of_run, expected = open_gistnet(checkpoint)
    assert gistnet.fingerprint == expected.fingerprint
    assert teacher.fingerprint == of_run.fingerprint  # float32 as in the run, where a teacher is bfloat16 by default
    assert teacher.dtype == torch.float32
    shutil.copytree(folder, tmp_path / "elsewhere")
    tree = tmp_path / "tree"
    assert run("compress", tmp_path / "elsewhere", book, "--tree", tree).exit_code == 0
    assert run("tree", "verify", tree, "--checkpoint", folder).stdout.endswith("Nothing is damaged.\n")
    edited = json.loads((tmp_path / "elsewhere" / "config.json").read_text())
    edited["teacher"]["weights_hash"] = "0" * 64
    (tmp_path / "elsewhere" / "config.json").write_text(json.dumps(edited))
    assert "Got the teacher" in str(refused("compress", tmp_path / "elsewhere", book, "--tree", tree))


def test_what_needs_no_model_loads_no_torch(compressed: Path, tmp_path: Path) -> None:
    arguments = [
        ["info"],
        ["list"],
        ["search", "river"],
        ["verify"],
        ["export", str(tmp_path / "x.npy"), "--document", "a.txt"],
    ]
    program = f"""
import sys
from gistnet import terminal
from gistnet.cli import trees as commands
for command, *rest in {arguments}:
    commands.tree_app([command, {str(compressed)!r}, *rest], standalone_mode=False)
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_bad_input_is_one_sentence(checkpoint: Path, compressed: Path, book: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "file").write_text("not a folder")
    question = ("generate", "--tree", compressed, "--document", "a.txt")
    search = ("tree", "search", compressed)
    cases: list[tuple[type[GistNetError], str, tuple[object, ...]]] = [
        (DataError, "latin.txt is not UTF-8", ("compress", checkpoint, tmp_path / "latin.txt", "--tree", tree)),
        (DataError, "empty.txt is empty", ("compress", checkpoint, tmp_path / "empty.txt", "--tree", tree)),
        (DataError, "no file matches", ("compress", checkpoint, tmp_path / "none.txt", "--tree", tree)),
        (StorageError, "Could not", ("compress", checkpoint, book, "--tree", "/proc/none/tree")),
        (DataError, "file is a file, expected a folder", ("compress", checkpoint, book, "--tree", tmp_path / "file")),
        (DataError, "is not a tree", ("tree", "info", tmp_path)),
        (DataError, "is not a tree", ("generate", "x", "--tree", tmp_path)),
        (ConfigError, "budget of 5 vectors", (*question, "x", "--budget", 5)),
        (DataError, "empty prompt", (*question, " ")),
        (ConfigError, "'temperature'", (*question, "x", "temperature")),
        (ConfigError, "'budget=3'", (*question, "x", "budget=3")),
        (ConfigError, "generation option 'warmth'", (*question, "x", "warmth=3")),
        (DataError, "empty query", (*search, " ")),
        (DataError, "did you mean 'a.txt'", (*search, "x", "--document", "a.tx")),
        (ConfigError, "2 documents, expected --document", ("tree", "export", compressed, tmp_path / "x.npy")),
        (DataError, "document ''", ("generate", "x", "--tree", compressed, "--document", "")),
        (DataError, "document ''", ("tree", "export", compressed, tmp_path / "x.npy", "--document", "")),
        (DataError, "document ''", (*search, "x", "--document", "")),
        (ConfigError, "path ''", ("generate", "x", "--tree", "")),
        (ConfigError, "path ''", ("tree", "info", "")),
        (ConfigError, "path ''", ("compress", checkpoint, book, "--tree", "")),
        (ConfigError, "path ''", ("compress", "", book, "--tree", tree)),
        (ConfigError, "path ''", ("tree", "verify", compressed, "--checkpoint", "")),
        (ConfigError, "path ''", ("tree", "export", compressed, "", "--document", "a")),
        (ConfigError, "path '~nosuchuser/x", ("compress", checkpoint, "~nosuchuser/x", "--tree", tree)),
        (ConfigError, "empty name", ("compress", checkpoint, "", "--tree", tree)),
        (ConfigError, "--name", ("compress", checkpoint, "-", "--tree", tree)),
        (ConfigError, "alone", ("compress", checkpoint, "-", book, "--tree", tree, "--name", "x")),
        (ConfigError, "empty name", ("compress", checkpoint, book, "--tree", tree, "--text-field", "")),
        (ConfigError, "x.txt, expected a name that ends in .npy", export(compressed, tmp_path / "x.txt")),
        (DataError, "level 4, expected", export(compressed, tmp_path / "x.npy", "--level", 4)),
        (DataError, "range 0 to 9999", export(compressed, tmp_path / "x.npy", "--stop", 9999)),
        (StorageError, "Could not write", export(compressed, tmp_path / "file" / "x.npy")),
    ]
    for kind, words, arguments in cases:
        error = refused(*arguments)
        assert isinstance(error, kind), arguments
        assert words in str(error)
        assert "\n" not in str(error)
    assert not (tmp_path / "x.npy").exists()
    assert not tree.exists()


def export(tree: Path, out: Path, *options: object) -> tuple[object, ...]:
    return ("tree", "export", tree, out, "--document", "a.txt", *options)
