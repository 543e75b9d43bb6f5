"""Compression on many processes or machines, under Ray (`pip install gistnet[ray]`).

    this process: files, tokens, portions ──► workers: gists, level by level ──► this process: the tree

All gists of a portion can be made from it alone, so that one long book occupies all workers; what stands for more
tokens than a portion has, this process makes. Ray starts a dead worker anew and repeats what it was doing. Results are
appended in the order of the documents. The tree is that of a single process, bit for bit, where machines and numbers of
threads are alike.
"""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistnet.errors import CheckpointError, GistNetError
from gistnet.extras import needing
from gistnet.tree.compress import (
    PORTION_TOKENS,
    CompressTotals,
    Portion,
    TextFiles,
    append_portions,
    read_portions,
    read_texts,
    survey,
)
from gistnet.tree.encoder import Encoder, EncoderInfo, encode_levels, tokens_per_gist
from gistnet.tree.tree import GistTree

MakeEncoder = Callable[[], Encoder]
PORTIONS_AHEAD = 2
"""Portions that a worker has waiting or at hand; more would only fill memory."""


class ReadyGists:
    """Encoder that hands out gists which the same one made in another process, and makes the rest itself."""

    def __init__(self, encoder: Encoder) -> None:
        self.info, self.tokenizer, self.tokenize = encoder.info, encoder.tokenizer, encoder.tokenize
        self._encode = encoder.encode
        self._start = 0
        self._gists: Sequence[NDArray[np.float16]] = ()

    @contextmanager
    def supplied(self, start: int, gists: Sequence[NDArray[np.float16]]) -> Iterator[None]:
        """Hand out gists `[n, dim]` of each level, from 0 on, inside the block.

        Args:
            start: the token of the document at hand at which the first gist of every level begins.
        """
        self._start, self._gists = start, gists
        try:
            yield
        finally:
            self._gists = ()

    def encode(self, level: int, spans: NDArray[np.generic], first: int) -> NDArray[np.float16]:
        """The gists that were supplied, where all of these are among them; otherwise those of the encoder."""
        if level < len(self._gists):
            offset = first - self._start // tokens_per_gist(self.info.branchings, level)
            count = self.info.reads_from(level, first) + len(spans) - first
            if offset >= 0 and offset + count <= len(self._gists[level]):
                return self._gists[level][offset : offset + count]
        return self._encode(level, spans, first)


def compress_files_with_ray(
    files: TextFiles,
    tree: GistTree,
    ready: ReadyGists,
    make_encoder: MakeEncoder,
    *,
    workers: int,
    gpus_per_worker: float = 0,
    replace: bool = False,
    portion_tokens: int = PORTION_TOKENS,
) -> CompressTotals:
    """Run `compress_files` with gists made by workers of the Ray cluster that this process is connected to.

    Where it is connected to none, to that of the environment variable `RAY_ADDRESS`, or to one on this machine that
    ends with the call.

    Args:
        files: as for `compress_files`; read by this process.
        tree: open for writing, with `ready` as its encoder.
        ready: through which the gists reach the tree.
        make_encoder: makes the encoder of a worker, of the same fingerprint as that behind `ready`; is pickled. It must
            find its files on every machine.
        workers: processes that make gists, each with one CPU.
        gpus_per_worker: GPUs of each, or a share of one.
        replace: as for `compress_files`; gists of such texts are made by this process.
        portion_tokens: given to a worker at a time; rounded so that as many levels as possible fit.

    Raises:
        MissingPackageError: Ray is not installed.
        CheckpointError: a worker's encoder has another fingerprint.
        GistNetError: as `compress_files`, or raised by making or running an encoder.
    """
    ray = _import_ray()
    files = files.for_tree(tree.folder)
    total = survey(files)
    portion_tokens = _aligned(portion_tokens, ready.info.branchings)
    portions = with_preceding(read_portions(read_texts(files), ready.tokenize, portion_tokens), ready.info)
    known = {name: tree.document(name).n_tokens for name in tree.documents()}

    def append(tokens: NDArray[np.int64], portion: Portion) -> None:
        with ready.supplied(portion.start, portion.gists):
            tree.append(tokens, portion.document)

    with _cluster(ray, workers):
        actor = ray.remote(num_cpus=1, num_gpus=gpus_per_worker, max_restarts=-1, max_task_retries=-1)(Worker)
        pool = [actor.remote(make_encoder, ready.info.fingerprint) for _ in range(workers)]
        made = _with_gists(portions, known, [worker.encode.remote for worker in pool], ray.get)
        return append_portions(tree, total, made, append, portion_tokens, replace=replace)


class Worker:
    """Makes the gists of portions, with an encoder that it loads when it first needs it."""

    def __init__(self, make_encoder: MakeEncoder, fingerprint: str) -> None:
        self._load, self._fingerprint = cache(make_encoder), fingerprint

    def encode(self, portion: Portion) -> list[NDArray[np.float16]] | GistNetError:
        """Gists by level; or an error in its own words, since Ray would wrap one that is raised in a traceback."""
        try:
            encoder = self._load()
            if encoder.info.fingerprint != self._fingerprint:
                raise CheckpointError(
                    f"A worker has the GistNet {encoder.info.fingerprint}, expected {self._fingerprint} as here."
                )
            return encode_levels(encoder, portion.tokens, start=portion.start, before=portion.before)
        except GistNetError as error:
            return error


def _with_gists(
    portions: Iterable[Portion], known: Mapping[str, int], submit: Sequence[Callable[[Portion], Any]], get: Callable
) -> Iterator[Portion]:
    """Portions in order, each with its gists unless the tree, with its `known` tokens by document, holds all of it.

    Args:
        submit: begins the work on a portion, one function for each worker.
        get: waits for the result of what was begun.

    Raises:
        GistNetError: raised by a worker.
    """
    waiting: deque[tuple[Portion, Any]] = deque()

    def finished() -> Portion:
        portion, work = waiting.popleft()
        gists = () if work is None else get(work)
        if isinstance(gists, GistNetError):
            raise gists
        return portion._replace(before=portion.before[:0], gists=tuple(gists))

    turns = cycle(submit)
    for portion in portions:
        held = portion.start + len(portion.tokens) <= known.get(portion.document, 0)
        waiting.append((portion, None if held else next(turns)(portion)))
        if len(waiting) > PORTIONS_AHEAD * len(submit):
            yield finished()
    while waiting:
        yield finished()


def with_preceding(portions: Iterable[Portion], info: EncoderInfo) -> Iterator[Portion]:
    """Portions of documents, in order, each with the tokens before it that its gists of level 0 are made of.

    All but the last of a document consist of whole spans.
    """
    before = np.empty(0, dtype=np.int64)
    for portion in portions:
        yield portion._replace(before=before)
        span, end = info.branchings[0], portion.start + len(portion.tokens)
        needed = 0 if portion.is_last else end - info.reads_from(0, end // span) * span
        before = np.concatenate([before, portion.tokens])
        before = before[len(before) - needed :]


def _aligned(portion_tokens: int, branchings: Sequence[int]) -> int:
    """The largest number of tokens up to `portion_tokens` that are whole blocks of the highest level that fits.

    A span of level 0 at least.
    """
    blocks = [tokens_per_gist(branchings, level) for level in range(len(branchings))]
    block = max([size for size in blocks if size <= portion_tokens], default=blocks[0])
    return max(portion_tokens // block, 1) * block


def _import_ray() -> Any:
    with needing("ray", "Compressing with several workers"):
        import ray
    return ray


@contextmanager
def _cluster(ray: Any, workers: int) -> Iterator[None]:
    """Be connected to a cluster inside the block."""
    if ray.is_initialized():
        yield
        return
    local = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers, "include_dashboard": False}
    with warnings.catch_warnings():
        # Ray starts its programs by a fork and an exec at once, which Lance takes for a fork of this program.
        warnings.filterwarnings("ignore", message="lance is not fork-safe")
        ray.init(log_to_driver=False, logging_level="ERROR", **local)
    try:
        yield
    finally:
        ray.shutdown()
