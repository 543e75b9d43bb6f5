"""Windows on their way to the branches: read from disk, brought to the device, and passed through the teacher.

On a GPU tokens are copied from pinned memory while the device works. With `ahead`, the pass over the next group of
windows is begun, on a stream of its own, before the branches of the present one are (spec, Teacher Model Setup:
separate GPU streams); its keys and values are then held beside those in use.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import WindowSample
from gistnet.model.teacher import ReadWindows, Teacher


class WindowGroup(NamedTuple):
    """Windows that were read together."""

    samples: Sequence[WindowSample]
    tokens: Tensor
    """`[windows, tokens]` on the device; shorter windows end in zeros, which no branch sees."""
    read: ReadWindows


def read_groups(
    teacher: Teacher,
    dataset: PreparedDataset,
    samples: Sequence[WindowSample],
    windows: int,
    *,
    ahead: bool,
    window_tokens: int | None = None,
    states_after: int | None = None,
) -> Iterator[WindowGroup]:
    """Read the windows of samples, so many at a time, in order.

    Args:
        window_tokens: the tokens read of each window, from its first on; None reads all.
        states_after: as for `Teacher.read_windows`.
        ahead: begin the next pass before the present group is handed over; on a CPU, where nothing runs beside
            anything else, this changes nothing.
    """
    parts = [samples[first : first + windows] for first in range(0, len(samples), windows)]

    def read(part: Sequence[WindowSample]) -> WindowGroup:
        tokens = _tokens(teacher, dataset, part, window_tokens)
        return WindowGroup(part, tokens, teacher.read_windows(tokens, states_after=states_after))

    if not (ahead and teacher.device.type == "cuda"):
        yield from map(read, parts)
        return
    stream = torch.cuda.Stream(teacher.device)
    begun = deque(_begin(read, part, stream) for part in parts[:1])
    for number in range(len(parts)):
        begun.extend(_begin(read, part, stream) for part in parts[number + 1 : number + 2])
        group, ready = begun.popleft()
        present = torch.cuda.current_stream(teacher.device)
        present.wait_event(ready)
        for tensor in (group.tokens, *group.read.tensors()):
            tensor.record_stream(present)  # so that its memory is not given away before the branches are done with it
        yield group


def _begin(
    read: Callable[[Sequence[WindowSample]], WindowGroup], samples: Sequence[WindowSample], stream: torch.cuda.Stream
) -> tuple[WindowGroup, torch.cuda.Event]:
    """Have windows read on `stream`; the event marks the end."""
    with torch.cuda.stream(stream):
        return read(samples), stream.record_event()


def _tokens(
    teacher: Teacher, dataset: PreparedDataset, samples: Sequence[WindowSample], window_tokens: int | None
) -> Tensor:
    tokens = pad([dataset.read(sample.window)[:window_tokens] for sample in samples])
    teacher.require_in_vocabulary(tokens)
    if teacher.device.type == "cuda":
        tokens = tokens.pin_memory()
    return tokens.to(teacher.device, non_blocking=True)


def pad(windows: list[np.ndarray]) -> Tensor:
    """`[windows, tokens]`; shorter windows end in zeros."""
    length = max(len(window) for window in windows)
    return torch.from_numpy(np.stack([np.pad(window, (0, length - len(window))) for window in windows]))
