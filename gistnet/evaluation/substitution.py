"""The records of what it costs to read gists: KL and ΔNLL, as a whole, by offset, and by kind of token."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from gistnet.evaluation import metrics
from gistnet.evaluation.held_out import HeldOut, Measured
from gistnet.evaluation.population import Population
from gistnet.evaluation.records import Baseline, MetricRecord, target_for
from gistnet.evaluation.resampling import Floats
from gistnet.evaluation.token_kinds import KINDS, token_kinds
from gistnet.model.tokenizer import TeacherTokenizer

Columns = Mapping[str, Floats]
"""One number per span measured, by replacement: `gist` and the baselines."""


def _itself(mean: Any) -> Any:
    return mean


@dataclass(frozen=True)
class Substitution:
    """What the records of one population and position policy have in common.

    Attributes:
        population: whose figures they are.
        measured: the losses after each replacement, `gist` and the baselines.
        positions: the position policy.
        level: of the gists.
        k: consecutive spans replaced at once.
    """

    population: Population
    measured: Mapping[str, Measured]
    positions: str
    level: int
    k: int

    def records(self, horizon: int) -> Iterator[MetricRecord]:
        """KL, ΔNLL, rate, perplexity ratio and the shares recovered, for each range of offsets of a horizon."""
        for offsets in metrics.offset_slices(horizon):
            kl = {name: metrics.mean_over_offsets(m.kl, offsets) for name, m in self.measured.items()}
            delta_nll = {name: metrics.mean_over_offsets(m.delta_nll, offsets) for name, m in self.measured.items()}
            below_one = {name: metrics.substituted(values) for name, values in delta_nll.items()}
            last_token = kl["last_token"]
            figures: dict[str, tuple[Columns, tuple[Floats, ...], Callable[..., Any]]] = {
                "kl": (kl, (), _itself),
                "delta_nll": (delta_nll, (), _itself),
                "substitutability_rate": (below_one, (), _itself),
                "perplexity_ratio": (delta_nll, (), np.exp),
                "recovered_kl": (kl, (kl["drop"],), metrics.recovered_share),
                "recovered_delta_nll": (delta_nll, (delta_nll["drop"],), metrics.recovered_share),
                "kl_below_last_token": (kl, (last_token,), lambda mean, of_last_token: of_last_token - mean),
            }
            for name, (columns, beside, statistic) in figures.items():
                if name.startswith("recovered") and not self._costs_something(beside[0]):
                    continue  # dropping these spans may well cost nothing, and a share of nothing says nothing
                yield self._record(name, columns, beside, statistic, horizon=horizon, offsets=offsets)

    def by_offset(self) -> Iterator[MetricRecord]:
        """ΔNLL at each offset of the longest horizon."""
        horizon = self.measured["gist"].delta_nll.shape[1]
        for offset in range(1, horizon + 1):
            columns = {name: m.delta_nll[:, offset - 1] for name, m in self.measured.items()}
            yield self._record("delta_nll_by_offset", columns, (), _itself, horizon=horizon, offsets=(offset, offset))

    def by_kind(self, kinds: NDArray[np.int64]) -> Iterator[MetricRecord]:
        """KL and ΔNLL of the tokens of each kind within the longest horizon: sums over tokens, divided by how many.

        Args:
            kinds: of the predicted tokens, see `target_kinds`.
        """
        horizon = kinds.shape[1]
        for loss in ("kl", "delta_nll"):
            for number, kind in enumerate(KINDS):
                is_kind = kinds == number
                counts = is_kind.sum(axis=1).astype(float)
                if not counts[self.population.rows].any():
                    continue
                columns = {name: (getattr(m, loss) * is_kind).sum(axis=1) for name, m in self.measured.items()}
                yield self._record(
                    f"{loss}_by_kind",
                    columns,
                    (counts,),
                    np.divide,
                    horizon=horizon,
                    offsets=(1, horizon),
                    kind=kind,
                    counted=counts > 0,
                )

    def _record(
        self,
        name: str,
        columns: Columns,
        beside: tuple[Floats, ...],
        statistic: Callable[..., Any],
        *,
        horizon: int,
        offsets: tuple[int, int],
        kind: str = "",
        counted: NDArray[np.bool_] | None = None,
    ) -> MetricRecord:
        """One figure: a function of the means of a replacement's column and of the columns `beside` it.

        `counted` are the spans that the figure says something of, where they are not all.
        """
        rows = self.population.rows
        if counted is not None:
            rows = rows[counted[rows]]
        means_beside = [self.population.mean(column) for column in beside]
        values = {
            replacement: float(statistic(self.population.mean(column), *means_beside))
            for replacement, column in columns.items()
        }
        rare = counted is not None and self._may_be_missing(beside[0])
        return MetricRecord(
            name=name,
            domain=self.population.name,
            kind=kind,
            horizon=horizon,
            offsets=offsets,
            positions=self.positions,
            level=self.level,
            k=self.k,
            value=values.pop("gist"),
            n_spans=len(rows),
            n_documents=len(np.unique(self.population.documents[rows])),
            interval=None if rare else self.population.interval((columns["gist"], *beside), statistic),
            target=target_for(
                name, domain=self.population.name, horizon=horizon, offsets=offsets, level=self.level, k=self.k
            ),
            baselines=cast(dict[Baseline, float], values),
        )

    def _costs_something(self, drop: Floats) -> bool:
        interval = self.population.interval((drop,), _itself)
        return interval is not None and interval[0] > 0

    def _may_be_missing(self, counts: Floats) -> bool:
        """Whether the documents may be drawn so that nothing is left to count: then there is no interval."""
        return bool((self.population.resampled_means(counts) == 0).any())


def target_kinds(held_out: HeldOut, tokenizer: TeacherTokenizer, prefix_tokens: int) -> NDArray[np.int64]:
    """The kind of each predicted token, `[segments, H]`, as its place in `KINDS`.

    Args:
        prefix_tokens: how many tokens a window begins with that are no text, such as BOS.
    """
    rows = []
    for window in held_out.windows:
        tokens = window.segments.tokens
        kinds = torch.zeros_like(tokens)
        texts = tokenizer.texts(tokens[0, prefix_tokens:].tolist())
        kinds[0, prefix_tokens:] = torch.tensor([KINDS.index(kind) for kind in token_kinds(texts)])
        rows.append(replace(window.segments, tokens=kinds).targets.cpu().numpy())
    return np.concatenate(rows)
