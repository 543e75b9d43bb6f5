"""The gists nearest to a query, by cosine."""

import numpy as np
from numpy.typing import NDArray

from gistnet.errors import DataError
from gistnet.tree.encoder import Encoder
from gistnet.tree.history import tokens_per_gist
from gistnet.tree.node import Hit
from gistnet.tree.storage import rows as layout
from gistnet.tree.storage.snapshot import Snapshot


def nearest_gists(
    snapshot: Snapshot, query: NDArray[np.generic], level: int, k: int, document: str | None
) -> list[Hit]:
    """The k gists of a level whose direction is nearest to any of the queries `[n, dim]`, best first.

    All gists are compared (exactly, without an index), so time grows with the tree.

    Raises:
        DataError: there is no such level or document, the query is no direction, or a gist that was found is damaged.
    """
    snapshot.require_level(level)
    if k < 1:
        raise DataError(f"Got k = {k}, expected 1 at least.")
    where = None
    if document is not None:
        snapshot.counts(document)
        where = "document = '{}'".format(document.replace("'", "''"))
    best: dict[tuple[str, int], float] = {}
    for vector in _directions(query, snapshot.version.dim):
        for key, score in _nearest(snapshot, vector, level, k, where):
            best[key] = max(score, best.get(key, -2.0))
    per_gist = tokens_per_gist(snapshot.version.span_tokens, level)
    ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:k]
    return [Hit(name, level, index, index * per_gist, (index + 1) * per_gist, score) for (name, index), score in ranked]


def gists_of_text(encoder: Encoder, tokens: NDArray[np.int64], level: int) -> NDArray[np.float16]:
    """Queries `[n, dim]` from the tokens of a text, which are repeated until they fill whole blocks of the level.

    A text shorter than a span has no gist; repeated, it has one that is about the same thing. A longer text becomes
    several queries.

    Raises:
        DataError: there are no tokens.
    """
    if not len(tokens):
        raise DataError("Got a query without tokens, expected one at least.")
    block = tokens_per_gist(encoder.info.span_tokens, level)
    vectors: NDArray[np.generic] = np.resize(tokens, -(-len(tokens) // block) * block)
    for each in range(level + 1):
        spans = vectors.reshape(-1, encoder.info.span_tokens, *vectors.shape[1:])
        vectors = encoder.encode(each, spans, 0)
    return vectors.astype(np.float16)


def _directions(query: NDArray[np.generic], dim: int) -> NDArray[np.float32]:
    vectors = np.atleast_2d(np.asarray(query))
    if vectors.ndim != 2 or vectors.shape[1] != dim or vectors.dtype.kind not in "fiu":
        raise DataError(f"Got a query of shape {list(np.shape(query))}, expected a vector of {dim} numbers or a text.")
    vectors = vectors.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        raise DataError("Got a query that is zero or not finite, expected a vector with a direction.")
    return (vectors / norms).astype(np.float16)


def _nearest(
    snapshot: Snapshot, vector: NDArray[np.generic], level: int, k: int, where: str | None
) -> list[tuple[tuple[str, int], float]]:
    name = layout.gists_name(snapshot.version.fingerprint, level)
    columns = layout.gists_schema(snapshot.version.dim).names
    found = snapshot.table(name).nearest(vector, k, where, columns)
    rows = layout.read_gist_rows(name, found.select(columns))
    scores = 1 - found.column("_distance").to_numpy()
    return list(zip(zip(rows.documents, rows.indices.tolist(), strict=True), scores.tolist(), strict=True))
