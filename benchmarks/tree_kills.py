"""Kills the writer of a tree at random moments, with readers attached, and checks that nothing acknowledged is lost.

    python benchmarks/tree_kills.py                 200 kills (about two minutes on two cores)
    python benchmarks/tree_kills.py --kills 20      what the tests run

A writer appends to a few documents, compacts, and now and then makes all gists anew with other weights, until it is
killed (SIGKILL); then the next one goes on. The encoder is a stub, so that nearly all time is spent in writing.
The writer notes in a file what `append` returned for. Tokens are a function of document and position, and gists of
weights, span and index, so that a reader can tell what it must see, to the bit. Each reader, again and again:

    before it refreshes, notes what is acknowledged; after, finds at least that
    reads tokens and the gists of all levels: all by the weights that the tree names, none torn, none missing
    goes back to a generation that it has held for a while: unchanged, though the writer compacts and cleans

At the end the tree is opened for writing once more, and verified with every gist made again. Exits with 1 if anything
was wrong. Results: benchmarks/results/tree-kills.json with --write.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from gistnet.tree.storage.snapshot import Document
from gistnet.tree.stub_encoder import StubEncoder
from gistnet.tree.tree import GistTree

RESULTS = Path(__file__).parent / "results"
DOCUMENTS = ("main", "a chapter", "Ωμέγα")
VOCABULARY = 1000
OPERATIONS = {"append": 0.8, "regist": 0.12, "compact": 0.08}


def content(document: str, start: int, stop: int) -> NDArray[np.int64]:
    """The tokens that a document must have from `start` to `stop`."""
    mixed = (np.arange(start, stop) * 2_654_435_761 + zlib.crc32(document.encode())) % (1 << 32)
    return (mixed >> 9) % VOCABULARY


def encoder(seed: int) -> StubEncoder:
    """The weights of a seed."""
    return StubEncoder(seed, dim=16, span_tokens=8, levels=3, vocabulary_size=VOCABULARY)


class Notes:
    """Lines that a process adds and others read; a line is there whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def add(self, *words: object) -> None:
        """One line, in one write."""
        os.write(self._descriptor, (json.dumps(words) + "\n").encode())

    def lines(self) -> list[list[Any]]:
        """All lines so far."""
        return [json.loads(line) for line in self._path.read_text().splitlines()]


def write_until_killed(folder: Path, notes: Notes, seed: int) -> None:
    """What is to be killed."""
    draw = random.Random(seed)
    notes.add("begin", "open")
    with GistTree.open(folder) as reader:
        weights = int(reader.info().gist_version.removeprefix("stub"))
    tree = GistTree.open(folder, encoder(weights), writable=True)
    notes.add("end", "open")
    while True:
        (operation,) = draw.choices(list(OPERATIONS), list(OPERATIONS.values()))
        notes.add("begin", operation)
        if operation == "regist":
            weights += 1
            tree.regist(encoder(weights))
        elif operation == "compact":
            tree.compact()
        else:
            document = draw.choice(DOCUMENTS)
            done = tree.document(document).n_tokens if document in tree.documents() else 0
            count = tree.append(content(document, done, done + draw.randint(1, 400)), document)
            notes.add("acknowledged", document, count)
        notes.add("end", operation)


def read_until_stopped(folder: Path, notes: Notes, stop: Path, seed: int) -> dict[str, int]:
    """Look at the tree as fast as possible, and fail at the first thing that is not as it must be."""
    draw = random.Random(seed)
    seen: Counter[str] = Counter()
    held: tuple[Document, int, int] | None = None
    with GistTree.open(folder) as tree:
        while not stop.exists():
            acknowledged = {words[1]: words[2] for words in notes.lines() if words[0] == "acknowledged"}
            tree.refresh()
            info = tree.info()
            weights = int(info.gist_version.removeprefix("stub"))
            for name, count in acknowledged.items():
                check(name in tree.documents(), f"{name} was acknowledged and is not there")
                document = tree.document(name)
                check(document.n_tokens >= count, f"{name}: {count} acknowledged, {document.n_tokens} there")
                look(document, weights, draw)
                seen["looks"] += 1
            if acknowledged and (held is None or draw.random() < 0.1):
                name = draw.choice(list(acknowledged))
                held = tree.document(name), weights, tree.document(name).n_tokens
            if held is not None:
                check(held[0].n_tokens == held[2], "a document that was held has grown")
                look(held[0], held[1], draw)
                seen["looks at a held generation"] += 1
            seen["generations"] = info.version
    return dict(seen)


def look(document: Document, weights: int, draw: random.Random) -> None:
    """A random part of a document, or all of it: tokens, and gists of each level by these weights and no others."""
    check(document.levels == 3, f"{document.name}: only {document.levels} levels are complete")
    stub, n = encoder(weights), document.n_tokens
    start = 0 if draw.random() < 0.2 else draw.randrange(max(1, n - 2000))
    stop = n if draw.random() < 0.2 else min(n, start + 2000)
    check(np.array_equal(document.tokens(start, stop), content(document.name, start, stop)), "tokens are wrong")
    for level in range(3):
        per_gist = 8 ** (level + 1)
        first, last = start // per_gist, stop // per_gist
        if first == last:
            break
        below: NDArray[np.generic] = content(document.name, first * per_gist, last * per_gist).reshape(-1, 8)
        for each in range(level + 1):
            at = first * per_gist // 8 ** (each + 1)
            gists = stub.encode(each, below, at)
            below = gists.reshape(-1, 8, 16) if each < level else gists
        found = document.gists(level, first, last)
        check(np.array_equal(found.view(np.uint16), gists.view(np.uint16)), f"gists of level {level} are wrong")


def check(true: bool, sentence: str) -> None:
    """Fail unless it is so; not `assert`, which can be switched off."""
    if not true:
        raise RuntimeError(sentence)


def fork(work: Callable[[], object]) -> int:
    """Do it in a process of its own; returns the process id.

    Forking is quick where a start of Python is not. Lance must not have been used before, since its threads would be
    missing in the new process; this process never uses it.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def succeeded(pid: int) -> bool:
    """Wait for a process to end."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def lives(pid: int) -> bool:
    """Whether a process of ours has not ended."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def kill_once(folder: Path, notes: Notes, draw: random.Random) -> str:
    """Start a writer, kill it at a random moment, and say in the middle of what."""
    before = len(notes.lines())
    pid = fork(lambda: write_until_killed(folder, notes, draw.randrange(1 << 30)))
    if draw.random() < 0.8:  # else it may be killed while it opens the tree
        while ["end", "open"] not in notes.lines()[before:] and lives(pid):
            time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.5))
    os.kill(pid, signal.SIGKILL)
    check(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL, "the writer ended before it was killed")
    marks = [words for words in notes.lines()[before:] if words[0] in ("begin", "end")]
    if not marks:
        return "start"
    return str(marks[-1][1]) if marks[-1][0] == "begin" else "between"


def finish(folder: Path, notes: Notes, report: Path) -> None:
    """Open the tree once more for writing, look at everything, and verify."""
    with GistTree.open(folder) as reader:
        weights = int(reader.info().gist_version.removeprefix("stub"))
    with GistTree.open(folder, encoder(weights), writable=True) as tree:
        for name, count in {w[1]: w[2] for w in notes.lines() if w[0] == "acknowledged"}.items():
            check(tree.document(name).n_tokens >= count, f"{name}: {count} acknowledged, fewer there")
        verified = tree.verify()
        check(verified.ok, "; ".join(verified.problems))
        check(verified.missing == 0, f"{verified.missing} gists are missing")
        summary = {"generation": verified.generation, "tokens": verified.tokens, "gists": verified.gists}
        report.write_text(json.dumps({**summary, "recomputed": verified.recomputed}))


def run(kills: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    """All of it in `folder`, with two readers; returns the counts, or raises at what went wrong."""
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    tree, stop = folder / "tree", folder / "stop"
    notes, results = Notes(folder / "notes"), [folder / f"reader-{n}" for n in range(2)]
    draw, began = random.Random(seed), time.monotonic()
    check(succeeded(fork(lambda: GistTree.create(tree, encoder(1)).close())), "the tree was not created")

    def read(path: Path, reader_seed: int) -> None:
        path.write_text(json.dumps(read_until_stopped(tree, notes, stop, reader_seed)))

    readers = [fork(lambda path=path, n=n: read(path, n)) for n, path in enumerate(results)]  # type: ignore[misc]
    try:
        killed = Counter(kill_once(tree, notes, draw) for _ in range(kills))
    finally:
        stop.touch()
        fine = [succeeded(pid) for pid in readers]
    check(all(fine), "a reader saw what it must not see (above)")
    report = folder / "report"
    check(succeeded(fork(lambda: finish(tree, notes, report))), "the tree is not whole (above)")
    lines = notes.lines()
    return {
        "kills": killed.total(),
        "killed_during": dict(killed.most_common()),
        "appends_acknowledged": sum(words[0] == "acknowledged" for words in lines),
        "regists_finished": sum(words == ["end", "regist"] for words in lines),
        "readers": [json.loads(path.read_text()) for path in results],
        "tree": json.loads(report.read_text()),
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="an empty folder; by default a temporary one")
    parser.add_argument("--write", action="store_true", help="write the results to benchmarks/results/tree-kills.json")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    try:
        results = run(arguments.kills, folder, arguments.seed)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)
    print(json.dumps(results))
    if arguments.write:
        from benchmarks.machine import describe_machine  # imports torch, which the processes do without

        content = {"machine": describe_machine(), **results}
        (RESULTS / "tree-kills.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
