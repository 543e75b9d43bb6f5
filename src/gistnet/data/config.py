"""Configuration of a run's data: sources of documents, the corpus that they become, and how segments are drawn.

Reading it loads neither numpy nor the libraries that read files.
"""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from gistnet.settings import LocalPath, Name, Section, Seed

SINK_TOKENS = 4
"""Tokens at the beginning of each window that no segment replaces (Xiao et al., 2023)."""

InstallationDomain = Literal["narrative", "code", "structured"]
Domain = Literal[InstallationDomain, "adversarial"]


class _Source(Section):
    name: Name
    """Name of the source in statistics and reports; unique within a run."""
    domain: Domain
    """The kind of text, which decides how often it is sampled."""
    weight: float = Field(1.0, gt=0)
    """Sampling weight relative to the other sources of the same domain."""
    max_documents: int | None = Field(None, ge=1)
    """Read at most so many documents, from the start; all of them when null."""


class _Texts(_Source):
    text_field: Name = "text"
    """Key or column of a row's text."""
    id_field: Name = "id"
    """Key or column of a row's name; a row without it is called `<file>:<row>`, counted from 1."""
    special_tokens: Literal["text", "control"] = "text"
    """Tokens of strings such as `<|im_end|>`: those of `text` like any other, or `control` tokens, for documents that
    were rendered with them, such as logs of chats."""


class FilesSource(_Texts):
    """Files of one format, by their ending.

    `.jsonl` or `.ndjson`, perhaps compressed (`.gz`, `.zst`): a document for each line, a JSON object; `.json` as well,
    where its first line is such an object. `.parquet`: one for each row. Anything else: one for each file, as text in
    UTF-8.
    """

    kind: Literal["files"] = "files"
    """Files on this machine."""
    paths: tuple[Name, ...] = Field(min_length=1)
    """Files or glob patterns; `~` is the home folder, `**` any depth of folders."""


class HubSource(_Texts):
    """A data set of the Hugging Face Hub, streamed; or files there, read by one of the `datasets` builders."""

    kind: Literal["hub"] = "hub"
    """The Hugging Face Hub."""
    path: Name
    """Data set repository, or `parquet` or `json` to read `data_files` directly."""
    config_name: Name | None = None
    """The data set's configuration (subset), where it has several."""
    data_files: Name | tuple[Name, ...] | None = None
    """Files of the data set, or `hf://` addresses."""
    revision: Name | None = None
    """Commit, tag or branch of the repository. Without a commit, later changes on the Hub go unnoticed."""
    split: Name = "train"
    """Split of the data set to read; unrelated to the split into training and held-out documents."""


class InstallationSource(_Source):
    """Text that comes with every Python: its manual, docstrings, descriptions, source code, data files."""

    kind: Literal["installation"] = "installation"
    """This Python installation."""
    domain: InstallationDomain
    """Kind of text that is taken of it, and that it counts as."""


class SyntheticSource(_Source):
    """Documents made from a seed, hard to compress: adversarial pairs, repetition, noise, tables, mixtures."""

    kind: Literal["synthetic"] = "synthetic"
    """Made from a seed."""
    max_documents: int = Field(ge=1)
    """Number of documents to make, of each kind in turn."""
    seed: Seed = 0
    """Each seed gives other documents."""


SourceConfig = Annotated[
    FilesSource | HubSource | InstallationSource | SyntheticSource,
    Field(discriminator="kind"),
]


class DataConfig(Section):
    """Documents, and how they become windows."""

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
    """Drop documents that are nearly copies of earlier ones (a Jaccard similarity of 0.8 of their word 5-grams), and
    held-out ones of which training documents have more than a tenth."""

    def with_absolute_paths(self) -> Self:
        """Copy whose paths mean the same from every folder."""
        sources = [
            source.model_copy(update={"paths": tuple(map(_absolute, source.paths))})
            if isinstance(source, FilesSource)
            else source
            for source in self.sources
        ]
        return self.model_copy(update={"folder": self.folder.absolute(), "sources": tuple(sources)})

    @model_validator(mode="after")
    def _source_names_differ(self) -> Self:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"the names of the sources must differ, got {names}")
        return self


def _absolute(path: str) -> str:
    return str(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111 - Path.expanduser raises where there is none


class SegmentLengths(Section):
    """Length of the segments that branches replace, in spans (k), drawn for each branch.

    A segment ends where its horizon begins and reaches back from there, at most to the sink. Where a window is too
    short for it, or the window's other segments have taken all ends far enough in, it is cut; a domain all of whose
    windows are too short for the longest is refused.
    """

    lengths: dict[int, float] = Field(default={1: 1.0})
    """The probability of each k; they sum to 1."""
    whole_prefix: float = Field(default=0.0, ge=0, le=1)
    """Share of the branches that replace everything between the sink and their horizon instead."""
    longest: int = Field(default=64, ge=1)
    """The most spans that such a branch replaces."""
    compact: float = Field(default=0.0, ge=0, le=1)
    """Share of the contexts that number their positions without gaps; the others have `objective.positions`."""

    @model_validator(mode="after")
    def _lengths_are_a_distribution(self) -> Self:
        shares = self.lengths.values()
        if not (all(share >= 0 for share in shares) and abs(sum(shares) - 1) <= 1e-6):
            raise ValueError(f"lengths must be at least 0 and sum to 1, got {self.lengths}")
        if min(self.lengths) < 1:
            raise ValueError(f"lengths are numbers of spans, at least 1, got {min(self.lengths)}")
        return self

    @property
    def most(self) -> int:
        """The largest k that can be drawn."""
        drawn = [k for k, share in self.lengths.items() if share > 0]
        return max(drawn + [self.longest] * (self.whole_prefix > 0))


class RowsConfig(Section):
    """Rows of gists, and raw tails behind them, beside which they are judged."""

    documents: int = Field(default=0, ge=0)
    """Held-out documents of each domain, a passage of each, two at least; 0 judges no rows."""
    lengths: tuple[PositiveInt, ...] = Field(default=(1, 8, 30), min_length=1)
    """Gists in a row."""
    tails: tuple[NonNegativeInt, ...] = Field(default=(0, 64, 256), min_length=1)
    """Raw tokens between a row and the scored ones."""
    scored_tokens: PositiveInt = 128
    """Tokens of each passage that are predicted, the same for all rows and tails."""

    @model_validator(mode="after")
    def _can_be_compared(self) -> Self:
        if self.documents == 1:
            raise ValueError("documents is 1, expected 0, or two at least: another one's gists are a baseline")
        return self
