"""The measures of gists: pure functions of arrays per span or per token.

Everything is computed per span first and reduced here, in float64. ΔNLL and KL are in nats per token, rates and shares
run from 0 to 1, entropy is in bits. An empty array, or one holding a number that is not finite, is a `DataError`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gistnet.errors import DataError
from gistnet.evaluation.resampling import DocumentDraws

Floats = NDArray[np.float64]

# Substitutability -----------------------------------------------------------------------------------------------------


def substituted(delta_nll: ArrayLike) -> Floats:
    """1 for each span whose ΔNLL@H `[spans]` is below one nat per token, else 0 (spec, Primary Metrics, 2)."""
    return (_finite("delta_nll", delta_nll, 1) < 1.0).astype(float)


def recovered_share(mean_loss: Any, mean_loss_of_drop: Any) -> Any:
    """The share of what dropping the spans costs that the gists win back, of two means, numbers or arrays.

    1 is a perfect replacement, 0 is no better than dropping, and worse is negative.
    """
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
