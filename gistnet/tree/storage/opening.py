"""Making a tree, finding the generation to read, and whether an encoder belongs to it."""

from contextlib import suppress
from pathlib import Path

from gistnet.errors import CheckpointError, DataError, TeacherError
from gistnet.files import WRITER_LOCK, lock_for_writing, storage_errors
from gistnet.locks import FileLock
from gistnet.tree.encoder import Encoder
from gistnet.tree.storage import catalog
from gistnet.tree.storage import rows as layout
from gistnet.tree.storage.catalog import FORMAT_VERSION, TreeState
from gistnet.tree.storage.location import Location
from gistnet.tree.storage.lock import Pin, guard
from gistnet.tree.storage.reencode import create_tables, gist_schemas
from gistnet.tree.storage.snapshot import Snapshot

_OURS = {WRITER_LOCK, "readers", "tokens.lance", "quality.lance", "gists", "catalog.lance"}


def create_tree(location: Location, encoder: Encoder) -> tuple[Snapshot, FileLock | None]:
    """A tree without documents, and the lock on it. The catalog is written last: without it there is no tree.

    Raises:
        DataError: there is a tree already, or a folder with something else in it.
        StorageError: the place cannot be written, or somebody else is making a tree there.
    """
    info, version = encoder.info, encoder.info.version
    lock = None if location.folder is None else _claim(location.folder)
    try:
        if catalog.exists(location):
            raise DataError(f"{location.uri} is a tree already; open it, or give another place.")
        schemas = {layout.TOKENS: layout.TOKENS_SCHEMA, layout.QUALITY: layout.QUALITY_SCHEMA, **gist_schemas(version)}
        state = TreeState(
            format=FORMAT_VERSION,
            teacher=info.teacher,
            vocabulary_size=info.vocabulary_size,
            active=version,
            pending=None,
            retired={},
            compacted=1,
            tables=create_tables(location, schemas, since=1),
        )
        return Snapshot(location, catalog.create(location, state)), lock
    except BaseException:
        if lock is not None:
            lock.close()
        raise


def _claim(folder: Path) -> FileLock:
    with storage_errors("create the tree", folder):
        folder.mkdir(parents=True, exist_ok=True)
        if strange := sorted({entry.name for entry in folder.iterdir()} - _OURS):
            raise DataError(f"{folder} has {strange[0]!r} in it, expected a new or empty folder for a tree.")
    return lock_for_writing(folder, "tree")


def load(location: Location, earlier: Snapshot | None = None, *, pinned: bool = True) -> Snapshot:
    """The newest generation, kept from being cleaned as long as it is read, where the place allows that.

    Args:
        location: the root of the tree.
        earlier: of the same tree, whose handles are taken over where they are still true.
        pinned: False where nobody but ourselves could clean it, as for the one who writes.

    Raises:
        DataError: there is no tree, or it is damaged, or it has another format.
        StorageError: it cannot be read.
    """
    folder = location.folder
    if pinned and folder is not None and catalog.exists(location):
        with suppress(OSError), guard(folder, shared=True):  # a folder that we may only read has no pins
            newest = catalog.read(location)
            return Snapshot(location, newest, Pin(folder, newest.generation), earlier)
    return Snapshot(location, catalog.read(location), None, earlier)


def require_encoder(snapshot: Snapshot, encoder: Encoder, *, same_version: bool = True) -> None:
    """Refuse an encoder that cannot write to this tree, or that did not make its gists.

    Raises:
        TeacherError: it is for another language model.
        CheckpointError: it is another GistNet than the tree's, or its teacher has another precision, and `same_version`
            is asked for.
    """
    state, uri, info = snapshot.catalog.state, snapshot.location.uri, encoder.info
    if not state.teacher.same_model(info.teacher):
        raise TeacherError(
            f"The tree {uri} is for {state.teacher.describe()}; got a GistNet for {info.teacher.describe()}."
        )
    if same_version and state.active != info.version:
        raise CheckpointError(
            f"The gists of the tree {uri} were made by the GistNet {state.active.fingerprint} (teacher in "
            f"{state.teacher.precision}), got {info.fingerprint} (teacher in {info.teacher.precision}): "
            "open the tree without an encoder and call reencode to make them anew."
        )
