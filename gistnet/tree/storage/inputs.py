"""What a caller may put into a tree, and the sentence for what he may not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gistnet.errors import ConfigError, DataError
from gistnet.model.tokenizer import require_unicode
from gistnet.tree.encoder import Encoder


def tokens_of(
    tokens: str | Sequence[int] | NDArray[Any],
    vocabulary_size: int,
    encoder: Encoder | None,
    *,
    continued: bool = False,
) -> NDArray[np.int64]:
    """Token ids `[n]` of ids or a text, which may continue another one.

    Raises:
        DataError: they are no ids of the vocabulary, or the text is not valid Unicode.
        ConfigError: a text was given, and there is no encoder to tokenise it.
    """
    if isinstance(tokens, str):
        require_unicode(tokens, "a text")
        if encoder is None:
            raise ConfigError("The tree was opened without an encoder, expected one to tokenise a text.")
        tokens = encoder.tokenize(tokens, continued=continued)
    ids = np.asarray(tokens)
    if ids.size == 0 and ids.ndim == 1:
        return np.empty(0, dtype=np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise DataError(f"Got tokens of shape {list(ids.shape)} and type {ids.dtype}, expected integers [n].")
    outside = np.flatnonzero((ids < 0) | (ids >= vocabulary_size))
    if len(outside):
        raise DataError(f"Got the token {ids[outside[0]]} at {outside[0]}, expected ids 0 to {vocabulary_size - 1}.")
    return ids.astype(np.int64)


def require_document(name: str) -> None:
    """Refuse what cannot name a document.

    Raises:
        DataError: it is empty, not a text, or not valid Unicode.
    """
    if not isinstance(name, str) or not name:
        raise DataError(f"Got the document {name!r}, expected a name.")
    require_unicode(name, "a document's name")
    if "\0" in name:
        raise DataError(f"Got the document {name!r}, expected a name without NUL.")


def require_finite(values: Sequence[float] | NDArray[Any], name: str) -> NDArray[np.float32]:
    """Numbers `[n]` as float32.

    Raises:
        DataError: they are no numbers, or not finite.
    """
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "fiu"):
        raise DataError(f"Got {name} of shape {list(array.shape)} and type {array.dtype}, expected numbers [n].")
    if not np.isfinite(array).all():
        raise DataError(f"Got a {name} that is not finite, expected nats per token.")
    return array.astype(np.float32)
