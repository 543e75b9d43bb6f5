"""The same compression on many processes or machines, under Ray Data (`pip install gistnet[ray]`).

    files ──► reader: text, tokens, portions ──► encoders: gists, level by level ──► this process: the tree

Reader and encoders are actors; the reader loads a tokenizer, the others an encoder each. All gists of a portion can be
made from it alone, so that one long book occupies all encoders; what stands for more tokens than a portion has, this
process makes. Ray starts a dead actor anew and repeats what it was doing, results arrive in the order of the documents
whatever happens, and this process alone appends them. What it appends is what a single process would have appended, bit
for bit, where machines and numbers of threads are the same.
"""

import os
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistnet.data.sources import MatchedFile
from gistnet.data.tokenise import Tokenize
from gistnet.errors import CheckpointError, ConfigError, GistNetError
from gistnet.tree.compress import Progress, append_portions
from gistnet.tree.encoder import Encoder, EncoderInfo
from gistnet.tree.history import tokens_per_gist
from gistnet.tree.ready_gists import ReadyGists
from gistnet.tree.texts import (
    PORTION_TOKENS,
    Portion,
    TextFiles,
    match_texts,
    read_portions,
    survey,
    texts_of,
)
from gistnet.tree.tree import GistTree

MakeEncoder = Callable[[], Encoder]
MakeTokenize = Callable[[], Tokenize]
Batch = dict[str, Any]
"""What Ray hands around, columns of rows; here always one row."""


def compress_files_with_ray(
    files: TextFiles,
    tree: GistTree,
    ready: ReadyGists,
    make_encoder: MakeEncoder,
    make_tokenize: MakeTokenize,
    *,
    workers: int,
    gpus_per_worker: float = 0,
    portion_tokens: int = PORTION_TOKENS,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """As `compress_files`, with gists made by actors of the Ray cluster that this process is connected to.

    Where it is connected to none, to that of the environment variable `RAY_ADDRESS`, or to one on this machine that
    ends with the call. Every machine must be able to read the files under their names.

    Args:
        files, progress: as for `compress_files`.
        tree: open for writing, with `ready` as its encoder.
        ready: through which the gists reach the tree.
        make_encoder: makes the encoder of an actor, of the same fingerprint as that behind `ready`; is pickled.
        make_tokenize: makes what the reader tokenises texts with, as that encoder does; is pickled.
        workers: actors that make gists, each with one CPU.
        gpus_per_worker: GPUs of each, or a share of one.
        portion_tokens: given to a worker at a time; rounded so that as many levels as possible fit.

    Raises:
        ConfigError: Ray is not installed.
        CheckpointError: an actor's encoder has another fingerprint.
        GistNetError: as `compress_files`, or what making or running an encoder raised.
    """
    ray = _import_ray()
    files = files.named_from(tree.folder)
    total = survey(files)
    portion_tokens = _aligned(portion_tokens, ready.info.span_tokens)
    make_same = partial(_make_same, make_encoder, ready.info.fingerprint)
    known = {name: tree.document(name).n_tokens for name in tree.documents()}

    def append(tokens: NDArray[np.int64], portion: Portion) -> None:
        with ready.supplied(portion.start, portion.gists):
            tree.append(tokens, portion.document)

    with _cluster(ray, workers):
        rows = [{"packed": _pack(file)} for file in match_texts(files)]
        dataset = (
            ray.data.from_items(rows, override_num_blocks=len(rows))
            .map_batches(
                _Actor,
                fn_constructor_args=(make_tokenize, partial(_portions_of, files, ready.info, portion_tokens)),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=1),
                num_cpus=0,
            )
            .map_batches(
                _Actor,
                fn_constructor_args=(make_same, partial(_with_gists, known)),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_cpus=1,
                num_gpus=gpus_per_worker,
            )
        )
        with closing(_unpack(row["packed"]) for row in dataset.iter_rows()) as portions:
            return append_portions(tree, total, portions, append, portion_tokens, progress)


def _make_same(make_encoder: MakeEncoder, fingerprint: str) -> Encoder:
    encoder = make_encoder()
    if encoder.info.fingerprint != fingerprint:
        raise CheckpointError(f"A worker has the GistNet {encoder.info.fingerprint}, expected {fingerprint} as here.")
    return encoder


class _Actor:
    """Handles one row after another with an object that it loads once, when it first needs it.

    Args:
        load: loads the object.
        handle: takes `load` and the value of a row, and gives the values of the rows that follow from it.
    """

    def __init__(self, load: Callable[[], Any], handle: Callable[[Callable[[], Any], Any], Iterable[object]]) -> None:
        self._load, self._handle = cache(load), handle

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        try:
            value = _unpack(batch["packed"][0])
            for result in self._handle(self._load, value):
                yield {"packed": [_pack(result)]}
        except GistNetError as error:
            yield {"packed": [_pack(error)]}


def _portions_of(
    files: TextFiles, info: EncoderInfo, portion_tokens: int, make_tokenize: MakeTokenize, file: MatchedFile
) -> Iterator[Portion]:
    """Portions of the documents of a file, for an encoder."""
    return with_what_precedes(read_portions(texts_of(file, files), make_tokenize(), portion_tokens), info)


def _with_gists(known: Mapping[str, int], make_encoder: MakeEncoder, portion: Portion) -> Iterator[Portion]:
    """A portion with its gists, or without where the tree, with its `known` tokens by document, holds all of it."""
    held = portion.start + len(portion.tokens) <= known.get(portion.document, 0)
    gists = () if held else gists_of_portion(make_encoder(), portion)
    yield portion._replace(before=portion.before[:0], gists=gists)


def _pack(value: object) -> bytes:
    """What a row holds: any value; of an error that an actor raised, Ray would keep only the traceback."""
    return pickle.dumps(value)


def _unpack(packed: bytes) -> Any:
    """The value of a row.

    Raises:
        GistNetError: it is one.
    """
    value = pickle.loads(packed)
    if isinstance(value, GistNetError):
        raise value
    return value


def with_what_precedes(portions: Iterable[Portion], info: EncoderInfo) -> Iterator[Portion]:
    """Portions of documents, in order, each with the tokens before it that its gists of level 0 are made of.

    All but the last of a document consist of whole spans.
    """
    before = np.empty(0, dtype=np.int64)
    for portion in portions:
        yield portion._replace(before=before)
        span, end = info.span_tokens, portion.start + len(portion.tokens)
        needed = 0 if portion.is_last else end - info.reads_from(0, end // span) * span
        before = np.concatenate([before, portion.tokens])
        before = before[len(before) - needed :]


def gists_of_portion(encoder: Encoder, portion: Portion) -> tuple[NDArray[np.float16], ...]:
    """The gists `[n, dim]` of each level whose spans all begin in a portion, from level 0 on."""
    span, start = encoder.info.span_tokens, portion.start
    gists: list[NDArray[np.float16]] = []
    below: NDArray[np.generic] = portion.tokens
    before: NDArray[np.generic] = portion.before
    for level in range(encoder.info.levels):
        count, (first, within) = len(below) // span, divmod(start, tokens_per_gist(span, level))
        if not count or within or len(before) != (first - encoder.info.reads_from(level, first)) * span:
            break
        spans = np.concatenate([before, below[: count * span]])
        gists.append(encoder.encode(level, spans.reshape(-1, span, *below.shape[1:]), first))
        below = gists[-1]
        before = below[:0]
    return tuple(gists)


def _aligned(portion_tokens: int, span_tokens: int) -> int:
    """The multiple of the largest power of K up to `portion_tokens`, itself at most that, K at least."""
    power = span_tokens
    while power * span_tokens <= portion_tokens:
        power *= span_tokens
    return max(portion_tokens // power, 1) * power


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(
            "Compressing with several workers needs the package `ray`, which is missing: pip install 'gistnet[ray]'."
        ) from error
    return ray


@contextmanager
def _cluster(ray: Any, workers: int) -> Iterator[None]:
    """Be connected to a cluster inside the block, with Ray Data keeping the order and holding one portion a block."""
    own = not ray.is_initialized()
    if own:
        local = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers, "include_dashboard": False}
        with warnings.catch_warnings():
            # Ray starts its programs by a fork and an exec at once, which Lance takes for a fork of this program.
            warnings.filterwarnings("ignore", message="lance is not fork-safe")
            ray.init(log_to_driver=False, logging_level="ERROR", **local)
    context = ray.data.DataContext.get_current()
    previous = context.copy()
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1  # bytes: a row is as much as an actor is given at a time
    context.enable_progress_bars = False
    try:
        yield
    finally:
        ray.data.DataContext._set_current(previous)
        if own:
            ray.shutdown()
