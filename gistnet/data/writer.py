"""Writing the files of a prepared corpus; `gistnet.data.dataset` says what they hold and reads them."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow
from numpy.typing import NDArray
from pyarrow import parquet

from gistnet.data.dataset import (
    DOCUMENT_SCHEMA,
    DOCUMENTS_FILE,
    TOKENS_FILE,
    WINDOWS_FILE,
    DocumentLabels,
    TokenType,
)

DOCUMENTS_PER_WRITE = 1000


def smallest_type(vocabulary_size: int) -> TokenType:
    """The smallest type that holds every token id of a vocabulary."""
    return "uint16" if vocabulary_size <= 2**16 else "uint32"


class DatasetWriter:
    """Writes the files of a prepared corpus into an empty folder, document by document.

    A full disk raises `OSError` here; the files are written plainly because a memory map would kill the process.
    """

    def __init__(self, folder: Path, token_type: TokenType) -> None:
        self.token_type = token_type
        self.n_documents = 0
        self.n_tokens = 0
        self._folder = folder
        self._tokens = (folder / TOKENS_FILE).open("wb")
        self._documents = parquet.ParquetWriter(folder / DOCUMENTS_FILE, DOCUMENT_SCHEMA)
        self._rows: list[dict[str, Any]] = []
        self._windows: list[NDArray[np.int64]] = []

    def add(self, labels: DocumentLabels, tokens: NDArray[np.int64], windows: NDArray[np.int64]) -> None:
        """Append a document: its tokens [n_tokens] and its windows [windows, 2] of offset and length."""
        self._tokens.write(tokens.astype(self.token_type).tobytes())
        self._rows.append(dict(zip(DOCUMENT_SCHEMA.names, (*labels, self.n_tokens, len(tokens)), strict=True)))
        if len(self._rows) == DOCUMENTS_PER_WRITE:
            self._write_rows()
        self._windows.append(np.insert(windows, 0, self.n_documents, axis=1))
        self.n_documents += 1
        self.n_tokens += len(tokens)

    def finish(self) -> dict[str, int]:
        """Complete the files and return the size of each in bytes; at least one document must have been added."""
        self._write_rows()
        self._close()
        np.save(self._folder / WINDOWS_FILE, np.concatenate(self._windows))
        return {name: (self._folder / name).stat().st_size for name in (TOKENS_FILE, DOCUMENTS_FILE, WINDOWS_FILE)}

    def _write_rows(self) -> None:
        self._documents.write_table(pyarrow.Table.from_pylist(self._rows, DOCUMENT_SCHEMA))
        self._rows = []

    def _close(self) -> None:
        self._tokens.close()
        self._documents.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()
