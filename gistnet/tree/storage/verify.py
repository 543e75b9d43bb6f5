"""Proof that a tree is whole: every checksum, every count, and with an encoder every gist made again."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gistnet.errors import GistNetError
from gistnet.tree.encoder import Encoder
from gistnet.tree.history import count_gists
from gistnet.tree.storage import rows as layout
from gistnet.tree.storage.catalog import Counts
from gistnet.tree.storage.growth import PORTION_GISTS
from gistnet.tree.storage.snapshot import Snapshot
from gistnet.tree.storage.tables import Table

_BATCH_ROWS = 4096


@dataclass(frozen=True)
class VerifyReport:
    """What was checked of one generation, and what was found."""

    generation: int
    documents: int
    tokens: int
    """Whose checksums were recomputed."""
    gists: tuple[int, ...]
    """By level, whose checksums were recomputed."""
    measured: int
    """Rows of the quality table whose checksums were recomputed."""
    recomputed: int | None
    """Gists that were made again and compared bit by bit; None without an encoder."""
    missing: int
    """Gists that are still to be made of tokens that are there: no damage."""
    problems: tuple[str, ...]
    """One sentence each; none if the tree is whole."""

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems


def verify(snapshot: Snapshot, encoder: Encoder | None = None) -> VerifyReport:
    """Read everything that a generation names. Damage is reported, not raised."""
    problems: list[str] = []
    tokens = _counted(snapshot, layout.TOKENS, _token_extents, lambda counts: counts.tokens, problems)
    gists = tuple(_verify_level(snapshot, level, problems) for level in range(snapshot.version.levels))
    measured = _verify_quality(snapshot, problems)
    recomputed = None
    if encoder is not None:
        recomputed = sum(_verify_gists(snapshot, encoder, name, problems) for name in snapshot.catalog.documents)
    span = snapshot.version.span_tokens
    missing = sum(
        count_gists(counts.tokens, span, level) - made
        for counts in snapshot.catalog.documents.values()
        for level, made in enumerate(counts.gists)
    )
    n_documents = len(snapshot.catalog.documents)
    return VerifyReport(
        snapshot.catalog.generation, n_documents, tokens, gists, measured, recomputed, missing, tuple(problems)
    )


_Extents = Iterator[tuple[str, int, int]]  # document, where a row begins, how much it holds


def _token_extents(table: Table) -> _Extents:
    for batch in table.batches(_BATCH_ROWS):
        for document, start, tokens in layout.read_token_rows(batch):
            yield document, start, len(tokens)


def _gist_extents(table: Table) -> _Extents:
    for batch in table.batches(_BATCH_ROWS):
        found = layout.read_gist_rows(table.name, batch)
        for document, index in zip(found.documents, found.indices.tolist(), strict=True):
            yield document, index, 1


def _verify_level(snapshot: Snapshot, level: int, problems: list[str]) -> int:
    name = layout.gists_name(snapshot.version.fingerprint, level)
    return _counted(snapshot, name, _gist_extents, lambda counts: counts.gists[level], problems)


def _counted(
    snapshot: Snapshot,
    name: str,
    extents: Callable[[Table], _Extents],
    expected: Callable[[Counts], int],
    problems: list[str],
) -> int:
    """Check a table's rows, that those of a document follow each other, and that they are as many as they should."""
    found: Counter[str] = Counter()
    try:
        for document, start, length in extents(snapshot.table(name)):
            if start != found[document]:
                problems.append(f"The table {name} has {start} of {document!r} where {found[document]} should follow.")
            found[document] = start + length
    except GistNetError as error:
        problems.append(str(error))
        return found.total()
    for document in found.keys() | snapshot.catalog.documents.keys():
        counts = snapshot.catalog.documents.get(document)
        count = 0 if counts is None else expected(counts)
        if found[document] != count:
            problems.append(
                f"The table {name} has {found[document]} of {document!r}, expected the {count} of the catalog."
            )
    return found.total()


def _verify_quality(snapshot: Snapshot, problems: list[str]) -> int:
    rows = 0
    try:
        for batch in snapshot.table(layout.QUALITY).batches(_BATCH_ROWS):
            rows += len(list(layout.read_quality_rows(batch)))
    except GistNetError as error:
        problems.append(str(error))
    return rows


def _verify_gists(snapshot: Snapshot, encoder: Encoder, document: str, problems: list[str]) -> int:
    """Make the gists of a document again from what is stored below them, and compare the bits."""
    recomputed = 0
    for level, count in enumerate(snapshot.counts(document).gists):
        for first in range(0, count, PORTION_GISTS):
            stop = min(first + PORTION_GISTS, count)
            try:
                stored = snapshot.gists(document, level, first, stop)
                spans = _spans(snapshot, document, level, encoder.info.reads_from(level, first), stop)
                again = encoder.encode(level, spans, first)
            except GistNetError as error:
                problems.append(str(error))
                continue
            recomputed += len(stored)
            for wrong in np.flatnonzero((stored.view(np.uint16) != again.view(np.uint16)).any(axis=1)):
                problems.append(
                    f"Gist {first + wrong} of level {level} of {document!r} is not what the GistNet makes of its span."
                )
    return recomputed


def _spans(snapshot: Snapshot, document: str, level: int, first: int, stop: int) -> NDArray[np.generic]:
    span = snapshot.version.span_tokens
    below: NDArray[np.generic]
    if level:
        below = snapshot.gists(document, level - 1, first * span, stop * span)
    else:
        below = snapshot.tokens(document, first * span, stop * span)
    return below.reshape(stop - first, span, *below.shape[1:])
