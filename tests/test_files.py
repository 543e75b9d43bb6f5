"""Atomic writing under a killed writer, a full disk, a raised exception and two writers at once."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gistnet.errors import StorageError
from gistnet.files import (
    atomic_folder,
    lock_for_writing,
    require_writable,
    storage_errors,
    sweep_leftovers,
    write_bytes,
    write_json,
    write_text,
)
from gistnet.locks import FileLock
from tests.small_disk import mounted


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def start(script: str, *arguments: Path) -> subprocess.Popen[str]:
    """Run `script` in a Python of its own and return once it has printed a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()  # also collects the dead process, whose id would otherwise look alive


def test_a_folder_appears_whole_at_the_end_of_the_block(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "result"
    with atomic_folder(folder) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("alpha")
        assert not folder.exists()
    assert (folder / "inner" / "a").read_text() == "alpha"
    assert names(folder.parent) == ["result"]


def test_an_exception_in_the_block_leaves_nothing_and_is_not_translated(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic_folder(tmp_path / "result") as temporary:
        (temporary / "a").write_text("alpha")
        raise KeyError("a bug")
    assert names(tmp_path) == []


def test_the_first_writer_wins_and_the_second_leaves_no_trace(tmp_path: Path) -> None:
    folder = tmp_path / "result"
    with atomic_folder(folder) as second:
        (second / "a").write_text("second")
        (second / "b").write_text("second")
        with atomic_folder(folder) as first:
            (first / "a").write_text("first")
    assert names(tmp_path) == ["result"]
    assert names(folder) == ["a"]
    assert (folder / "a").read_text() == "first"


def test_a_file_in_the_place_of_the_folder_is_an_error_and_stays(tmp_path: Path) -> None:
    (tmp_path / "result").write_text("precious")
    with pytest.raises(StorageError, match="result"), atomic_folder(tmp_path / "result"):
        pass
    assert (tmp_path / "result").read_text() == "precious"
    assert names(tmp_path) == ["result"]


STALL_IN_FOLDER = """
import sys
from pathlib import Path
from gistnet.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as temporary:
    (temporary / "a").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_leaves_no_folder_and_the_next_one_sweeps_up(tmp_path: Path) -> None:
    folder = tmp_path / "result"
    kill(start(STALL_IN_FOLDER, folder))
    assert not folder.exists()
    assert len(names(tmp_path)) == 1
    with atomic_folder(folder) as temporary:
        (temporary / "a").write_text("whole")
    assert names(tmp_path) == ["result"]
    assert (folder / "a").read_text() == "whole"


def test_the_work_of_a_living_writer_is_not_swept(tmp_path: Path) -> None:
    """A second writer finishes first; the living one then finds the folder made and gives way."""
    folder = tmp_path / "result"
    living = start(STALL_IN_FOLDER, folder)
    sweep_leftovers(tmp_path)
    with atomic_folder(folder) as temporary:
        (temporary / "a").write_text("whole")
    assert len(names(tmp_path)) == 2
    living.communicate("")
    assert living.returncode == 0
    assert names(tmp_path) == ["result"]
    assert (folder / "a").read_text() == "whole"


needs_namespaces = pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run(["unshare", "--pid", "--fork", "true"]).returncode != 0,
    reason="this system does not let us number processes anew, as a container does",
)


@needs_namespaces
def test_the_work_of_another_container_is_not_swept(tmp_path: Path) -> None:
    """It has the name of this machine, and its processes have numbers that do not run here."""
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", STALL_IN_FOLDER, tmp_path / "result"]
    living = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert living.stdout is not None
    assert living.stdout.readline()
    sweep_leftovers(tmp_path)
    sweep_leftovers(tmp_path, "result")
    living.communicate("")
    assert living.returncode == 0
    assert names(tmp_path) == ["result"]
    assert names(tmp_path / "result") == ["a"]


def leftover(folder: Path, name: str) -> Path:
    """What a killed writer of `name` leaves."""
    path = folder / f".{name}.partial-{len(names(folder)):08x}"
    path.mkdir()
    (path / "lock").touch()
    (path / name).touch()
    return path


def test_sweeping_takes_what_nobody_holds_and_nothing_else(tmp_path: Path) -> None:
    for name in ("result", "result", "re[s]ult"):
        leftover(tmp_path, name)
    (tmp_path / ".result.partial-ffffffff").mkdir()  # killed before it had a lock
    held = leftover(tmp_path, "result")
    lock = FileLock(held / "lock")
    other = leftover(tmp_path, "other")
    (tmp_path / "result").write_text("")
    sweep_leftovers(tmp_path, "re[s]ult")
    assert len(names(tmp_path)) == 6
    sweep_leftovers(tmp_path, "result")
    assert names(tmp_path) == sorted([held.name, other.name, "result"])
    sweep_leftovers(tmp_path)
    assert names(tmp_path) == sorted([held.name, "result"])
    lock.close()


def test_a_file_system_without_locks_can_be_written_and_is_not_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lustre as many clusters mount it."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    left = leftover(tmp_path, "result")
    monkeypatch.setattr(fcntl, "flock", refuse)
    write_text(tmp_path / "result", "new")
    lock_for_writing(tmp_path, "run", required=False)
    with pytest.raises(StorageError, match="not implemented"):
        lock_for_writing(tmp_path, "tree")
    assert (tmp_path / "result").read_text() == "new"
    assert left.exists()


HOLD = """
import sys
from pathlib import Path
from gistnet.files import lock_for_writing
lock = lock_for_writing(Path(sys.argv[1]), "run")
print("holding", flush=True)
sys.stdin.read()
"""


def test_a_folder_has_one_writer_until_it_ends_or_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    holder = start(HOLD, folder)
    with pytest.raises(StorageError, match=f"process {holder.pid}"):
        lock_for_writing(folder, "run")
    kill(holder)
    lock = lock_for_writing(folder, "run")
    with pytest.raises(StorageError, match="one writer"):
        lock_for_writing(folder, "run")
    lock.close()
    lock_for_writing(folder, "run").close()


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to("there/target")
    for text in ("new", "newer"):
        write_text(link, text)
        assert (tmp_path / "there" / "target").read_text() == text
    assert link.is_symlink()
    assert names(tmp_path / "there") == ["target"]


def test_permissions_stay(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    write_text(path, "new")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == "new"


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE)
    require_writable(pipe)
    write_bytes(pipe, b"new")
    assert reader.communicate()[0] == b"new"
    assert pipe.is_fifo()
    assert names(tmp_path) == ["pipe"]


def test_the_null_device_stays_one() -> None:
    require_writable(Path("/dev/null"))
    write_text(Path("/dev/null"), "lost")
    assert Path("/dev/null").is_char_device()


def test_what_could_not_be_written_is_found_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "circle").symlink_to("circle")
    for path in (
        tmp_path / "file" / "out",
        tmp_path,
        Path("/proc/none/out"),
        tmp_path / ("x" * 300),
        tmp_path / "circle",
    ):
        with pytest.raises(StorageError, match="Could not write"):
            require_writable(path)
        with pytest.raises(StorageError, match="Could not write"):
            write_text(path, "new")
    require_writable(tmp_path / "deep" / "out")
    require_writable(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
    assert names(tmp_path) == ["circle", "deep", "file"]
    assert names(tmp_path / "deep") == []


REPLACE_FOREVER = """
import itertools, sys
from pathlib import Path
from gistnet.files import write_json
for number in itertools.count():
    write_json(Path(sys.argv[1]), {"number": number, "again": [number] * 20_000})
    if number == 3:
        print("writing", flush=True)
"""


def test_a_file_whose_writer_is_killed_is_one_version_or_the_next(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    kill(start(REPLACE_FOREVER, path))
    value = json.loads(path.read_text())
    assert value["number"] >= 3
    assert value["again"] == [value["number"]] * 20_000


def test_text_is_replaced_as_a_whole_in_utf8(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "text"
    write_text(path, "a long first version")
    write_text(path, "ΔNLL")
    assert path.read_bytes() == b"\xce\x94NLL"
    assert names(path.parent) == ["text"]


def test_a_reader_of_the_old_file_keeps_it_while_the_new_one_is_written(tmp_path: Path) -> None:
    """The old file is never opened for writing: who has it open still reads all of it."""
    path = tmp_path / "text"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_json_comes_back_and_keeps_its_characters(tmp_path: Path) -> None:
    value = {"Δ": [0.1 + 0.2, None, True], "b": {"c": "d"}}
    write_json(tmp_path / "value.json", value)
    assert json.loads((tmp_path / "value.json").read_text(encoding="utf-8")) == value
    assert "Δ" in (tmp_path / "value.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_refuses_numbers_that_are_not_finite_and_keeps_the_old_file(tmp_path: Path, number: float) -> None:
    write_json(tmp_path / "value.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "value.json", {"score": number})
    assert (tmp_path / "value.json").read_text() == "1\n"


def test_only_errors_of_the_system_are_translated() -> None:
    with (
        pytest.raises(StorageError, match=r"^Could not read some/file: Permission denied\.$") as caught,
        storage_errors("read", Path("some/file")),
    ):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    assert isinstance(caught.value.__cause__, PermissionError)
    with pytest.raises(ZeroDivisionError), storage_errors("read", Path("some/file")):
        raise ZeroDivisionError


@pytest.mark.parametrize("operation", ["fsync", "rename"])
def test_a_disk_that_refuses_late_leaves_the_folder_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """Some systems report a full disk only when data is flushed, or when the folder gets its name."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, operation, refuse)
    message = r"Could not write .*result: No space left on device\."
    with pytest.raises(StorageError, match=message), atomic_folder(tmp_path / "result") as temporary:
        (temporary / "a").write_text("alpha")
    assert names(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB, where the system lets us have one."""
    with mounted(tmp_path / "disk", "64k") as disk:
        yield disk


def test_a_folder_that_does_not_fit_on_the_disk(small_disk: Path) -> None:
    """One sentence; the earlier folder stays; the space is free again."""
    with atomic_folder(small_disk / "earlier") as temporary:
        (temporary / "a").write_bytes(b"a" * 10_000)
    message = r"^Could not write .*result: No space left on device\.$"
    with pytest.raises(StorageError, match=message), atomic_folder(small_disk / "result") as temporary:
        for number in range(20):
            (temporary / str(number)).write_bytes(b"b" * 10_000)
    assert names(small_disk) == ["earlier"]
    assert (small_disk / "earlier" / "a").read_bytes() == b"a" * 10_000
    with atomic_folder(small_disk / "result") as temporary:
        (temporary / "fits").write_bytes(b"b" * 30_000)


def test_a_file_that_does_not_fit_on_the_disk(small_disk: Path) -> None:
    path = small_disk / "text"
    write_text(path, "earlier")
    with pytest.raises(StorageError, match=r"^Could not write .*text: No space left on device\.$"):
        write_text(path, "x" * 100_000)
    assert path.read_text() == "earlier"
    assert names(small_disk) == ["text"]
