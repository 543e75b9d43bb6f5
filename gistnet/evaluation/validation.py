"""The check that training makes at intervals: a GistNet on fixed held-out spans, beside drop and last token.

(Spec, Validation Protocol.)
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, share_of, validation_windows
from gistnet.errors import TrainingError
from gistnet.evaluation import baselines, metrics
from gistnet.evaluation.held_out import HeldOut, Measured
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions


class MeasuredShare(NamedTuple):
    """What one process measures: of the segments of its windows, in their order."""

    losses: dict[str, Measured]
    """By the end that their names have in a validation: "" after gists, and the baselines'."""
    gists: Tensor
    """`[segments, k, dim]`."""
    next_gists: Tensor | None
    """Of the span after each segment, `[segments, dim]`; None where the horizon has no room for it."""


class Validator:
    """Measures a GistNet on spans that never change; the baselines are measured once.

    The processes of a run share the windows out. Each window is measured by itself, so that no figure depends on how
    many processes there are.

    Args:
        probabilities: the share of each domain in training, which weighs the domains' means.
        documents: held-out documents per domain, one window of each.
        spans_per_document: segments of each window.
        gists_in_a_row: k, how many consecutive spans a segment replaces.
        cache_gigabytes: memory for passes over held-out windows, which are the same at every validation.
        rank, processes: say which windows are this process's.
        hidden_state_layer: of the GistNets that are to be measured.

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
        spans_per_document: int,
        gists_in_a_row: int = 1,
        cache_gigabytes: float = 0.0,
        rank: int = 0,
        processes: int = 1,
        hidden_state_layer: int | None = None,
    ) -> None:
        self._positions = positions
        self._weights = {domain: share for domain, share in sorted(probabilities.items()) if share > 0}
        samples = validation_windows(
            dataset,
            layout,
            documents=documents,
            spans_per_document=spans_per_document,
            seed=seed,
            gists=gists_in_a_row,
            domains=list(self._weights),
        )
        segments, infos = [len(sample.starts) for sample in samples], [dataset.describe(s.window) for s in samples]
        self._domains = np.repeat([info.domain for info in infos], segments)
        self._documents = np.repeat([info.document_id for info in infos], segments)
        share = [samples[place] for place in share_of(range(len(samples)), rank, processes)]
        self._held_out = (
            HeldOut(
                teacher, dataset, share, layout, cache_gigabytes=cache_gigabytes, hidden_state_layer=hidden_state_layer
            )
            if share
            else None
        )
        of_baselines = {"_drop": (baselines.drop, positions), "_last_token": (baselines.last_token, positions)}
        self._baselines = {} if self._held_out is None else self._held_out.measure(of_baselines)

    @torch.no_grad()
    def measure(self, gistnet: GistNet) -> MeasuredShare | None:
        """Measure this process's windows; None where it has none."""
        if self._held_out is None:
            return None
        gists, next_gists = self._held_out.encode_with_next(gistnet)
        losses = self._held_out.measure({"": (gists, self._positions)}) | self._baselines
        return MeasuredShare(losses, gists.cpu(), None if next_gists is None else next_gists.cpu())

    def figures(self, shares: Sequence[MeasuredShare | None]) -> dict[str, float]:
        """Means over spans, weighted by domain: nats per token for `kl…` and `delta_nll…`, shares for `recovered…`.

        Names end in the domain where they are one domain's, in `_1_8` and `_9_32` where they are of some offsets, and
        in `_drop` and `_last_token` where they are a baseline's. Distances between gists, and the spread of their
        cosine similarities, are taken over the spans of all domains.

        Args:
            shares: what all processes measured, by rank.

        Raises:
            TrainingError: a loss is not finite; names the documents.
        """
        measured, gists, next_gists = _whole([share for share in shares if share is not None])
        self._require_finite(measured[""])
        result: dict[str, float] = {}
        horizon = measured[""].kl.shape[1]
        whole = (1, horizon)
        for offsets in metrics.offset_slices(horizon):
            part = "" if offsets == whole else f"_{offsets[0]}_{offsets[1]}"
            kl = {name: self._mean(values.kl, offsets) for name, values in measured.items()}
            result |= {f"kl{part}{name}": value for name, value in kl.items()}
            result[f"recovered_kl{part}"] = float(metrics.recovered_share(kl[""], kl["_drop"]))
        for name, values in measured.items():
            result[f"delta_nll{name}"] = self._mean(values.delta_nll, whole)
            substituted = metrics.substituted(metrics.mean_over_offsets(values.delta_nll, whole))
            result[f"substitutability_rate{name}"] = self._weighted(substituted)
        if len(self._weights) > 1:
            for name, values in measured.items():
                result |= self._by_domain(values, name)
        return result | self._geometry(gists, next_gists)

    def _geometry(self, gists: Tensor, next_gists: Tensor | None) -> dict[str, float]:
        last = gists[:, -1].double().cpu().numpy()
        diversity = metrics.gist_diversity(last)
        result = {
            "gist_norm": float(gists.norm(dim=-1).mean()),
            "gist_diversity": diversity,
            "gist_variance": metrics.gist_variance(last),
            "cosine_std": metrics.cosine_std(last),
        }
        if next_gists is not None:
            both = np.concatenate([last, next_gists.double().cpu().numpy()])
            pairs = np.arange(len(both)).reshape(2, -1).T
            result["adjacent_distance"] = metrics.adjacent_distance(both, pairs)
            result["contrastive_gap"] = diversity - result["adjacent_distance"]
        return result

    def _by_domain(self, measured: Measured, name: str) -> dict[str, float]:
        rows = {domain: self._domains == domain for domain in self._weights}
        kl = {f"kl_{domain}{name}": float(measured.kl[row].mean()) for domain, row in rows.items()}
        return kl | {f"delta_nll_{domain}{name}": float(measured.delta_nll[row].mean()) for domain, row in rows.items()}

    def _mean(self, values: NDArray[np.float64], offsets: tuple[int, int]) -> float:
        return self._weighted(metrics.mean_over_offsets(values, offsets))

    def _weighted(self, per_span: NDArray[np.float64]) -> float:
        return float(sum(share * per_span[self._domains == domain].mean() for domain, share in self._weights.items()))

    def _require_finite(self, measured: Measured) -> None:
        broken = ~np.isfinite(measured.kl + measured.delta_nll)
        if broken.any():
            documents = ", ".join(sorted(set(self._documents[broken.any(axis=1)].tolist())))
            raise TrainingError(f"The validation loss is not finite (documents: {documents})")


def _whole(shares: Sequence[MeasuredShare]) -> tuple[dict[str, Measured], Tensor, Tensor | None]:
    """What is measured of all segments: the losses by name, the gists, and those of the spans after."""
    losses = {
        name: Measured(
            np.concatenate([share.losses[name].kl for share in shares]),
            np.concatenate([share.losses[name].delta_nll for share in shares]),
        )
        for name in shares[0].losses
    }
    next_gists = [share.next_gists for share in shares if share.next_gists is not None]
    return losses, torch.cat([share.gists for share in shares]), torch.cat(next_gists) if next_gists else None
