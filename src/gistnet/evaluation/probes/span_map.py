"""The span map: held-out documents as text, with what became of each of their spans. Read by the report page.

`evaluate` measures it; it is written beside `results.json`, as `spans.json`.
"""

import json
from pathlib import Path
from typing import Self

from gistnet.errors import DataError
from gistnet.files import write_text
from gistnet.settings import Section

FORMAT_VERSION = 2


class Neighbour(Section):
    """A span of the map whose gist is near."""

    document: int
    """Index among the map's documents."""
    span: int
    """Index among that document's spans."""
    cosine: float
    """Cosine similarity of the two gists, -1 to 1."""


class Prediction(Section):
    """A token that the teacher predicts."""

    text: str
    probability: float


class MappedSpan(Section):
    """One span: what reading its gist costs, and what the gist looked at. Losses are in nats per token."""

    start: int
    """Index of its first token in the document's tokens."""
    kl: dict[str, float]
    """KL@H after `gist`, `drop` and `last_token`."""
    delta_nll: dict[str, float]
    """ΔNLL@H after the same."""
    delta_nll_by_offset: dict[str, list[float]]
    """ΔNLL at each offset 1 … H after the same, [H] each."""
    next_tokens: dict[str, list[Prediction]]
    """The likeliest tokens right behind the span after `full`, `gist` and `drop`, likeliest first."""
    attention: tuple[list[float], list[float]]
    """Where the two slots look: shares of the span's K tokens, [K] each, the mean over heads."""
    gist_norm: float
    """Length of the gist."""
    nearest: list[Neighbour]
    """The spans with the nearest gists, nearest first; the span itself left out."""


class MappedDocument(Section):
    """One window of a held-out document."""

    id: str
    source: str
    domain: str
    tokens: list[str]
    """The text of each token; joined, they are the window's text."""
    spans: list[MappedSpan]
    """Ascending by start; together they may leave out the window's first and last tokens."""


class SpanMap(Section):
    """The contents of `spans.json`."""

    format_version: int = FORMAT_VERSION
    positions: str
    """Position policy of the gists."""
    horizon: int
    """H, tokens predicted after each span."""
    span_tokens: int
    """K, tokens of a span."""
    documents: list[MappedDocument]
    distribution: dict[str, dict[str, list[float]]]
    """Domain → replacement (`gist`, `drop`, `last_token`) → ΔNLL@H of every evaluated span, in the same order."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a span map.

        Raises:
            DataError: there is none, it is damaged, or it is of another format.
        """
        try:
            content = json.loads(path.read_bytes())
            version = content.get("format_version")
            if isinstance(version, int) and version > FORMAT_VERSION:  # its other fields may mean anything
                raise DataError(
                    f"{path} is in format {version}, expected {FORMAT_VERSION}: a newer version of gistnet wrote it."
                )
            return cls.model_validate(content)
        except OSError as error:
            raise DataError(f"Could not read {path}: {error.strerror}.") from error
        except (ValueError, AttributeError) as error:  # not JSON, not an object, not a map
            raise DataError(f"{path} is damaged, or not a span map in format {FORMAT_VERSION}.") from error

    def write(self, path: Path) -> None:
        """Write the map, atomically.

        Raises:
            StorageError: it cannot be written.
        """
        write_text(path, self.model_dump_json())
