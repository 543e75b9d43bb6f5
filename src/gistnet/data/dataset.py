"""A prepared corpus on disk: tokenised documents, cut into windows and split into training and held-out documents.

`gistnet.data.prepare` makes it once; training and evaluation read windows through a memory map, so that a corpus
larger than memory costs nothing to open. A prepared corpus is a folder, named after its fingerprint:

    dataset.json        the description: format, fingerprint, settings, statistics, sizes of the other files
    tokens.bin          the tokens of all kept documents, one after another (uint16 or uint32)
    documents.parquet   one row a kept document: id, key, source, domain, split, start in tokens.bin, n_tokens
    windows.npy         int64 [windows, 3]: index of the document, offset of the window's text in it, window length
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from gistnet.errors import DataError
from gistnet.extras import needing
from gistnet.settings import Section

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
TokenType = Literal["uint16", "uint32"]

FORMAT_VERSION = 3
DESCRIPTION_FILE = "dataset.json"
TOKENS_FILE = "tokens.bin"
DOCUMENTS_FILE = "documents.parquet"
WINDOWS_FILE = "windows.npy"


class DocumentLabels(NamedTuple):
    """Name, key, source, domain and split of a document: the columns of text in `documents.parquet`."""

    id: str
    """Its name, for people."""
    key: str
    """A hash of its text, which decides its split and every order of documents, so that no name does."""
    source: str
    domain: str
    split: Split


NUMBER_COLUMNS = ("start", "n_tokens")
DOCUMENT_COLUMNS = (*DocumentLabels._fields, *NUMBER_COLUMNS)
"""Columns of `documents.parquet`: texts, and then whole numbers."""


def read_documents(folder: Path) -> Any:
    """The table in `documents.parquet`, of pyarrow.

    Raises:
        OSError, ValueError: it cannot be read, or is damaged.
        MissingPackageError: pyarrow is not installed.
    """
    with needing("data", "A prepared corpus"):
        import pyarrow
        from pyarrow import parquet
    try:
        return parquet.read_table(folder / DOCUMENTS_FILE)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


class SplitStatistics(Section):
    """Counts of what was read, dropped and kept of the documents of one source in one split."""

    source: str
    domain: str
    split: Split
    read: int = 0
    """Documents the source has; the sum of the next four."""
    too_short: int = 0
    """Documents dropped because they have fewer than `min_tokens` tokens."""
    near_duplicates: int = 0
    """Documents dropped because an earlier one says nearly the same."""
    overlapping: int = 0
    """Held-out documents dropped because training documents have more than a tenth of their word 10-grams."""
    kept: int = 0
    """Documents in the prepared corpus."""
    tokens: int = 0
    """Tokens of the kept documents."""
    windows: int = 0
    """Windows cut from the kept documents."""


class DatasetDescription(Section):
    """The contents of `dataset.json`."""

    format_version: int
    fingerprint: str
    """Identity of the inputs, the settings and the tokenizer: equal fingerprints mean equal windows."""
    content_fingerprint: str
    """Identity of the windows and of their split, see `content_fingerprint`."""
    window_prefix: tuple[int, ...]
    """Tokens that begin every window, such as BOS."""
    token_type: TokenType
    config: dict[str, Any]
    statistics: tuple[SplitStatistics, ...]
    """One entry for each source and split, in the order of the configuration."""
    file_bytes: dict[str, int]
    """Size of each other file of the folder."""


@dataclass(frozen=True)
class WindowInfo:
    """Origin of a window. `length` counts the prefix; `offset` is in tokens from the document's start."""

    document_id: str
    document: int
    key: str
    """A hash of the document's text, which decides every order of documents."""
    source: str
    domain: str
    split: Split
    offset: int
    length: int


class PreparedDataset:
    """The windows of a prepared corpus, numbered from 0."""

    def __init__(self, folder: Path, description: DatasetDescription) -> None:
        self.folder = folder
        self.description = description
        self._prefix = np.array(description.window_prefix, dtype=np.int64)
        self._tokens = np.memmap(folder / TOKENS_FILE, dtype=description.token_type, mode="r")
        self._documents = read_documents(folder)
        self._windows: NDArray[np.int64] = np.load(folder / WINDOWS_FILE, mmap_mode="r")

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open the prepared corpus in `folder`.

        Raises:
            DataError: the folder holds no prepared corpus, one of another format, or one that is damaged.
        """
        description = read_description(folder)
        for name, expected in description.file_bytes.items():
            file = folder / name
            got = file.stat().st_size if file.is_file() else 0
            if got != expected:
                raise DataError(
                    f"{file} is damaged: it has {got} bytes, expected {expected}. Delete {folder} and prepare it again."
                )
        try:
            return cls(folder, description)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder} cannot be read: {error}. Delete it and prepare it again.") from error

    @property
    def content_fingerprint(self) -> str:
        """Identity of the windows and of their split: 16 hexadecimal digits of a SHA-256."""
        return self.description.content_fingerprint

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Record by which a run knows its corpus again, and names what differs in another one."""
        splits = self._documents["split"].to_pylist()
        return {
            "content": self.content_fingerprint,
            **{f"{split}_documents": splits.count(split) for split in SPLITS},
            "tokens": len(self._tokens),
            "windows": len(self),
        }

    @property
    def statistics(self) -> tuple[SplitStatistics, ...]:
        """Counts of what was read, dropped and kept, for each source and split."""
        return self.description.statistics

    @cached_property
    def sources(self) -> dict[str, str]:
        """The domain of each source, in the order of the configuration."""
        return {entry.source: entry.domain for entry in self.statistics}

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each window, its prefix included: [windows]."""
        return self._windows[:, 2]

    @property
    def documents(self) -> NDArray[np.int64]:
        """Index of the document of each window: [windows]."""
        return self._windows[:, 0]

    def __len__(self) -> int:
        return len(self._windows)

    def domains(self, split: Split) -> list[str]:
        """Names of the domains that have windows in `split`, sorted."""
        return sorted({entry.domain for entry in self.statistics if entry.split == split and entry.windows})

    def window_indices(self, split: Split, domain: str | None = None, source: str | None = None) -> NDArray[np.int64]:
        """Numbers of the windows of a split, of one domain or source where given: ascending, int64."""
        return np.flatnonzero(self._chosen(split, domain, source)[self.documents])

    def whole_documents(
        self, split: Split, domain: str | None = None, *, min_tokens: int = 0, for_validation: bool = False
    ) -> Iterator[tuple[str, NDArray[np.int64]]]:
        """Name and tokens of each document of a split, uncut and without prefix, read one by one.

        The order depends on the texts alone, and the first few are from all over the corpus. Validation begins with the
        last, so that what is reported is measured on other documents.
        """
        names, keys = self._documents["id"], self._documents["key"]
        lengths = self._documents["n_tokens"].to_numpy()
        chosen = np.flatnonzero(self._chosen(split, domain) & (lengths >= min_tokens))
        for document in sorted(chosen.tolist(), key=lambda row: _digest(keys[row].as_py()), reverse=for_validation):
            start, count = int(self._starts[document]), int(lengths[document])
            yield names[document].as_py(), self._tokens[start : start + count].astype(np.int64)

    def _chosen(self, split: Split, domain: str | None = None, source: str | None = None) -> NDArray[np.bool_]:
        """Mask of the documents of a split, and of a domain or source where given."""
        chosen = np.ones(len(self._documents), dtype=bool)
        for column, wanted in (("split", split), ("domain", domain), ("source", source)):
            if wanted is not None:
                chosen &= np.array(self._documents[column].to_pylist()) == wanted
        return chosen

    def read(self, window: int) -> NDArray[np.int64]:
        """Tokens of a window, beginning with the window prefix: int64 [length]."""
        document, offset, length = self._windows[window].tolist()
        start = self._starts[document] + offset
        return np.concatenate([self._prefix, self._tokens[start : start + length - len(self._prefix)]])

    def describe(self, window: int) -> WindowInfo:
        """Origin of a window."""
        document, offset, length = self._windows[window].tolist()
        name, key, source, domain, split = (self._documents[name][document].as_py() for name in DocumentLabels._fields)
        return WindowInfo(name, document, key, source, domain, split, offset, length)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return self._documents["start"].to_numpy()


def is_for_validation(key: str) -> bool:
    """True for the half of the held-out documents that validation takes first, by a hash of the document's key."""
    return _digest(key)[0] >= 128


def _digest(key: str) -> bytes:
    return hashlib.sha256(b"order:" + key.encode()).digest()  # other than what decides the split


def content_fingerprint(folder: Path, window_prefix: Sequence[int]) -> str:
    """Identity of the windows in `folder` and of their split: 16 hexadecimal digits of a SHA-256.

    Names do not count: documents that were moved or renamed have the same, unless their order is another. What an
    update of a library prepares differently has another.
    """
    digest = hashlib.sha256(b"".join(token.to_bytes(4, "little") for token in window_prefix))
    digest.update(np.memmap(folder / TOKENS_FILE, mode="r").data)
    digest.update(np.load(folder / WINDOWS_FILE).data)
    documents = read_documents(folder)
    # Of the name of a source only counts which documents share it.
    numbers = {name: number for number, name in enumerate(documents["source"].unique().to_pylist())}
    digest.update(json.dumps([numbers[name] for name in documents["source"].to_pylist()]).encode())
    for column in ("key", "domain", "split", *NUMBER_COLUMNS):
        digest.update(json.dumps(documents[column].to_pylist()).encode())
    return digest.hexdigest()[:16]


def read_description(folder: Path) -> DatasetDescription:
    """The description of the prepared corpus in `folder`.

    Raises:
        DataError: there is none, or it is damaged or of another format.
    """
    file = folder / DESCRIPTION_FILE
    try:
        description = DatasetDescription.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no prepared data: {DESCRIPTION_FILE} is missing.") from error
    except OSError as error:
        raise DataError(f"Could not read {file}: {error.strerror}.") from error
    except ValidationError as error:
        raise DataError(f"{file} is damaged, or not a description in format {FORMAT_VERSION}.") from error
    if description.format_version != FORMAT_VERSION:
        raise DataError(
            f"{folder} is in format {description.format_version}, expected {FORMAT_VERSION}; prepare it again."
        )
    return description
