"""Tokens or gists of a document as a file that other programs read: `.npy`, or `.safetensors` with what they are."""

import io
from pathlib import Path

import numpy as np
from safetensors.numpy import save as save_safetensors

from gistnet.errors import ConfigError
from gistnet.files import write_bytes
from gistnet.tree.history import count_gists
from gistnet.tree.tree import GistTree

SUFFIXES = (".npy", ".safetensors")


def export_array(
    tree: GistTree, path: Path, *, document: str, level: int | None = None, start: int = 0, stop: int | None = None
) -> tuple[int, ...]:
    """Write a range of the tokens, int64 `[n]`, or of the gists of a level, float16 `[n, dim]`, atomically.

    Args:
        path: ends in `.npy` or `.safetensors`; the latter holds one tensor, `tokens` or `gists`, and as metadata the
            document, level, range, teacher and `gist_version`.
        document: of the tree.
        level: of the gists; None exports tokens.
        start: the first token or gist.
        stop: one more than the last; None is the end of the document.

    Returns:
        The shape of what was written.

    Raises:
        ConfigError: the path has another ending.
        DataError: there is no such document or level, or the range is not within it.
        StorageError: the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"Got {path.name}, expected a name that ends in {' or '.join(SUFFIXES)}.")
    history = tree.document(document)
    if stop is None:
        stop = history.n_tokens if level is None else count_gists(history.n_tokens, history.span_tokens, level)
    array = history.tokens(start, stop) if level is None else history.gists(level, start, stop)
    write_bytes(path, _npy(array) if path.suffix == ".npy" else _safetensors(array, tree, document, level, start, stop))
    return array.shape


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _safetensors(array: np.ndarray, tree: GistTree, document: str, level: int | None, start: int, stop: int) -> bytes:
    info = tree.info()
    metadata = {"document": document, "start": str(start), "stop": str(stop), "teacher": info.teacher.model_dump_json()}
    if level is not None:
        metadata |= {"level": str(level), "span_tokens": str(info.span_tokens), "gist_version": info.gist_version}
    return bytes(save_safetensors({"tokens" if level is None else "gists": array}, metadata))
