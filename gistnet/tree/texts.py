"""The documents that files hold, read in pieces, and their tokens in portions: what is compressed into a tree.

A text file is one document, named by its path from the folder in which the tree lies (`books/emma.txt`), however that
path was typed; each line of a JSON lines file, or row of a Parquet file, is one, named by its id. Nothing here holds
more of a text file than a piece of it; of a JSON lines file one line is held.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from gistnet.data.sources import MatchedFile, format_of, matching_paths, read_rows, read_text
from gistnet.data.tokenise import Tokenize, pieces_of_blocks
from gistnet.errors import DataError
from gistnet.settings import Name, Section

PORTION_TOKENS = 16384


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
        """The same files, named for the tree in a local folder, or for one that is elsewhere."""
        return self.model_copy(update={"base": None if tree is None else tree.resolve().parent})


class Text(NamedTuple):
    """A document's name, and its text in blocks of any length, to be read before the next document is asked for."""

    name: str
    blocks: Iterator[str]


class Survey(NamedTuple):
    """What there is to compress."""

    documents: int
    characters: int


class Portion(NamedTuple):
    """Consecutive tokens of a document."""

    document: str
    start: int
    """The place of the first of them in the document."""
    tokens: NDArray[np.int64]
    characters: int
    """About how many characters it stands for; exact in the sum over the portions of a document."""
    is_last: bool
    """Whether the document ends here."""
    before: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    """Tokens that precede it, where whoever makes its gists reads them."""
    gists: tuple[NDArray[np.float16], ...] = ()
    """Those of its gists that have been made already, `[n, dim]` of each level from 0 on."""


def match_texts(files: TextFiles) -> list[MatchedFile]:
    """The files that the patterns match, each with the name of its document.

    Raises:
        DataError: a pattern matches no file, or a file is empty.
    """
    paths = matching_paths("files", files.paths)
    return [MatchedFile(path, _name(path, files.base)) for path in paths]


def _name(path: Path, base: Path | None) -> str:
    return path.as_posix() if base is None else Path(os.path.relpath(path, base)).as_posix()


def read_texts(files: TextFiles) -> Iterator[Text]:
    """The documents of files, in the order in which the files are named.

    Raises:
        DataError: a pattern matches no file, or a file is empty, cannot be read, or is not UTF-8; it is named.
    """
    for file in match_texts(files):
        yield from texts_of(file, files)


def texts_of(file: MatchedFile, files: TextFiles) -> Iterator[Text]:
    """The documents of one of the files.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    if format_of(file.path, files.text_field) == "text":
        yield Text(file.name, read_text(file.path))
        return
    for name, text in read_rows(file, files.text_field, files.id_field):
        yield Text(name, iter((text,)))


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
