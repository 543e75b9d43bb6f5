"""The input files of a source: which ones its patterns match, their text, and their lines, compressed or not."""

import gzip
import zlib
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import glob, has_magic
from pathlib import Path
from typing import NamedTuple

from gistnet.errors import DataError
from gistnet.paths import local_path

READ_BYTES = 1 << 18


class MatchedFile(NamedTuple):
    """A file of a source, and a name for it that does not depend on where the corpus lies."""

    path: Path
    name: str


def match_files(source: str, patterns: Iterable[str]) -> list[MatchedFile]:
    """The files that the patterns of a source match, each once, in order of pattern and path.

    `~` in a pattern is the home folder, `**` any depth of folders; hidden files are matched only by name.

    Raises:
        DataError: a pattern matches no file, or a file is empty (0 bytes).
        ConfigError: a pattern is empty, or names a user without a home folder.
    """
    matched: dict[Path, MatchedFile] = {}
    for pattern in patterns:
        expanded = local_path(pattern)
        with reading(expanded):
            # A path that exists is meant literally, even where its name looks like a pattern. Path.glob would
            # find hidden files, and takes no absolute pattern.
            found = [str(expanded)] if expanded.is_file() else glob(str(expanded), recursive=True)  # noqa: PTH207
            files = sorted(path for path in map(Path, found) if path.is_file())
            if not files:
                raise DataError(f"Source {source!r}: no file matches {pattern!r}.")
            # Names keep the folder's own name, so that `a/*.txt` and `b/*.txt` stay apart.
            folder = _fixed_folder(expanded)
            for path in files:
                if path.stat().st_size == 0:
                    raise DataError(f"Source {source!r}: {path} is empty.")
                name = Path(folder.resolve().name, path.relative_to(folder)).as_posix()
                matched.setdefault(path.resolve(), MatchedFile(path, name))
    return list(matched.values())


def _fixed_folder(pattern: Path) -> Path:
    """The deepest folder that every match of the pattern lies in."""
    if pattern.is_file():
        return pattern.parent
    return next(folder for folder in pattern.parents if not has_magic(str(folder)))


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
        DataError: the file cannot be read, or is not UTF-8.
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
            yield text if read_bytes else text.removeprefix("\ufeff")
            if not block:
                return
            read_bytes += len(block)


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, decompressed where its name ends in `.gz` or `.zst`.

    Raises:
        DataError: the file cannot be read or decompressed, or was cut off.
    """
    if path.suffix == ".zst":
        yield from _zstandard_lines(path)
    else:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from file


def _zstandard_lines(path: Path) -> Iterator[bytes]:
    import zstandard

    frames = zstandard.ZstdDecompressor(max_window_size=2**31)
    rest, frame = b"", frames.decompressobj()
    try:
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                while block:  # a file may hold several frames
                    if frame.eof:
                        frame = frames.decompressobj()
                    *lines, rest = (rest + frame.decompress(block)).split(b"\n")
                    block = frame.unused_data
                    yield from lines
    except zstandard.ZstdError as error:
        raise DataError(f"Could not read {path}: {error}.") from error
    if not frame.eof:  # the library takes a file that was cut off for a shorter one
        raise DataError(f"Could not read {path}: the compressed file ends too early.")
    yield rest
