"""Where a tree lies: a local folder, or a prefix of an object store."""

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from gistnet.errors import ConfigError
from gistnet.files import storage_errors
from gistnet.paths import local_path


@dataclass(frozen=True)
class Location:
    """The root of a tree.

    Args:
        uri: a path, in which `~` is the home folder, or a URI that Lance reads (`file://`, `s3://`, `gs://`, …).
        storage_options: what Lance needs to reach an object store: region, endpoint, keys.
    """

    uri: str
    storage_options: dict[str, str] | None = None

    def __post_init__(self) -> None:
        _ = self.folder  # refuse at once what is no place

    @cached_property
    def folder(self) -> Path | None:
        """The local folder, or None for an object store.

        Raises:
            ConfigError: the URI is empty, or of a file but not of one on this machine.
        """
        parts = urlsplit(self.uri) if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|file:/", self.uri, re.IGNORECASE) else None
        if parts is None:
            return local_path(self.uri)
        if parts.scheme != "file":
            return None
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment or parts.path in ("", "/"):
            raise ConfigError(
                f"Got the tree {self.uri!r}, expected file:///FOLDER, with three slashes and %3F, %23 for ? and #."
            )
        return local_path(url2pathname(parts.path))

    def join(self, name: str) -> str:
        """The URI of what is called `name` under the root."""
        if self.folder is not None:
            return str(self.folder.absolute() / name)
        return f"{self.uri.rstrip('/')}/{name}"


def flush_to_disk(files: Iterable[Path]) -> None:
    """Flush files, and the folders that name them, so that they outlive a loss of power.

    All at once, since a file system writes its journal once for flushes that arrive together (measured on ext4: nine in
    1 ms, against 32 ms one by one).

    Raises:
        StorageError: the system refused.
    """
    files = list(files)
    entries = [*files, *{file.parent for file in files}]
    if entries:
        with ThreadPoolExecutor(len(entries)) as pool:
            list(pool.map(_flush, entries))


def _flush(path: Path) -> None:
    with storage_errors("flush", path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
