"""Held-out spans, and how well the teacher predicts after them when they are replaced."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gistnet.data.dataset import PreparedDataset, WindowInfo
from gistnet.data.sampling import SpanLayout, WindowSample
from gistnet.evaluation.baselines import Baseline, vectors_in_place
from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import PrefillOutput, Teacher
from gistnet.objective.branches import Positions, Replacements, SegmentBatch, replaced_hidden_of_each
from gistnet.objective.losses import encode_segments, token_losses_of_each
from gistnet.progress import track


@dataclass(frozen=True)
class HeldOutWindow:
    """One held-out window and the segments in it that are judged, or a part of them.

    `number` is the window's in the data, `first` the row of its first segment among those of all windows.
    """

    number: int
    info: WindowInfo
    segments: SegmentBatch
    first: int

    @property
    def rows(self) -> slice:
        """The rows of its segments among those of all windows."""
        return slice(self.first, self.first + len(self.segments.starts))


@dataclass(frozen=True)
class Measured:
    """Losses per segment and offset, each `[segments, H]`, in nats: see `TokenLosses`."""

    kl: NDArray[np.float64]
    delta_nll: NDArray[np.float64]


class NextTokens(NamedTuple):
    """Likeliest tokens right behind each segment, likeliest first, each `[segments, n]`."""

    tokens: NDArray[np.int64]
    probabilities: NDArray[np.float64]


class HeldOut:
    """The segments that GistNets are judged on, always the same.

    Prefills of the windows are kept in memory up to `cache_gigabytes` (the first windows, as many as fit), so that
    repeated measurements cost branches only. Samples of the same window that follow each other share one prefill.

    Args:
        hidden_state_layer: as for `Teacher.prefill`; what the GistNets that are to be judged ask for.
    """

    def __init__(
        self,
        teacher: Teacher,
        dataset: PreparedDataset,
        samples: Sequence[WindowSample],
        layout: SpanLayout,
        *,
        cache_gigabytes: float,
        hidden_state_layer: int | None = None,
    ) -> None:
        self.teacher = teacher
        self._hidden_state_layer = hidden_state_layer
        self.windows: list[HeldOutWindow] = []
        first = 0
        for sample in samples:
            starts = torch.from_numpy(sample.starts).to(teacher.device)
            segments = SegmentBatch(
                tokens=torch.from_numpy(dataset.read(sample.window)[: layout.window_tokens]).to(teacher.device)[None],
                windows=torch.zeros_like(starts),
                starts=starts,
                span_tokens=layout.tokens_per_gist,
                n_spans=torch.from_numpy(sample.n_spans).to(teacher.device),
                horizon=layout.horizon_tokens,
            )
            self.windows.append(HeldOutWindow(sample.window, dataset.describe(sample.window), segments, first))
            first += len(starts)
        self._room_bytes = cache_gigabytes * 1e9
        self._cache: dict[int, PrefillOutput] = {}

    def __len__(self) -> int:
        return self.windows[-1].rows.stop

    @property
    def documents(self) -> NDArray[np.int64]:
        """The document of each segment, `[segments]`."""
        return self._per_segment([window.info.document for window in self.windows])

    @property
    def domains(self) -> NDArray[np.str_]:
        """The domain of each segment, `[segments]`."""
        return self._per_segment([window.info.domain for window in self.windows])

    @torch.no_grad()
    def measure(self, replacements: Mapping[str, tuple[Baseline | Tensor, Positions]]) -> dict[str, Measured]:
        """Losses after each kind of replacement, by its name.

        Args:
            replacements: name → a baseline, or vectors of all segments that are placed as gists, `[segments, n, dim]`;
                and the position policy.
        """
        columns: dict[str, list[NDArray[np.float64]]] = {name: [] for name in replacements}
        for window, prefill in track(self._prefilled(), len(self.windows), "windows read"):
            segments = window.segments
            replaced = replaced_hidden_of_each(
                self.teacher, prefill, segments, self._made(window, prefill, replacements)
            )
            original = segments.original_hidden(prefill)
            for name, losses in token_losses_of_each(self.teacher, original, replaced, segments.targets).items():
                columns[name].append(torch.stack([losses.kl, losses.delta_nll]).double().cpu().numpy())
        return {name: Measured(*np.concatenate(parts, axis=1)) for name, parts in columns.items()}

    @torch.no_grad()
    def next_tokens(
        self, replacements: Mapping[str, tuple[Baseline | Tensor, Positions]], count: int
    ) -> dict[str, NextTokens]:
        """The `count` likeliest tokens at offset 1, after the text itself (`full`) and after each replacement.

        Args:
            replacements: as for `measure`.
        """
        columns: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in ("full", *replacements)}
        for window, prefill in self._prefilled():
            segments = replace(window.segments, horizon=1)
            made = self._made(window, prefill, replacements)
            hidden = {"full": segments.original_hidden(prefill)}
            hidden |= replaced_hidden_of_each(self.teacher, prefill, segments, made)
            for name, states in hidden.items():
                probabilities, tokens = self.teacher.logits(states[:, 0]).double().softmax(dim=-1).topk(count)
                columns[name].append((tokens, probabilities))
        return {
            name: NextTokens(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)))
            for name, parts in columns.items()
        }

    @torch.no_grad()
    def encode(self, gistnet: GistNet) -> tuple[Tensor, Tensor]:
        """Gists of the segments, all of k spans, `[segments, k, dim]`, and `encode_with_attention`'s attention."""
        encoder, encoded = SpanEncoder(self.teacher, gistnet), []
        for window, prefill in track(self._prefilled_for(encoder), len(self.windows), "windows encoded"):
            segments = window.segments
            context = encoder.context(segments.tokens, segments.starts, segments.windows, prefill)
            encoded.append(encoder.encode_with_attention(segments.replaced, context))
        return torch.cat([gists for gists, _ in encoded]), torch.cat([attention for _, attention in encoded], dim=1)

    @torch.no_grad()
    def encode_with_next(self, gistnet: GistNet) -> tuple[Tensor, Tensor | None]:
        """Gists of the segments, `[segments, k, dim]`, and of the span after each, `[segments, dim]`.

        The latter are None where the horizon has no room for a span.
        """
        encoder = SpanEncoder(self.teacher, gistnet)
        has_next = all(window.segments.horizon >= window.segments.span_tokens for window in self.windows)
        gists = torch.cat(
            [
                encode_segments(encoder, window.segments, prefill, with_next=has_next)
                for window, prefill in self._prefilled_for(encoder)
            ]
        )
        return (gists[:, :-1], gists[:, -1]) if has_next else (gists, None)

    def _made(
        self,
        window: HeldOutWindow,
        prefill: PrefillOutput,
        replacements: Mapping[str, tuple[Baseline | Tensor, Positions]],
    ) -> dict[str, Replacements]:
        return {
            name: vectors_in_place(window.segments, kind[window.rows], positions)
            if isinstance(kind, Tensor)
            else kind(self.teacher, window.segments, prefill, positions)
            for name, (kind, positions) in replacements.items()
        }

    def _prefilled_for(self, encoder: SpanEncoder) -> Iterator[tuple[HeldOutWindow, PrefillOutput | None]]:
        """The windows, prefilled only where spans are read in context."""
        return self._prefilled() if encoder.reads_context else ((window, None) for window in self.windows)

    def _prefilled(self) -> Iterator[tuple[HeldOutWindow, PrefillOutput]]:
        for _, parts in groupby(self.windows, lambda window: window.number):
            windows = list(parts)
            prefill = self._prefill(windows[0])
            yield from ((window, prefill) for window in windows)

    def _prefill(self, window: HeldOutWindow) -> PrefillOutput:
        if window.number in self._cache:
            return self._cache[window.number]
        prefill = self.teacher.prefill(window.segments.tokens, hidden_state_layer=self._hidden_state_layer)
        size = sum(tensor.nbytes for tensor in prefill.tensors())
        if size <= self._room_bytes:
            self._room_bytes -= size
            self._cache[window.number] = prefill
        return prefill

    def _per_segment(self, values: Sequence[object]) -> NDArray:
        return np.repeat(np.array(values), [len(window.segments.starts) for window in self.windows])
