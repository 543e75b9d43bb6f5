"""The input files of a source: which ones its patterns match, their text, and their lines, compressed or not."""

import gzip
import io
import json
import os
import zlib
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import glob
from itertools import dropwhile
from pathlib import Path
from typing import NamedTuple

from gistnet.errors import DataError
from gistnet.paths import local_path

READ_BYTES = 1 << 18
# A block of 128 KiB takes as few as 4 bytes in a Zstandard file: so many bytes decompress to 8 MiB at most.
COMPRESSED_BYTES = 1 << 8
# English in UTF-16 is half zeros; a text in UTF-8 has none, or a stray one.
MOST_ZEROS = 0.25


class MatchedFile(NamedTuple):
    """A file of a source, and a name for it that does not depend on how its pattern was written."""

    path: Path
    name: str


def match_files(source: str, patterns: Iterable[str]) -> list[MatchedFile]:
    """Files that the patterns of a source match, each once, in order of pattern and path.

    `~` in a pattern is the home folder, `**` any depth of folders; hidden files are matched only by name. A file is
    named by its path from the deepest folder that has all files of the source, with that folder's own name before it.

    Raises:
        DataError: a pattern matches no file or a broken symbolic link, or a file is empty (0 bytes) or has a name that
            is not UTF-8.
        ConfigError: a pattern is empty, or names a user without a home folder.
    """
    paths = matching_paths(source, patterns)
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return [MatchedFile(path, Path(common.name, path.relative_to(common)).as_posix()) for path in paths]


def matching_paths(source: str, patterns: Iterable[str]) -> list[Path]:
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
                raise DataError(f"Source {source!r}: no file matches {pattern!r}.")
            for path in files:
                _require_readable(source, path)
                # A file is told apart by what its links lead to, and named as it is called where it lies.
                matched.setdefault(path.resolve(), path.parent.resolve() / path.name)
    return list(matched.values())


def _require_readable(source: str, path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"Source {source!r}: the name of {os.fsencode(path)!r} is not UTF-8; rename it.") from error
    if not path.exists():
        raise DataError(f"Source {source!r}: {path} is a symbolic link to {path.readlink()}, which does not exist.")
    if path.stat().st_size == 0:
        raise DataError(f"Source {source!r}: {path} is empty.")


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
                place = read_bytes - len(undecoded) + error.start
                raise DataError(f"{path} is not UTF-8: {error.reason} at byte {place}.") from error
            if block.count(0) > MOST_ZEROS * len(block):
                raise DataError(
                    f"{path} is not UTF-8: {block.count(0):,} of {len(block):,} bytes are zero, as in UTF-16 "
                    "or in a file that is no text."
                )
            yield text if read_bytes else text.removeprefix("\ufeff")
            if not block:
                return
            read_bytes += len(block)


def is_jsonl(path: Path, text_field: str) -> bool:
    """Whether each line of a file is a document as a JSON object.

    By its name (`.jsonl` or `.ndjson`, in any case, perhaps compressed); a `.json` file by its first line, since it may
    as well be one text over many lines.

    Raises:
        DataError: the file cannot be read.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    if not suffixes or suffixes[-1] != ".json":
        return bool(suffixes) and suffixes[-1] in (".jsonl", ".ndjson")
    with reading(path):
        first = next(dropwhile(lambda line: not line.strip(), read_lines(path)), b"")
    try:
        record = json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and text_field in record


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
