"""Where gists stand among the positions of a context; without torch, for whoever only names a policy."""

from typing import Literal, get_args

Positions = Literal["center", "end", "compact"]
"""Where gists stand: in the middle of their span, on its last token (both leave the horizon where it was), or packed
without gaps, as inference servers number them."""
POLICIES: tuple[Positions, ...] = get_args(Positions)
