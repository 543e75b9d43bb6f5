"""Trees on disk: how fast they are written, read and searched, and that no kill loses or tears anything.

    python benchmarks/tree.py speed --quick           20,000 tokens, and a tree of 50,000 (two minutes on two cores)
    python benchmarks/tree.py speed                   200,000 tokens, and trees of one and twenty million
    python benchmarks/tree.py kills                   200 kills (two minutes)
    python benchmarks/tree.py kills --kills 20        what the tests run

`speed` has parts, each in a process of its own, so that its peak memory is its own. Results:
benchmarks/results/tree-cpu.json.

    compress    `compress_files` with the real teacher: tokens a second, bytes on disk by level, peak memory; and how
                long a second run takes to find that all is there
    pieces      the same tokens appended in 100 pieces of random lengths: every bit must be that of `compress`
    first token from a question to the first token of an answer, within 512 vectors, beside as many recent tokens
    library     trees of 300 documents whose gists a stub makes, of the size of the teacher's: milliseconds (50th and
                99th percentile) to select what a question needs of a document, to find passages in all of them, to read
                64 random nodes, and to append 1,000 tokens, index and compaction included; bytes and peak memory

`kills`: a writer appends to a few documents, compacts, and now and then re-encodes everything with other weights, until
it is killed (SIGKILL); then the next one goes on. The encoder is a stub, so that nearly all time is spent in writing.
The writer notes in a file what `append` returned for. Tokens are a function of document and index, and gists of
weights, span and index, so that a reader can tell what it must see, to the bit. Each of two readers, again and again:

    before it refreshes, notes what is acknowledged; after, finds at least that
    reads tokens and the gists of all levels: all by the weights that the tree names, none torn, none missing
    finds the passages that have the last token's word, and only such
    goes back to a generation that it has held for a while: unchanged, though the writer compacts and cleans

At the end the tree is opened for writing once more, and verified with every gist made again. Exits with 1 if anything
was wrong. Results: benchmarks/results/tree-kills.json with --write.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import RESULTS, in_own_process, peak_megabytes, timed
from gistnet.context.generate import generate
from gistnet.context.plan import Plan, Raw
from gistnet.context.select import select
from gistnet.data.installation import read_installation
from gistnet.data.tokenise import pieces_of
from gistnet.files import write_json
from gistnet.machine import describe_machine
from gistnet.model.config import GistNetConfig, TeacherConfig
from gistnet.model.gistnet import GistNet
from gistnet.model.loading import load_tokenizer
from gistnet.model.teacher import Teacher
from gistnet.tree.compress import TextFiles, compress_files
from gistnet.tree.encoder import Encoder, encode_levels
from gistnet.tree.gist_encoder import GistEncoder
from gistnet.tree.storage.snapshot import TreeDocument
from gistnet.tree.tree import GistTree
from tests.stub_encoder import StubEncoder

# Speed ----------------------------------------------------------------------------------------------------------------

PIECES, NODES = 100, 64
BOOK, LIBRARY, TREE = "book.txt", "library.txt", "tree"
LIBRARIES = 1_000_000, 20_000_000
"""Tokens of the large trees."""
DOCUMENTS_OF_A_LIBRARY = 300
BUDGET, WORDS_ASKED, APPENDED, QUESTIONS = 512, 12, 1000, 11
"""Vectors of a selection, tokens of a question, tokens that are appended at once, and questions to a first token."""


def run_speed(asked: argparse.Namespace) -> None:
    """Run each part in a process of its own, print the figures, write the results."""
    results: dict[str, Any] = {"machine": describe_machine(), "text": "installation", "gistnet": "untrained bottleneck"}
    results["load_average_at_start"] = os.getloadavg()[0]  # what else the machine was doing
    book_tokens, tree_tokens, repeats = (20_000, (50_000,), 20) if asked.quick else (200_000, LIBRARIES, 200)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_own_process(write_book, folder / BOOK, book_tokens)
        in_own_process(write_book, folder / LIBRARY, tree_tokens[0])
        parts: dict[str, tuple[Any, ...]] = {
            "compress": (with_encoder, compress, folder),
            "pieces": (with_encoder, append_pieces, folder),
            "first token": (first_token, folder),
            **{f"library of {n:,} tokens": (library, folder, n, repeats) for n in tree_tokens},
        }
        for part, call in parts.items():
            results[part] = in_own_process(*call)
            print(part, json.dumps(results[part], indent=1), flush=True)
    write_json(asked.out or RESULTS / f"tree-{'quick-' if asked.quick else ''}cpu.json", results)
    if not results["pieces"]["identical"]:
        raise SystemExit("The tree that was appended in pieces differs from the one that was appended at once.")


def write_book(path: Path, n_tokens: int) -> None:
    """Write the text to compress into a file of its own: the first of Python's texts, about so many tokens of them."""
    tokenizer = load_tokenizer(TeacherConfig())
    texts = (text for _, text in read_installation("narrative"))
    found = 0
    with path.open("w", encoding="utf-8") as book:
        for piece in (piece for text in texts for piece in pieces_of(f"{text}\n\n", tokenizer.encode, 2000)):
            book.write(piece)
            found += len(tokenizer.encode(piece))
            if found >= n_tokens:
                break


def with_encoder(part: Callable[..., dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Measure a part in this process with an untrained GistNet of two levels, which costs what a trained one does."""
    teacher = Teacher.from_pretrained(TeacherConfig())
    config = GistNetConfig(architecture="bottleneck")
    encoder = GistEncoder(teacher, GistNet.build(config, teacher, below=GistNet.build(config, teacher)))
    encoder.encode(0, np.zeros((1, encoder.info.branchings[0]), dtype=np.int64), 0)  # warms up
    return part(folder, encoder)


def compress(folder: Path, encoder: Encoder) -> dict[str, Any]:
    """Compress `folder / BOOK` into a new tree, `folder / TREE`, and do so once more."""
    before = peak_megabytes("cpu")
    files = TextFiles(paths=(str(folder / BOOK),))
    with GistTree.create(folder / TREE, encoder) as tree:
        done, seconds = timed(lambda: compress_files(files, tree, encoder), "cpu")
        peak = peak_megabytes("cpu")
        _, seconds_again = timed(lambda: compress_files(files, tree, encoder), "cpu")
    with GistTree.open(folder / TREE, encoder, writable=True) as tree:
        tree.compact()  # the generation that was opened stays on disk beside the compacted one until the next time
        info = tree.info()
    return {
        "tokens": done.appended_tokens,
        "seconds": seconds,
        "tokens_per_second": done.appended_tokens / seconds,
        "seconds_to_find_all_there": seconds_again,
        "token_bytes": info.token_bytes,
        "levels": [{"gists": level.gists, "bytes": level.bytes} for level in info.levels],
        "text_bytes": (folder / BOOK).stat().st_size,
        "disk_bytes": sum(path.stat().st_size for path in (folder / TREE).rglob("*") if path.is_file()),
        "peak_memory_megabytes": peak,
        "memory_before_megabytes": before,
    }


def append_pieces(folder: Path, encoder: Encoder) -> dict[str, Any]:
    """Append the tokens of `folder / TREE` to another tree in pieces, and compare every bit."""
    with GistTree.open(folder / TREE) as whole, GistTree.create(folder / "pieces", encoder) as tree:
        (name,) = whole.documents()
        wanted = whole.document(name)
        tokens = wanted.tokens(0, wanted.n_tokens)
        cuts = np.sort(np.random.default_rng(0).choice(np.arange(1, len(tokens)), PIECES - 1, replace=False))
        _, seconds = timed(lambda: [tree.append(piece, name) for piece in np.split(tokens, cuts)], "cpu")
        document = tree.document(name)
        identical = np.array_equal(document.tokens(0, len(tokens)), tokens)
        for level, count in enumerate(wanted.n_gists):
            ours, theirs = (each.gists(level, 0, count).view(np.uint16) for each in (document, wanted))
            identical = identical and np.array_equal(ours, theirs)
    return {"pieces": PIECES, "tokens_per_second": len(tokens) / seconds, "identical": identical}


def first_token(folder: Path) -> dict[str, Any]:
    """Time from a question to the first token, from the tree of `compress`, beside reading as many recent tokens."""
    teacher = Teacher.from_pretrained(TeacherConfig())
    assert teacher.tokenizer is not None
    draw = np.random.default_rng(0)
    selected: list[float] = []
    recent: list[float] = []
    with GistTree.open(folder / TREE) as tree:
        document = tree.only_document(None)
        n, branchings = document.n_tokens, document.branchings
        for _ in range(QUESTIONS):
            start = int(draw.integers(0, n - WORDS_ASKED))
            question = teacher.tokenizer.decode(document.tokens(start, start + WORDS_ASKED).tolist())
            answer = partial(generate, document, question, teacher=teacher, max_new_tokens=1)
            read, seconds = timed(partial(answer, budget=BUDGET), "cpu")
            selected.append(seconds)
            plan = Plan([Raw(n - read.context.plan.vectors, n)], branchings, 0)
            recent.append(timed(partial(answer, plan=plan), "cpu")[1])
    medians = {"selected_seconds": float(np.median(selected)), "recent_seconds": float(np.median(recent))}
    return {"vectors": BUDGET, **medians, "ratio": medians["selected_seconds"] / medians["recent_seconds"]}


def library(folder: Path, n_tokens: int, repeats: int) -> dict[str, Any]:
    """Build a tree of `DOCUMENTS_OF_A_LIBRARY` documents with gists of a stub; time questions, readers and appends.

    The text is that of `folder / LIBRARY`, again and again where it has fewer. Each question is some words of it.
    """
    encoder, tokenizer = (
        StubEncoder(dim=576, branchings=(32, 32), vocabulary_size=49152),
        load_tokenizer(TeacherConfig()),
    )
    encoder.tokenizer = tokenizer
    text = tokenizer.encode((folder / LIBRARY).read_text(encoding="utf-8"))
    parts = np.array_split(np.resize(text, n_tokens), DOCUMENTS_OF_A_LIBRARY)
    draw = np.random.default_rng(0)

    def question() -> str:
        start = int(draw.integers(0, len(text) - WORDS_ASKED))
        return tokenizer.decode(text[start : start + WORDS_ASKED].tolist())

    def name() -> str:
        return str(draw.integers(0, DOCUMENTS_OF_A_LIBRARY))

    before, uri = peak_megabytes("cpu"), folder / f"library-{n_tokens}"
    with GistTree.create(uri, encoder) as tree:
        _, seconds = timed(lambda: [tree.append(part, str(n)) for n, part in enumerate(parts)], "cpu")
        _, compaction = timed(tree.compact, "cpu")
        info = tree.info()
    gists = len(parts[-1]) // encoder.info.branchings[0]  # of the shortest document

    def first_answer() -> None:
        with GistTree.open(uri) as tree:
            select(tree.document(name()), question(), BUDGET, tokenizer=tokenizer)

    result: dict[str, Any] = {"tokens": n_tokens, "documents": DOCUMENTS_OF_A_LIBRARY, "build_seconds": seconds}
    result |= {"compact_seconds": compaction, "index_bytes": info.index_bytes, "token_bytes": info.token_bytes}
    result["gist_bytes"] = sum(level.bytes for level in info.levels)
    result["open_and_select_milliseconds"] = _percentiles(first_answer, repeats)
    with GistTree.open(uri) as tree:
        asked = {
            "select": lambda: select(tree.document(name()), question(), BUDGET, tokenizer=tokenizer),
            "find_in_all": lambda: tree.find(question(), 16),
            f"read_{NODES}_nodes": lambda: tree.document(name()).nodes(0, draw.integers(0, gists, NODES).tolist()),
        }
        result |= {f"{key}_milliseconds": _percentiles(action, repeats) for key, action in asked.items()}
    with GistTree.open(uri, encoder, writable=True) as tree:
        piece = text[:APPENDED]
        result[f"append_{APPENDED}_tokens_milliseconds"] = _percentiles(lambda: tree.append(piece, name()), repeats)
        result["unindexed_after"] = tree.info().unindexed
    return {**result, "peak_memory_megabytes": peak_megabytes("cpu"), "memory_before_megabytes": before}


def _percentiles(action: Callable[[], Any], repeats: int) -> dict[str, float]:
    action()
    times = [1000 * timed(action, "cpu")[1] for _ in range(repeats)]
    return {"p50": float(np.percentile(times, 50)), "p99": float(np.percentile(times, 99))}


# Kills ----------------------------------------------------------------------------------------------------------------

DOCUMENTS = ("main", "a chapter", "Ωμέγα")
VOCABULARY = 1000
OPERATIONS = {"append": 0.8, "reencode": 0.12, "compact": 0.08}


def content(document: str, start: int, stop: int) -> NDArray[np.int64]:
    """Tokens that a document must have from `start` to `stop`."""
    mixed = (np.arange(start, stop) * 2_654_435_761 + zlib.crc32(document.encode())) % (1 << 32)
    return (mixed >> 9) % VOCABULARY


def encoder(seed: int) -> StubEncoder:
    """Encoder with the weights of a seed."""
    return StubEncoder(seed, dim=16, branchings=(8, 8, 8), vocabulary_size=VOCABULARY)


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


def run_kills(asked: argparse.Namespace) -> None:
    """Kill writers of a temporary tree, print the counts, and keep them if asked."""
    with tempfile.TemporaryDirectory() as folder:
        results = kill_writers(asked.kills, Path(folder), asked.seed)
    print(json.dumps(results))
    if asked.write:
        write_json(RESULTS / "tree-kills.json", {"machine": describe_machine(), **results})


def kill_writers(kills: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Kill writers in `folder` while two readers look, then verify the tree; returns counts of what happened.

    Raises:
        RuntimeError: something was lost or torn; the process that saw it has printed what.
    """
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    tree, stop, report = folder / "tree", folder / "stop", folder / "report"
    notes, seen = Notes(folder / "notes"), [folder / f"reader-{number}" for number in range(2)]
    draw, began = random.Random(seed), time.monotonic()
    check(succeeded(start(lambda: GistTree.create(tree, encoder(1)).close())), "the tree was not created")
    readers = [start(read_until_stopped, tree, notes, stop, path, number) for number, path in enumerate(seen)]
    try:
        killed = Counter(kill_once(tree, notes, draw) for _ in range(kills))
    finally:
        stop.touch()
        fine = [succeeded(reader) for reader in readers]
    check(all(fine), "a reader saw what it must not see (above)")
    check(succeeded(start(finish, tree, notes, report)), "the tree is not whole (above)")
    lines = notes.lines()
    return {
        "kills": killed.total(),
        "killed_during": dict(killed.most_common()),
        "appends_acknowledged": sum(words[0] == "acknowledged" for words in lines),
        "reencodings_finished": sum(words == ["end", "reencode"] for words in lines),
        "readers": [json.loads(path.read_text()) for path in seen],
        "tree": json.loads(report.read_text()),
        "seconds": round(time.monotonic() - began, 1),
    }


def start(work: Callable[..., None], *arguments: Any) -> ForkProcess:
    """Begin `work` in a forked process: quick, where a start of Python is not.

    Lance must not have been used before, since its threads would be missing there; this process never uses it.
    """
    process = get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def succeeded(process: ForkProcess) -> bool:
    """Wait for a process to end; whether its status is 0."""
    process.join()
    return process.exitcode == 0


def kill_once(folder: Path, notes: Notes, draw: random.Random) -> str:
    """Start a writer, kill it at a random moment, and return the name of the operation that this interrupted."""
    before = len(notes.lines())
    writer = start(write_until_killed, folder, notes, draw.randrange(1 << 30))
    if draw.random() < 0.8:  # else it may be killed while it opens the tree
        while ["end", "open"] not in notes.lines()[before:] and writer.is_alive():
            time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.5))
    writer.kill()
    writer.join()
    check(writer.exitcode == -signal.SIGKILL, "the writer ended before it was killed")
    marks = [words for words in notes.lines()[before:] if words[0] in ("begin", "end")]
    if not marks:
        return "start"
    return str(marks[-1][1]) if marks[-1][0] == "begin" else "between"


def finish(folder: Path, notes: Notes, report: Path) -> None:
    """Open the tree once more for writing, and verify it."""
    with GistTree.open(folder) as reader:
        weights = int(reader.info().gist_version.removeprefix("stub"))
    with GistTree.open(folder, encoder(weights), writable=True) as tree:
        for name, count in {w[1]: w[2] for w in notes.lines() if w[0] == "acknowledged"}.items():
            check(tree.document(name).n_tokens >= count, f"{name}: {count} acknowledged, fewer there")
        verified = tree.verify()
        check(verified.ok, "; ".join(verified.problems))
        check(verified.missing == 0, f"{verified.missing} gists are missing")
        summary = {"generation": verified.generation, "tokens": verified.tokens, "gists": verified.gists}
        report.write_text(json.dumps(summary | {"recomputed": verified.recomputed}))


def write_until_killed(folder: Path, notes: Notes, seed: int) -> None:
    """Work of a writer: append, compact and re-encode without end."""
    draw = random.Random(seed)
    notes.add("begin", "open")
    with GistTree.open(folder) as reader:
        weights = int(reader.info().gist_version.removeprefix("stub"))
    tree = GistTree.open(folder, encoder(weights), writable=True)
    notes.add("end", "open")
    while True:
        (operation,) = draw.choices(list(OPERATIONS), list(OPERATIONS.values()))
        notes.add("begin", operation)
        if operation == "reencode":
            weights += 1
            tree.reencode(encoder(weights))
        elif operation == "compact":
            tree.compact()
        else:
            document = draw.choice(DOCUMENTS)
            done = tree.document(document).n_tokens if document in tree.documents() else 0
            count = tree.append(content(document, done, done + draw.randint(1, 400)), document)
            notes.add("acknowledged", document, count)
        notes.add("end", operation)


def read_until_stopped(folder: Path, notes: Notes, stop: Path, report: Path, seed: int) -> None:
    """Look at the tree until the file `stop` is there; fail at the first error, and count the looks in `report`."""
    draw = random.Random(seed)
    seen: Counter[str] = Counter()
    held: tuple[TreeDocument, int, int] | None = None
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
    report.write_text(json.dumps(seen))


def look(document: TreeDocument, weights: int, draw: random.Random) -> None:
    """Check a random part of a document, or all of it: its tokens, and gists of each level by these weights alone."""
    check(document.levels == 3, f"{document.name}: only {document.levels} levels are complete")
    stub, n = encoder(weights), document.n_tokens
    start = 0 if draw.random() < 0.2 else draw.randrange(max(1, n - 2000))
    stop = n if draw.random() < 0.2 else min(n, start + 2000)
    check(np.array_equal(document.tokens(start, stop), content(document.name, start, stop)), "tokens are wrong")
    last = content(document.name, n - 1, n)[0]
    word = f"w{last}"
    passages = document.find(word, n)
    check(passages is not None and (last < 128 or bool(passages)), "the last token is not in the index")
    for passage, _ in passages or ():
        text = stub.tokenizer.decode(content(document.name, passage.start, passage.stop).tolist())
        check(word in text.split(), "a passage was found that does not have the word")
    for level in range(3):
        per_gist = 8 ** (level + 1)
        first, last = start // per_gist, stop // per_gist
        if first == last:
            break
        tokens = content(document.name, first * per_gist, last * per_gist)
        gists = encode_levels(stub, tokens, levels=level + 1, start=first * per_gist)[-1]
        found = document.gists(level, first, last)
        check(np.array_equal(found.view(np.uint16), gists.view(np.uint16)), f"gists of level {level} are wrong")


def check(true: bool, sentence: str) -> None:
    """Raise a `RuntimeError` unless `true`; unlike `assert`, it cannot be switched off."""
    if not true:
        raise RuntimeError(sentence)


# Command line ---------------------------------------------------------------------------------------------------------


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    speed = commands.add_parser("speed")
    speed.add_argument("--quick", action="store_true")
    speed.add_argument("--out", type=Path, help="the file of results")
    speed.set_defaults(run=run_speed)
    kills = commands.add_parser("kills")
    kills.add_argument("--kills", type=int, default=200)
    kills.add_argument("--seed", type=int, default=0)
    kills.add_argument("--write", action="store_true", help="write the results to benchmarks/results/tree-kills.json")
    kills.set_defaults(run=run_kills)
    asked = parser.parse_args()
    asked.run(asked)


if __name__ == "__main__":
    main()
