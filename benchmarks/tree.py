"""A book compressed into a tree, and a tree of a million tokens opened, read and searched.

    python benchmarks/tree.py --quick             20,000 tokens, and a tree of 50,000 (two minutes on two cores)
    python benchmarks/tree.py                     200,000 tokens, and a tree of a million (five to ten minutes)
    python benchmarks/tree.py --text BOOK         another text than what comes with Python: a file, or lines of JSONL
    python benchmarks/tree.py --checkpoint RUN    a trained GistNet instead of an untrained `bottleneck` of two levels

    compress    `compress_files` with the real teacher: tokens a second, bytes on disk by level, peak memory; and how
                long a second run takes to find that all is there
    pieces      the same tokens appended in 100 pieces of random lengths: every bit must be that of `compress`
    large       a tree whose gists a stub makes, of the size of the teacher's: milliseconds (50th and 99th percentile)
                to open it, to read 64 random nodes with their metadata, and to search it

Each part runs in a process of its own, so that its peak memory is its own. Results: benchmarks/results/tree-cpu.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import describe_machine
from gistnet.data.installation import read_installation
from gistnet.data.tokenise import Tokenize, pieces_of
from gistnet.model.gistnet import GistNet, GistNetConfig
from gistnet.model.teacher import Teacher, TeacherConfig, load_tokenizer
from gistnet.tree.compress import compress_files
from gistnet.tree.encoder import Encoder
from gistnet.tree.gist_encoder import GistEncoder
from gistnet.tree.history import count_gists
from gistnet.tree.progress import CompressionDisplay
from gistnet.tree.stub_encoder import StubEncoder
from gistnet.tree.texts import TextFiles, read_texts
from gistnet.tree.tree import GistTree
from gistnet.tree_session import LoadEncoder

RESULTS = Path(__file__).parent / "results"
PIECES, NODES = 100, 64
BOOK, TREE = "book.txt", "tree"


def book(texts: Iterable[str], tokenize: Tokenize, n_tokens: int) -> str:
    """The beginning, of about so many tokens, of the first text that is long enough, or of all of them together."""
    joined = ""
    for text in texts:
        joined = text if len(text) >= 6 * n_tokens else f"{joined}{text}\n\n"
        if len(joined) >= 6 * n_tokens:
            break
    found, kept = 0, []
    for piece in pieces_of(joined, tokenize, 2000):
        kept.append(piece)
        found += len(tokenize(piece, continued=found > 0))
        if found >= n_tokens:
            break
    return "".join(kept)


def compress(folder: Path, encoder: Encoder) -> dict[str, Any]:
    """Compress `folder / BOOK` into a new tree, `folder / TREE`, and do so once more."""
    warm_up(encoder)
    before = _peak_megabytes()
    files = TextFiles(paths=(str(folder / BOOK),))
    with GistTree.create(folder / TREE, encoder) as tree:
        with CompressionDisplay() as display:
            done, seconds = _timed(lambda: compress_files(files, tree, encoder, progress=display.update))
        peak = _peak_megabytes()
        _, seconds_again = _timed(lambda: compress_files(files, tree, encoder))
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


def pieces(folder: Path, encoder: Encoder) -> dict[str, Any]:
    """Append the tokens of `folder / TREE` to another tree in pieces, and compare every bit."""
    warm_up(encoder)
    with GistTree.open(folder / TREE) as whole, GistTree.create(folder / "pieces", encoder) as tree:
        (name,) = whole.documents()
        n_tokens = whole.document(name).n_tokens
        tokens = whole.tokens(0, n_tokens, name)
        cuts = np.sort(np.random.default_rng(0).choice(np.arange(1, n_tokens), PIECES - 1, replace=False))
        _, seconds = _timed(lambda: [tree.append(piece, name) for piece in np.split(tokens, cuts)])
        identical = np.array_equal(tree.tokens(0, n_tokens, name), tokens)
        for level in range(encoder.levels):
            count = count_gists(n_tokens, encoder.span_tokens, level)
            ours, theirs = (each.gists(level, 0, count, name).view(np.uint16) for each in (tree, whole))
            identical = identical and np.array_equal(ours, theirs)
    return {"pieces": PIECES, "tokens_per_second": n_tokens / seconds, "identical": identical}


def large(folder: Path, n_tokens: int, repeats: int) -> dict[str, Any]:
    """Build a tree with gists of a stub, and time what readers do."""
    encoder = StubEncoder(dim=576, span_tokens=32, vocabulary_size=49152)
    draw = np.random.default_rng(0)
    with GistTree.create(folder / "large", encoder) as tree:
        _, seconds = _timed(
            lambda: [tree.append(draw.integers(0, 49152, min(16384, n_tokens - n))) for n in range(0, n_tokens, 16384)]
        )
        tree.compact()
    gists = n_tokens // encoder.span_tokens

    def first_read() -> None:
        with GistTree.open(folder / "large") as tree:
            tree.nodes(0, draw.integers(0, gists, NODES).tolist())

    result: dict[str, Any] = {"encoder": "stub", "tokens": n_tokens, "build_seconds": seconds}
    result["open_milliseconds"] = _percentiles(lambda: GistTree.open(folder / "large").close(), repeats)
    result[f"open_and_read_{NODES}_nodes_milliseconds"] = _percentiles(first_read, repeats)
    with GistTree.open(folder / "large") as tree:
        tree.nodes(0, [0])
        result[f"read_{NODES}_nodes_milliseconds"] = _percentiles(
            lambda: tree.nodes(0, draw.integers(0, gists, NODES).tolist()), repeats
        )
        for level in range(encoder.levels):
            search = partial(tree.search, draw.normal(size=576), level)
            result[f"search_level_{level}_milliseconds"] = _percentiles(search, repeats)
    return result


def load_encoder(checkpoint: Path | None) -> GistEncoder:
    """The GistNets of a checkpoint, or of two levels as they are before training, which costs the same."""
    if checkpoint is not None:
        return LoadEncoder(checkpoint)()
    teacher = Teacher.from_pretrained(TeacherConfig())
    config = GistNetConfig(architecture="bottleneck")
    return GistEncoder(teacher, GistNet.build(config, teacher, below=GistNet.build(config, teacher)))


def warm_up(encoder: Encoder) -> None:
    """Make one gist, so that nothing is loaded or allocated for the first time while the clock runs."""
    encoder.encode(0, np.zeros((1, encoder.span_tokens), dtype=np.int64), 0)


def write_book(path: Path, text: Path | None, n_tokens: int) -> None:
    """Put the text that is to be compressed into a file of its own."""
    tokenizer = load_tokenizer(TeacherConfig())
    if text is None:
        texts = (text for _, text in read_installation("narrative"))
    else:
        texts = ("".join(blocks) for _, blocks in read_texts(TextFiles(paths=(str(text),))))
    content = book(texts, tokenizer.encode, n_tokens)
    path.write_text(content, encoding="utf-8")


def _timed(action: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return action(), time.perf_counter() - began


def _percentiles(action: Callable[[], Any], repeats: int) -> dict[str, float]:
    action()
    times = [1000 * _timed(action)[1] for _ in range(repeats)]
    return {"p50": float(np.percentile(times, 50)), "p99": float(np.percentile(times, 99))}


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run each part in a process of its own, print the figures, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--only", nargs=2, metavar=("PART", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        part, folder = arguments.only
        _run_part(part, Path(folder), arguments)
        return
    results: dict[str, Any] = {"machine": describe_machine(), "text": (arguments.text or Path("installation")).name}
    results["load_average_at_start"] = os.getloadavg()[0]  # what else the machine was doing
    results["gistnet"] = "untrained bottleneck" if arguments.checkpoint is None else arguments.checkpoint.name
    with tempfile.TemporaryDirectory() as folder:
        for part in ("book", "compress", "pieces", "large"):
            command = [sys.executable, "-m", "benchmarks.tree", *sys.argv[1:], "--only", part, folder]
            output = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
            )
            if part != "book":
                results[part] = json.loads(output.stdout.splitlines()[-1])
                print(part, json.dumps(results[part], indent=1), flush=True)
    RESULTS.mkdir(exist_ok=True)
    name = f"tree-{'quick-' if arguments.quick else ''}cpu.json"
    (RESULTS / name).write_text(json.dumps(results, indent=1) + "\n")
    if not results["pieces"]["identical"]:
        sys.exit("The tree that was appended in pieces differs from the one that was appended at once.")


def _run_part(part: str, folder: Path, arguments: argparse.Namespace) -> None:
    if part == "book":
        write_book(folder / BOOK, arguments.text, 20_000 if arguments.quick else 200_000)
        return
    if part == "large":
        result = large(folder, *((50_000, 20) if arguments.quick else (1_000_000, 200)))
    else:
        result = {"compress": compress, "pieces": pieces}[part](folder, load_encoder(arguments.checkpoint))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
