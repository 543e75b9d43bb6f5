"""The record that one measurement becomes, and the targets that the spec sets for measurements."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError, computed_field, model_validator

from gistnet.errors import DataError
from gistnet.files import write_text
from gistnet.settings import Section, Target

UNITS = {
    "kl": "nats per token",
    "delta_nll": "nats per token",
    "substitutability_rate": "share of spans",
    "perplexity_ratio": "ratio",
    "recovered_kl": "share of drop",
    "recovered_delta_nll": "share of drop",
    "kl_below_last_token": "nats per token",
    "row_kl": "nats per token",
    "row_delta_nll": "nats per token",
    "row_recovered_kl": "share of drop",
    "row_recovered_delta_nll": "share of drop",
    "gist_diversity": "cosine distance",
    "adjacent_distance": "cosine distance",
    "contrastive_gap": "cosine distance",
    "gist_variance": "share of squared length",
    "attention_entropy": "bits",
    "delta_nll_by_offset": "nats per token",
    "delta_nll_by_kind": "nats per token",
    "kl_by_kind": "nats per token",
    "gist_norm": "length",
    "reconstruction_ce": "nats per token",
    "reconstruction_accuracy": "share of tokens",
    "reconstruction_mse": "squared distance per dimension",
    "pair_accuracy": "share of pairs",
    "oracle_kl": "nats per token",
    "oracle_recovered_kl": "share of drop",
    "share_of_oracle": "share of what the oracle vector recovers",
    "long_context_nll": "nats per token",
    "long_context_recovered": "share of what truncating costs",
    "long_context_truncation_cost": "nats per token",
    "long_context_below_truncated": "nats per token",
    "long_context_below_retrieved": "nats per token",
    "long_context_below_oracle": "nats per token",
    "long_context_row_below_truncated": "nats per token",
    "long_context_below_shuffled": "nats per token",
    "long_context_below_mean": "nats per token",
    "long_context_above_full": "nats per token",
    "long_context_covered": "share of tokens",
    "retrieval_accuracy": "share of cases",
    "retrieval_nll": "nats per token",
    "retrieval_gain_with_gists": "share of cases",
    "retrieval_gain_by_meaning": "share of cases",
    "retrieval_recall": "share of evidence",
    "multiple_choice_accuracy": "share of questions",
}

BaselineName = Literal[
    "drop",
    "last_token",
    "recent_tokens",
    "surprisal_token",
    "mean",
    "shuffled",
    "gists_below",
    "full",
    "gist",
    "truncated",
    "row",
    "retrieved",
    "with_gists",
    "by_meaning",
    "oracle",
    "no_context",
    "chance",
]
"""Names of baselines, in the order in which tables show them; each has a look in `report/page/looks.js`."""


class MetricRecord(Section):
    """One measured number, with all that is needed to read it, and its baselines on the same spans."""

    name: str
    """Measure, a key of `UNITS`."""
    domain: str
    """Kind of text: narrative, code, structured, adversarial, or mixed for the weighted mean over kinds."""
    kind: str = ""
    """Sub-group that is measured: a kind of token, question or pair, or a slot of the attention. Empty: everything."""
    index: int | None = Field(default=None, ge=1)
    """Head of a slot, or token of the span, counted from 1; how many passages count as found. None: all."""
    tokens_per_vector: int | None = Field(default=None, ge=1)
    """Budget of a context, one vector for so many tokens; None where no contexts of a budget are compared."""
    horizon: int | None = Field(default=None, ge=1)
    """H, the number of tokens predicted after each span; None where nothing is predicted."""
    offsets: tuple[int, int] | None = None
    """First and last of the predicted tokens that count, from 1; None where nothing is predicted."""
    positions: str
    """Position policy of the gist: center, end or compact; where no gist is read, the evaluation's first."""
    level: int = Field(default=0, ge=0)
    """0 for gists of tokens, 1 for gists of gists."""
    spans_per_segment: int = Field(default=1, ge=1)
    """Number of consecutive spans replaced at once; 1 also where a budget decides how many."""
    value: FiniteFloat
    n_spans: int = Field(ge=1)
    """Number of spans, pairs, cases or questions, or of scored tokens of long contexts, that the value is a mean of."""
    n_documents: int = Field(ge=1)
    interval: tuple[FiniteFloat, FiniteFloat] | None = None
    """Bootstrapped over documents; None for a single document, or where the documents are too few to draw anew."""
    target: Target | None = None
    baselines: dict[BaselineName, FiniteFloat] = Field(default_factory=dict)
    """Value of the measure for each baseline in place of the gist."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def unit(self) -> str:
        """Unit of the value, the interval, the target and the baselines."""
        return UNITS[self.name]

    @property
    def is_whole(self) -> bool:
        """True if this is a measure over everything: of no sub-group, no single head or token, and no budget."""
        return not self.kind and self.index is None and self.tokens_per_vector is None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def met(self) -> bool | None:
        """True if the value meets its target; None without one."""
        return None if self.target is None else self.target.is_met_by(self.value)

    @model_validator(mode="before")
    @classmethod
    def _without_what_is_computed(cls, fields: Any) -> Any:
        # A record read back from a file has them: they are computed anew.
        return {key: value for key, value in fields.items() if key not in ("unit", "met")}

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.name not in UNITS:
            raise ValueError(f"name is {self.name!r}, expected one of {', '.join(UNITS)}")
        if (self.horizon is None) != (self.offsets is None):
            raise ValueError(f"offsets are {self.offsets} and horizon {self.horizon}, expected both or neither")
        if self.horizon and self.offsets and not 1 <= self.offsets[0] <= self.offsets[1] <= self.horizon:
            raise ValueError(f"offsets are {self.offsets}, expected a range within 1 to {self.horizon}")
        return self


# (name, domain, horizon, level) → target; None stands for any. From the spec, Curriculum Strategies and Evaluation
# Metrics. The spec asks for a gist variance "above threshold" and names none: 0.3, where it calls diversity collapsed.
TARGETS: tuple[tuple[str, str | None, int | None, int, Target], ...] = (
    ("delta_nll", "narrative", 32, 0, Target(below=0.5)),
    ("delta_nll", "code", 64, 0, Target(below=1.0)),
    ("delta_nll", "structured", 64, 0, Target(below=1.0)),
    ("delta_nll", "mixed", 128, 0, Target(below=0.8)),
    ("delta_nll", None, None, 1, Target(below=2.0)),
    ("substitutability_rate", "narrative", None, 0, Target(above=0.9)),
    ("substitutability_rate", "code", None, 0, Target(above=0.7)),
    ("perplexity_ratio", None, None, 0, Target(below=1.5)),
    ("gist_diversity", None, None, 0, Target(above=0.5)),
    ("adjacent_distance", "narrative", None, 0, Target(above=0.3)),
    ("contrastive_gap", None, None, 0, Target(above=0.1)),
    ("gist_variance", "mixed", None, 0, Target(above=0.3)),
    ("attention_entropy", None, None, 0, Target(above=2.0, below=4.0)),
)


def target_for(
    name: str,
    *,
    domain: str,
    horizon: int | None = None,
    offsets: tuple[int, int] | None = None,
    level: int = 0,
    spans_per_segment: int = 1,
) -> Target | None:
    """The spec's target for a measurement, or None; parts of the horizon and runs of several gists have none."""
    if (horizon is not None and offsets != (1, horizon)) or spans_per_segment != 1:
        return None
    matching = (
        target
        for target_name, target_domain, target_horizon, target_level, target in TARGETS
        if (target_name, target_level) == (name, level)
        and target_domain in (None, domain)
        and target_horizon in (None, horizon)
    )
    return next(matching, None)


def read_records(path: Path) -> list[MetricRecord]:
    """The records of a `results.json`.

    Raises:
        DataError: it cannot be read, is damaged, or holds a record that this version does not know.
    """
    try:
        return TypeAdapter(list[MetricRecord]).validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"Could not read {path}: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ", ".join(map(str, first["loc"]))
        reason = f"{field}: {first['msg']}" if field else first["msg"]
        raise DataError(
            f"{path} does not hold records of this version of gistnet ({reason.replace('Value error, ', '')}): it is "
            "damaged, or a newer version wrote it."
        ) from error


def write_records(path: Path, records: Iterable[MetricRecord]) -> None:
    """Write records in short, one a line, for `read_records`: without what is default or computed.

    Raises:
        StorageError: they cannot be written.
    """
    lines = (
        json.dumps(record.model_dump(mode="json", exclude_defaults=True, exclude={"unit", "met"}), ensure_ascii=False)
        for record in records
    )
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


def rounded_record(record: MetricRecord, decimals: int) -> MetricRecord:
    """The record with numbers of so many decimals."""
    low_high = record.interval and (round(record.interval[0], decimals), round(record.interval[1], decimals))
    baselines = {name: round(value, decimals) for name, value in record.baselines.items()}
    return record.model_copy(
        update={"value": round(record.value, decimals), "interval": low_high, "baselines": baselines}
    )
