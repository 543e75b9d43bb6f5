"""Configuration of the training loss; without torch."""

from typing import Literal

from pydantic import Field

from gistnet.positions import Positions
from gistnet.settings import Section


class ObjectiveConfig(Section):
    """The loss and its weights (spec, Training Objectives)."""

    loss: Literal["kl", "delta_nll", "mixed"] = "kl"
    """kl: match the original distribution; delta_nll: predict the true token; mixed: the mean of both."""
    horizon_tokens: int = Field(default=32, ge=1)
    """H, the number of tokens predicted after a segment."""
    positions: Positions = "end"
    """Where gists stand among the positions of the context."""
    contrastive_weight: float = Field(default=0.0, ge=0)
    """λ, the weight of the hinge that keeps gists of consecutive spans apart."""
    contrastive_margin: float = Field(default=0.2, ge=0, le=2)
    """The cosine distance at which that hinge is content."""
