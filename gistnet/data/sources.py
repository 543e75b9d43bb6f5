"""Named sources of documents: files, JSONL, Parquet, Hub data sets, this Python installation, and synthetic documents.

A source is configured by one of the sections below, chosen by its `kind`, and read lazily: `read_documents` holds one
document (or one block of a file) in memory at a time, in an order that depends on the source alone.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, assert_never, get_args

from pydantic import Field, field_validator

from gistnet.data.inputs import MatchedFile, match_files, read_lines, read_text, reading
from gistnet.data.installation import InstallationDomain, read_installation
from gistnet.data.synthetic import Recipe, read_synthetic
from gistnet.errors import DataError, GistNetError
from gistnet.settings import Name, Section, Seed

Domain = Literal["narrative", "code", "structured", "adversarial"]

ROWS_PER_BATCH = 256


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


class RecordFields(Protocol):
    """Where a record has the text and the name of its document."""

    @property
    def text_field(self) -> str:
        """Key or column of the text."""

    @property
    def id_field(self) -> str:
        """Key or column of the name, which a record may lack."""


class _Source(Section):
    name: Name
    """What the statistics and reports call this source; unique within a run."""
    domain: Domain
    """The kind of text, which decides how often it is sampled."""
    weight: float = Field(1.0, gt=0)
    """Sampling weight relative to the other sources of the same domain."""
    max_documents: int | None = Field(None, ge=1)
    """Read at most so many documents, from the start; all of them when null."""
    special_tokens: Literal["text", "control"] = "text"
    """What strings such as `<|im_end|>` become: `text` like any other, or `control` tokens, for documents that were
    rendered with them, such as logs of chats."""


class FilesSource(_Source):
    """Each UTF-8 text file is one document."""

    kind: Literal["files"] = "files"
    paths: tuple[Name, ...] = Field(min_length=1)
    """Files or glob patterns; `~` is the home folder, `**` any depth of folders."""


class JsonlSource(_Source):
    """Each line of a JSON lines file, perhaps compressed (`.gz`, `.zst`), is one document, as a JSON object."""

    kind: Literal["jsonl"] = "jsonl"
    paths: tuple[Name, ...] = Field(min_length=1)
    """Files or glob patterns; `~` is the home folder, `**` any depth of folders."""
    text_field: Name = "text"
    """Key of the document's text."""
    id_field: Name = "id"
    """Key of the document's name; a record without it is called `<file>:<line>`."""


class ParquetSource(_Source):
    """Each row of a Parquet file is one document."""

    kind: Literal["parquet"] = "parquet"
    paths: tuple[Name, ...] = Field(min_length=1)
    """Files or glob patterns; `~` is the home folder, `**` any depth of folders."""
    text_field: Name = "text"
    """Column of the document's text."""
    id_field: Name = "id"
    """Column of the document's name; a row without it is called `<file>:<row>`, counted from 1."""


class HubSource(_Source):
    """A data set of the Hugging Face Hub, streamed; or files read by one of the `datasets` builders."""

    kind: Literal["hub"] = "hub"
    path: Name
    """Data set repository, or `parquet` or `json` to read `data_files` directly."""
    config_name: Name | None = None
    """The data set's configuration (subset), where it has several."""
    data_files: Name | tuple[Name, ...] | None = None
    """Files of the data set, or `hf://` or local paths."""
    revision: Name | None = None
    """Commit, tag or branch of the repository. Without a commit, later changes on the Hub go unnoticed."""
    split: Name = "train"
    """Split of the data set to read; unrelated to the split into training and held-out documents."""
    text_field: Name = "text"
    """Column of the document's text."""
    id_field: Name = "id"
    """Column of the document's name; a row without it is called `<path>:<row>`, counted from 1."""

    @property
    def patterns(self) -> tuple[str, ...]:
        """The data files one by one, none where the data set itself says which."""
        return (self.data_files,) if isinstance(self.data_files, str) else self.data_files or ()


class InstallationSource(_Source):
    """Text that comes with every Python: its manual, docstrings, descriptions, source code, data files."""

    kind: Literal["installation"] = "installation"
    domain: InstallationDomain
    """Which of its text, which is also the kind of text that it counts as."""


class SyntheticSource(_Source):
    """Documents made from a seed, hard to compress: adversarial pairs, repetition, noise, tables, mixtures."""

    kind: Literal["synthetic"] = "synthetic"
    seed: Seed = 0
    """Each seed gives other documents."""
    documents: int = Field(ge=1)
    """How many documents to make, shared evenly among the recipes."""
    recipes: tuple[Recipe, ...] = Field(get_args(Recipe), min_length=1)
    """Kinds of documents, made in turn; all of them by default."""

    @field_validator("recipes")
    @classmethod
    def _recipes_differ(cls, recipes: tuple[Recipe, ...]) -> tuple[Recipe, ...]:
        if len(set(recipes)) < len(recipes):
            raise ValueError(f"each recipe can be named once, got {list(recipes)}")
        return recipes


SourceConfig = Annotated[
    FilesSource | JsonlSource | ParquetSource | HubSource | InstallationSource | SyntheticSource,
    Field(discriminator="kind"),
]


def local_files(config: SourceConfig) -> list[MatchedFile]:
    """Files of this machine that a source reads, but for an installation's.

    Raises:
        DataError: as `match_files`.
    """
    match config:
        case FilesSource() | JsonlSource() | ParquetSource():
            return match_files(config.name, config.paths)
        case HubSource():
            folder = Path(config.path)
            if folder.is_dir():  # a data set that was downloaded: everything in it may count
                files = sorted(path for path in folder.rglob("*") if path.is_file())
                return [MatchedFile(path, path.relative_to(folder).as_posix()) for path in files]
            local = [path for path in config.patterns if _is_local(path)]
            return match_files(config.name, local) if local else []
    return []


def absolute_paths(config: SourceConfig) -> SourceConfig:
    """The source with paths that mean the same from every folder."""
    match config:
        case FilesSource() | JsonlSource() | ParquetSource():
            return config.model_copy(update={"paths": tuple(map(_absolute, config.paths))})
        case HubSource():
            path = _absolute(config.path) if Path(config.path).is_dir() else config.path
            files = tuple(_absolute(path) if _is_local(path) else path for path in config.patterns)
            return config.model_copy(update={"path": path, "data_files": files or None})
    return config


def _is_local(pattern: str) -> bool:
    """Whether a data file of a Hub source is on this machine."""
    return "://" not in pattern and any(map(os.path.isfile, glob(pattern, recursive=True)))  # noqa: PTH207


def _absolute(path: str) -> str:
    return str(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111 - Path.expanduser raises where there is none


def read_documents(config: SourceConfig) -> Iterator[Document]:
    """Yield the documents of a source, lazily and in a fixed order.

    Raises:
        DataError: no file matches, or a file, line or row cannot be read as text; the message names it.
    """
    named_texts: Iterable[tuple[str, str]]
    match config:
        case FilesSource():
            named_texts = _read_files(config)
        case JsonlSource():
            named_texts = _read_jsonl(config)
        case ParquetSource():
            named_texts = _read_parquet(config)
        case HubSource():
            named_texts = _read_hub(config)
        case InstallationSource():
            named_texts = read_installation(config.domain)
        case SyntheticSource():
            named_texts = read_synthetic(config.seed, config.documents, config.recipes)
        case _:
            assert_never(config)
    for name, text in islice(named_texts, config.max_documents):
        yield Document(name, config.name, config.domain, text)


def _read_files(config: FilesSource) -> Iterator[tuple[str, str]]:
    for path, name in match_files(config.name, config.paths):
        yield name, "".join(read_text(path))


def _read_jsonl(config: JsonlSource) -> Iterator[tuple[str, str]]:
    for file in match_files(config.name, config.paths):
        yield from read_records(file, config)


def read_records(file: MatchedFile, fields: RecordFields) -> Iterator[tuple[str, str]]:
    """Yield `(name, text)` of each line of a JSON lines file.

    Raises:
        DataError: the file or a line of it cannot be read as text; the message names it.
    """
    with reading(file.path):
        for number, line in enumerate(read_lines(file.path), start=1):
            if not line.strip():
                continue
            place = f"{file.path}:{number}"
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place} is not one JSON object in UTF-8: {error}.") from error
            if not isinstance(record, dict):
                raise DataError(f"{place} is not a JSON object but {type(record).__name__}.")
            yield _named_text(fields, record, place, f"{file.name}:{number}")


def _named_text(config: RecordFields, record: Any, place: str, name: str) -> tuple[str, str]:
    text = record.get(config.text_field)
    if not isinstance(text, str):
        got = type(text).__name__ if config.text_field in record else f"only the fields {sorted(record)}"
        raise DataError(f"{place} has no text in field {config.text_field!r}: got {got}.")
    given = record.get(config.id_field)
    name = name if given is None else str(given)
    try:
        f"{name}{text}".encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no tokenizer accepts
        raise DataError(f"{place} is not Unicode text: {error.reason}.") from error
    return name, text


def _read_parquet(config: ParquetSource) -> Iterator[tuple[str, str]]:
    import pyarrow
    from pyarrow import parquet

    for path, name in match_files(config.name, config.paths):
        try:
            with parquet.ParquetFile(path) as file:
                if config.text_field not in file.schema_arrow.names:
                    columns = file.schema_arrow.names
                    raise DataError(f"{path} has no column {config.text_field!r}, only {columns}.")
                wanted = [field for field in (config.text_field, config.id_field) if field in file.schema_arrow.names]
                number = 0
                for group in range(file.num_row_groups):  # one group at a time, so that no more is buffered
                    for batch in file.iter_batches(ROWS_PER_BATCH, row_groups=[group], columns=wanted):
                        for row in batch.to_pylist():
                            number += 1
                            yield _named_text(config, row, f"{path}, row {number}", f"{name}:{number}")
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"Could not read {path} as Parquet: {error}.") from error


def _read_hub(config: HubSource) -> Iterator[tuple[str, str]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(
            f"Source {config.name!r} needs the package `datasets`, which is missing: pip install 'gistnet[hub]'."
        ) from error
    try:
        rows = load_dataset(
            config.path,
            config.config_name,
            data_files=list(config.patterns) or None,
            split=config.split,
            revision=config.revision,
            streaming=True,
        )
        for number, row in enumerate(rows, start=1):
            place = f"{config.path}:{number}"
            yield _named_text(config, row, place, place)
    except GistNetError:
        raise
    except Exception as error:  # builders and Arrow raise of every kind
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"Source {config.name!r}: could not read data set {config.path!r} ({type(error).__name__}: {reason})."
        ) from error
