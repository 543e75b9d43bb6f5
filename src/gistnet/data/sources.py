"""Documents of the configured sources: files, Hub data sets, this Python installation, and synthetic documents.

A source is read lazily: `read_documents` holds one document (or one block of a file) in memory at a time, in an order
that depends on the source alone.
"""

import gzip
import hashlib
import io
import json
import os
import zlib
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, assert_never

from gistnet.data.config import Domain, FilesSource, HubSource, InstallationSource, SourceConfig, SyntheticSource
from gistnet.data.installation import read_installation
from gistnet.data.synthetic import read_synthetic
from gistnet.errors import DataError, GistNetError
from gistnet.extras import needing
from gistnet.paths import local_path

Format = Literal["text", "jsonl", "parquet"]

ROWS_PER_BATCH = 256
READ_BYTES = 1 << 18
# A block of 128 KiB takes as few as 4 bytes in a Zstandard file: so many bytes decompress to 8 MiB at most.
COMPRESSED_BYTES = 1 << 8
# English in UTF-16 is half zeros; a text in UTF-8 has none, or a stray one.
MOST_ZEROS = 0.25


@dataclass(frozen=True)
class Document:
    """One text and where it comes from; `id` is a relative name that does not depend on the machine."""

    id: str
    source: str
    domain: Domain
    text: str

    @cached_property
    def key(self) -> str:
        """Hash of the text, 32 hexadecimal digits: what a document is known by wherever it lies."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]


class MatchedFile(NamedTuple):
    """A file of a source, and a name for it that does not depend on how its pattern was written."""

    path: Path
    name: str


def read_documents(config: SourceConfig) -> Iterator[Document]:
    """Yield the documents of a source, lazily and in a fixed order.

    Raises:
        DataError: no file matches, files are of several formats, or a file, line or row cannot be read as text; the
            message names it.
    """
    named_texts: Iterable[tuple[str, str]]
    match config:
        case FilesSource():
            named_texts = _read_files(config)
        case HubSource():
            named_texts = _read_hub(config)
        case InstallationSource():
            named_texts = read_installation(config.domain)
        case SyntheticSource():
            named_texts = read_synthetic(config.seed, config.max_documents)
        case _:
            assert_never(config)
    for name, text in islice(named_texts, config.max_documents):
        yield Document(name, config.name, config.domain, text)


def _read_files(config: FilesSource) -> Iterator[tuple[str, str]]:
    files = match_files(f"Source {config.name!r}", config.paths)
    formats = {format_of(file.path, config.text_field): file.path for file in files}
    if len(formats) > 1:
        found = ", ".join(f"{path} is {kind}" for kind, path in formats.items())
        raise DataError(f"Source {config.name!r} has files of several formats ({found}); expected one format a source.")
    for file in files:
        if "text" in formats:
            yield file.name, "".join(read_text(file.path))
        else:
            yield from read_rows(file, config.text_field, config.id_field)


def match_files(wanted: str, patterns: Iterable[str]) -> list[MatchedFile]:
    """Files that patterns match, each once, in order of pattern and path.

    `~` in a pattern is the home folder, `**` any depth of folders; hidden files are matched only by name. A file is
    named by its path from the deepest folder that has all files, with that folder's own name before it.

    Args:
        wanted: for what they are, with which an error begins: as "Source 'books'".

    Raises:
        DataError: a pattern matches no file or a broken symbolic link, or a file is empty (0 bytes) or has a name that
            is not UTF-8.
        ConfigError: a pattern is empty, or names a user without a home folder.
    """
    paths = matching_paths(wanted, patterns)
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [MatchedFile(path, Path(common.name, path.relative_to(common)).as_posix()) for path in paths]


def matching_paths(wanted: str, patterns: Iterable[str]) -> list[Path]:
    """Files as `match_files` finds them: absolute paths without symbolic links among their folders.

    Raises:
        DataError: as `match_files`.
    """
    matched: dict[Path, Path] = {}
    for pattern in patterns:
        expanded = str(local_path(pattern))
        with reading(Path(expanded)):
            # A path that exists is meant literally, even where its name looks like a pattern. Path.glob would
            # find hidden files, and takes no absolute pattern.
            literal = os.path.lexists(expanded) and not Path(expanded).is_dir()
            found = map(Path, [expanded] if literal else glob(expanded, recursive=True))  # noqa: PTH207
            files = sorted(path for path in found if path.is_symlink() or path.is_file())
            files = [path for path in files if not path.is_dir()]
            if not files:
                raise DataError(f"{wanted}: no file matches {pattern!r}, expected one at least.")
            for path in files:
                _require_readable(wanted, path)
                # A file is told apart by what its links lead to, and named as it is called where it lies.
                matched.setdefault(path.resolve(), path.parent.resolve() / path.name)
    return list(matched.values())


def _require_readable(wanted: str, path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{wanted}: the name of {os.fsencode(path)!r} is not UTF-8; rename it.") from error
    if not path.exists():
        raise DataError(f"{wanted}: {path} is a symbolic link to {path.readlink()}, which does not exist.")
    if path.stat().st_size == 0:
        raise DataError(f"{wanted}: {path} is empty, expected a text.")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong in reading a file inside the block into a `DataError` that names it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"Could not read {path}: {getattr(error, 'strerror', None) or error}.") from error


def read_text(path: Path) -> Iterator[str]:
    """Yield the text of a UTF-8 file in blocks, without the byte order mark.

    Raises:
        DataError: the file cannot be read, or is not UTF-8, such as UTF-16 without a byte order mark.
    """
    decoder = getincrementaldecoder("utf-8")()
    read_bytes = 0
    with reading(path), path.open("rb") as file:
        while True:
            block = file.read(READ_BYTES)
            undecoded, _ = decoder.getstate()  # the first bytes of a character that the last block cut
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                offset = read_bytes - len(undecoded) + error.start
                raise DataError(f"{path} is not UTF-8: {error.reason} at byte {offset}.") from error
            if block.count(0) > MOST_ZEROS * len(block):
                raise DataError(
                    f"{path} is not UTF-8: {block.count(0):,} of {len(block):,} bytes are zero, as in UTF-16 "
                    "or in a file that is no text."
                )
            yield text if read_bytes else text.removeprefix("\ufeff")
            if not block:
                return
            read_bytes += len(block)


def is_text(path: Path) -> bool:
    """True where a file is UTF-8 without zero bytes, and not empty.

    Raises:
        DataError: the file cannot be read.
    """
    decoder, found = getincrementaldecoder("utf-8")(), False
    with reading(path), path.open("rb") as file:
        try:
            while block := file.read(READ_BYTES):
                found = True
                if "\0" in decoder.decode(block):
                    return False
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return found


def format_of(path: Path, text_field: str) -> Format:
    """Format of a file: JSON lines, Parquet, or else a text.

    By its ending, in any case; a `.json` file by its first line, since it may as well be one text over many lines.

    Raises:
        DataError: the file cannot be read.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    elif suffixes and suffixes[-1] == ".parquet":
        return "parquet"
    match suffixes[-1:]:
        case [".jsonl" | ".ndjson"]:
            return "jsonl"
        case [".json"]:
            with reading(path):
                first = next(dropwhile(lambda line: not line.strip(), read_lines(path)), b"")
            try:
                record = json.loads(first.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                return "text"
            return "jsonl" if isinstance(record, dict) and text_field in record else "text"
    return "text"


def read_rows(file: MatchedFile, text_field: str, id_field: str) -> Iterator[tuple[str, str]]:
    """Yield `(name, text)` of each line of a JSON lines file, or each row of a Parquet file.

    Args:
        text_field: key or column of the text.
        id_field: key or column of the name; a row without it is called `<file>:<row>`, counted from 1.

    Raises:
        DataError: the file, or a line or row of it, cannot be read as text; the message names it.
    """
    if file.path.suffix.lower() == ".parquet":
        yield from _read_parquet(file, text_field, id_field)
        return
    with reading(file.path):
        for number, line in enumerate(read_lines(file.path), start=1):
            if not line.strip():
                continue
            where = f"{file.path}:{number}"
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} is not one JSON object in UTF-8: {error}.") from error
            if not isinstance(record, dict):
                raise DataError(f"{where} is not a JSON object but {type(record).__name__}.")
            yield _named_text(record, text_field, id_field, where, f"{file.name}:{number}")


def _read_parquet(file: MatchedFile, text_field: str, id_field: str) -> Iterator[tuple[str, str]]:
    with needing("data", f"Reading {file.path}"):
        import pyarrow
        from pyarrow import parquet
    path, number = file.path, 0
    try:
        with parquet.ParquetFile(path) as table:
            columns = table.schema_arrow.names
            if text_field not in columns:
                raise DataError(f"{path} has no column {text_field!r}, only {columns}.")
            wanted = [field for field in (text_field, id_field) if field in columns]
            for group in range(table.num_row_groups):  # one group at a time, so that no more is buffered
                for batch in table.iter_batches(ROWS_PER_BATCH, row_groups=[group], columns=wanted):
                    for row in batch.to_pylist():
                        number += 1
                        name = f"{file.name}:{number}"
                        yield _named_text(row, text_field, id_field, f"{path}, row {number}", name)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"Could not read {path} as Parquet: {error}.") from error


def _named_text(row: Any, text_field: str, id_field: str, where: str, name: str) -> tuple[str, str]:
    text = row.get(text_field)
    if not isinstance(text, str):
        got = type(text).__name__ if text_field in row else f"only the fields {sorted(row)}"
        raise DataError(f"{where} has no text in field {text_field!r}: got {got}.")
    given = row.get(id_field)
    name = name if given is None else str(given)
    try:
        f"{name}{text}".encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no tokenizer accepts
        raise DataError(f"{where} is not Unicode text: {error.reason}.") from error
    return name, text


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, decompressed where its name ends in `.gz` or `.zst`, holding one line at a time.

    Raises:
        DataError: the file cannot be read or decompressed, or was cut off.
    """
    with path.open("rb") as file:
        match path.suffix.lower():
            case ".gz":
                yield from gzip.GzipFile(fileobj=file)
            case ".zst":
                yield from io.BufferedReader(_Decompressed(file, path), READ_BYTES)
            case _:
                yield from file


class _Decompressed(io.RawIOBase):
    """The content of a Zstandard file, of any number of frames."""

    def __init__(self, file: io.BufferedReader, path: Path) -> None:
        with needing("data", f"Reading {path}"):
            import zstandard
        self._file, self._path, self._error = file, path, zstandard.ZstdError
        self._frames = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._frame = self._frames.decompressobj()
        self._block, self._content = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed has the buffer protocol itself
        try:
            while not self._content:
                self._block = self._block or self._file.read(COMPRESSED_BYTES)
                if not self._block:
                    if not self._frame.eof:  # the library takes a file that was cut off for a shorter one
                        raise DataError(f"Could not read {self._path}: the compressed file ends too early.")
                    return 0
                if self._frame.eof:
                    self._frame = self._frames.decompressobj()
                self._content = memoryview(self._frame.decompress(self._block))
                self._block = self._frame.unused_data
        except self._error as error:
            raise DataError(f"Could not read {self._path}: {error}.") from error
        count = min(len(buffer), len(self._content))
        buffer[:count] = self._content[:count]
        self._content = self._content[count:]
        return count


def require_on_hub(config: HubSource) -> None:
    """Refuse what `datasets` would read from this machine: changes to it would go unnoticed.

    Raises:
        DataError: the data set or one of its files is a local one.
    """
    for path in (config.path, *_data_files(config)):
        if "://" not in path and (Path(path).is_dir() or any(map(os.path.isfile, glob(path, recursive=True)))):  # noqa: PTH207
            raise DataError(
                f"Source {config.name!r}: {path} is on this machine, expected a data set of the Hub; local files are "
                "read by a source of kind 'files'."
            )


def _data_files(config: HubSource) -> tuple[str, ...]:
    return (config.data_files,) if isinstance(config.data_files, str) else config.data_files or ()


def _read_hub(config: HubSource) -> Iterator[tuple[str, str]]:
    with needing("data", f"Source {config.name!r}"):
        from datasets import load_dataset
    try:
        rows = load_dataset(
            config.path,
            config.config_name,
            data_files=list(_data_files(config)) or None,
            split=config.split,
            revision=config.revision,
            streaming=True,
        )
        for number, row in enumerate(rows, start=1):
            name = f"{config.path}:{number}"
            yield _named_text(row, config.text_field, config.id_field, name, name)
    except GistNetError:
        raise
    except Exception as error:  # builders and Arrow raise of every kind
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"Source {config.name!r}: could not read data set {config.path!r} ({type(error).__name__}: {reason})."
        ) from error
