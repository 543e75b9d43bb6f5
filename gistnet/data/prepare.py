"""From documents to a prepared corpus: tokenise, drop what is short or nearly a copy, split, cut into windows, store.

The work is done once for each fingerprint of the inputs, and streams: a batch of documents is in memory, never the
corpus. The split goes by what a document says, not by its name, and of the held-out documents those are dropped of
which training documents have a part. A killed or failed preparation leaves nothing that a reader could take for a
prepared corpus.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from gistnet.data.dataset import (
    DESCRIPTION_FILE,
    FORMAT_VERSION,
    SPLITS,
    DatasetDescription,
    DatasetStatistics,
    DocumentLabels,
    PreparedDataset,
    Split,
    SplitStatistics,
    read_description,
)
from gistnet.data.deduplicate import NearDuplicates
from gistnet.data.inputs import reading
from gistnet.data.installation import installation_identity
from gistnet.data.overlap import MOST_SHARED, Overlap
from gistnet.data.sources import (
    Document,
    InstallationSource,
    SourceConfig,
    SyntheticSource,
    absolute_paths,
    local_files,
    read_documents,
)
from gistnet.data.synthetic import synthetic_identity
from gistnet.data.tokenise import WindowTokenizer, cut_windows, tokenise
from gistnet.data.writer import DatasetWriter, smallest_type
from gistnet.errors import ConfigError, DataError
from gistnet.files import atomic_folder, write_json
from gistnet.settings import LocalPath, Section

TOKENS_PER_PROGRESS = 1_000_000


class DataConfig(Section):
    """Which documents, and how they become windows."""

    sources: tuple[SourceConfig, ...] = Field(min_length=1)
    """Where the documents come from."""
    folder: LocalPath = Path("prepared")
    """Prepared corpora are written below this folder, each named after its fingerprint."""
    window_tokens: int = Field(1024, ge=16)
    """Tokens of a window, its prefix (BOS) included."""
    min_tokens: int = Field(1024, ge=1)
    """Documents with fewer tokens, prefix included, are dropped; so are shorter rests at the end of a document."""
    held_out_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of the documents (0 to 1) that are never trained on, chosen by a hash of their texts."""
    deduplicate: bool = True
    """Drop documents that are nearly copies of earlier ones, and held-out ones of which training documents have more
    than a tenth."""
    duplicate_similarity: float = Field(0.8, ge=0.5, le=1)
    """Jaccard similarity of the sets of word 5-grams from which a document counts as a copy."""

    def with_absolute_paths(self) -> Self:
        """The same corpus, by paths that mean the same from every folder."""
        sources = tuple(map(absolute_paths, self.sources))
        return self.model_copy(update={"folder": self.folder.absolute(), "sources": sources})

    @model_validator(mode="after")
    def _source_names_differ(self) -> Self:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"the names of the sources must differ, got {names}")
        return self


def prepare(
    config: DataConfig, tokenizer: WindowTokenizer, progress: Callable[[str], None] = lambda message: None
) -> PreparedDataset:
    """Write the prepared corpus `config.folder / fingerprint`, or open it where it exists already.

    Args:
        progress: is called with a sentence every million tokens.

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
            _write_dataset(partial, fingerprint, config, tokenizer, progress)
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
    """All that decides what is prepared of the sources' content: neither weights nor where anything lies."""
    elsewhere = {"weight", "paths", "path", "data_files"}
    settings = config.model_dump(mode="json", exclude={"folder", "sources"})
    return settings | {"sources": [source.model_dump(mode="json", exclude=elsewhere) for source in config.sources]}


def dataset_fingerprint(config: DataConfig, tokenizer: WindowTokenizer) -> str:
    """Identity of what `prepare` would write: 16 hexadecimal digits of a SHA-256.

    A file counts by name and content; the installation by its packages; a Hub data set by its settings and those of
    its files that are local; synthetic documents by their settings, the version of their recipes, and the installation.

    Raises:
        DataError: a source's files are missing or empty.
    """
    identity = {
        "format_version": FORMAT_VERSION,
        "settings": config.model_dump(mode="json", exclude={"folder", "sources"}),
        "sources": [_source_identity(source) for source in config.sources],
        "tokenizer": [tokenizer.fingerprint, tokenizer.vocabulary_size, list(tokenizer.window_prefix)],
    }
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _source_identity(source: SourceConfig) -> dict[str, Any]:
    # Neither the weight nor the place of the files changes what is prepared.
    identity = source.model_dump(mode="json", exclude={"weight", "paths"})
    match source:
        case InstallationSource():
            identity["installation"] = installation_identity()
        case SyntheticSource():
            identity |= synthetic_identity()
        case _:
            identity["files"] = [[file.name, _content_hash(file.path)] for file in local_files(source)]
    return identity


def _content_hash(path: Path) -> str:
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split_of(key: str, held_out_fraction: float) -> Split:
    """The split of a document, by its key alone (a hash of its text), so that it is the same in every corpus."""
    draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    return "held_out" if draw < held_out_fraction else "train"


def _write_dataset(
    folder: Path,
    fingerprint: str,
    config: DataConfig,
    tokenizer: WindowTokenizer,
    progress: Callable[[str], None],
) -> None:
    counts: Counts = {(source.name, split): Counter() for source in config.sources for split in SPLITS}
    with DatasetWriter(folder, smallest_type(tokenizer.vocabulary_size)) as writer:
        for labels, tokens in _kept(folder, config, tokenizer, counts):
            windows = cut_windows(len(tokens), len(tokenizer.window_prefix), config.window_tokens, config.min_tokens)
            count = counts[labels.source, labels.split]
            count["kept"] += 1
            count["tokens"] += len(tokens)
            count["windows"] += len(windows)
            count["tail_tokens"] += len(tokens) - int((windows[:, 1] - len(tokenizer.window_prefix)).sum())
            before = writer.n_tokens
            writer.add(labels, tokens, windows)
            if writer.n_tokens // TOKENS_PER_PROGRESS > before // TOKENS_PER_PROGRESS:
                progress(f"Prepared {writer.n_documents:,} documents, {writer.n_tokens:,} tokens.")
        description = DatasetDescription(
            format_version=FORMAT_VERSION,
            fingerprint=fingerprint,
            tokenizer_fingerprint=tokenizer.fingerprint,
            window_prefix=tokenizer.window_prefix,
            token_type=writer.token_type,
            config=config.model_dump(mode="json"),
            statistics=_statistics(config, counts),
            file_bytes=writer.finish(),
        )
    write_json(folder / DESCRIPTION_FILE, description.model_dump(mode="json"))
    # Worked out here, from what lies on the disk, so that whoever opens a large corpus need not read all of it.
    content = {"content_fingerprint": PreparedDataset.open(folder).content_fingerprint}
    write_json(folder / DESCRIPTION_FILE, description.model_dump(mode="json") | content)


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
    with TemporaryDirectory(dir=folder) as scratch, Overlap.spooled(folder) as overlap:
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
    duplicates = NearDuplicates(config.duplicate_similarity, scratch / "signatures") if config.deduplicate else None
    longest, any_kept = 0, False
    for source in config.sources:
        control = source.special_tokens == "control"
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
            f"All {n_read} documents are shorter than min_tokens = {config.min_tokens}; "
            f"the longest has {longest} tokens."
        )


def _statistics(config: DataConfig, counts: Counts) -> DatasetStatistics:
    splits = tuple(
        SplitStatistics(source=source.name, domain=source.domain, split=split, **counts[source.name, split])
        for source in config.sources
        for split in SPLITS
    )
    kept = {split: {entry.domain for entry in splits if entry.split == split and entry.kept} for split in SPLITS}
    return DatasetStatistics(splits=splits, domains_without_held_out=tuple(sorted(kept["train"] - kept["held_out"])))
