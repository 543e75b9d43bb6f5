"""The records of what it costs to read gists: KL and ΔNLL, as a whole, by offset, and by kind of token."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gistnet.evaluation import metrics
from gistnet.evaluation.held_out import HeldOut, Measured
from gistnet.evaluation.metrics import Floats
from gistnet.evaluation.records import MetricRecord
from gistnet.evaluation.resampling import Measure, Population, itself
from gistnet.evaluation.token_kinds import KINDS, token_kinds
from gistnet.model.tokenizer import TeacherTokenizer


def measures(measured: Mapping[str, Measured], offsets: tuple[int, int]) -> dict[str, Measure]:
    """KL, ΔNLL, rate, perplexity ratio and the shares recovered, by name, over a range of `offset_slices`.

    Args:
        measured: the losses after each replacement: the gist first, then the baselines.
    """
    kl = {name: metrics.mean_over_offsets(losses.kl, offsets) for name, losses in measured.items()}
    delta_nll = {name: metrics.mean_over_offsets(losses.delta_nll, offsets) for name, losses in measured.items()}
    below_one = {name: metrics.substituted(values) for name, values in delta_nll.items()}
    return {
        "kl": Measure(kl),
        "delta_nll": Measure(delta_nll),
        "substitutability_rate": Measure(below_one),
        "perplexity_ratio": Measure(delta_nll, (), np.exp),
        "recovered_kl": Measure(kl, (kl["drop"],), metrics.recovered_share),
        "recovered_delta_nll": Measure(delta_nll, (delta_nll["drop"],), metrics.recovered_share),
        "kl_below_last_token": Measure(kl, (kl["last_token"],), lambda mean, of_last_token: of_last_token - mean),
    }


@dataclass(frozen=True)
class Substitution:
    """The records of one population and position policy.

    Attributes:
        population: whose metrics they are.
        measured: the losses after each replacement: the gist first, then the baselines.
        labels: fields of all records: position policy, level, k.
    """

    population: Population
    measured: Mapping[str, Measured]
    labels: Mapping[str, Any]

    def records(self, horizon: int) -> Iterator[MetricRecord]:
        """All `measures` for each range of offsets of a horizon."""
        for offsets in metrics.offset_slices(horizon):
            for name, measure in measures(self.measured, offsets).items():
                if name.startswith("recovered") and not self._costs_something(measure.beside[0]):
                    continue  # dropping these spans may well cost nothing, and a share of nothing says nothing
                yield self.population.record(name, measure, horizon=horizon, offsets=offsets, **self.labels)

    def by_offset(self) -> Iterator[MetricRecord]:
        """ΔNLL at each offset of the longest horizon."""
        horizon = self.measured["gist"].delta_nll.shape[1]
        for offset in range(1, horizon + 1):
            measure = Measure({name: losses.delta_nll[:, offset - 1] for name, losses in self.measured.items()})
            where = {"horizon": horizon, "offsets": (offset, offset)}
            yield self.population.record("delta_nll_by_offset", measure, **where, **self.labels)

    def by_kind(self, kinds: NDArray[np.int64]) -> Iterator[MetricRecord]:
        """KL and ΔNLL of the tokens of each kind within the longest horizon: sums over tokens, divided by how many.

        Args:
            kinds: of the predicted tokens, see `target_kinds`.
        """
        where = {"horizon": kinds.shape[1], "offsets": (1, kinds.shape[1])}
        for loss in ("kl", "delta_nll"):
            for number, kind in enumerate(KINDS):
                is_kind = kinds == number
                counts = is_kind.sum(axis=1).astype(float)
                if not counts[self.population.rows].any():
                    continue
                columns = {name: (getattr(m, loss) * is_kind).sum(axis=1) for name, m in self.measured.items()}
                measure = Measure(columns, (counts,), np.divide)
                yield self.population.record(
                    f"{loss}_by_kind", measure, counted=counts > 0, kind=kind, **where, **self.labels
                )

    def _costs_something(self, drop: Floats) -> bool:
        interval = self.population.interval((drop,), itself)
        return interval is not None and interval[0] > 0


def target_kinds(held_out: HeldOut, tokenizer: TeacherTokenizer, prefix_tokens: int) -> NDArray[np.int64]:
    """The kind of each predicted token, `[segments, H]`, as its index in `KINDS`.

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
