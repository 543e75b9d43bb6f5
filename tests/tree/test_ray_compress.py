"""Compression under Ray: the tree of a single process to the bit, also when workers are killed on the way."""

import os
import pickle
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gistnet.errors import CheckpointError, DataError, MissingPackageError
from gistnet.tree.compress import CompressTotals, Portion, TextFiles, compress_files
from gistnet.tree.encoder import encode_levels
from gistnet.tree.ray_compress import (
    PORTIONS_AHEAD,
    ReadyGists,
    Worker,
    _aligned,
    _with_gists,
    compress_files_with_ray,
    with_preceding,
)
from gistnet.tree.tree import GistTree
from tests.stub_encoder import FailingEncoder, StubEncoder
from tests.tree.test_compress import ENCODER, contents

PORTION = 64


class DyingEncoder(StubEncoder):
    """Refuses to work in the process that made it. Kills the first process that comes to the gist `die_at`."""

    def __init__(self, folder: Path, die_at: int) -> None:
        super().__init__(branchings=ENCODER.info.branchings)
        self.home, self.folder, self.die_at = os.getpid(), folder, die_at

    def encode(self, level: int, spans: NDArray[np.generic], first: int) -> NDArray[np.float16]:
        assert os.getpid() != self.home, "gists of a portion are made by workers"
        died = self.folder / "died"
        if level == 0 and first >= self.die_at and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / str(os.getpid())).touch()
        return super().encode(level, spans, first)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TextFiles:
    """Five documents of very different lengths, one of them most of all."""
    folder = tmp_path_factory.mktemp("books")
    draw = random.Random(0)
    for name, words in [("a", 40), ("b", 400), ("c", 1), ("d", 100), ("e", 29)]:
        (folder / f"{name}.txt").write_text(" ".join(draw.choices(["stone", "river", "é"], k=words)), encoding="utf-8")
    return TextFiles(paths=(str(folder / "*.txt"),))


@pytest.fixture(scope="module")
def single(files: TextFiles, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """What a single process makes of them."""
    with GistTree.create(str(tmp_path_factory.mktemp("single") / "tree"), ENCODER) as tree:
        compress_files(files, tree, ENCODER)
        return contents(tree)


def compress(files: TextFiles, uri: Path, encoder: StubEncoder) -> tuple[CompressTotals, dict[str, list[bytes]]]:
    ready = ReadyGists(encoder)
    with GistTree.open(str(uri), ready, writable=True) as tree:
        done = compress_files_with_ray(files, tree, ready, lambda: encoder, workers=2, portion_tokens=PORTION)
        return done, contents(tree)


def test_a_killed_worker_and_an_earlier_run_change_nothing(
    files: TextFiles, single: dict[str, list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier run ended within a span of a portion. A worker dies amid a document; its work is repeated."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    name = next(name for name in single if name.endswith("b.txt"))
    text = Path(files.paths[0]).parent.joinpath("b.txt").read_text(encoding="utf-8")
    with GistTree.create(str(tmp_path / "tree"), ENCODER) as tree:
        tree.append(ENCODER.tokenize(text)[:333], name)
    folder = tmp_path / "workers"
    folder.mkdir()
    encoder = DyingEncoder(folder, die_at=8 * PORTION // ENCODER.info.branchings[0])  # in the ninth portion of b
    done, compressed = compress(files, tmp_path / "tree", encoder)
    assert compressed == single
    assert (done.documents, done.found_tokens) == (5, 333)
    assert len(list(folder.iterdir())) >= 3, "two workers at least, and that one of them died"


def test_a_worker_makes_gists_only_where_the_tree_lacks_tokens() -> None:
    portion = Portion("a", 128, np.arange(64), 64, is_last=False)
    worker = Worker(lambda: ENCODER, ENCODER.info.fingerprint)
    for known in ({}, {"a": 191}, {"a": 192}, {"b": 999}):
        submit = refuse if known == {"a": 192} else worker.encode
        (returned,) = _with_gists([portion], known, [submit], lambda made: made)
        assert np.array_equal(returned.tokens, portion.tokens)
        assert [len(made) for made in returned.gists] == ([] if submit is refuse else [16, 4, 1])


def refuse(portion: Portion | None = None) -> Any:
    raise DataError("Got no checkpoint, expected one.")


def test_portions_stay_in_order_and_few_are_ahead() -> None:
    portions = [Portion("a", 64 * n, np.arange(64), 64, is_last=False) for n in range(20)]
    begun: list[tuple[int, int]] = []
    submit = [lambda portion, worker=worker: begun.append((worker, portion.start)) for worker in range(3)]
    got = []
    for portion in _with_gists(portions, {"a": 128}, submit, lambda work: ()):
        got.append(portion.start)
        assert len(begun) + 2 - len(got) <= 3 * PORTIONS_AHEAD + 1
    assert got == [64 * n for n in range(20)]
    assert begun == [(n % 3, 64 * (n + 2)) for n in range(18)], "the first two are there"


@pytest.mark.parametrize(
    ("make", "kind", "word"),
    [
        (refuse, DataError, r"^Got no checkpoint, expected one\.$"),
        (lambda: FailingEncoder(branchings=(4, 4, 4)), DataError, "not a finite"),
        (lambda: StubEncoder(ENCODER.seed + 1, branchings=(4, 4, 4)), CheckpointError, ENCODER.info.fingerprint),
    ],
)
def test_an_error_of_a_worker_reaches_us_in_its_words(
    make: Callable[[], StubEncoder], kind: type[Exception], word: str
) -> None:
    worker = Worker(make, ENCODER.info.fingerprint)
    portion = Portion("a", 0, np.full(64, 13), 64, is_last=False)
    with pytest.raises(kind, match=word):
        list(_with_gists([portion], {}, [worker.encode], lambda made: pickle.loads(pickle.dumps(made))))


def test_without_ray_the_package_to_install_is_named(
    files: TextFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    GistTree.create(str(tmp_path / "tree"), ENCODER).close()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'gistnet\[ray\]'"):
        compress(files, tmp_path / "tree", ENCODER)


@pytest.mark.parametrize(
    ("portion", "branchings", "expected"),
    [
        (16384, (32, 32), 16384),
        (20000, (32, 32), 19456),
        (20000, (32,), 20000),
        (1000, (32, 32), 992),
        (1, (32, 32), 32),
        (63, (4, 4, 4), 48),
        (70, (4, 2, 8), 64),
        (63, (4, 2, 8), 56),
    ],
)
def test_portions_hold_whole_gists_of_as_many_levels_as_fit(
    portion: int, branchings: tuple[int, ...], expected: int
) -> None:
    """By hand: 19456 = 19 · 32², 992 = 31 · 32, 48 = 3 · 4², 56 = 7 · 4 · 2."""
    assert _aligned(portion, branchings) == expected


@pytest.mark.parametrize(("together", "before"), [(1, 0), (6, 1), (6, 9), (6, 40)])
def test_gists_of_portions_are_those_of_the_document_as_far_as_they_fit(together: int, before: int) -> None:
    encoder = StubEncoder(branchings=(4, 4, 4), read_together=together, read_before=before)
    tokens = np.random.default_rng(0).integers(0, 256, 150)
    cut = [Portion("a", n, tokens[n : n + 48], 48, is_last=n == 144) for n in (0, 48, 96, 144)]
    portions = list(with_preceding([*cut, Portion("b", 0, tokens, 150, is_last=True)], encoder.info))
    assert len(portions[-1].before) == 0, "another document"
    below = tokens
    for level in range(3):
        count = len(below) // 4
        below = encoder.encode(level, below[: count * 4].reshape(count, 4, *below.shape[1:]), 0)
        parts = [
            encode_levels(encoder, portion.tokens, start=portion.start, before=portion.before)
            for portion in portions[:-1]
        ]
        made = [part[level] for part in parts if len(part) > level]
        if level < 2:
            assert np.array_equal(np.concatenate(made), below)
        else:
            assert not any(map(len, made)), "48 tokens are less than the 64 of a gist of level 2"


def test_levels_end_where_no_block_of_theirs_begins() -> None:
    """K = 4: a gist of level 1 begins at token 16, and none at 4."""
    encoder = StubEncoder(branchings=(4, 4, 4))
    for start, counts in ((4, [4]), (16, [4, 1])):
        assert [len(gists) for gists in encode_levels(encoder, np.arange(16), start=start)] == counts


def test_ready_gists_serve_what_they_hold_and_else_the_encoder() -> None:
    ready = ReadyGists(ENCODER)
    spans = np.arange(40).reshape(10, 4)
    made = np.full((10, 8), 7, dtype=np.float16)
    own = ENCODER.encode(0, spans, 20)
    with ready.supplied(80, [made]):
        assert np.array_equal(ready.encode(0, spans[2:5], 22), made[2:5])
        for first in (19, 21):  # one gist that was not supplied
            assert np.array_equal(ready.encode(0, spans, first), ENCODER.encode(0, spans, first))
        assert np.array_equal(ready.encode(1, own[:4][None], 5), ENCODER.encode(1, own[:4][None], 5))
    assert np.array_equal(ready.encode(0, spans, 20), own), "nothing is kept"
    in_context = ReadyGists(StubEncoder(read_together=6, read_before=6))
    with in_context.supplied(80, [made]):
        assert in_context.info.reads_from(0, 22) == 12
        assert np.array_equal(in_context.encode(0, np.zeros((13, 4), np.int64), 22), made[2:5])
