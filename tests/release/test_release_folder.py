"""Names of releases: where they are found, and what is said of unknown ones."""

import shutil
from pathlib import Path

import pytest

from gistnet.errors import CheckpointError, ConfigError
from gistnet.model.gistnet import GistNet
from gistnet.release_folder import find_folder, included_releases
from gistnet.session import open_gistnet, open_trained
from tests.conftest import Command
from tests.teachers import tiny_teacher


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the package is, as far as releases are looked for."""
    package = tmp_path / "installed" / "gistnet"
    package.mkdir(parents=True)
    monkeypatch.setattr("gistnet.release_folder.RELEASES", package / "released")
    return package


def test_a_name_is_the_release_inside_the_package(
    package: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(release, package / "released" / "tiny-32")
    (package / "released" / ".tiny-33.partial-1" / "held-out").mkdir(parents=True)  # one that is being made
    (package / "released" / "README.md").write_text("what is here", encoding="utf-8")
    assert list(included_releases()) == ["tiny-32"]
    assert find_folder("tiny-32").resolve() == folder.resolve()
    trained = open_trained(Path("tiny-32"))
    assert trained.folder == folder.resolve()
    by_name = GistNet.from_pretrained("tiny-32", trained.teacher)
    assert by_name.fingerprint == trained.gistnet.fingerprint == open_gistnet(Path("tiny-32"))[1].fingerprint
    assert len(by_name.levels) == 2

    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-32").mkdir()  # a folder of the name goes before it
    assert find_folder("tiny-32") == Path("tiny-32")


def test_an_unknown_name_is_told_which_there_are(package: Path, release: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no folder 'tiny-99'.* this package comes without releases\.$"):
        find_folder("tiny-99")
    for name in ("tiny-32", "tiny-64"):
        shutil.copytree(release, package / "released" / name)
    expected = r"no folder 'tiny-99' and no release of that name; expected a folder, or one of .* tiny-32, tiny-64\.$"
    teacher = tiny_teacher("llama")
    for find in (find_folder, open_gistnet, open_trained, lambda path: GistNet.from_pretrained(path, teacher)):
        with pytest.raises(CheckpointError, match=expected):
            find(Path("tiny-99"))


def test_paths_are_left_alone(package: Path) -> None:
    for path in ("runs/demo/checkpoints", "../demo", "/nowhere/at/all", "/nowhere", ".", ".."):
        assert find_folder(path) == Path(path)
    with pytest.raises(CheckpointError, match="/nowhere/demo is not a saved GistNet"):
        GistNet.from_pretrained("/nowhere/demo", tiny_teacher("llama"))


def test_a_tilde_is_the_home_folder_and_an_empty_name_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/reader")
    assert find_folder("~/runs") == Path("/home/reader/runs")
    for use in (find_folder, lambda name: GistNet.from_pretrained(name, tiny_teacher("llama"))):
        with pytest.raises(ConfigError, match="''"):
            use("")


def test_a_document_is_compressed_by_name_and_asked_about(
    gistnet: Command, package: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(release, package / "released" / "tiny-32")
    text = tmp_path / "story.txt"
    text.write_text("the river walked over seven quiet stones " * 5, encoding="utf-8")
    tree = tmp_path / "story.tree"
    compressed = gistnet("compress", "tiny-32", text, "--tree", tree)
    assert compressed.status == 0, compressed.err
    assert "205 tokens appended" in compressed.out
    verified = gistnet("tree", "verify", tree, "--checkpoint", "tiny-32")
    # 25 whole spans of 8 bytes, and 3 of 8 such gists.
    assert verified.out.splitlines()[0] == "Read 1 documents, 205 tokens, 25 gists of level 0, 3 gists of level 1."
    answered = gistnet("generate", "Who?", "--tree", tree, "--budget", "64", "--max-new-tokens", "2")
    assert answered.status == 0, answered.err
    monkeypatch.chdir(tmp_path)
    assert gistnet("report", "tiny-32").status == 0
    assert (tmp_path / "tiny-32.html").is_file()
    refused = gistnet("compress", "tiny-99", text, "--tree", tree)
    assert refused.status == 1
    assert "one of the releases tiny-32." in refused.err
