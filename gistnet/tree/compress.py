"""Texts into a tree: in portions, so that memory does not grow with a text, and continued where an earlier run stopped.

The tokens of the tree are the record of what has been done: a run reads and tokenises every text again, which costs
little beside making gists, compares with what the tree holds of it, and appends what is missing. So a text that is in
the tree entirely is passed over, a part of one is continued, one that has grown is too if its tokens so far are the
same, and one that has changed is refused: the tree never holds a mixture. A portion is acknowledged when the tree has
it on disk, and gists have the same bits whatever the portions, so that killing a run and running it again gives the
tree of one run.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gistnet.errors import DataError
from gistnet.tree.encoder import Encoder
from gistnet.tree.texts import PORTION_TOKENS, Portion, Survey, TextFiles, read_portions, read_texts, survey
from gistnet.tree.tree import GistTree


class Progress(NamedTuple):
    """How far a run has come. Tokens are those that this run appended, or found in the tree."""

    total: Survey
    """All there is to do."""
    document: str
    """The document at hand."""
    documents: int
    """Documents that are done: in the tree entirely, or empty."""
    characters: int
    """Characters whose tokens are in the tree."""
    appended_characters: int
    """Those of them whose portions this run appended."""
    appended_tokens: int
    found_tokens: int
    empty: int = 0
    """Documents without tokens, of which a tree keeps nothing."""


def compress_files(
    files: TextFiles,
    tree: GistTree,
    encoder: Encoder,
    *,
    portion_tokens: int = PORTION_TOKENS,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Append the documents of files to a tree, each under its name.

    Args:
        files: which files; everything in them is read once before anything is appended.
        tree: open for writing, with the encoder.
        encoder: makes tokens of the texts; the tree makes gists of them with it.
        portion_tokens: appended and acknowledged at a time, of one document or of many short ones.
        progress: is told after every acknowledgement.

    Returns:
        The last progress.

    Raises:
        DataError: a file cannot be read, is empty or not UTF-8, or two documents share a name (the tree is then as it
            was); or the tree holds another text under the name of a document (all other documents are then in it).
        StorageError: the tree cannot be written; what was acknowledged stays.
    """
    files = files.named_from(tree.folder)
    total = survey(files)
    portions = read_portions(read_texts(files), encoder.tokenize, portion_tokens)
    return append_portions(
        tree, total, portions, lambda tokens, portion: tree.append(tokens, portion.document), portion_tokens, progress
    )


def append_portions(
    tree: GistTree,
    total: Survey,
    portions: Iterable[Portion],
    append: Callable[[NDArray[np.int64], Portion], object],
    batch_tokens: int,
    progress: Callable[[Progress], None],
) -> Progress:
    """Append what a tree lacks of portions that come in order, so many tokens of one or many documents at a time.

    Args:
        append: appends tokens of a portion to its document.

    Raises:
        DataError: as `compress_files`.
    """
    account = Account(tree, total)
    for batch in _batches(portions, batch_tokens):
        missing = [account.missing(portion) for portion in batch]
        with tree.batch():
            for portion, tokens in zip(batch, missing, strict=True):
                if len(tokens):
                    append(tokens, portion)
        for portion, tokens in zip(batch, missing, strict=True):
            account.note(portion, len(tokens))
        progress(account.progress)
    account.require_same_texts()
    return account.progress


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


class Account:
    """What of the documents is in the tree already, and what a run has added to it."""

    def __init__(self, tree: GistTree, total: Survey) -> None:
        self._tree = tree
        self._in_tree = set(tree.documents())
        self._known = 0
        self._refused: dict[str, int] = {}
        self.progress = Progress(total, "", 0, 0, 0, 0, 0)

    def missing(self, portion: Portion) -> NDArray[np.int64]:
        """The tokens of a portion that the tree does not hold yet; none of a text that is not the one it holds.

        Portions come in order, so a text is found to be another one before anything of it has been appended.
        """
        name, start, tokens = portion.document, portion.start, portion.tokens
        if start == 0:
            self._known = self._tree.document(name).n_tokens if name in self._in_tree else 0
        common = min(max(self._known - start, 0), len(tokens))
        held = self._tree.tokens(start, start + common, name) if common else tokens[:0]
        differs = np.flatnonzero(held != tokens[:common])
        if len(differs):
            self._refused.setdefault(name, start + int(differs[0]))
        elif portion.is_last and self._known > start + common:
            self._refused.setdefault(name, start + common)
        return tokens[:0] if name in self._refused else tokens[common:]

    def require_same_texts(self) -> None:
        """Refuse texts that are not those that the tree holds under their names, once all others are in the tree.

        Raises:
            DataError: there are some.
        """
        if self._refused:
            name, place = next(iter(self._refused.items()))
            more = f" (as do {len(self._refused) - 1} others under theirs)" if len(self._refused) > 1 else ""
            raise DataError(
                f"The text of {name!r} differs from token {place} on from the one that the tree holds under that name"
                f"{more}; expected the same text, or another name."
            )

    def note(self, portion: Portion, appended_tokens: int) -> None:
        """Count a portion that is in the tree now, of which this run appended so many tokens."""
        before = self.progress
        self.progress = Progress(
            total=before.total,
            document=portion.document,
            documents=before.documents + portion.is_last,
            characters=before.characters + portion.characters,
            appended_characters=before.appended_characters + (portion.characters if appended_tokens else 0),
            appended_tokens=before.appended_tokens + appended_tokens,
            found_tokens=before.found_tokens + len(portion.tokens) - appended_tokens,
            empty=before.empty + (portion.start == 0 and portion.is_last and not len(portion.tokens)),
        )
