"""Compress the documents of files into a tree, in portions, and continue where an earlier run stopped.

The tokens of the tree are the record of what has been done: a run reads and tokenises every text again, which costs
little beside making gists, compares with what the tree holds of it, and appends what is missing. So a text that is in
the tree entirely is passed over, a part of one is continued, one that has grown is too if its tokens so far are the
same, and one that has changed is refused, or replaced in one step: the tree never holds a mixture. A portion is
acknowledged when the tree has it on disk, and gists have the same bits whatever the portions, so that killing a run and
running it again gives the tree of one run. Memory does not grow with a text, but for one that is replaced.

A text file is one document, named by its path from the folder in which the tree lies (`books/emma.txt`), however that
path was typed; each line of a JSON lines file, or row of a Parquet file, is one, named by its id. A folder stands for
all texts below it. Nothing here holds more of a text file than a piece of it; of a JSON lines file one line is held.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gistnet import terminal
from gistnet.data.sources import (
    MatchedFile,
    format_of,
    is_text,
    matching_paths,
    read_rows,
    read_text,
    reading,
)
from gistnet.data.tokenise import Tokenize, pieces_of_blocks
from gistnet.errors import DataError
from gistnet.paths import local_path
from gistnet.progress import ProgressDisplay
from gistnet.settings import Name, Section
from gistnet.tree.encoder import Encoder
from gistnet.tree.storage import catalog
from gistnet.tree.storage.snapshot import TreeDocument
from gistnet.tree.tree import GistTree

logger = logging.getLogger(__name__)

PORTION_TOKENS = 16384
LOG_SECONDS = 10.0
"""Least time between two messages; the last portion always gets one."""


class TextFiles(Section):
    """Files whose documents are to be compressed."""

    paths: tuple[Name, ...] = Field(min_length=1)
    """Files, folders or glob patterns; `~` is the home folder, `**` any depth of folders."""
    text_field: Name = "text"
    """Key or column of a document's text in a line of JSONL or a row of Parquet."""
    id_field: Name = "id"
    """Key of its name; a line without it is called `<file>:<line>`."""
    name: Name | None = None
    """Name of the only document, in place of its own."""
    base: Path | None = None
    """Folder from which paths are names; None makes absolute paths names, as for a tree in an object store."""

    def for_tree(self, tree: Path | None) -> Self:
        """The files for a tree in a local folder, or for one elsewhere: `base` set, and the texts of folders listed.

        Raises:
            DataError: a folder has no text, or cannot be read.
        """
        paths: list[str] = []
        for path in self.paths:
            folder = local_path(path)
            paths += map(str, _texts_below(folder, self.text_field)) if folder.is_dir() else [path]
        return self.model_copy(update={"paths": tuple(paths), "base": None if tree is None else tree.resolve().parent})


def _texts_below(folder: Path, text_field: str) -> list[Path]:
    """The texts below a folder, in order; hidden files, trees, and what is no text are passed over and counted."""
    found: list[Path] = []
    hidden = other = 0

    def refuse(error: OSError) -> None:
        raise error

    with reading(folder):
        for parent, folders, names in os.walk(folder, onerror=refuse):
            if Path(parent, f"{catalog.NAME}.lance").is_dir():
                folders[:] = []
                other += 1
                continue
            hidden += sum(name.startswith(".") for name in (*folders, *names))
            folders[:] = [name for name in folders if not name.startswith(".")]
            for path in (Path(parent, name) for name in names if not name.startswith(".")):
                if path.is_file() and (format_of(path, text_field) != "text" or is_text(path)):
                    found.append(path)
                else:
                    other += 1
    passed = f"{hidden:,} hidden, {other:,} empty or no text in UTF-8"
    if not found:
        raise DataError(f"Found no text below {folder} ({passed}), expected some.")
    if hidden or other:
        logger.info("Passed over files and folders below %s: %s.", folder, passed)
    return sorted(found)


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
    replaced: int = 0
    """Documents whose text took the place of another one."""


def compress_files(
    files: TextFiles,
    tree: GistTree,
    encoder: Encoder,
    *,
    replace: bool = False,
    portion_tokens: int = PORTION_TOKENS,
) -> CompressTotals:
    """Append the documents of files to a tree, each under its name.

    Args:
        files: which files; everything in them is read once before anything is appended.
        tree: open for writing, with the encoder.
        encoder: makes tokens of the texts; the tree makes gists of them with it.
        replace: put a text that has changed in the place of the one that the tree holds, each in one commit.
        portion_tokens: appended and acknowledged at a time, of one document or of many short ones.

    Raises:
        DataError: a file cannot be read, is empty or not UTF-8, or two documents share a name (the tree is then as it
            was); or the tree holds another text under the name of a document, which is not to be replaced (all other
            documents are then in it).
        StorageError: the tree cannot be written; what was acknowledged stays.
    """
    files = files.for_tree(tree.folder)
    total = survey(files)
    portions = read_portions(read_texts(files), encoder.tokenize, portion_tokens)

    def append(tokens: NDArray[np.int64], portion: Portion) -> None:
        tree.append(tokens, portion.document)

    return append_portions(tree, total, portions, append, portion_tokens, replace=replace)


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
    *,
    replace: bool = False,
) -> CompressTotals:
    """Append the tokens that a tree lacks of portions that come in order; acknowledge `batch_tokens` at a time.

    Args:
        append: appends tokens of a portion to its document.
        replace: as for `compress_files`.

    Raises:
        DataError: as `compress_files`.
    """
    bar = ProgressDisplay("", total.characters) if terminal.shows_bars() else None
    tracker = ResumeTracker(tree, total, bar, replace=replace)
    with bar or nullcontext():
        for batch in _batches(portions, batch_tokens):
            missing = [tracker.missing(portion) for portion in batch]
            kept = [0] * len(batch)
            with tree.batch():
                for number, (portion, (tokens, replaces)) in enumerate(zip(batch, missing, strict=True)):
                    if replaces:
                        kept[number] = tree.replace(tokens, portion.document)
                    elif len(tokens):
                        append(tokens, portion)
            for portion, (tokens, replaces), n_kept in zip(batch, missing, kept, strict=True):
                tracker.count(portion, len(tokens) - n_kept)
                tracker.totals.replaced += replaces
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


class Missing(NamedTuple):
    """Tokens that a tree lacks."""

    tokens: NDArray[np.int64]
    replaces: bool = False
    """True where they are a whole text that takes the place of the one that the tree holds."""


class ResumeTracker:
    """Comparison of the texts with the documents that the tree held before, and counts of the run."""

    def __init__(
        self, tree: GistTree, total: Survey, bar: ProgressDisplay | None = None, *, replace: bool = False
    ) -> None:
        """Compare with what a tree holds; progress, in characters, goes to the bar, or to the log without one."""
        self.totals = CompressTotals()
        self._tree, self._total, self._bar, self._replace = tree, total, bar, replace
        self._in_tree = set(tree.documents())
        self._held: TreeDocument | None = None
        self._changed: list[NDArray[np.int64]] | None = None  # all tokens so far of a text that differs from the held
        self._refused: dict[str, int] = {}
        self._started = self._logged = time.monotonic()

    def missing(self, portion: Portion) -> Missing:
        """The tokens of a portion that the tree does not hold yet.

        Of a text that differs from the one it holds, there are none; or all of the text with its last portion, if it is
        to be replaced. Portions come in order, so a text is found to differ before anything of it has been appended.
        """
        name, start, tokens = portion.document, portion.start, portion.tokens
        if start == 0:
            self._held = self._tree.document(name) if name in self._in_tree else None
            self._changed = None
        if self._held is None:
            return Missing(tokens)
        known = self._held.n_tokens
        if self._changed is None:
            common = min(max(known - start, 0), len(tokens))
            held = self._held.tokens(start, start + common) if common else tokens[:0]
            differs = np.flatnonzero(held != tokens[:common])
            if not len(differs) and not (portion.is_last and known > start + common):
                return Missing(tokens[common:])
            if not self._replace:
                self._refused[name] = start + int(differs[0] if len(differs) else common)
            self._changed = [self._held.tokens(0, start)]
        self._changed.append(tokens)
        replaces = self._replace and portion.is_last
        return Missing(np.concatenate(self._changed) if replaces else tokens[:0], replaces)

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
                f"{more}; expected the same text, another name (--name), or --replace to put it in the other's place."
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
        """Show the share that is done, the time left, and the rate; without a bar every few seconds."""
        totals, now = self.totals, time.monotonic()
        if not totals.appended_tokens:
            self._started = now  # finding what the tree held is no measure of the rate
        seconds = now - self._started
        details = [
            f"{totals.documents}/{self._total.documents} documents",
            f"{totals.appended_tokens:,} tokens",
            f"{totals.appended_tokens / seconds if seconds else 0:,.0f} tokens/s",
        ]
        if self._bar is not None:
            if not totals.appended_tokens:
                self._bar.begin_at(totals.characters)
            self._bar.update(totals.characters, details, document)
            return
        if now - self._logged < LOG_SECONDS and totals.characters != self._total.characters:
            return
        self._logged = now
        left = "unknown time"
        if totals.appended_characters:
            remaining = self._total.characters - totals.characters
            left = str(timedelta(seconds=round(seconds / totals.appended_characters * remaining)))
        share = totals.characters / self._total.characters
        logger.info("%.0f%%  %s left  %s  %s", 100 * share, left, "  ".join(details), document)


def read_texts(files: TextFiles) -> Iterator[Text]:
    """The documents of files, in the order in which the files are named.

    Raises:
        DataError: a pattern matches no file, or a file is empty, cannot be read, or is not UTF-8; it is named.
    """
    for path in matching_paths("Text to compress", files.paths):
        name = (path if files.base is None else Path(os.path.relpath(path, files.base))).as_posix()
        if format_of(path, files.text_field) == "text":
            yield Text(files.name or name, read_text(path))
            continue
        for row_name, text in read_rows(MatchedFile(path, name), files.text_field, files.id_field):
            yield Text(files.name or row_name, iter((text,)))


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
