"""The measures of gists: pure functions of arrays per span or per token, and the record that one measurement becomes.

Everything is computed per span first and reduced here, in float64. ΔNLL and KL are in nats per token, rates and shares
run from 0 to 1, entropy is in bits. An empty array, or one holding a number that is not finite, is a `DataError`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, FiniteFloat, computed_field, model_validator

from gistnet.errors import DataError
from gistnet.evaluation.resampling import DocumentDraws
from gistnet.settings import Section

Floats = NDArray[np.float64]

# Substitutability -----------------------------------------------------------------------------------------------------


def weighted_mean(values: ArrayLike, weights: ArrayLike) -> float:
    """The mean of `values` [spans] under `weights` [spans], which are not negative and not all zero."""
    numbers, shares = _finite("values", values, 1), _finite("weights", weights, 1)
    _require_equal_length(values=numbers, weights=shares)
    if shares.min() < 0 or shares.sum() == 0:
        raise DataError(f"Weights are from {shares.min()} to {shares.max()}, expected none negative and one positive.")
    return float(numbers @ shares / shares.sum())


def substitutability_rate(delta_nll: ArrayLike, threshold: float = 1.0) -> float:
    """The share of spans whose ΔNLL@H [spans] is below `threshold`, in nats per token (spec, Primary Metrics, 2)."""
    return float(np.mean(_finite("delta_nll", delta_nll, 1) < threshold))


def perplexity_ratio(delta_nll: ArrayLike) -> float:
    """How many times larger the perplexity becomes: exp of the mean ΔNLL [spans] (spec, Primary Metrics, 3)."""
    return float(np.exp(_finite("delta_nll", delta_nll, 1).mean()))


def recovered(loss: ArrayLike, loss_of_drop: ArrayLike) -> float:
    """The share of what dropping the spans costs that the gists win back: 1 - mean(loss) / mean(loss_of_drop).

    Both [spans], KL or both ΔNLL. 1 is a perfect stand-in, 0 is no better than dropping, and worse is negative.

    Raises:
        DataError: dropping the spans costs nothing on average, so that there is nothing to win back.
    """
    losses, losses_of_drop = _finite("loss", loss, 1), _finite("loss_of_drop", loss_of_drop, 1)
    _require_equal_length(loss=losses, loss_of_drop=losses_of_drop)
    if losses_of_drop.mean() <= 0:
        raise DataError(f"Dropping the spans costs {losses_of_drop.mean():.4g} nats on average, expected more than 0.")
    return float(recovered_share(losses.mean(), losses_of_drop.mean()))


def recovered_share(mean_loss: Any, mean_loss_of_drop: Any) -> Any:
    """`recovered` as a function of the two means, numbers or arrays: the form that a bootstrap needs."""
    return 1 - mean_loss / mean_loss_of_drop


def offset_slices(horizon: int) -> list[tuple[int, int]]:
    """The ranges of offsets after the span that are reported: all, local syntax (1–8), what the span was about (9–32).

    First and last offset, counted from 1 and both included; clipped to the horizon, and none twice.
    """
    ranges = [(first, min(last, horizon)) for first, last in ((1, horizon), (1, 8), (9, 32)) if first <= horizon]
    return list(dict.fromkeys(ranges))


def mean_over_offsets(values: ArrayLike, offsets: tuple[int, int]) -> Floats:
    """The mean of `values` [spans, horizon] over a range of `offset_slices`, per span: [spans]."""
    numbers = _finite("values", values, 2)
    first, last = offsets
    if not 1 <= first <= last <= numbers.shape[1]:
        raise DataError(f"Offsets are {first} to {last}, expected a range within 1 to {numbers.shape[1]}.")
    return numbers[:, first - 1 : last].mean(axis=1)


def exponential_moving_average(previous: float | None, value: float, checks: int = 10) -> float:
    """The average over about the last `checks` values: α = 2 / (checks + 1); `previous` is None at the first."""
    if previous is None:
        return value
    alpha = 2 / (checks + 1)
    return alpha * value + (1 - alpha) * previous


# Confidence -----------------------------------------------------------------------------------------------------------


def bootstrap_over_documents(
    columns: ArrayLike | tuple[ArrayLike, ...],
    documents: ArrayLike,
    statistic: Callable[..., Any] = lambda mean: mean,
    *,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float] | None:
    """The percentile interval of a statistic when the documents are drawn anew (Davison & Hinkley, 1997, section 3.8).

    Spans of a document resemble each other, so documents are resampled, with all their spans. `statistic` is any
    function of the means over spans of the `columns` ([spans] each, one or a tuple); it is called once, with an array
    [resamples] of means per column. `np.exp` makes it the perplexity ratio, `recovered_share` of two columns the share
    recovered, `np.subtract` a difference between two systems on the same spans, and the default a mean or a rate.

    Args:
        documents: which document each span is from, [spans], of any type that sorts.

    Returns:
        (low, high), or None where all spans are from one document, which says nothing about others.

    Raises:
        DataError: the statistic is not finite for some of the resamples.
    """
    arrays = [_finite("values", column, 1) for column in (columns if isinstance(columns, tuple) else (columns,))]
    draws = DocumentDraws(documents, resamples, seed)
    _require_equal_length(documents=draws.document_of_span, **{f"column {i}": array for i, array in enumerate(arrays)})
    if draws.documents == 1:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        return percentile_interval(statistic(*map(draws.means, arrays)), confidence)


def percentile_interval(resampled: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """The middle share of a statistic's values in the resamples, [resamples]: (low, high)."""
    values = _finite("bootstrapped statistic", resampled, 1)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


# Geometry of gists ----------------------------------------------------------------------------------------------------


def gist_diversity(gists: ArrayLike) -> float:
    """1 minus the mean cosine similarity of all distinct pairs of `gists` [spans, dim] (spec, Secondary Metrics, 4).

    Of unit vectors u, the sum over all ordered pairs is |Σu|², of which each vector with itself makes 1.

    Raises:
        DataError: fewer than two gists, or one of length zero.
    """
    units = _unit_vectors(gists)
    count = len(units)
    if count < 2:
        raise DataError(f"Diversity needs pairs: got {count} gist, expected at least 2.")
    return float(1 - (np.square(units.sum(axis=0)).sum() - count) / (count * (count - 1)))


def cosine_std(gists: ArrayLike) -> float:
    """The standard deviation of the cosine similarities of all distinct pairs of `gists` [spans, dim]."""
    units = _unit_vectors(gists)
    if len(units) < 2:
        raise DataError(f"The spread of cosines needs pairs: got {len(units)} gist, expected at least 2.")
    return float((units @ units.T)[np.triu_indices(len(units), k=1)].std())


def adjacent_pairs(documents: ArrayLike, span_indices: ArrayLike) -> NDArray[np.int64]:
    """The rows [pairs, 2] of spans that follow each other: same document, span index one larger; in any row order.

    Spans that are cut at different phases are not adjacent: give each window its own name among the `documents`.
    """
    document = np.unique(np.asarray(documents), return_inverse=True)[1]
    index = np.asarray(span_indices)
    _require_equal_length(documents=document, span_indices=index)
    order = np.lexsort((index, document))
    follows = (np.diff(document[order]) == 0) & (np.diff(index[order]) == 1)
    return np.stack([order[:-1][follows], order[1:][follows]], axis=1)


def adjacent_distance(gists: ArrayLike, pairs: NDArray[np.int64]) -> float:
    """The mean cosine distance, 0 to 2, between the `gists` [spans, dim] of each of the `adjacent_pairs`."""
    if len(pairs) == 0:
        raise DataError("Got no adjacent spans, expected at least one pair.")
    units = _unit_vectors(gists)
    return float(1 - np.einsum("pd,pd->p", units[pairs[:, 0]], units[pairs[:, 1]]).mean())


def contrastive_gap(gists: ArrayLike, pairs: NDArray[np.int64]) -> float:
    """How much farther apart random pairs of gists are than adjacent ones (spec, Secondary Metrics, 5).

    The distance of random pairs is their expectation, the mean over all distinct pairs, and so without sampling noise.
    """
    return gist_diversity(gists) - adjacent_distance(gists, pairs)


def gist_variance(gists: ArrayLike) -> float:
    """The share of the mean squared length of `gists` [spans, dim] that is variance: 0 when they all are one vector."""
    vectors = _finite("gists", gists, 2)
    energy = np.square(vectors).sum(axis=1).mean()
    if energy == 0:
        raise DataError("All gists have length 0, expected vectors.")
    return float(vectors.var(axis=0).sum() / energy)


def gist_norm(gists: ArrayLike) -> float:
    """The mean length of `gists` [spans, dim]."""
    return float(np.linalg.norm(_finite("gists", gists, 2), axis=1).mean())


def attention_entropy(probabilities: ArrayLike) -> Floats:
    """The entropy in bits of `probabilities` [spans, heads, keys]: [spans, heads] (spec, Secondary Metrics, 6).

    0 for a head that reads one key, log2(keys) for one that reads all alike.

    Raises:
        DataError: the probabilities of a span and head are negative or do not sum to 1.
    """
    shares = _finite("probabilities", probabilities, 3)
    if shares.min() < 0 or not np.allclose(shares.sum(axis=-1), 1, atol=1e-2):  # loose enough for bfloat16
        raise DataError("Attention has negative shares or sums other than 1, expected probabilities over the keys.")
    information = -np.log2(shares, where=shares > 0, out=np.zeros_like(shares))
    return (shares * information).sum(axis=-1)


# Records --------------------------------------------------------------------------------------------------------------

UNITS = {
    "kl": "nats per token",
    "delta_nll": "nats per token",
    "substitutability_rate": "share of spans",
    "perplexity_ratio": "ratio",
    "recovered_kl": "share of drop",
    "recovered_delta_nll": "share of drop",
    "kl_below_last_token": "nats per token",
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
    "bound_kl": "nats per token",
    "bound_recovered_kl": "share of drop",
    "long_context_nll": "nats per token",
    "long_context_recovered": "share of what truncating costs",
    "long_context_truncation_cost": "nats per token",
    "long_context_below_truncated": "nats per token",
    "long_context_below_shuffled": "nats per token",
    "long_context_below_mean": "nats per token",
    "long_context_above_full": "nats per token",
    "long_context_covered": "share of tokens",
    "retrieval_accuracy": "share of cases",
    "retrieval_nll": "nats per token",
    "multiple_choice_accuracy": "share of questions",
}

Baseline = Literal[
    "drop",
    "last_token",
    "surprisal_token",
    "mean",
    "shuffled",
    "gists_below",
    "full",
    "gist",
    "truncated",
    "no_context",
    "chance",
]


class Target(Section):
    """What a value should be: above a bound, below one, or between the two."""

    above: FiniteFloat | None = None
    below: FiniteFloat | None = None

    def is_met_by(self, value: float) -> bool:
        """Whether `value` is strictly within the bounds."""
        return (self.above is None or value > self.above) and (self.below is None or value < self.below)


class MetricRecord(Section):
    """One measured number, with all that is needed to read it, and its baselines on the same spans."""

    name: str
    """What was measured, a key of `UNITS`."""
    domain: str
    """Kind of text: narrative, code, structured, adversarial, or mixed for the weighted mean over kinds."""
    part: str = ""
    """Of what this is the figure, where a measure has parts: a head, a place in the span, a kind of token; or all."""
    horizon: int | None = Field(default=None, ge=1)
    """H, the number of tokens predicted after each span; None where nothing is predicted."""
    offsets: tuple[int, int] | None = None
    """First and last of the predicted tokens that count, from 1; None where nothing is predicted."""
    positions: str
    """Position policy of the gist: center, end or compact; where no gist is read, the evaluation's first."""
    level: int = Field(default=0, ge=0)
    """0 for gists of tokens, 1 for gists of gists."""
    k: int = Field(default=1, ge=1)
    """Number of consecutive spans replaced at once; 1 also where a budget decides how many."""
    value: FiniteFloat
    n_spans: int = Field(ge=1)
    """What the value is a mean over: spans, pairs, cases or questions, or the scored tokens of long contexts."""
    n_documents: int = Field(ge=1)
    interval: tuple[FiniteFloat, FiniteFloat] | None = None
    """Bootstrapped over documents; None for a single document, or where the documents are too few to draw anew."""
    target: Target | None = None
    baselines: dict[Baseline, FiniteFloat] = Field(default_factory=dict)
    """The same measure of what could stand there instead of a gist."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def unit(self) -> str:
        """Unit of the value, the interval, the target and the baselines."""
        return UNITS[self.name]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def met(self) -> bool | None:
        """Whether the value meets its target; None without one."""
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
    k: int = 1,
) -> Target | None:
    """The spec's target for a measurement, or None; parts of the horizon and runs of several gists have none."""
    if (horizon is not None and offsets != (1, horizon)) or k != 1:
        return None
    matching = (
        target
        for target_name, target_domain, target_horizon, target_level, target in TARGETS
        if (target_name, target_level) == (name, level)
        and target_domain in (None, domain)
        and target_horizon in (None, horizon)
    )
    return next(matching, None)


# Checks ---------------------------------------------------------------------------------------------------------------


def _finite(name: str, values: ArrayLike, dimensions: int) -> Floats:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != dimensions:
        raise DataError(f"{name} has {numbers.ndim} dimensions, expected {dimensions}.")
    if numbers.size == 0:
        raise DataError(f"{name} is empty, expected at least one number.")
    broken = numbers.size - np.count_nonzero(np.isfinite(numbers))
    if broken:
        raise DataError(f"{name} holds {broken} numbers of {numbers.size} that are NaN or infinite, expected none.")
    return numbers


def _require_equal_length(**arrays: Sequence[Any] | NDArray[Any]) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        described = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise DataError(f"Got {described}, expected as many of each.")


def _unit_vectors(gists: ArrayLike) -> Floats:
    vectors = _finite("gists", gists, 2)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if lengths.min() == 0:
        raise DataError(f"Gist {int(lengths.argmin())} has length 0, expected a direction to compare.")
    return vectors / lengths
