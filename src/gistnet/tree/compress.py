"""Compress the documents of files into a tree, in portions, and continue where an earlier run stopped.

The tokens of the tree are the record of what has been done: a run reads and tokenises every text again, which costs
little beside making gists, compares with what the tree holds of it, and appends what is missing. So a text that is in
the tree entirely is passed over, a part of one is continued, one that has grown is too if its tokens so far are the
same, and one that has changed is refused: the tree never holds a mixture. A portion is acknowledged when the tree has
it on disk, and gists have the same bits whatever the portions, so that killing a run and running it again gives the
tree of one run. Memory does not grow with a text.

A text file is one document, named by its path from the folder in which the tree lies (`books/emma.txt`), however that
path was typed; each line of a JSON lines file, or row of a Parquet file, is one, named by its id. Nothing here holds
more of a text file than a piece of it; of a JSON lines file one line is held.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gistnet.data.sources import MatchedFile, format_of, matching_paths, read_rows, read_text
from gistnet.data.tokenise import Tokenize, pieces_of_blocks
from gistnet.errors import DataError
from gistnet.settings import Name, Section
from gistnet.tree.encoder import Encoder
from gistnet.tree.storage.snapshot import TreeDocument
from gistnet.tree.tree import GistTree

logger = logging.getLogger(__name__)

PORTION_TOKENS = 16384
LOG_SECONDS = 10.0
"""Least time between two messages; the last portion always gets one."""


class TextFiles(Section):
    """Files whose documents are to be compressed."""

    paths: tuple[Name, ...] = Field(min_length=1)
    """Files or glob patterns; `~` is the home folder, `**` any depth of folders."""
    text_field: Name = "text"
    """Key or column of a document's text in a line of JSONL or a row of Parquet."""
    id_field: Name = "id"
    """Key of its name; a line without it is called `<file>:<line>`."""
    base: Path | None = None
    """Folder from which paths are names; None makes absolute paths names, as for a tree in an object store."""

    def named_from(self, tree: Path | None) -> Self:
        """Files with `base` set for the tree in a local folder, or for one that is elsewhere."""
        return self.model_copy(update={"base": None if tree is None else tree.resolve().parent})


class Text(NamedTuple):
    """A document's name, and its text in blocks of any length, to be read before the next document is asked for."""

    name: str
    blocks: Iterator[str]


class Survey(NamedTuple):
    """Size of the texts to compress."""

    documents: int
    characters: int


class Portion(NamedTuple):
    """Consecutive tokens of a document."""

    document: str
    start: int
    """The index of the first of them in the document."""
    tokens: NDArray[np.int64]
    characters: int
    """About how many characters it stands for; exact in the sum over the portions of a document."""
    is_last: bool
    """True where the document ends here."""
    before: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    """Tokens that precede it, where its gists are made of them, too."""
    gists: tuple[NDArray[np.float16], ...] = ()
    """Those of its gists that have been made already, `[n, dim]` of each level from 0 on."""


@dataclass
class CompressTotals:
    """Counts of a run of `compress_files`."""

    documents: int = 0
    """Documents that are done: in the tree entirely, or empty."""
    characters: int = 0
    """Characters whose tokens are in the tree."""
    appended_characters: int = 0
    """Those of them whose portions this run appended."""
    appended_tokens: int = 0
    found_tokens: int = 0
    """Tokens that were in the tree before."""
    empty: int = 0
    """Documents without tokens, of which a tree keeps nothing."""


def compress_files(
    files: TextFiles,
    tree: GistTree,
    encoder: Encoder,
    *,
    portion_tokens: int = PORTION_TOKENS,
) -> CompressTotals:
    """Append the documents of files to a tree, each under its name.

    Args:
        files: which files; everything in them is read once before anything is appended.
        tree: open for writing, with the encoder.
        encoder: makes tokens of the texts; the tree makes gists of them with it.
        portion_tokens: appended and acknowledged at a time, of one document or of many short ones.

    Raises:
        DataError: a file cannot be read, is empty or not UTF-8, or two documents share a name (the tree is then as it
            was); or the tree holds another text under the name of a document (all other documents are then in it).
        StorageError: the tree cannot be written; what was acknowledged stays.
    """
    files = files.named_from(tree.folder)
    total = survey(files)
    portions = read_portions(read_texts(files), encoder.tokenize, portion_tokens)
    return append_portions(
        tree, total, portions, lambda tokens, portion: tree.append(tokens, portion.document), portion_tokens
    )


def compress_tokens(tokens: NDArray[np.int64], tree: GistTree, name: str, portion_tokens: int = PORTION_TOKENS) -> None:
    """Append the tokens of one document to a tree, in portions, but for those that it holds already.

    Raises:
        DataError: the tree holds other tokens under that name.
        StorageError: the tree cannot be written; what was acknowledged stays.
    """
    parts = [tokens[start : start + portion_tokens] for start in range(0, len(tokens), portion_tokens)]
    portions = (
        Portion(name, number * portion_tokens, part, len(part), is_last=number == len(parts) - 1)
        for number, part in enumerate(parts)
    )
    append_portions(tree, Survey(1, len(tokens)), portions, lambda part, _: tree.append(part, name), portion_tokens)


def append_portions(
    tree: GistTree,
    total: Survey,
    portions: Iterable[Portion],
    append: Callable[[NDArray[np.int64], Portion], object],
    batch_tokens: int,
) -> CompressTotals:
    """Append the tokens that a tree lacks of portions that come in order; acknowledge `batch_tokens` at a time.

    Args:
        append: appends tokens of a portion to its document.

    Raises:
        DataError: as `compress_files`.
    """
    tracker = ResumeTracker(tree, total)
    for batch in _batches(portions, batch_tokens):
        missing = [tracker.missing(portion) for portion in batch]
        with tree.batch():
            for portion, tokens in zip(batch, missing, strict=True):
                if len(tokens):
                    append(tokens, portion)
        for portion, tokens in zip(batch, missing, strict=True):
            tracker.count(portion, len(tokens))
        tracker.log(batch[-1].document)
    tracker.require_same_texts()
    return tracker.totals


def _batches(portions: Iterable[Portion], tokens: int) -> Iterator[list[Portion]]:
    """Collect portions until they have so many tokens: a short document is not worth an acknowledgement of its own."""
    batch: list[Portion] = []
    collected = 0
    for portion in portions:
        batch.append(portion)
        collected += len(portion.tokens)
        if collected >= tokens:
            yield batch
            batch, collected = [], 0
    if batch:
        yield batch


class ResumeTracker:
    """Comparison of the texts with the documents that the tree held before, and counts of the run."""

    def __init__(self, tree: GistTree, total: Survey) -> None:
        self.totals = CompressTotals()
        self._tree, self._total = tree, total
        self._in_tree = set(tree.documents())
        self._held: TreeDocument | None = None
        self._refused: dict[str, int] = {}
        self._started = self._logged = time.monotonic()

    def missing(self, portion: Portion) -> NDArray[np.int64]:
        """The tokens of a portion that the tree does not hold yet; none of a text that differs from the one it holds.

        Portions come in order, so a text is found to differ before anything of it has been appended.
        """
        name, start, tokens = portion.document, portion.start, portion.tokens
        if start == 0:
            self._held = self._tree.document(name) if name in self._in_tree else None
        if self._held is None:
            return tokens
        known = self._held.n_tokens
        common = min(max(known - start, 0), len(tokens))
        held = self._held.tokens(start, start + common) if common else tokens[:0]
        differs = np.flatnonzero(held != tokens[:common])
        if len(differs):
            self._refused.setdefault(name, start + int(differs[0]))
        elif portion.is_last and known > start + common:
            self._refused.setdefault(name, start + common)
        return tokens[:0] if name in self._refused else tokens[common:]

    def require_same_texts(self) -> None:
        """Refuse texts that differ from those that the tree holds under their names, once all others are in the tree.

        Raises:
            DataError: there are some.
        """
        if self._refused:
            name, index = next(iter(self._refused.items()))
            more = f" (as do {len(self._refused) - 1} others under theirs)" if len(self._refused) > 1 else ""
            raise DataError(
                f"The text of {name!r} differs from token {index} on from the one that the tree holds under that name"
                f"{more}; expected the same text, or another name."
            )

    def count(self, portion: Portion, appended_tokens: int) -> None:
        """Count a portion that is in the tree now, of which this run appended so many tokens."""
        totals = self.totals
        totals.documents += portion.is_last
        totals.characters += portion.characters
        totals.appended_characters += portion.characters if appended_tokens else 0
        totals.appended_tokens += appended_tokens
        totals.found_tokens += len(portion.tokens) - appended_tokens
        totals.empty += portion.start == 0 and portion.is_last and not len(portion.tokens)

    def log(self, document: str) -> None:
        """Log the share that is done, the rate, and the time left, every few seconds."""
        totals, now = self.totals, time.monotonic()
        if not totals.appended_tokens:
            self._started = now  # finding what the tree held is no measure of the rate
        if now - self._logged < LOG_SECONDS and totals.characters != self._total.characters:
            return
        self._logged, seconds = now, now - self._started
        left = "unknown time"
        if totals.appended_characters:
            remaining = self._total.characters - totals.characters
            left = str(timedelta(seconds=round(seconds / totals.appended_characters * remaining)))
        logger.info(
            "%.0f%%  %s  documents %d/%d  %s tokens  %s tokens/s  %s left",
            100 * totals.characters / self._total.characters,
            document,
            totals.documents,
            self._total.documents,
            f"{totals.appended_tokens:,}",
            f"{totals.appended_tokens / seconds if seconds else 0:,.0f}",
            left,
        )


def read_texts(files: TextFiles) -> Iterator[Text]:
    """The documents of files, in the order in which the files are named.

    Raises:
        DataError: a pattern matches no file, or a file is empty, cannot be read, or is not UTF-8; it is named.
    """
    for path in matching_paths("files", files.paths):
        name = (path if files.base is None else Path(os.path.relpath(path, files.base))).as_posix()
        if format_of(path, files.text_field) == "text":
            yield Text(name, read_text(path))
            continue
        for row_name, text in read_rows(MatchedFile(path, name), files.text_field, files.id_field):
            yield Text(row_name, iter((text,)))


def survey(files: TextFiles) -> Survey:
    """Read everything once, so that what cannot be compressed is refused before anything is.

    Reading is a thousand times faster than compressing.

    Raises:
        DataError: as `read_texts`; or two documents have the same name, or there is no text at all.
    """
    names: set[str] = set()
    characters = 0
    for name, blocks in read_texts(files):
        if name in names:
            raise DataError(f"Got two documents called {name!r}, expected names that differ.")
        names.add(name)
        characters += sum(map(len, blocks))
    if not characters:
        raise DataError(f"Got {len(names)} documents without any text in {', '.join(files.paths)}, expected some.")
    return Survey(len(names), characters)


def read_portions(texts: Iterable[Text], tokenize: Tokenize, portion_tokens: int = PORTION_TOKENS) -> Iterator[Portion]:
    """The tokens of documents in portions of `portion_tokens`; the last of each is what is left, perhaps nothing.

    Texts are tokenised in pieces, as in a prepared corpus, so the tokens do not depend on the portions.
    """
    for name, blocks in texts:
        start, characters = 0, 0
        waiting = np.empty(0, dtype=np.int64)
        for number, piece in enumerate(pieces_of_blocks(blocks, tokenize)):
            waiting = np.concatenate([waiting, tokenize(piece, continued=number > 0)])
            characters += len(piece)
            while len(waiting) > portion_tokens:
                share = characters * portion_tokens // len(waiting)
                yield Portion(name, start, waiting[:portion_tokens], share, is_last=False)
                waiting, characters = waiting[portion_tokens:], characters - share
                start += portion_tokens
        yield Portion(name, start, waiting, characters, is_last=True)
