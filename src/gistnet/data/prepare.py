"""From documents to a prepared corpus: tokenise, drop what is short or nearly a copy, split, cut into windows, store.

The work is done once for each fingerprint of the inputs, and streams: a batch of documents is in memory, never the
corpus. The split goes by what a document says, not by its name, and of the held-out documents those are dropped of
which training documents have a part. A killed or failed preparation leaves nothing that a reader could take for a
prepared corpus.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from gistnet.data.config import DataConfig, FilesSource, HubSource, InstallationSource, SourceConfig, SyntheticSource
from gistnet.data.dataset import (
    DESCRIPTION_FILE,
    DOCUMENT_COLUMNS,
    DOCUMENTS_FILE,
    FORMAT_VERSION,
    NUMBER_COLUMNS,
    SPLITS,
    TOKENS_FILE,
    WINDOWS_FILE,
    DatasetDescription,
    DocumentLabels,
    PreparedDataset,
    Split,
    SplitStatistics,
    TokenType,
    content_fingerprint,
    read_description,
)
from gistnet.data.duplicates import MOST_SHARED, NearDuplicates, Overlap
from gistnet.data.installation import installation_identity
from gistnet.data.sources import Document, match_files, read_documents, reading, require_on_hub
from gistnet.data.synthetic import synthetic_identity
from gistnet.data.tokenise import WindowTokenizer, cut_windows, tokenise
from gistnet.errors import ConfigError, DataError
from gistnet.extras import needing
from gistnet.files import atomic_folder, write_json

logger = logging.getLogger(__name__)

TOKENS_PER_MESSAGE = 1_000_000
DOCUMENTS_PER_WRITE = 1000


def prepare(config: DataConfig, tokenizer: WindowTokenizer) -> PreparedDataset:
    """Write the prepared corpus `config.folder / fingerprint`, or open it where it exists already.

    Raises:
        ConfigError: the window is not longer than its prefix.
        DataError: a source cannot be read or has no documents, or every document is too short.
        StorageError: the folder cannot be written.
    """
    if config.window_tokens <= len(tokenizer.window_prefix):
        raise ConfigError(
            f"window_tokens must exceed the {len(tokenizer.window_prefix)} tokens of the tokenizer's window prefix, "
            f"got {config.window_tokens}."
        )
    fingerprint = dataset_fingerprint(config, tokenizer)
    folder = config.folder / fingerprint
    if not folder.exists():
        with atomic_folder(folder) as partial:
            _write_dataset(partial, fingerprint, config, tokenizer)
    return PreparedDataset.open(folder)


def find_prepared(config: DataConfig, content_fingerprint: str) -> PreparedDataset | None:
    """The prepared corpus of this content and these settings, wherever its sources lie now; None where it is gone.

    Raises:
        DataError: it is damaged.
    """
    for folder in sorted(config.folder.glob("[!.]*")):
        try:
            description = read_description(folder)
            settings = DataConfig.model_validate(description.config)
        except (DataError, ValidationError):
            continue  # no prepared corpus, or one of another version
        if description.content_fingerprint == content_fingerprint and _settings(settings) == _settings(config):
            return PreparedDataset.open(folder)
    return None


def _settings(config: DataConfig) -> dict[str, Any]:
    """Settings that decide what is prepared of the sources' content: neither weights nor where files lie."""
    settings = config.model_dump(mode="json", exclude={"folder"})
    for source in settings["sources"]:
        del source["weight"]
        source.pop("paths", None)
    return settings


def dataset_fingerprint(config: DataConfig, tokenizer: WindowTokenizer) -> str:
    """Identity of what `prepare` would write: 16 hexadecimal digits of a SHA-256.

    A file counts by name and content; the installation by its packages; a Hub data set by its settings; synthetic
    documents by their settings, the version of their recipes, and the installation.

    Raises:
        DataError: a source's files are missing or empty, or a Hub source has files of this machine.
    """
    identity = {
        "format_version": FORMAT_VERSION,
        "settings": _settings(config),
        "content": [_content_identity(source) for source in config.sources],
        "tokenizer": [tokenizer.fingerprint, tokenizer.vocabulary_size, list(tokenizer.window_prefix)],
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _content_identity(source: SourceConfig) -> Any:
    """Identity of a source's content: all that decides its documents beside its settings."""
    match source:
        case FilesSource():
            return [
                [file.name, _content_hash(file.path)] for file in match_files(f"Source {source.name!r}", source.paths)
            ]
        case InstallationSource():
            return installation_identity()
        case SyntheticSource():
            return synthetic_identity()
        case HubSource():
            return require_on_hub(source)


def _content_hash(path: Path) -> str:
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split_of(key: str, held_out_fraction: float) -> Split:
    """The split of a document, by its key alone (a hash of its text), so that it is the same in every corpus."""
    draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "held_out" if draw < held_out_fraction else "train"


def _write_dataset(folder: Path, fingerprint: str, config: DataConfig, tokenizer: WindowTokenizer) -> None:
    counts: Counts = {(source.name, split): Counter() for source in config.sources for split in SPLITS}
    with DatasetWriter(folder, "uint16" if tokenizer.vocabulary_size <= 2**16 else "uint32") as writer:
        for labels, tokens in _kept(folder, config, tokenizer, counts):
            windows = cut_windows(len(tokens), len(tokenizer.window_prefix), config.window_tokens, config.min_tokens)
            count = counts[labels.source, labels.split]
            count["kept"] += 1
            count["tokens"] += len(tokens)
            count["windows"] += len(windows)
            before = writer.n_tokens
            writer.add(labels, tokens, windows)
            if writer.n_tokens // TOKENS_PER_MESSAGE > before // TOKENS_PER_MESSAGE:
                logger.info("Prepared %s documents, %s tokens.", f"{writer.n_documents:,}", f"{writer.n_tokens:,}")
        writer.finish(
            fingerprint=fingerprint,
            window_prefix=tokenizer.window_prefix,
            config=config,
            statistics=[
                SplitStatistics(source=source.name, domain=source.domain, split=split, **counts[source.name, split])
                for source in config.sources
                for split in SPLITS
            ],
        )


Counts = Mapping[tuple[str, Split], Counter[str]]
"""Statistics of each source and split."""


def _kept(
    folder: Path, config: DataConfig, tokenizer: WindowTokenizer, counts: Counts
) -> Iterator[tuple[DocumentLabels, NDArray[np.int64]]]:
    """Labels and tokens of the documents to keep, training documents first; what is read and dropped is counted.

    Held-out documents wait on the disk until all that is trained on is known. Synthetic ones are not compared: all are
    drawn from the same phrases, by different seeds.
    """
    compared = {source.name for source in config.sources if config.deduplicate and source.kind != "synthetic"}
    with TemporaryDirectory(dir=folder) as scratch, Overlap(folder) as overlap:
        waiting: list[tuple[DocumentLabels, int]] = []
        with Path(scratch, "held-out").open("w+b") as held_out:
            for document, labels, tokens in _new(Path(scratch), config, tokenizer, counts):
                if labels.split == "held_out":
                    if labels.source in compared:
                        overlap.add_held_out(document.text)
                    held_out.write(tokens.tobytes())
                    waiting.append((labels, len(tokens)))
                else:
                    if compared and config.held_out_fraction:
                        overlap.add_training(document.text)
                    yield labels, tokens
            held_out.seek(0)
            shares = iter(overlap.shares().tolist())
            for labels, n_tokens in waiting:
                tokens = np.frombuffer(held_out.read(8 * n_tokens), dtype=np.int64)
                if labels.source in compared and next(shares) > MOST_SHARED:
                    counts[labels.source, labels.split]["overlapping"] += 1
                else:
                    yield labels, tokens


def _new(
    scratch: Path, config: DataConfig, tokenizer: WindowTokenizer, counts: Counts
) -> Iterator[tuple[Document, DocumentLabels, NDArray[np.int64]]]:
    """Documents that are long enough and no near-duplicates of earlier ones, with their labels and tokens.

    Raises:
        DataError: a source has no documents, or all documents are too short.
    """
    prefix_tokens = len(tokenizer.window_prefix)
    duplicates = NearDuplicates(scratch / "signatures") if config.deduplicate else None
    longest, any_kept = 0, False
    for source in config.sources:
        control = isinstance(source, FilesSource | HubSource) and source.special_tokens == "control"
        for document, tokens in tokenise(read_documents(source), tokenizer, control=control):
            split = split_of(document.key, config.held_out_fraction)
            count = counts[source.name, split]
            count["read"] += 1
            longest = max(longest, len(tokens) + prefix_tokens)
            if len(tokens) < max(1, config.min_tokens - prefix_tokens):
                count["too_short"] += 1
            elif duplicates is not None and not duplicates.keep(document.text):
                count["near_duplicates"] += 1
            else:
                any_kept = True
                yield document, DocumentLabels(document.id, document.key, source.name, source.domain, split), tokens
        if not any(counts[source.name, split]["read"] for split in SPLITS):
            raise DataError(f"Source {source.name!r} has no documents.")
    if not any_kept:
        n_read = sum(count["read"] for count in counts.values())
        raise DataError(
            f"All {n_read} documents are shorter than min_tokens = {config.min_tokens}; the longest has {longest} "
            "tokens. Set data.min_tokens, and data.window_tokens with it, or add longer texts."
        )


class DatasetWriter:
    """Writes the files of a prepared corpus into an empty folder, document by document.

    A full disk raises `OSError` here; the files are written plainly because a memory map would kill the process.
    """

    def __init__(self, folder: Path, token_type: TokenType) -> None:
        self.n_documents = 0
        self.n_tokens = 0
        self._folder = folder
        self._token_type: TokenType = token_type
        self._files = ExitStack()
        self._tokens = self._files.enter_context((folder / TOKENS_FILE).open("wb"))
        with needing("data", "Preparing a corpus"):
            import pyarrow
            from pyarrow import parquet
        schema = pyarrow.schema(
            [(name, pyarrow.int64() if name in NUMBER_COLUMNS else pyarrow.string()) for name in DOCUMENT_COLUMNS]
        )
        self._as_table = partial(pyarrow.Table.from_pylist, schema=schema)
        self._documents = self._files.enter_context(parquet.ParquetWriter(folder / DOCUMENTS_FILE, schema))
        self._rows: list[dict[str, Any]] = []
        self._windows: list[NDArray[np.int64]] = []

    def add(self, labels: DocumentLabels, tokens: NDArray[np.int64], windows: NDArray[np.int64]) -> None:
        """Append a document: its tokens [n_tokens] and its windows [windows, 2] of offset and length."""
        self._tokens.write(tokens.astype(self._token_type).tobytes())
        self._rows.append(dict(zip(DOCUMENT_COLUMNS, (*labels, self.n_tokens, len(tokens)), strict=True)))
        if len(self._rows) == DOCUMENTS_PER_WRITE:
            self._write_rows()
        self._windows.append(np.insert(windows, 0, self.n_documents, axis=1))
        self.n_documents += 1
        self.n_tokens += len(tokens)

    def finish(
        self,
        *,
        fingerprint: str,
        window_prefix: tuple[int, ...],
        config: DataConfig,
        statistics: Sequence[SplitStatistics],
    ) -> None:
        """Complete the files and describe them; at least one document must have been added."""
        self._write_rows()
        self._files.close()
        np.save(self._folder / WINDOWS_FILE, np.concatenate(self._windows))
        names = (TOKENS_FILE, DOCUMENTS_FILE, WINDOWS_FILE)
        description = DatasetDescription(
            format_version=FORMAT_VERSION,
            fingerprint=fingerprint,
            # Worked out once, so that opening a large corpus does not read all of it.
            content_fingerprint=content_fingerprint(self._folder, window_prefix),
            window_prefix=window_prefix,
            token_type=self._token_type,
            config=config.model_dump(mode="json"),
            statistics=tuple(statistics),
            file_bytes={name: (self._folder / name).stat().st_size for name in names},
        )
        write_json(self._folder / DESCRIPTION_FILE, description.model_dump(mode="json"))

    def _write_rows(self) -> None:
        self._documents.write_table(self._as_table(self._rows))
        self._rows = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()
