"""Upkeep of a whole tree: gists made anew, small files put together, old versions removed, everything verified.

Re-encoding makes all gists with another GistNet; a reader never sees two versions mixed (D23).

Compaction keeps the current generation. On a local disk it also keeps every generation that a live reader has pinned,
however old; on an object store, where readers cannot be seen, every generation younger than a day. (A reader that may
not write to a local folder cannot pin: it loses its generation at the next compaction, and finds the newest by
`refresh`.)
"""

import logging
import string
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from gistnet.errors import GistNetError, TeacherError
from gistnet.tree.encoder import Encoder, count_gists
from gistnet.tree.passages import Detokenizer, Passage
from gistnet.tree.storage import catalog
from gistnet.tree.storage import rows as layout
from gistnet.tree.storage.catalog import Catalog, TableState
from gistnet.tree.storage.snapshot import Snapshot, TreeDocument
from gistnet.tree.storage.tables import Table
from gistnet.tree.storage.writing import PORTION_GISTS, Transaction, commit, create_tables, gist_schemas

logger = logging.getLogger(__name__)

_COMMIT_TOKENS = 1 << 19
"""Indexed between two commits where many are missing."""
_COMMIT_GISTS = 8192
"""Made between two commits where many are missing."""
FEW_BYTES, MANY_BYTES = 1 << 23, 1 << 29
"""About the size of a file at which it is left alone: when compacting now and then, and when asked to. A compaction
needs memory for the files that it puts together: what comes by itself must stay small however large the tree."""
KEPT_SECONDS = 24 * 3600
_BATCH_ROWS = 4096
MOST_LOOKED_UP = 1000
"""Words that `verify` looks up in the index, a few milliseconds each."""
_LONGEST_STOP_WORD = 5
"""Characters; Lance's English ones are no longer."""


def make_missing_gists(snapshot: Snapshot, encoder: Encoder) -> Snapshot:
    """Make the gists that documents lack, with a commit every few thousand."""
    while (transaction := _missing_gists(snapshot, encoder)) is not None:
        snapshot = transaction.commit()
    return snapshot


def _missing_gists(snapshot: Snapshot, encoder: Encoder) -> Transaction | None:
    transaction, made = Transaction(snapshot), 0
    for name, counts in snapshot.catalog.documents.items():
        below = (counts.tokens, *counts.gists[:-1])
        by_level = zip(below, snapshot.version.branchings, counts.gists, strict=True)
        if all(n // branching == made_before for n, branching, made_before in by_level):
            continue
        made += transaction.document(name).make_gists(encoder, _COMMIT_GISTS - made)
        if made == _COMMIT_GISTS:
            break
    return transaction if made else None


def index_passages(snapshot: Snapshot, tokenizer: Detokenizer) -> Snapshot:
    """Index the text that is not yet, with a commit every few hundred thousand tokens.

    Raises:
        TeacherError: the tokenizer makes other text of the tree's tokens than the one that indexed them before.
    """
    missing = sum(counts.tokens - counts.indexed for counts in snapshot.catalog.documents.values())
    if missing:
        _require_tokenizer(snapshot, tokenizer)
    done = 0
    while done < missing:
        logger.info("Indexing %s of %s tokens, to be found by their words.", f"{done:,}", f"{missing:,}")
        transaction, before = Transaction(snapshot), done
        for name, counts in snapshot.catalog.documents.items():
            if counts.indexed < counts.tokens:
                document = transaction.document(name)
                transaction.index(document, tokenizer, before + _COMMIT_TOKENS - done)
                done += document.indexed - counts.indexed
                if done == before + _COMMIT_TOKENS:
                    break
        snapshot = transaction.commit()
    return snapshot


def rebuild_passages(snapshot: Snapshot, tokenizer: Detokenizer) -> Snapshot:
    """Make passages and their index anew from the tokens; killed in the middle, the rest is text that is not indexed.

    Raises:
        TeacherError: as `index_passages`.
    """
    _require_tokenizer(snapshot, tokenizer)
    base = snapshot.catalog
    schema = layout.schema_of(layout.PASSAGES, snapshot.version.dim)
    created = create_tables(snapshot.location, {layout.PASSAGES: schema}, since=base.generation + 1)
    documents = {name: counts._replace(indexed=0, settled=0) for name, counts in base.documents.items()}
    state = base.state.model_copy(update={"tables": {**base.state.tables, **created}})
    return index_passages(commit(snapshot, state, documents), tokenizer)


def _require_tokenizer(snapshot: Snapshot, tokenizer: Detokenizer) -> None:
    """Refuse a tokenizer that makes other text of some tokens than the index has; one that is damaged refuses none."""
    try:
        stored = snapshot.table(layout.PASSAGES).first(1, layout.PASSAGES_SCHEMA.names)
        rows = list(layout.read_passage_rows(stored))
        tokens = [TreeDocument(snapshot, name).tokens(of.start, of.stop).tolist() for name, of, _ in rows]
    except GistNetError:
        return
    for ids, (document, passage, text) in zip(tokens, rows, strict=True):
        if (decoded := tokenizer.decode(ids)) != text:
            raise TeacherError(
                f"The tokenizer makes {decoded[:40]!r} of the tokens of {document!r} from {passage.start} on, expected "
                f"{text[:40]!r} as in the index: it is not the one that the tree was made with."
            )


def reencode(snapshot: Snapshot, encoder: Encoder) -> Snapshot:
    """Make all gists anew to replace those there are; resumes where an earlier call stopped.

    The gists of the new version are committed as they are made, but none is read before all are there.
    """
    pending = snapshot.catalog.state.pending
    if pending is None or pending.fingerprint != encoder.info.fingerprint:
        snapshot = _begin(snapshot, encoder)
    while (transaction := _missing_gists(view := _pending_view(snapshot), encoder)) is not None:
        state = snapshot.catalog.state.model_copy(update={"tables": transaction.write()})
        snapshot = commit(snapshot, state)
    state = snapshot.catalog.state
    kept, retired = _retire(snapshot, state.active.fingerprint)
    done = {"active": state.pending, "pending": None, "teacher": encoder.info.teacher}  # in another precision, perhaps
    update = done | {"tables": kept, "retired": retired}
    return commit(snapshot, state.model_copy(update=update), view.catalog.documents)


def _begin(snapshot: Snapshot, encoder: Encoder) -> Snapshot:
    state = snapshot.catalog.state
    kept, retired = dict(state.tables), dict(state.retired)
    if state.pending is not None:
        kept, retired = _retire(snapshot, state.pending.fingerprint)
    version = encoder.info.version
    created = create_tables(snapshot.location, gist_schemas(version), since=snapshot.catalog.generation + 1)
    retired = {name: since for name, since in retired.items() if name not in created}
    update = {"pending": version, "tables": {**kept, **created}, "retired": retired}
    return commit(snapshot, state.model_copy(update=update))


def _retire(snapshot: Snapshot, fingerprint: str) -> tuple[dict[str, TableState], dict[str, int]]:
    """The tables without those of a version, and the retired with them."""
    state, since = snapshot.catalog.state, snapshot.catalog.generation + 1
    gone = {name for name in state.tables if name.startswith(f"gists/{fingerprint}/")}
    kept = {name: table for name, table in state.tables.items() if name not in gone}
    return kept, {**state.retired, **dict.fromkeys(gone, since)}


def _pending_view(snapshot: Snapshot) -> Snapshot:
    """View of the tree in which the pending version is active, with the gists that are made so far."""
    base = snapshot.catalog
    pending = base.state.pending
    assert pending is not None
    levels = [snapshot.index(layout.gists_name(pending.fingerprint, level)) for level in range(pending.levels)]
    documents = {
        name: counts._replace(gists=tuple(level.next_key(name) for level in levels))
        for name, counts in base.documents.items()
    }
    seen = Catalog(base.generation, base.state.model_copy(update={"active": pending}), documents)
    return Snapshot(snapshot.location, seen, earlier=snapshot)


def compact(snapshot: Snapshot, bytes_per_file: int = MANY_BYTES) -> Snapshot:
    """Compact all tables, acknowledge that, and remove what no reader can have."""
    tables = _compacted(snapshot, bytes_per_file)
    with catalog.guard(snapshot.location.folder, shared=False):
        kept = _kept(snapshot)
        state, oldest = snapshot.catalog.state, min(kept, default=snapshot.catalog.generation)
        gone = {name for name, since in state.retired.items() if since <= oldest}
        for name in gone:
            Table.drop(snapshot.location, name)
        retired = {name: since for name, since in state.retired.items() if name not in gone}
        compacted = snapshot.catalog.generation + 1
        update = {"tables": tables, "retired": retired, "compacted": compacted}
        after = commit(snapshot, state.model_copy(update=update))
        _clean(after, [*kept.values(), after.catalog])
    return after


def _compacted(snapshot: Snapshot, bytes_per_file: int) -> dict[str, TableState]:
    tables, files = {}, []
    for name, state in snapshot.catalog.state.tables.items():
        before = snapshot.table(name)
        bytes_per_row = max(1, before.n_bytes // max(1, state.n_rows))
        after = before.compact(max(1, bytes_per_file // bytes_per_row))
        tables[name] = state.model_copy(update={"version": after.version})
        files += after.files_since(before)
    snapshot.location.flush(files)
    return tables


def _kept(snapshot: Snapshot) -> dict[int, Catalog]:
    """The generations before the next that somebody may read; on an object store the oldest stands for all since."""
    location, now = snapshot.location, snapshot.catalog.generation
    if location.folder is not None:
        generations = catalog.pinned_generations(location.folder)
    else:
        versions = Table.open(location, catalog.NAME).versions()
        generations = {min(g for g, made in versions.items() if g == now or made > time.time() - KEPT_SECONDS)}
    return {g: snapshot.catalog if g == now else catalog.read(location, g) for g in generations}


def _clean(snapshot: Snapshot, kept: list[Catalog]) -> None:
    """Remove all versions of all tables that none of these generations names."""
    alone = snapshot.location.folder is not None
    _clean_table(Table.open(snapshot.location, catalog.NAME), {each.generation for each in kept}, alone)
    for name in snapshot.catalog.state.tables:
        named = {each.state.tables[name].version for each in kept if name in each.state.tables}
        if not alone and any(name not in each.state.tables for each in kept):
            continue  # it began within the day that is kept whole
        _clean_table(snapshot.table(name), named, alone)


def _clean_table(table: Table, named: set[int], alone: bool) -> None:
    versions = [v for v in table.versions() if v < table.version and v not in named]
    table.clean([v for v in versions if alone or v < min(named)], alone=alone)


@dataclass(frozen=True)
class VerifyReport:
    """Result of `verify` for one generation."""

    generation: int
    documents: int
    tokens: int
    """Tokens whose checksums were recomputed; so for the next two."""
    gists: tuple[int, ...]
    """By level."""
    recomputed: int | None
    """Gists that were made again and compared bit by bit; None without an encoder."""
    missing: int
    """Gists that are still to be made of tokens that are there: no damage."""
    problems: tuple[str, ...]
    """One sentence each; none if the tree is whole."""

    @property
    def ok(self) -> bool:
        """True where nothing is damaged."""
        return not self.problems


def verify(snapshot: Snapshot, encoder: Encoder | None = None) -> VerifyReport:
    """Read everything that a generation names, and with an encoder make every gist again.

    Damage is reported, not raised.
    """
    problems: list[str] = []
    documents, version = snapshot.catalog.documents, snapshot.version
    n_tokens = {name: counts.tokens for name, counts in documents.items()}
    tokens = _verify_rows(snapshot, layout.TOKENS, n_tokens, problems)
    gists = []
    for level in range(version.levels):
        n_gists = {name: counts.gists[level] for name, counts in documents.items()}
        gists.append(_verify_rows(snapshot, snapshot.gists_name(level), n_gists, problems))
    n_indexed = {name: counts.indexed for name, counts in documents.items()}
    _verify_rows(snapshot, layout.PASSAGES, n_indexed, problems)
    try:
        snapshot.table(layout.PASSAGES).read_indices()
        problems += _lost_words(snapshot)
    except GistNetError as error:
        problems.append(f"{str(error).removesuffix('.')}; `gistnet tree index --rebuild` makes the index anew.")
    recomputed = None
    if encoder is not None:
        recomputed = sum(_verify_gists(snapshot, encoder, name, problems) for name in documents)
    missing = sum(
        count_gists(counts.tokens, version.branchings, level) - made
        for counts in documents.values()
        for level, made in enumerate(counts.gists)
    )
    generation = snapshot.catalog.generation
    return VerifyReport(generation, len(documents), tokens, tuple(gists), recomputed, missing, tuple(problems))


def _verify_rows(snapshot: Snapshot, name: str, expected: dict[str, int], problems: list[str]) -> int:
    """Check a table's rows: those of a document follow each other, and hold as many tokens or gists as expected."""
    found: Counter[str] = Counter()
    try:
        for document, start, length in _extents(snapshot.table(name)):
            if start != found[document]:
                problems.append(f"The table {name} has {start} of {document!r} where {found[document]} should follow.")
            found[document] = start + length
    except GistNetError as error:
        problems.append(str(error))
        return found.total()
    for document in found.keys() | expected.keys():
        count = expected.get(document, 0)
        if found[document] != count:
            problems.append(
                f"The table {name} has {found[document]} of {document!r}, expected the {count} of the catalog."
            )
    return found.total()


def _lost_words(snapshot: Snapshot) -> list[str]:
    """A sentence if the index misses words that stand in passages: one of each passage, or of `MOST_LOOKED_UP`."""
    table = snapshot.table(layout.PASSAGES)

    def passages() -> Iterator[tuple[str, Passage, str]]:
        for batch in table.batches(_BATCH_ROWS):
            yield from layout.read_passage_rows(batch)

    every = -(-table.n_rows // MOST_LOOKED_UP)
    longest = [max(_words(text), key=len, default="") for _, _, text in islice(passages(), 0, None, every or 1)]
    passages_with: dict[str, set[tuple[str, int]]] = {word: set() for word in longest if word}
    for document, passage, text in passages():
        for word in passages_with.keys() & set(_words(text)):
            passages_with[word].add((document, passage.start))
    lost = []
    for word, expected in passages_with.items():
        name = min(expected)[0]
        for where, wanted in ((None, expected), (layout.of_document(name), {at for at in expected if at[0] == name})):
            rows = table.matching(word, table.n_rows, where, ["document", "start"])
            found = zip(rows["document"].to_pylist(), rows["start"].to_pylist(), strict=True)
            lost += [(word, *at) for at in wanted.difference(found)]
    if not lost:
        return []
    word, document, start = min(lost)
    return [
        f"The index of words does not find {word!r} at token {start} of {document!r}, among {len(lost)} that it lost; "
        "`gistnet tree index --rebuild` makes it anew."
    ]


def _words(text: str) -> list[str]:
    """The words that are surely words to the index, too: between white space or punctuation, and no stop words."""
    words = (word.strip(string.punctuation) for word in text.split())
    return [word for word in words if word.isalnum() and len(word) > _LONGEST_STOP_WORD and len(word.encode()) <= 32]


def _extents(table: Table) -> Iterator[tuple[str, int, int]]:
    """For each row its document, and the index and number of the tokens or gists that it holds."""
    for batch in table.batches(_BATCH_ROWS):
        if table.name == layout.TOKENS:
            for document, start, tokens in layout.read_token_rows(batch):
                yield document, start, len(tokens)
        elif table.name == layout.PASSAGES:
            for document, passage, _ in layout.read_passage_rows(batch):
                yield document, passage.start, passage.stop - passage.start
        else:
            rows = layout.read_gist_rows(table.name, batch)
            for document, index in zip(rows.documents, rows.indices.tolist(), strict=True):
                yield document, index, 1


def _verify_gists(snapshot: Snapshot, encoder: Encoder, name: str, problems: list[str]) -> int:
    """Make the gists of a document again from what is stored below them, and compare the bits."""
    document, recomputed = TreeDocument(snapshot, name), 0
    for level, (count, branching) in enumerate(zip(document.n_gists, document.branchings, strict=True)):
        for first in range(0, count, PORTION_GISTS):
            stop = min(first + PORTION_GISTS, count)
            try:
                stored = document.gists(level, first, stop)
                below = document.below(level, encoder.info.reads_from(level, first) * branching, stop * branching)
                again = encoder.encode(level, below.reshape(-1, branching, *below.shape[1:]), first)
            except GistNetError as error:
                problems.append(str(error))
                continue
            recomputed += len(stored)
            for wrong in np.flatnonzero((stored.view(np.uint16) != again.view(np.uint16)).any(axis=1)):
                problems.append(
                    f"Gist {first + wrong} of level {level} of {name!r} is not what the GistNet makes of its span."
                )
    return recomputed
