"""The records of contexts that are compared at one budget.

    long_context_nll              mean NLL, beside that of the other contexts
    long_context_recovered        (truncated - gist) / (truncated - full), of means; left out unless the 95 % interval
                                  of its denominator is above 0: otherwise there is nothing known to win back
    long_context_truncation_cost  that denominator
    long_context_below_…          how much lower the gists' NLL is than another context's on the same tokens
    long_context_above_full       and how much higher than with the whole text
    long_context_covered          the share of the tokens that something in the gist context stands for

`part` names the budget and the kind of token: "budget 1/8", "budget 1/8, names". `n_spans` counts scored tokens.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from gistnet.evaluation.metrics import Floats
from gistnet.evaluation.records import Baseline, MetricRecord
from gistnet.evaluation.resampling import DocumentDraws, percentile_interval
from gistnet.objective.branches import Positions

Flags = NDArray[np.bool_]


class BudgetScores(NamedTuple):
    """NLL of every scored token under one budget and policy, and what it was measured with.

    Attributes:
        nll: `[documents, scored]`, by context: full, truncated, gist, shuffled, mean.
        kinds: `[documents, scored]`, which tokens are of a kind, by its name; "" is all.
        level: the highest level of gists in any context.
        covered: `[documents]`, the share of tokens that the gist context stands for.
        truncated: `[documents]`, the same of the truncated one.
    """

    nll: Mapping[str, Floats]
    kinds: Mapping[str, Flags]
    level: int
    covered: Floats
    truncated: Floats


def budget_records(
    scores: BudgetScores, tokens_per_vector: int, *, domain: str, positions: Positions, resamples: int, seed: int
) -> Iterator[MetricRecord]:
    """The records of one budget and policy, for all tokens and for each kind that there is."""
    documents, scored = scores.nll["full"].shape
    document_of_token = np.repeat(np.arange(documents), scored)
    place = {
        "domain": domain,
        "positions": positions,
        "level": scores.level,
        "horizon": scored,
        "offsets": (1, scored),
    }
    for kind, flags in scores.kinds.items():
        counted = flags.ravel()
        if not counted.any():
            continue
        columns = {name: values.ravel()[counted] for name, values in scores.nll.items()}
        named = place | {"part": f"budget 1/{tokens_per_vector}" + (f", {kind}" if kind else "")}
        yield from _compared(columns, document_of_token[counted], named, resamples, seed)
    draws = DocumentDraws(np.arange(documents), resamples, seed)
    yield MetricRecord(
        name="long_context_covered",
        part=f"budget 1/{tokens_per_vector}",
        value=float(scores.covered.mean()),
        interval=percentile_interval(draws.means(scores.covered)),
        n_spans=documents * scored,
        n_documents=documents,
        baselines={"truncated": float(scores.truncated.mean()), "full": 1.0},
        **place,
    )


def _compared(
    columns: Mapping[str, Floats], documents: NDArray[np.int64], place: Mapping[str, Any], resamples: int, seed: int
) -> Iterator[MetricRecord]:
    """The records of some tokens: columns of NLL by context, and the document of each, `[tokens]`."""
    draws = DocumentDraws(documents, resamples, seed)
    mean = {name: float(values.mean()) for name, values in columns.items()}
    drawn = {name: draws.means(values) for name, values in columns.items()}

    def record(name: str, value: float, resampled: Floats, **more: dict[Baseline, float]) -> MetricRecord:
        interval = percentile_interval(resampled) if draws.documents > 1 else None
        sizes = {"n_spans": len(documents), "n_documents": draws.documents}
        return MetricRecord(name=name, value=value, interval=interval, **sizes, **place, **more)

    def beside(values: Mapping[str, float]) -> dict[str, dict[Baseline, float]]:
        others = {name: value for name, value in values.items() if name != "gist"}
        return {"baselines": cast(dict[Baseline, float], others)}

    yield record("long_context_nll", mean["gist"], drawn["gist"], **beside(mean))
    cost = record("long_context_truncation_cost", mean["truncated"] - mean["full"], drawn["truncated"] - drawn["full"])
    yield cost
    if cost.interval is not None and cost.interval[0] > 0:
        shares = {name: (mean["truncated"] - value) / cost.value for name, value in mean.items()}
        resampled = (drawn["truncated"] - drawn["gist"]) / (drawn["truncated"] - drawn["full"])
        yield record("long_context_recovered", shares["gist"], resampled, **beside(shares))
    for other in ("truncated", "shuffled", "mean"):
        yield record(f"long_context_below_{other}", mean[other] - mean["gist"], drawn[other] - drawn["gist"])
    yield record("long_context_above_full", mean["gist"] - mean["full"], drawn["gist"] - drawn["full"])
