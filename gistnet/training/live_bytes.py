"""Bytes of the tensors that a computation makes, while it runs and afterwards, on any device and on none."""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ITEMS = 64
"""Enough for what is there once, whatever the number of items, to count little."""


@dataclass(frozen=True)
class Use:
    """Bytes of memory that a computation takes: what it leaves, and what it needs besides, while it runs.

    Attributes:
        kept: stays until the backward pass has used it, or as the result.
        forward: needed besides at the peak of the forward pass.
        backward: needed besides `kept` at the peak of the backward pass.
    """

    kept: float
    forward: float
    backward: float = 0.0


def use_of(compute: Callable[[int], object]) -> Use:
    """What `compute` takes, and the backward pass from the last of its results, for each of the items it is given."""
    with LiveBytes() as counted:
        results = compute(_ITEMS)
        kept, forward = counted.live, counted.peak
        counted.peak = kept
        last = results[-1] if isinstance(results, tuple) else results
        if isinstance(last, Tensor) and last.requires_grad:
            last.backward(torch.empty_like(last))
    return Use(kept / _ITEMS, (forward - kept) / _ITEMS, (counted.peak - kept) / _ITEMS)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made within it, as long as they live.

    Attributes:
        live: bytes that live now.
        peak: the most that lived at a time; may be set back to `live`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._grouped_mm.default and args[0].is_meta:
            # On the device `meta`, tokens times the experts of each have a shape in bfloat16 only. A single expert's
            # product is as large.
            result = args[0] @ args[1][0]
        else:
            result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            known = storage._cdata in self._known or any(storage._cdata == other for other in _storages(args, kwargs))
            if not known:
                self._known.add(storage._cdata)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
        return result

    def _freed(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.live -= size


def _tensors(tree: object) -> Iterator[Tensor]:
    leaves = (tree,) if isinstance(tree, Tensor) else tree_leaves(tree)
    return (leaf for leaf in leaves if isinstance(leaf, Tensor))


def _storages(*trees: object) -> Iterator[int]:
    return (tensor.untyped_storage()._cdata for tensor in _tensors(trees))
