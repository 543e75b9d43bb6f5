"""Held-out spans and how well the teacher predicts after them, with whatever stands in."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gistnet.data.dataset import PreparedDataset, WindowInfo
from gistnet.data.sampling import SpanLayout, WindowSample
from gistnet.model.gistnet import GistNet
from gistnet.model.span_context import SpanContext
from gistnet.model.teacher import PrefillOutput, Teacher
from gistnet.objective.branches import Replacements, SegmentBatch, replaced_hidden_of_each
from gistnet.objective.losses import token_losses_of_each
from gistnet.objective.objective import encode_with_attention

MakeReplacements = Callable[["HeldOutWindow", PrefillOutput], Replacements]


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


class HeldOut:
    """The segments that GistNets are judged on, always the same.

    Passes over the windows are kept in memory up to `cache_gigabytes` (the first windows, as many as fit), so that
    repeated measurements cost branches only. Samples of the same window that follow each other share one pass.

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
        self._states_after = hidden_state_layer
        self.windows: list[HeldOutWindow] = []
        first = 0
        for sample in samples:
            starts = torch.from_numpy(sample.starts).to(teacher.device)
            segments = SegmentBatch(
                tokens=torch.from_numpy(dataset.read(sample.window)[: layout.window_tokens]).to(teacher.device)[None],
                windows=torch.zeros_like(starts),
                starts=starts,
                span_tokens=layout.tokens_per_gist,
                gists=torch.from_numpy(sample.gists).to(teacher.device),
                horizon=layout.horizon_tokens,
            )
            self.windows.append(HeldOutWindow(sample.window, dataset.describe(sample.window), segments, first))
            first += len(starts)
        self._room_bytes = cache_gigabytes * 1e9
        self._reads: dict[int, PrefillOutput] = {}

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
    def measure(self, replacements: Mapping[str, MakeReplacements]) -> dict[str, Measured]:
        """Losses after each kind of replacement, by its name."""
        columns: dict[str, list[NDArray[np.float64]]] = {name: [] for name in replacements}
        for window, read in self._prefilled():
            segments = window.segments
            made = {name: make(window, read) for name, make in replacements.items()}
            replaced = replaced_hidden_of_each(self.teacher, read, segments, made)
            original = segments.original_hidden(read)
            for name, losses in token_losses_of_each(self.teacher, original, replaced, segments.targets).items():
                columns[name].append(torch.stack([losses.kl, losses.delta_nll]).double().cpu().numpy())
        return {name: Measured(*np.concatenate(parts, axis=1)) for name, parts in columns.items()}

    @torch.no_grad()
    def encode(self, gistnet: GistNet) -> tuple[Tensor, Tensor]:
        """Gists of the segments, all of k spans, `[segments, k, dim]`, and `encode_with_attention`'s attention."""
        encoded = [
            encode_with_attention(
                gistnet,
                self.teacher,
                window.segments.replaced,
                None if read is None else SpanContext(read, window.segments.windows, window.segments.starts),
            )
            for window, read in self.read_for(gistnet)
        ]
        return torch.cat([gists for gists, _ in encoded]), torch.cat([attention for _, attention in encoded], dim=1)

    def read_for(self, gistnet: GistNet) -> Iterator[tuple[HeldOutWindow, PrefillOutput | None]]:
        """The windows, read only where GistNet wants to know what the teacher made of them."""
        return ((window, None) for window in self.windows) if gistnet.hidden_state_layer is None else self._prefilled()

    def _prefilled(self) -> Iterator[tuple[HeldOutWindow, PrefillOutput]]:
        for _, parts in groupby(self.windows, lambda window: window.number):
            windows = list(parts)
            read = self._read(windows[0])
            yield from ((window, read) for window in windows)

    def _read(self, window: HeldOutWindow) -> PrefillOutput:
        if window.number in self._reads:
            return self._reads[window.number]
        read = self.teacher.prefill(window.segments.tokens, hidden_state_layer=self._states_after)
        size = sum(tensor.nbytes for tensor in read.tensors())
        if size <= self._room_bytes:
            self._room_bytes -= size
            self._reads[window.number] = read
        return read

    def _per_segment(self, values: Sequence[object]) -> NDArray:
        return np.repeat(np.array(values), [len(window.segments.starts) for window in self.windows])
