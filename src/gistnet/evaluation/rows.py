"""Rows of gists beside a tail of raw text: what they are worth where they are used.

A context is the sink, a row of gists, and a raw tail; then the scored tokens follow. The original context has the text
of the row in place of its gists, and `drop` has nothing. The scored tokens of a passage are the same for every row and
tail, so that one figure can be compared with another.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gistnet.data.config import SINK_TOKENS, RowsConfig
from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import share_of
from gistnet.errors import DataError
from gistnet.evaluation import baselines
from gistnet.evaluation.baselines import Baseline
from gistnet.evaluation.config import EvaluationConfig
from gistnet.evaluation.held_out import Measured
from gistnet.evaluation.metrics import Floats
from gistnet.evaluation.records import MetricRecord
from gistnet.evaluation.resampling import Measure, Population, itself, populations
from gistnet.evaluation.substitution import measures
from gistnet.model.encoder import SpanEncoder
from gistnet.objective.branches import SegmentBatch, replaced_hidden_of_each
from gistnet.objective.losses import encode_segments, token_losses_of_each
from gistnet.positions import Positions
from gistnet.progress import track

BASELINES: dict[str, Baseline] = {"last_token": baselines.last_token, "recent_tokens": baselines.recent_tokens}
"""Baselines beside a row, `drop` and another document's gists: its spans' last tokens, and as many recent tokens."""
MEASURES = ("kl", "delta_nll", "recovered_kl", "recovered_delta_nll")
"""Measures of a row: those of `substitution.measures` that are means of losses, or shares of them."""


class Passage(NamedTuple):
    """Tokens of a held-out document, long enough for the longest row and tail."""

    document: str
    domain: str
    tokens: Tensor
    """`[n]`, without a prefix; the last ones are scored."""


class Row(NamedTuple):
    """A row of gists and the raw tail behind it."""

    n_spans: int
    tail: int

    def __str__(self) -> str:
        return f"{self.n_spans}+{self.tail}"


RowLosses = dict[Row, dict[str, Measured]]
"""Losses of each scored token, `[passages, scored tokens]`, by row and by replacement: `gist/policy`, `drop`, …"""


class HeldOutRows:
    """The passages that rows of gists are judged on, always the same.

    Each passage is measured by itself, so that no figure depends on how many processes share them.

    Args:
        domains: kinds of text; one without two documents that are long enough has no passages.
        tokens_per_gist: of the level whose gists are judged.
        for_validation: take the documents that validation takes, which what is reported takes last.
        skip: leave out so many documents of each domain, the first that would be taken.
        rank, processes: say which passages are measured here.

    Raises:
        DataError: no domain has two documents that are long enough.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        domains: Sequence[str],
        config: RowsConfig,
        *,
        tokens_per_gist: int,
        sink_tokens: int = SINK_TOKENS,
        for_validation: bool = False,
        skip: int = 0,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._config, self._span, self._sink = config, tokens_per_gist, sink_tokens
        self._prefix = torch.tensor(dataset.description.window_prefix, dtype=torch.long)
        needed = sink_tokens + max(config.lengths) * tokens_per_gist + max(config.tails) + config.scored_tokens
        self.passages = _passages(
            dataset, domains, needed, range(skip, skip + config.documents), for_validation=for_validation
        )
        self._own = share_of(range(len(self.passages)), rank, processes)
        self._baselines: RowLosses | None = None

    @torch.no_grad()
    def measure(self, encoder: SpanEncoder, policies: Sequence[Positions]) -> RowLosses:
        """Losses after rows of gists, of another document's gists, and after `BASELINES`, under each policy.

        The baselines are measured once, under the policies of the first call.
        """
        columns: dict[Row, dict[str, list[Floats]]] = {row: {} for row in self._rows()}
        for index in track(self._own, len(self._own), "passages read"):
            for row, of_row in columns.items():
                for name, losses in self._measure_one(encoder, index, row, policies).items():
                    of_row.setdefault(name, []).append(losses)
        measured = {
            row: {name: Measured(*np.concatenate(losses, axis=1)) for name, losses in of_row.items()}
            for row, of_row in columns.items()
        }
        if self._baselines is None:
            gists = ("gist/", "shuffled/")
            self._baselines = {
                row: {name: losses for name, losses in of_row.items() if not name.startswith(gists)}
                for row, of_row in measured.items()
            }
        return {row: of_row | self._baselines[row] for row, of_row in measured.items()}

    def whole(self, shares: Sequence[RowLosses]) -> RowLosses:
        """Losses on all passages, from what the processes measured, by rank."""
        return {
            row: {
                name: Measured(
                    np.concatenate([share[row][name].kl for share in shares if share[row]]),
                    np.concatenate([share[row][name].delta_nll for share in shares if share[row]]),
                )
                for name in next(share[row] for share in shares if share[row])
            }
            for row in self._rows()
        }

    def populations(self, weights: Mapping[str, float], **chance: int) -> tuple[list[Population], Population]:
        """Each kind of text that has passages, and their mean, weighted by the shares that are left of `weights`."""
        domains = np.array([passage.domain for passage in self.passages])
        documents = np.array([passage.document for passage in self.passages])
        there = {name: weights.get(name, 1.0) for name in sorted(set(domains.tolist()))}
        shares = {name: share / sum(there.values()) for name, share in there.items()}
        *each, mixed = populations(domains, documents, shares, **chance)
        return each, mixed

    def _rows(self) -> list[Row]:
        return [Row(n_spans, tail) for n_spans in self._config.lengths for tail in self._config.tails]

    def _measure_one(
        self, encoder: SpanEncoder, index: int, row: Row, policies: Sequence[Positions]
    ) -> dict[str, Floats]:
        """KL and ΔNLL of a passage's scored tokens after each replacement of a row, `[2, 1, scored tokens]`."""
        teacher = encoder.teacher
        segments = self._segments(self.passages[index], row, teacher.device)
        other = self._segments(self.passages[(index + 1) % len(self.passages)], row, teacher.device)
        prefill = encoder.prefill(segments.tokens)
        vectors = {
            "gist": encode_segments(encoder, segments, prefill),
            "shuffled": encode_segments(
                encoder, other, encoder.prefill(other.tokens) if encoder.reads_context else None
            ),
        }
        made = {
            f"{name}/{policy}": baselines.vectors_in_place(segments, gists, policy)
            for name, gists in vectors.items()
            for policy in policies
        }
        if self._baselines is None:
            made["drop"] = baselines.drop(teacher, segments, prefill, policies[0])
            made |= {
                f"{name}/{policy}": baseline(teacher, segments, prefill, policy)
                for name, baseline in BASELINES.items()
                for policy in policies
            }
        replaced = replaced_hidden_of_each(teacher, prefill, segments, made)
        losses = token_losses_of_each(
            teacher,
            segments.original_hidden(prefill)[:, row.tail :],
            {name: hidden[:, row.tail :] for name, hidden in replaced.items()},
            segments.targets[:, row.tail :],
        )
        return {name: torch.stack([of.kl, of.delta_nll]).double().cpu().numpy() for name, of in losses.items()}

    def _segments(self, passage: Passage, row: Row, device: torch.device) -> SegmentBatch:
        """The row as the only segment of a window that ends with the scored tokens."""
        horizon = row.tail + self._config.scored_tokens
        kept = self._sink - len(self._prefix) + row.n_spans * self._span + horizon
        tokens = torch.cat([self._prefix, passage.tokens[-kept:]])[None].to(device)
        start = torch.full((1,), self._sink, device=device)
        return SegmentBatch(tokens, torch.zeros_like(start), start, self._span, row.n_spans, horizon)


def _passages(
    dataset: PreparedDataset, domains: Sequence[str], needed: int, documents: range, *, for_validation: bool
) -> list[Passage]:
    """The middle `needed` tokens of held-out documents of each domain, by number in an order of their texts."""
    passages: list[Passage] = []
    for domain in domains:
        found = []
        whole = dataset.whole_documents("held_out", domain, min_tokens=needed, for_validation=for_validation)
        for name, tokens in islice(whole, documents.start, documents.stop):
            first = (len(tokens) - needed) // 2  # not the first pages, which may be title and contents
            found.append(Passage(name, domain, torch.from_numpy(tokens[first : first + needed])))
        passages += found if len(found) > 1 else []
    if not passages:
        raise DataError(f"No domain has two held-out documents of {needed} tokens, expected one for rows of gists.")
    return passages


# Records --------------------------------------------------------------------------------------------------------------


def row_measures(losses: Mapping[str, Measured], policy: Positions) -> dict[str, Measure]:
    """KL, ΔNLL and the shares of them recovered after a row, by name: the gist first, then the baselines."""
    names = {"gist": f"gist/{policy}", "drop": "drop", "shuffled": f"shuffled/{policy}"}
    names |= {name: f"{name}/{policy}" for name in BASELINES}
    whole = (1, losses["drop"].kl.shape[1])
    measured = {name: losses[full] for name, full in names.items()}
    return {f"row_{name}": measure for name, measure in measures(measured, whole).items() if name in MEASURES}


def row_records(
    losses: RowLosses, held_out: HeldOutRows, config: EvaluationConfig, level: int
) -> Iterator[MetricRecord]:
    """Records of `row_measures` for each kind of text, row and policy, and of their mean where weights are given.

    What dropping a row costs may be nothing; a share of it is left out then.
    """
    each, mixed = held_out.populations(config.weights, resamples=config.resamples, seed=config.seed)
    groups = [*each, mixed] if {group.name for group in each} == set(config.weights) else each
    for row, of_row in losses.items():
        horizon = row.tail + config.rows.scored_tokens
        where: dict[str, Any] = {"horizon": horizon, "offsets": (row.tail + 1, horizon), "level": level}
        for policy, population in product(config.positions, groups):
            for name, measure in row_measures(of_row, policy).items():
                if measure.beside and not _costs_something(population, measure.beside[0]):
                    continue
                labels = where | {"positions": policy, "spans_per_segment": row.n_spans}
                yield population.record(name, measure, **labels)


def _costs_something(population: Population, dropped: Floats) -> bool:
    interval = population.interval((dropped,), itself)
    return interval is not None and interval[0] > 0
