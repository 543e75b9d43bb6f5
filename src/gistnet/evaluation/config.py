"""Configuration of the evaluation and of each of its parts; without torch."""

from typing import Literal, Self, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from gistnet.data.config import RowsConfig
from gistnet.positions import Positions
from gistnet.settings import LocalPath, Name, Section, Seed

CaseKind = Literal["fact", "list", "passage", "paraphrase", "hops", "last", "name"]
"""Kinds of questions about what stands far back; `gistnet.evaluation.contexts.retrieval` says what each asks."""
CASE_KINDS: tuple[CaseKind, ...] = get_args(CaseKind)
DEFAULT_CASE_KINDS: tuple[CaseKind, ...] = ("fact", "list", "passage")


class ContextsConfig(Section):
    """Long contexts that gists are judged in, and questions about them; all else is the evaluation's."""

    long_context: bool = False
    """Predict the ends of long held-out documents, and ask for what stands far back in them."""
    questions: LocalPath | None = None
    """A JSON lines file of multiple-choice questions over long articles; None asks none."""
    tokens_per_vector: tuple[PositiveInt, ...] = Field(default=(2, 4, 8, 16, 32), min_length=1)
    """Budgets under which ends of documents are predicted: one vector for every so many tokens before them."""
    question_tokens_per_vector: tuple[PositiveInt, ...] = Field(default=(4, 16), min_length=1)
    """Budgets under which questions are answered; the question itself is no part of the context."""
    documents: int = Field(default=16, ge=2)
    """Documents of each domain, two at least: each lends another its gists."""
    min_tokens: int = Field(default=4096, ge=2)
    """The shortest document that counts, the scored tokens included."""
    max_tokens: int = Field(default=8192, ge=2)
    """Longest passage: a longer document gives one of between `min_tokens` and this."""
    scored_tokens: int = Field(default=512, ge=1)
    """The last tokens of each document: predicted, in no context."""
    retrieval_cases: int = Field(default=24, ge=0)
    """Questions about what stands far back; 0 asks none, and one alone has no other to lend it gists."""
    retrieval_kinds: tuple[CaseKind, ...] = Field(default=DEFAULT_CASE_KINDS, min_length=1)
    """The kinds of those questions, in turn."""
    retrieval_tokens: int = Field(default=2048, ge=1024)
    """Length of the text before such a question."""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not self.scored_tokens < self.min_tokens <= self.max_tokens:
            raise ValueError(
                f"got scored_tokens {self.scored_tokens}, min_tokens {self.min_tokens} and max_tokens "
                f"{self.max_tokens}, expected the first less than the second, and that no more than the third"
            )
        if self.retrieval_cases == 1:
            raise ValueError("retrieval_cases is 1, expected none or two at least")
        return self


class EvaluationConfig(Section):
    """On what a GistNet is evaluated, and how precisely."""

    documents: int = Field(default=64, ge=2)
    """Held-out documents per domain, one window of each; two at least, for the shuffled baseline."""
    segments_per_window: int = Field(default=4, ge=1)
    """Segments of each window."""
    horizons: tuple[PositiveInt, ...] = Field(default=(32,), min_length=1)
    """The horizons H that are reported, in tokens; all are measured on the spans that have room for the longest."""
    positions: tuple[Positions, ...] = ()
    """The position policies under which gists are read; empty is what they were trained for."""
    spans_per_segment: int = Field(default=1, ge=1)
    """k, how many consecutive spans are replaced at once."""
    highest_level: int | None = Field(default=None, ge=0)
    """The highest level of gists that is evaluated; None is the highest that held-out windows have room for."""
    sink_tokens: int = Field(default=4, ge=1)
    """First tokens of a window that are never replaced."""
    domains: tuple[Name, ...] = ()
    """The kinds of text; empty is every one that has held-out documents."""
    weights: dict[str, PositiveFloat] = Field(default={})
    """Domain → its share in the weighted means that are reported as `mixed`; they sum to 1. Empty: no such means."""
    geometry_spans: int = Field(default=1000, ge=2)
    """Spans per domain whose gists are compared with each other, and whose attention is looked at."""
    map_documents: int = Field(default=2, ge=0)
    """Documents per domain that are on the span map."""
    minimal_pairs: int = Field(default=36, ge=0)
    """Adversarial pairs to tell apart by their gists, of the three kinds in turn; each gives two trials. 0: none."""
    reconstruction: bool = False
    """True if to train probes that read the tokens from gists."""
    oracle_spans: int = Field(default=0, ge=0)
    """Held-out spans, taken from the domains in turn, to optimise a vector for, one by one. 0: none."""
    oracle_vectors: LocalPath | None = None
    """A file, safetensors, that keeps each of those as soon as it is found; those it holds are not looked for again."""
    rows: RowsConfig = RowsConfig()
    """Rows of gists that are judged beside raw tails."""
    contexts: ContextsConfig = ContextsConfig()
    """In which long contexts gists are judged as well."""
    seed: Seed = 0
    """Decides which documents, which spans, and whose gists are the `shuffled` ones."""
    resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples of the documents."""

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.weights and abs(sum(self.weights.values()) - 1) > 1e-6:
            raise ValueError(f"the weights of the domains must sum to 1, got {self.weights}")
        if self.domains and (missing := sorted(self.weights.keys() - set(self.domains))):
            raise ValueError(f"{missing[0]!r} has a weight, expected one of the domains evaluated, {self.domains}")
        return self
