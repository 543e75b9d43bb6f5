"""What the attention of a teacher knows of the running pass: windows, branches, spans, or their last tokens."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class PrefixCache:
    """What the attention keeps of whole windows while the model reads them.

    `keys[layer]` and `values[layer]` are `[windows, key_value_heads, tokens, head_dim]`, keys after RoPE.
    """

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


class KeysAndValues(Exception):
    """Ends a layer's forward pass at its attention, with what that was to attend to.

    Attributes:
        keys: `[spans, key_value_heads, tokens, head_dim]`, after RoPE.
        values: `[spans, key_value_heads, tokens, head_dim]`.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values


@dataclass(frozen=True)
class KeysPass:
    """Tokens of which a layer is to make keys and values and nothing else; its attention raises `KeysAndValues`."""


@dataclass(frozen=True)
class LastTokenPass:
    """Each span's last token alone, which sees the tokens before it by keys and values that are given.

    `keys` and `values` are `[spans, key_value_heads, tokens, head_dim]`, keys after RoPE.
    """

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class Intervals:
    """The keys that each query sees, from `low` to before `high`: int32 `[branches, length]` each, contiguous."""

    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class BranchPass:
    """Which keys each branch of a pass may see.

    Attributes:
        cache: the keys and values of the windows.
        windows: the window each branch continues, one per branch.
        prefix_lengths: how many of the window's first tokens each branch sees, one per branch, at least 1.
        positions: `[branches, length]`, the positions of the branches' own vectors, which increase along a branch; a
            window's token i has position i.
        prepared: what the first layer of the pass works out for all others.
    """

    cache: PrefixCache
    windows: tuple[int, ...]
    prefix_lengths: tuple[int, ...]
    positions: Tensor
    prepared: dict[object, object] = field(default_factory=dict, compare=False, repr=False)

    def reach(self, sliding_window: int | None) -> int | None:
        """The sliding window of a layer, in positions; None where it hides nothing from any branch."""
        if sliding_window is None:
            return None
        if "longest distance" not in self.prepared:
            self.prepared["longest distance"] = int(self.positions.max())
        return sliding_window if self.prepared["longest distance"] >= sliding_window else None  # type: ignore[operator]

    def prefix_intervals(self, reach: int | None) -> Intervals:
        """Which keys of its window each vector sees; none of them where the whole prefix is out of reach."""
        key = ("prefix", reach)
        if key not in self.prepared:
            positions = self.positions.to(torch.int32)
            lengths = torch.tensor(self.prefix_lengths, dtype=torch.int32).to(positions.device)
            low = torch.zeros_like(positions) if reach is None else (positions - (reach - 1)).clamp(min=0)
            self.prepared[key] = Intervals(low.contiguous(), lengths[:, None].expand_as(low).contiguous())
        return self.prepared[key]  # type: ignore[return-value]

    def own_intervals(self, reach: int | None) -> Intervals:
        """Which vectors of its own branch each vector sees: those up to itself that are near enough."""
        key = ("own", reach)
        if key not in self.prepared:
            branches, length = self.positions.shape
            device = self.positions.device
            high = torch.arange(1, length + 1, dtype=torch.int32, device=device).expand(branches, length)
            low = torch.zeros_like(high)
            if reach is not None:
                too_far = self.positions[:, None, :] <= self.positions[:, :, None] - reach
                low = too_far.sum(dim=-1, dtype=torch.int32)
            self.prepared[key] = Intervals(low.contiguous(), high.contiguous())
        return self.prepared[key]  # type: ignore[return-value]
