"""Position policies: where gists stand among the positions of a context. Without torch."""

from typing import Literal, get_args

from gistnet.errors import ConfigError

Positions = Literal["center", "end", "compact"]
"""Where gists stand: in the middle of their span, on its last token (both leave the horizon where it was), or packed
without gaps, as inference servers number them."""
POLICIES: tuple[Positions, ...] = get_args(Positions)


def policies_of(trained_for: str) -> tuple[Positions, ...]:
    """The policies that a GistNet was trained for, by what is saved of it: one, or all where it is a mixture."""
    return tuple(policy for policy in POLICIES if policy == trained_for) or POLICIES


def policy_of(trained_for: str) -> Positions:
    """The policy that a GistNet was trained for, by what is saved of it.

    Raises:
        ConfigError: it was trained for a mixture, so that there is no single one.
    """
    for policy in POLICIES:
        if policy == trained_for:
            return policy
    raise ConfigError(
        f"Got gists trained for the positions {trained_for!r}, expected positions={' or '.join(POLICIES)}."
    )
