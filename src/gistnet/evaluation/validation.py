"""Validation at intervals in training: a GistNet on fixed held-out spans, beside drop and last token.

Spec, Validation Protocol.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gistnet.data.config import RowsConfig
from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, fixed_windows, share_of
from gistnet.errors import TrainingError
from gistnet.evaluation import baselines, metrics, substitution
from gistnet.evaluation.held_out import HeldOut, Measured
from gistnet.evaluation.resampling import populations
from gistnet.evaluation.rows import HeldOutRows, RowLosses, row_measures
from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions


class MeasuredShare(NamedTuple):
    """Measurements of one process: of the segments of its windows, in their order."""

    losses: dict[str, Measured]
    """After `gist`, `drop` and `last_token`."""
    gists: Tensor
    """`[segments, k, dim]`."""
    next_gists: Tensor | None
    """Gists of the span after each segment, `[segments, dim]`; None where the horizon has no room for it."""


class Share(NamedTuple):
    """Measurements of one process."""

    spans: MeasuredShare | None
    """None where it has no windows."""
    rows: RowLosses
    """Losses after rows of gists; empty where none are judged."""


class Validator:
    """Measures a GistNet on spans that never change; the baselines are measured once.

    The processes of a run share the windows out. Each window is measured by itself, so that no figure depends on how
    many processes there are.

    Args:
        probabilities: the share of each domain in training, which weighs the domains' means.
        documents: held-out documents per domain, one window of each.
        segments_per_window: segments of each window.
        spans_per_segment: k, how many consecutive spans a segment replaces.
        cache_gigabytes: memory for passes over held-out windows, which are the same at every validation.
        rank, processes: say which windows are this process's.
        hidden_state_layer: of the GistNets that are to be measured.
        rows: rows of gists that are judged as well.

    Raises:
        DataError: a domain has no held-out window long enough.
    """

    def __init__(
        self,
        teacher: Teacher,
        dataset: PreparedDataset,
        layout: SpanLayout,
        positions: Positions,
        probabilities: Mapping[str, float],
        seed: int,
        *,
        documents: int,
        segments_per_window: int,
        spans_per_segment: int = 1,
        cache_gigabytes: float = 0.0,
        rank: int = 0,
        processes: int = 1,
        hidden_state_layer: int | None = None,
        rows: RowsConfig | None = None,
    ) -> None:
        self._teacher, self._positions = teacher, positions
        weights = {domain: share for domain, share in sorted(probabilities.items()) if share > 0}
        samples = fixed_windows(
            dataset,
            layout,
            documents=documents,
            segments_per_window=segments_per_window,
            seed=seed,
            n_spans=spans_per_segment,
            domains=list(weights),
            for_validation=True,
        )
        segments, infos = [len(sample.starts) for sample in samples], [dataset.describe(s.window) for s in samples]
        self._documents = np.repeat([info.document_id for info in infos], segments)
        domains = np.repeat([info.domain for info in infos], segments)
        *self._domains, self._mixed = populations(domains, self._documents, weights)
        share = [samples[index] for index in share_of(range(len(samples)), rank, processes)]
        self._held_out = (
            HeldOut(
                teacher, dataset, share, layout, cache_gigabytes=cache_gigabytes, hidden_state_layer=hidden_state_layer
            )
            if share
            else None
        )
        self._rows = (
            HeldOutRows(
                dataset,
                list(weights),
                rows,
                tokens_per_gist=layout.tokens_per_gist,
                sink_tokens=layout.sink_tokens,
                for_validation=True,
                rank=rank,
                processes=processes,
            )
            if rows is not None and rows.documents
            else None
        )
        self._weights = weights
        self._policies: tuple[Positions, ...] = tuple(dict.fromkeys((positions, "compact")))
        of_baselines = {"drop": (baselines.drop, positions), "last_token": (baselines.last_token, positions)}
        self._baselines = {} if self._held_out is None else self._held_out.measure(of_baselines)

    @torch.no_grad()
    def measure(self, gistnet: GistNet) -> Share:
        """Measure this process's windows and passages."""
        return Share(
            self._measure_spans(gistnet),
            {} if self._rows is None else self._rows.measure(SpanEncoder(self._teacher, gistnet), self._policies),
        )

    def _measure_spans(self, gistnet: GistNet) -> MeasuredShare | None:
        if self._held_out is None:
            return None
        gists, next_gists = self._held_out.encode_with_next(gistnet)
        losses = self._held_out.measure({"gist": (gists, self._positions)}) | self._baselines
        return MeasuredShare(losses, gists.cpu(), None if next_gists is None else next_gists.cpu())

    def metrics(self, shares: Sequence[Share]) -> dict[str, float]:
        """Means over spans, weighted by domain: nats per token for `kl…` and `delta_nll…`, shares for `recovered…`.

        `kl/code` is one domain's. Names end in `_1_8` and `_9_32` where they are of some offsets, and
        in `_drop` and `_last_token` where they are a baseline's. Distances between gists, and the spread of their
        cosine similarities, are taken over the spans of all domains. `row_recovered_kl/end/30+64` is of rows of 30
        gists with a tail of 64 tokens at the positions `end`, `row_kl` the mean of all rows.

        Args:
            shares: what all processes measured, by rank.

        Raises:
            TrainingError: a loss is not finite; names the documents.
        """
        losses, gists, next_gists = _whole([share.spans for share in shares if share.spans is not None])
        self._require_finite(losses["gist"])
        endings = {name: "" if name == "gist" else f"_{name}" for name in losses}
        horizon = losses["gist"].kl.shape[1]
        whole = (1, horizon)
        result: dict[str, float] = {}
        for offsets in metrics.offset_slices(horizon):
            part = "" if offsets == whole else f"_{offsets[0]}_{offsets[1]}"
            measures = substitution.measures(losses, offsets)
            for metric, measure in measures.items():
                if not measure.beside and (offsets == whole or metric == "kl"):
                    values = self._mixed.values(measure)
                    result |= {f"{metric}{part}{endings[name]}": value for name, value in values.items()}
            result[f"recovered_kl{part}"] = self._mixed.values(measures["recovered_kl"])["gist"]
        if len(self._domains) > 1:
            for domain in self._domains:
                for name, measured in losses.items():
                    result[f"kl/{domain.name}{endings[name]}"] = domain.mean(measured.kl)
                    result[f"delta_nll/{domain.name}{endings[name]}"] = domain.mean(measured.delta_nll)
        return result | _geometry(gists, next_gists) | self._row_metrics([share.rows for share in shares])

    def _row_metrics(self, shares: Sequence[RowLosses]) -> dict[str, float]:
        """KL after rows and the share recovered, of all of them, of each row, and of each kind of text."""
        if self._rows is None:
            return {}
        losses = self._rows.whole(shares)
        broken = [row for row, of_row in losses.items() if not all(np.isfinite(m.kl).all() for m in of_row.values())]
        if broken:
            raise TrainingError(f"The validation loss after rows of gists is not finite (row {broken[0]})")
        domains, mixed = self._rows.populations(self._weights)
        result, kls, drops = {}, [], []
        for policy, (row, of_row) in product(self._policies, losses.items()):
            measures = row_measures(of_row, policy)
            values = {name: mixed.values(measure) for name, measure in measures.items()}
            kls.append(values["row_kl"]["gist"])
            drops.append(values["row_kl"]["drop"])
            for name in ("row_recovered_kl", "row_recovered_delta_nll"):
                result[f"{name}/{policy}/{row}"] = values[name]["gist"]
                result[f"{name}/{policy}/{row}_shuffled"] = values[name]["shuffled"]
                for domain in domains if len(domains) > 1 else ():
                    result[f"{name}/{policy}/{row}/{domain.name}"] = domain.values(measures[name])["gist"]
        return {"row_kl": float(np.mean(kls)), "row_recovered_kl": 1 - sum(kls) / sum(drops)} | result

    def _require_finite(self, measured: Measured) -> None:
        broken = ~np.isfinite(measured.kl + measured.delta_nll)
        if broken.any():
            documents = ", ".join(sorted(set(self._documents[broken.any(axis=1)].tolist())))
            raise TrainingError(f"The validation loss is not finite (documents: {documents})")


def _geometry(gists: Tensor, next_gists: Tensor | None) -> dict[str, float]:
    """Geometry of the last gist of each segment, `[segments, k, dim]`, beside that of the span after it."""
    last = gists[:, -1].double().cpu().numpy()
    following = last[:0] if next_gists is None else next_gists.double().cpu().numpy()
    return metrics.geometry(last, (last[: len(following)], following)) | {
        "gist_norm": float(gists.norm(dim=-1).mean()),
        "cosine_std": metrics.cosine_std(last),
    }


def _whole(shares: Sequence[MeasuredShare]) -> tuple[dict[str, Measured], Tensor, Tensor | None]:
    """Measurements of all segments: the losses by name, the gists, and those of the spans after."""
    losses = {
        name: Measured(
            np.concatenate([share.losses[name].kl for share in shares]),
            np.concatenate([share.losses[name].delta_nll for share in shares]),
        )
        for name in shares[0].losses
    }
    next_gists = [share.next_gists for share in shares if share.next_gists is not None]
    return losses, torch.cat([share.gists for share in shares]), torch.cat(next_gists) if next_gists else None
