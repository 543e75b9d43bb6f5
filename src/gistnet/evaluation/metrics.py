"""The measures of gists: pure functions of arrays per span or per token.

Everything is computed per span first and reduced here, in float64. ΔNLL and KL are in nats per token, rates and shares
run from 0 to 1. An empty array, or one holding a number that is not finite, is a `DataError`.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gistnet.errors import DataError

Floats = NDArray[np.float64]

# Substitutability -----------------------------------------------------------------------------------------------------


def substituted(delta_nll: ArrayLike) -> Floats:
    """1 for each span whose ΔNLL@H `[spans]` is below one nat per token, else 0 (spec, Primary Metrics, 2)."""
    return (finite("delta_nll", delta_nll, 1) < 1.0).astype(float)


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
    numbers = finite("values", values, 2)
    first, last = offsets
    if not 1 <= first <= last <= numbers.shape[1]:
        raise DataError(f"Offsets are {first} to {last}, expected a range within 1 to {numbers.shape[1]}.")
    return numbers[:, first - 1 : last].mean(axis=1)


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


def adjacent_distance(gists: ArrayLike, following: ArrayLike) -> float:
    """The mean cosine distance, 0 to 2, between `gists` [pairs, dim] and those of the spans that follow each."""
    return float(1 - np.einsum("pd,pd->p", _unit_vectors(gists), _unit_vectors(following)).mean())


def gist_variance(gists: ArrayLike) -> float:
    """The share of the mean squared length of `gists` [spans, dim] that is variance: 0 when they all are one vector."""
    vectors = finite("gists", gists, 2)
    energy = np.square(vectors).sum(axis=1).mean()
    if energy == 0:
        raise DataError("All gists have length 0, expected vectors.")
    return float(vectors.var(axis=0).sum() / energy)


def geometry(gists: ArrayLike, neighbours: tuple[Floats, Floats]) -> dict[str, float]:
    """All of these of `gists` [spans, dim], and their mean length; what needs pairs is left out where there are none.

    `contrastive_gap` is how much farther apart random pairs are than adjacent ones (spec, Secondary Metrics, 5). The
    distance of random pairs is their expectation, the mean over all distinct pairs, and so without sampling noise.

    Args:
        neighbours: gists, and those of the spans that follow each, [pairs, dim] both.
    """
    vectors = finite("gists", gists, 2)
    measured = {}
    if len(vectors) > 1:
        measured["gist_diversity"] = gist_diversity(vectors)
    if len(neighbours[0]):
        measured["adjacent_distance"] = adjacent_distance(*neighbours)
    if measured.keys() >= {"gist_diversity", "adjacent_distance"}:
        measured["contrastive_gap"] = measured["gist_diversity"] - measured["adjacent_distance"]
    lengths = np.linalg.norm(vectors, axis=1)
    return measured | {"gist_variance": gist_variance(vectors), "gist_norm": float(lengths.mean())}


# Checks ---------------------------------------------------------------------------------------------------------------


def finite(name: str, values: ArrayLike, dimensions: int) -> Floats:
    """An array as float64.

    Raises:
        DataError: it has another number of dimensions, is empty, or holds a number that is not finite.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != dimensions:
        raise DataError(f"{name} has {numbers.ndim} dimensions, expected {dimensions}.")
    if numbers.size == 0:
        raise DataError(f"{name} is empty, expected at least one number.")
    broken = numbers.size - np.count_nonzero(np.isfinite(numbers))
    if broken:
        raise DataError(f"{name} holds {broken} numbers of {numbers.size} that are NaN or infinite, expected none.")
    return numbers


def _unit_vectors(gists: ArrayLike) -> Floats:
    vectors = finite("gists", gists, 2)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if lengths.min() == 0:
        raise DataError(f"Gist {int(lengths.argmin())} has length 0, expected a direction to compare.")
    return vectors / lengths
