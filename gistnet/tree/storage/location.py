"""Where a tree lies: a local folder, or a prefix of an object store."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from gistnet.files import storage_errors


@dataclass(frozen=True)
class Location:
    """The root of a tree.

    Args:
        uri: a path, or a URI that Lance reads (`file://`, `s3://`, `gs://`, `az://`, …).
        storage_options: what Lance needs to reach an object store: region, endpoint, keys.
    """

    uri: str
    storage_options: dict[str, str] | None = None

    @property
    def folder(self) -> Path | None:
        """The local folder, or None for an object store."""
        if "://" not in self.uri:
            return Path(self.uri)
        parts = urlsplit(self.uri)
        return Path(url2pathname(parts.path)) if parts.scheme == "file" else None

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
