"""The check that training makes at intervals: a GistNet on fixed held-out spans, beside drop and last token."""

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import Field

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, validation_windows
from gistnet.evaluation import baselines
from gistnet.evaluation.held_out import HeldOut, HeldOutWindow, Measured
from gistnet.evaluation.metrics import mean_over_offsets, offset_slices, recovered_share
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import ReadWindows, Teacher
from gistnet.objective.branches import Positions, StandIns, gist_stand_ins
from gistnet.objective.objective import encode
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
        in `_drop` and `_last_token` where they are a baseline's.
        """
        norms = []

        def gists(window: HeldOutWindow, read: ReadWindows) -> StandIns:
            encoded = encode(gistnet, self._teacher, window.stretches.replaced)
            norms.append(encoded.norm(dim=-1).mean())
            return gist_stand_ins(window.stretches, encoded, self._positions)

        measured = {"": self._held_out.measure({"gist": gists})["gist"]}
        measured |= {f"_{name}": values for name, values in self._baselines.items()}
        result = {"gist_norm": float(torch.stack(norms).mean())}
        horizon = measured[""].kl.shape[1]
        for offsets in offset_slices(horizon):
            part = "" if offsets == (1, horizon) else f"_{offsets[0]}_{offsets[1]}"
            kl = {name: self._mean(values.kl, offsets) for name, values in measured.items()}
            result |= {f"kl{part}{name}": value for name, value in kl.items()}
            result[f"recovered_kl{part}"] = float(recovered_share(kl[""], kl["_drop"]))
        result |= {f"delta_nll{name}": self._mean(v.delta_nll, (1, horizon)) for name, v in measured.items()}
        if len(self._weights) > 1:
            result |= self._by_domain(measured[""])
        return result

    def _by_domain(self, measured: Measured) -> dict[str, float]:
        rows = {domain: self._held_out.domains == domain for domain in self._weights}
        kl = {f"kl_{domain}": float(measured.kl[row].mean()) for domain, row in rows.items()}
        return kl | {f"delta_nll_{domain}": float(measured.delta_nll[row].mean()) for domain, row in rows.items()}

    def _mean(self, values: np.ndarray, offsets: tuple[int, int]) -> float:
        per_span = mean_over_offsets(values, offsets)
        domains = self._held_out.domains
        return float(sum(share * per_span[domains == domain].mean() for domain, share in self._weights.items()))
