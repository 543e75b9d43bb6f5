"""The full evaluation of a GistNet on held-out documents: every figure with its baselines and its interval."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, validation_windows
from gistnet.errors import DataError
from gistnet.evaluation import baselines, metrics
from gistnet.evaluation.held_out import HeldOut, HeldOutWindow, MakeStandIns, Measured
from gistnet.evaluation.metrics import Baseline, MetricRecord
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import ReadWindows, Teacher
from gistnet.objective.branches import Positions, StandIns, gist_stand_ins
from gistnet.objective.objective import encode
from gistnet.settings import Section

Column = NDArray[np.float64]
"""One number per stretch."""


class EvaluationConfig(Section):
    """On what a GistNet is evaluated, and how precisely."""

    documents: int = Field(default=64, ge=2)
    """Held-out documents per domain, one window of each; two at least, for the shuffled baseline."""
    spans_per_document: int = Field(default=4, ge=1)
    """Stretches of each window."""
    horizons: tuple[PositiveInt, ...] = Field(default=(32,), min_length=1)
    """The horizons H that are reported, in tokens; all are measured on the spans that have room for the longest."""
    positions: tuple[Positions, ...] = Field(default=("center", "end", "compact"), min_length=1)
    """The position policies under which gists are read."""
    gists_in_a_row: int = Field(default=1, ge=1)
    """k, how many consecutive spans are replaced at once."""
    sink_tokens: int = Field(default=4, ge=1)
    """First tokens of a window that are never replaced."""
    domains: tuple[str, ...] = ()
    """The kinds of text; empty is every one that has held-out documents."""
    seed: int = Field(default=0, ge=0)
    """Decides which documents, which spans, and whose gists stand in as `shuffled`."""
    resamples: int = Field(default=1000, ge=100)
    """Bootstrap resamples of the documents."""


def evaluate(
    teacher: Teacher, gistnet: GistNet, dataset: PreparedDataset, config: EvaluationConfig
) -> list[MetricRecord]:
    """Measure a GistNet on held-out documents (spec, Evaluation Metrics).

    Returns:
        KL, ΔNLL, substitutability rate, perplexity ratio and the shares recovered, for each domain, position policy,
        horizon and range of offsets, each with `drop`, `last_token`, `surprisal_token`, `mean` and `shuffled`.

    Raises:
        DataError: a domain has no held-out document that is long enough, or only one document is left.
    """
    layout = SpanLayout(
        span_tokens=gistnet.config.span_tokens,
        horizon_tokens=max(config.horizons),
        spans_per_window=config.spans_per_document,
        gists_in_a_row=config.gists_in_a_row,
        sink_tokens=config.sink_tokens,
    )
    samples = validation_windows(
        dataset,
        layout,
        documents=config.documents,
        spans_per_document=config.spans_per_document,
        seed=config.seed,
        domains=config.domains or None,
    )
    held_out = HeldOut(teacher, dataset, samples, layout, cache_gigabytes=0)
    with torch.no_grad():
        gists = torch.cat([encode(gistnet, teacher, window.stretches.replaced) for window in held_out.windows])
    measured = held_out.measure(dict(_all_stand_ins(teacher, held_out, gists, config)))
    return [
        record
        for policy in config.positions
        for domain in sorted(set(held_out.domains))
        for horizon in config.horizons
        for record in _records(_of_policy(measured, policy), held_out, str(domain), horizon, policy, gistnet, config)
    ]


def _all_stand_ins(
    teacher: Teacher, held_out: HeldOut, gists: Tensor, config: EvaluationConfig
) -> Iterator[tuple[str, MakeStandIns]]:
    """Every stand-in under every policy, named `stand_in/policy`; those that do not depend on it, once."""
    documents = torch.from_numpy(held_out.documents)
    if len(documents.unique()) < 2:
        raise DataError("The held-out data is a single document; expected two at least, for the shuffled baseline.")
    others = gists[baselines.other_documents(documents, config.seed)]

    yield "drop", partial(_dropped, teacher)
    for policy in config.positions:
        yield f"gist/{policy}", partial(_placed, gists, policy)
        yield f"shuffled/{policy}", partial(_placed, others, policy)
        yield f"mean/{policy}", partial(_mean, teacher, policy)
    # A token stands at its own place under `center` and `end` alike.
    for place in dict.fromkeys(_place_of_tokens(policy) for policy in config.positions):
        yield f"last_token/{place}", partial(_last_token, teacher, place)
        yield f"surprisal_token/{place}", partial(_surprisal_token, teacher, place)


def _dropped(teacher: Teacher, window: HeldOutWindow, read: ReadWindows) -> StandIns:
    return baselines.drop(teacher, window.stretches)


def _placed(vectors: Tensor, policy: Positions, window: HeldOutWindow, read: ReadWindows) -> StandIns:
    return gist_stand_ins(window.stretches, vectors[window.rows], policy)


def _mean(teacher: Teacher, policy: Positions, window: HeldOutWindow, read: ReadWindows) -> StandIns:
    return baselines.mean(teacher, window.stretches, policy)


def _last_token(teacher: Teacher, policy: Positions, window: HeldOutWindow, read: ReadWindows) -> StandIns:
    return baselines.last_token(teacher, window.stretches, policy)


def _surprisal_token(teacher: Teacher, policy: Positions, window: HeldOutWindow, read: ReadWindows) -> StandIns:
    return baselines.surprisal_token(teacher, read, window.stretches, policy)


def _place_of_tokens(policy: Positions) -> Positions:
    return "compact" if policy == "compact" else "end"


def _of_policy(measured: dict[str, Measured], policy: Positions) -> dict[str, Measured]:
    """What a policy's records compare, by the stand-in's plain name."""
    names = {"drop": "drop"} | {name: f"{name}/{policy}" for name in ("gist", "mean", "shuffled")}
    names |= {name: f"{name}/{_place_of_tokens(policy)}" for name in ("last_token", "surprisal_token")}
    return {name: measured[full] for name, full in names.items()}


def _records(
    measured: dict[str, Measured],
    held_out: HeldOut,
    domain: str,
    horizon: int,
    policy: Positions,
    gistnet: GistNet,
    config: EvaluationConfig,
) -> Iterator[MetricRecord]:
    """The records of one domain, horizon and position policy."""
    rows = held_out.domains == domain
    documents = held_out.documents[rows]
    for offsets in metrics.offset_slices(horizon):
        kl = {name: metrics.mean_over_offsets(m.kl[rows], offsets) for name, m in measured.items()}
        delta_nll = {name: metrics.mean_over_offsets(m.delta_nll[rows], offsets) for name, m in measured.items()}
        below_one = {name: (values < 1.0).astype(float) for name, values in delta_nll.items()}
        last_token = kl["last_token"]
        figures: dict[str, tuple[dict[str, Column], tuple[Column, ...], Callable[..., Any]]] = {
            "kl": (kl, (), lambda mean: mean),
            "delta_nll": (delta_nll, (), lambda mean: mean),
            "substitutability_rate": (below_one, (), lambda mean: mean),
            "perplexity_ratio": (delta_nll, (), np.exp),
            "recovered_kl": (kl, (kl["drop"],), metrics.recovered_share),
            "recovered_delta_nll": (delta_nll, (delta_nll["drop"],), metrics.recovered_share),
            "kl_below_last_token": (kl, (last_token,), lambda mean, of_last_token: of_last_token - mean),
        }
        for name, (columns, beside, statistic) in figures.items():
            interval = partial(
                metrics.bootstrap_over_documents, documents=documents, resamples=config.resamples, seed=config.seed
            )
            if name.startswith("recovered") and (interval(beside[0]) or (0.0, 0.0))[0] <= 0:
                continue  # dropping these spans may well cost nothing, and a share of nothing says nothing
            values = {stand_in: _statistic(statistic, column, *beside) for stand_in, column in columns.items()}
            yield MetricRecord(
                name=name,
                domain=domain,
                horizon=horizon,
                offsets=offsets,
                positions=policy,
                level=gistnet.level,
                k=config.gists_in_a_row,
                value=values.pop("gist"),
                n_spans=int(rows.sum()),
                n_documents=len(np.unique(documents)),
                interval=interval((columns["gist"], *beside), statistic=statistic),
                target=metrics.target_for(
                    name, domain=domain, horizon=horizon, offsets=offsets, level=gistnet.level, k=config.gists_in_a_row
                ),
                baselines=cast(dict[Baseline, float], values),
            )


def _statistic(statistic: Callable[..., Any], *columns: Column) -> float:
    return float(statistic(*(column.mean() for column in columns)))
