"""The check that training makes at intervals: a GistNet on fixed held-out spans, beside drop and last token.

(Spec, Validation Protocol.)
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, validation_windows
from gistnet.errors import TrainingError
from gistnet.evaluation import baselines, metrics
from gistnet.evaluation.held_out import HeldOut, HeldOutWindow, Measured
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import ReadWindows, Teacher
from gistnet.objective.branches import Positions, StandIns, gist_stand_ins
from gistnet.objective.objective import encode_stretches
from gistnet.settings import Section


class ValidationConfig(Section):
    """When and on what to validate during training (spec, Validation Protocol)."""

    every_steps: int = Field(default=1000, ge=1)
    """Steps between validations; there is one before the first step and one after the last."""
    documents: int = Field(default=100, ge=1)
    """Held-out documents per domain, one window of each."""
    spans_per_document: int = Field(default=4, ge=1)
    """Stretches of each window."""
    cache_gigabytes: float = Field(default=2.0, ge=0)
    """Memory for passes over held-out windows, which are the same at every validation."""


class Validator:
    """Measures a GistNet on spans that never change; the baselines are measured once.

    Args:
        probabilities: the share of each domain in training, which weighs the domains' means.

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
        config: ValidationConfig,
        seed: int,
    ) -> None:
        self._teacher, self._positions = teacher, positions
        self._weights = {domain: share for domain, share in sorted(probabilities.items()) if share > 0}
        samples = validation_windows(
            dataset,
            layout,
            documents=config.documents,
            spans_per_document=config.spans_per_document,
            seed=seed,
            domains=list(self._weights),
        )
        self._held_out = HeldOut(teacher, dataset, samples, layout, cache_gigabytes=config.cache_gigabytes)
        self._baselines = self._held_out.measure(
            {
                "drop": lambda window, read: baselines.drop(teacher, window.stretches),
                "last_token": lambda window, read: baselines.last_token(teacher, window.stretches, positions),
            }
        )

    def validate(self, gistnet: GistNet) -> dict[str, float]:
        """Means over spans, weighted by domain: nats per token for `kl…` and `delta_nll…`, shares for `recovered…`.

        Names end in the domain where they are one domain's, in `_1_8` and `_9_32` where they are of some offsets, and
        in `_drop` and `_last_token` where they are a baseline's. Distances between gists, and the spread of their
        cosine similarities, are taken over the spans of all domains.

        Raises:
            TrainingError: a loss is not finite; names the documents.
        """
        gists, next_gists = self._encode(gistnet)

        def placed(window: HeldOutWindow, read: ReadWindows) -> StandIns:
            return gist_stand_ins(window.stretches, gists[window.rows], self._positions)

        measured = {"": self._held_out.measure({"gist": placed})["gist"]}
        self._require_finite(measured[""])
        measured |= {f"_{name}": values for name, values in self._baselines.items()}
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
            below_one = (metrics.mean_over_offsets(values.delta_nll, whole) < 1.0).astype(float)
            result[f"substitutability_rate{name}"] = self._weighted(below_one)
        if len(self._weights) > 1:
            for name, values in measured.items():
                result |= self._by_domain(values, name)
        return result | self._geometry(gists, next_gists)

    @torch.no_grad()
    def _encode(self, gistnet: GistNet) -> tuple[Tensor, Tensor | None]:
        """Gists of all stretches, `[stretches, 1, dim]`, and of the span after each, where the horizon has room."""
        windows = self._held_out.windows
        has_next = all(window.stretches.horizon >= window.stretches.span_tokens for window in windows)
        gists = torch.cat(
            [encode_stretches(gistnet, self._teacher, window.stretches, with_next=has_next) for window in windows]
        )
        return (gists[:, :1], gists[:, 1]) if has_next else (gists, None)

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
        rows = {domain: self._held_out.domains == domain for domain in self._weights}
        kl = {f"kl_{domain}{name}": float(measured.kl[row].mean()) for domain, row in rows.items()}
        return kl | {f"delta_nll_{domain}{name}": float(measured.delta_nll[row].mean()) for domain, row in rows.items()}

    def _mean(self, values: NDArray[np.float64], offsets: tuple[int, int]) -> float:
        return self._weighted(metrics.mean_over_offsets(values, offsets))

    def _weighted(self, per_span: NDArray[np.float64]) -> float:
        domains = self._held_out.domains
        return float(sum(share * per_span[domains == domain].mean() for domain, share in self._weights.items()))

    def _require_finite(self, measured: Measured) -> None:
        broken = ~np.isfinite(measured.kl + measured.delta_nll)
        if broken.any():
            documents = sorted({w.info.document_id for w in self._held_out.windows if broken[w.rows].any()})
            raise TrainingError(f"The validation loss is not finite (documents: {', '.join(documents)})")
