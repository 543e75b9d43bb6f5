"""Failures of the place where a tree lies: crashes, full disks, several writers, places that cannot be written."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pytest

from gistnet.errors import CheckpointError, ConfigError, DataError, StorageError
from gistnet.locks import FileLock
from gistnet.tree import tree as tree_module
from gistnet.tree.storage import catalog, maintenance, writing
from gistnet.tree.storage.catalog import FORMAT_VERSION
from gistnet.tree.storage.tables import Location, Table
from gistnet.tree.tree import GistTree
from tests.stub_encoder import StubEncoder

TOKENS = np.random.default_rng(0).integers(0, 1000, 400)


def n_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def holds(tree: GistTree, n: int) -> bool:
    """Whether the tree is whole, and has exactly the first n of `TOKENS`."""
    document = tree.document()
    return document.n_tokens == n and np.array_equal(document.tokens(0, n), TOKENS[:n]) and tree.verify().ok


def refuse(*arguments: object, **named: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("reopen", [False, True])
def test_rows_that_no_catalog_names_are_put_back(
    tree: GistTree, tmp_path: Path, stub: StubEncoder, monkeypatch: pytest.MonkeyPatch, reopen: bool
) -> None:
    """A crash between the tables and the catalog: what was written is not there, and is not there twice later."""
    tree.append(TOKENS[:100])
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "commit", refuse)
        for _ in range(2):
            with pytest.raises(OSError):
                tree.append(TOKENS[100:200])
    ahead = lance.dataset(str(tmp_path / "tree" / "tokens.lance"))
    assert ahead.count_rows() == 2  # the second try has put back the first
    if reopen:
        tree.close()
        tree = GistTree.open(tmp_path / "tree", stub, writable=True)
    assert holds(tree, 100)
    assert tree.append(TOKENS[100:150]) == 150
    assert holds(tree, 150)
    tree.close()


def test_a_commit_that_happened_but_failed_afterwards_is_not_repeated(
    tree: GistTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.append(TOKENS[:100])
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "_written", refuse)
        with pytest.raises(OSError):
            tree.append(TOKENS[100:150])
    assert tree.append(TOKENS[150:200]) == 200
    assert holds(tree, 200)


def test_everything_is_flushed_before_the_catalog_names_it(
    tree: GistTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Order, not the disk, is what can be tested."""
    flushed: set[str] = set()
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: flushed.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
    )
    root, before = tmp_path / "tree", set((tmp_path / "tree").rglob("*"))
    commit = catalog.commit

    def checked(*arguments: object) -> object:
        new = {p for p in set(root.rglob("*")) - before if p.suffix in (".lance", ".manifest") and p.is_file()}
        assert len(new) == 8  # a data file and a manifest each of tokens, level 0, level 1, passages
        assert {str(path) for path in new} | {str(path.parent) for path in new} <= flushed
        return commit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(catalog, "commit", checked)
    tree.append(TOKENS[:100])
    ours = {p for p in set(root.rglob("*")) - before if p.suffix in (".lance", ".manifest") and p.is_file()}
    assert {str(path) for path in ours} <= flushed and len(ours) == 10
    monkeypatch.setattr(catalog, "commit", commit)
    tree.append([10, 10, *TOKENS[:10]] * 9)
    tree.append(TOKENS[100:110])  # replaces the passages of the last paragraph
    deletions = list(root.rglob("_deletions/*"))
    assert deletions and {str(path) for path in deletions} <= flushed
    tree.compact()
    indices = list(root.rglob("_indices/*/*"))
    assert indices and {str(path) for path in indices if path.parent not in before} <= flushed


def test_a_second_writer_is_refused(tree: GistTree, tmp_path: Path, stub: StubEncoder) -> None:
    sentence = f"process {os.getpid()}"
    for attempt in (
        lambda: GistTree.open(tmp_path / "tree", stub, writable=True),
        lambda: GistTree.create(tmp_path / "tree", stub),
    ):
        with pytest.raises(StorageError, match=sentence):
            attempt()
    code = (
        "import sys; from gistnet.tree.tree import GistTree; from gistnet.errors import StorageError\n"
        "try: GistTree.open(sys.argv[1], writable=True)\nexcept StorageError as error: print(error)"
    )
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path / "tree")], capture_output=True, text=True)
    assert sentence in other.stdout
    assert tree.append([1]) == 1
    tree.close()
    GistTree.open(tmp_path / "tree", stub, writable=True).close()


def first_in_the_way(monkeypatch: pytest.MonkeyPatch, write: Callable[[], None]) -> None:
    """Have another writer come and go between the next opening's look at the tree and its lock."""
    lock = tree_module.lock_for_writing

    def late(folder: Path, what: str) -> FileLock:
        monkeypatch.setattr(tree_module, "lock_for_writing", lock)
        write()
        return lock(folder, what)

    monkeypatch.setattr(tree_module, "lock_for_writing", late)


def test_a_writer_begins_with_what_the_one_before_it_wrote(
    tree: GistTree, tmp_path: Path, stub: StubEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.append(TOKENS[:100])
    tree.close()

    def append() -> None:
        with GistTree.open(tmp_path / "tree", stub, writable=True) as other:
            other.append(TOKENS[100:200])

    first_in_the_way(monkeypatch, append)
    with GistTree.open(tmp_path / "tree", stub, writable=True) as later:
        assert later.append(TOKENS[200:250]) == 250
        assert holds(later, 250)


def test_a_writer_is_refused_whose_gists_were_replaced_before_it_had_the_lock(
    tree: GistTree, tmp_path: Path, stub: StubEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.append(TOKENS[:100])
    tree.close()

    def replace() -> None:
        with GistTree.open(tmp_path / "tree", writable=True) as other:
            other.reencode(StubEncoder(2))

    first_in_the_way(monkeypatch, replace)
    with pytest.raises(CheckpointError, match="stub0002"):
        GistTree.open(tmp_path / "tree", stub, writable=True)
    with GistTree.open(tmp_path / "tree", StubEncoder(2), writable=True) as later:  # the lock was given back
        assert holds(later, 100)


def test_a_reader_stays_at_its_generation_while_another_writes_and_cleans(tree: GistTree, tmp_path: Path) -> None:
    tree.append(TOKENS[:10])
    with GistTree.open(tmp_path / "tree") as early, GistTree.open(tmp_path / "tree") as late:
        for n in range(10, 400, 3):  # compacts by itself, twice
            tree.append(TOKENS[n : n + 3])
            if n == 100:
                late.refresh()
        tree.compact()
        assert holds(early, 10) and holds(late, 103)
        early.refresh()
        assert holds(early, 400)
        generations = Table.open(late._current.location, "catalog").versions()
        assert late.info().version in generations and len(generations) == 3  # and nobody keeps the others
    assert holds(tree, 400)


def test_what_a_dead_reader_left_keeps_no_generation(tree: GistTree, tmp_path: Path) -> None:
    tree.append(TOKENS[:100])
    left = tmp_path / "tree" / "readers" / "2-1-dead"
    left.parent.mkdir(exist_ok=True)
    left.touch()
    assert catalog.pinned_generations(tmp_path / "tree") == set()
    assert not left.exists()


def test_what_a_writer_gave_out_stays_as_it_was(tree: GistTree) -> None:
    tree.append(TOKENS[:100])
    held = tree.document()
    for n in range(100, 400, 4):
        tree.append(TOKENS[n : n + 4])
    tree.compact()
    assert held.n_tokens == 100 and np.array_equal(held.tokens(0, 100), TOKENS[:100])


def test_small_appends_are_compacted(tree: GistTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gistnet.tree.tree.COMPACT_EVERY", 10**9)
    for n in range(300):
        tree.append(TOKENS[n : n + 1])
    assert n_files(tmp_path / "tree") > 1500
    bytes_before = tree.info().token_bytes
    tree.compact()
    assert n_files(tmp_path / "tree") < 40
    assert tree.info().token_bytes < bytes_before / 10
    assert holds(tree, 300)
    assert tree.append(TOKENS[300:400]) == 400 and holds(tree, 400)


def test_compaction_comes_by_itself_and_its_failure_is_not_that_of_the_append(
    tree: GistTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise StorageError("Could not write: No space left on device.")

    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "compact", full)
        for n in range(100):
            assert tree.append(TOKENS[n : n + 1]) == n + 1
    assert n_files(tmp_path / "tree") > 500
    bytes_before = tree.info().token_bytes
    assert tree.append(TOKENS[100:101]) == 101
    assert tree.info().token_bytes < bytes_before / 10
    assert n_files(tmp_path / "tree") < 200
    assert holds(tree, 101)


def test_a_full_disk_loses_nothing(small_disk: Path, stub: StubEncoder) -> None:
    with GistTree.create(small_disk / "tree", stub) as tree:
        tree.append(TOKENS[:100])
        ballast = small_disk / "ballast"
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
        ballast.write_bytes(bytes(free - 8192))
        with pytest.raises(StorageError, match="No space"):
            for _ in range(30):
                tree.append(TOKENS, "another")
        ballast.unlink()
        assert holds(tree, 100)
        assert tree.append(TOKENS[100:200]) == 200
        assert holds(tree, 200)
    with GistTree.open(small_disk / "tree", stub) as reader:
        assert holds(reader, 200)


@pytest.mark.parametrize("table", ["tokens", "gists/stub0001/L0", "catalog"])
def test_a_disk_that_refuses_any_of_the_writes(tree: GistTree, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    """The same without a disk: Lance is made to fail where it writes one of the tables."""
    tree.append(TOKENS[:100])
    write = lance.write_dataset

    def full(rows: object, dataset: lance.LanceDataset, **named: object) -> lance.LanceDataset:
        if str(dataset.uri).endswith(f"{table}.lance"):
            raise OSError("LanceError(IO): No space left on device (os error 28), /home/x/rust/lance-file/src/a.rs:2:9")
        return write(rows, dataset, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(lance, "write_dataset", full)
        with pytest.raises(StorageError, match=rf"{table}\.lance: No space left on device\.$"):
            tree.append(TOKENS[100:200])
    assert holds(tree, 100)
    assert tree.append(TOKENS[100:200]) == 200
    assert holds(tree, 200)


def test_places_that_cannot_be_written(tmp_path: Path, stub: StubEncoder) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "letter.txt").write_text("precious")
    for place, kind, word in (
        ("/proc/tree", StorageError, "/proc/tree"),
        (tmp_path / "file" / "tree", StorageError, "Not a directory"),
        (tmp_path / "file", DataError, "is a file"),
        (tmp_path / "folder", DataError, "letter.txt"),
    ):
        with pytest.raises(kind, match=word):
            GistTree.create(place, stub)
    assert (tmp_path / "folder" / "letter.txt").read_text() == "precious"
    assert len(list((tmp_path / "folder").iterdir())) == 1


def test_a_disk_that_may_only_be_read(small_disk: Path, stub: StubEncoder) -> None:
    with GistTree.create(small_disk / "tree", stub) as tree:
        tree.append(TOKENS[:100])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with GistTree.open(small_disk / "tree", stub) as reader:
        assert holds(reader, 100)
    with pytest.raises(StorageError, match=r"Read-only file system\.$"):
        GistTree.open(small_disk / "tree", stub, writable=True)


def test_places_that_are_no_tree(tmp_path: Path, stub: StubEncoder) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "catalog.lance").mkdir()
    for place in (tmp_path / "nowhere", tmp_path / "file", tmp_path, "file-object-store:///nowhere/at/all"):
        assert not GistTree.exists(place)
        for writable in (False, True):
            with pytest.raises(DataError, match=r"is not a tree|There is no tree"):
                GistTree.open(place, writable=writable)
    GistTree.create(tmp_path / "tree", stub).close()
    assert GistTree.exists(tmp_path / "tree")
    with pytest.raises(DataError, match="is a tree already"):
        GistTree.create(tmp_path / "tree", stub)


def test_a_creation_that_was_interrupted_can_be_repeated(
    tmp_path: Path, stub: StubEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "create", refuse)
        with pytest.raises(OSError) as kept:  # with all that was alive then: the lock was given back, not lost
            GistTree.create(tmp_path / "tree", stub)
    assert kept.tb and not GistTree.exists(tmp_path / "tree")
    with GistTree.create(tmp_path / "tree", stub) as tree:
        tree.append(TOKENS[:50])
        assert holds(tree, 50)


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Lance's way to object stores, over a folder: no locks, no pins, and manifests that are put if absent."""
    return f"file-object-store://{tmp_path}/store"


def test_a_tree_in_an_object_store(store: str, stub: StubEncoder) -> None:
    with GistTree.create(store, stub) as tree:
        for n in range(0, 400, 5):  # compacts by itself
            tree.append(TOKENS[n : n + 5])
        with GistTree.open(store) as reader:
            tree.reencode(StubEncoder(2))
            tree.compact()
            assert holds(reader, 400) and reader.info().gist_version == "stub0001"
            reader.refresh()
            assert holds(reader, 400) and reader.info().gist_version == "stub0002"
        assert holds(tree, 400)


def test_of_two_writers_of_an_object_store_one_wins(store: str, stub: StubEncoder) -> None:
    GistTree.create(store, stub).close()
    with GistTree.open(store, stub, writable=True) as one, GistTree.open(store, stub, writable=True) as two:
        assert one.append(TOKENS[:50]) == 50
        with pytest.raises(StorageError, match="Another writer"):
            two.append([7, 7, 7, 7, 7])
        assert two.append(TOKENS[50:100]) == 100  # which has seen the first by now
        with pytest.raises(StorageError, match="Another writer"):
            one.append([7])
        assert one.append(TOKENS[100:150]) == 150
    with GistTree.open(store, stub) as reader:
        assert holds(reader, 150)


def test_rows_of_another_writer_never_slip_in(store: str, stub: StubEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst moment: another appends to the tables between our look at them and our append."""
    GistTree.create(store, stub).close()
    with GistTree.open(store, stub, writable=True) as one, GistTree.open(store, stub, writable=True) as two:
        newest = Table._newest

        def interrupted(table: Table) -> lance.LanceDataset:
            dataset = newest(table)
            monkeypatch.setattr(Table, "_newest", newest)
            two._current.table("tokens").append(writing.layout.token_rows("main", 0, np.array([7, 7, 7])))
            return dataset

        monkeypatch.setattr(Table, "_newest", interrupted)
        with pytest.raises(StorageError, match="Another writer"):
            one.append(TOKENS[:50])
        assert one.append(TOKENS[:60]) == 60
        assert holds(one, 60)


def test_on_an_object_store_the_last_day_is_kept(
    store: str, stub: StubEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Location(store)
    with GistTree.create(store, stub) as tree, GistTree.open(store) as reader:
        for n in range(0, 40, 4):
            tree.append(TOKENS[n : n + 4])
        tree.reencode(StubEncoder(2))
        tree.compact()
        assert len(Table.open(root, "catalog").versions()) == tree.info().version  # all
        reader.refresh()
        assert holds(reader, 40)
        monkeypatch.setattr(maintenance, "KEPT_SECONDS", -1)
        tree.compact()
        assert len(Table.open(root, "catalog").versions()) == 2
        with pytest.raises(StorageError, match="No such file"):
            catalog.read(root, 2)
        assert not Table.exists(root, "gists/stub0001/L0")
        assert holds(tree, 40)


def test_a_network_that_is_not_there_is_no_damage() -> None:
    """Nobody listens at this address."""
    options = {
        "aws_endpoint": "http://127.0.0.1:1", "allow_http": "true", "client_max_retries": "0",
        "aws_region": "us-east-1", "aws_access_key_id": "a", "aws_secret_access_key": "b",
    }  # fmt: skip
    for look in (GistTree.open, GistTree.exists):
        with pytest.raises(StorageError, match="error sending request"):
            look("s3://bucket/tree", storage_options=options)


@pytest.mark.parametrize(
    "uri",
    [
        "file://{}/a%20tree",
        "FILE://{}/a tree",
        "file:{}/a tree",
        "file://localhost{}/a tree",
        "{}//a tree//",
        "~/a tree",
    ],
)
def test_spellings_of_a_local_folder(
    tmp_path: Path, stub: StubEncoder, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with GistTree.create(uri.format(tmp_path), stub) as tree:
        tree.append(TOKENS[:50])
        with pytest.raises(StorageError, match="one writer"):
            GistTree.open(tmp_path / "a tree", writable=True)
    with GistTree.open(tmp_path / "a tree") as reader:
        assert holds(reader, 50)


@pytest.mark.parametrize(
    "uri", ["", "a\0b", "~nosuchuser/tree", "file://host/tree", "file:///a?b", "file:///a#b", "file://", "file:///"]
)
def test_what_is_no_place_for_a_tree_is_refused(uri: str, stub: StubEncoder) -> None:
    """`file://host/tree`, two slashes for three, would be the folder `/tree`."""
    for use in (GistTree.open, GistTree.exists, lambda uri: GistTree.create(uri, stub)):
        with pytest.raises(ConfigError, match="Got the"):
            use(uri)


@pytest.mark.parametrize("opening", [GistTree.open, lambda path: GistTree.open(path, writable=True)])
def test_another_format_is_refused(tree: GistTree, tmp_path: Path, opening: Callable[[Path], GistTree]) -> None:
    tree.append(TOKENS[:50])
    state = tree._current.catalog.state.model_copy(update={"format": FORMAT_VERSION + 1})
    writing.commit(tree._current, state)
    tree.close()
    with pytest.raises(DataError, match=f"format {FORMAT_VERSION + 1}"):
        opening(tmp_path / "tree")
