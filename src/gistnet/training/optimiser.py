"""Optimiser and learning rate: AdamW, or Muon for matrices with AdamW for the rest."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from gistnet.errors import ConfigError
from gistnet.training.config import OptimiserConfig

BETAS = (0.9, 0.999)
"""Decay per step of the running mean of the gradient, in AdamW and Muon, and in AdamW of its running square."""


class JoinedOptimisers(Optimizer):
    """One optimiser of several, each of which moves the parameters of its own groups.

    Their groups and their state are those of this one, so that whoever sets a rate, or saves and restores the state,
    sees a single optimiser.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self._parts = parts
        super().__init__([dict(group) for part in parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Give the parts the groups and the state that are here."""
        first = 0
        for part in self._parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last

    def step(self) -> None:  # type: ignore[override]  # without a closure, which each part would call again
        """Move all parameters by their gradients."""
        for part in self._parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a saved state, as any optimiser does."""
        super().load_state_dict(state_dict)
        self._share()


def is_moved_by_muon(parameter: nn.Parameter, config: OptimiserConfig) -> bool:
    """True if Muon moves a parameter, and not AdamW."""
    return config.kind == "muon" and parameter.ndim == 2


def build_optimiser(parameters: Iterable[tuple[str, nn.Parameter]], config: OptimiserConfig) -> Optimizer:
    """The optimiser over the trainable ones of the named `parameters`, as `module.named_parameters()` gives them.

    Only matrices decay. Biases, norms, gains and slot vectors (fewer than two dimensions) are not pulled to zero: zero
    is no natural value for them. The optimiser keeps the names, so that a checkpoint can.

    Muon (Jordan et al., 2024) moves a matrix by the orthogonal matrix nearest to its momentum, so that the weak
    directions of a gradient count as much as the strong; its steps are scaled to the length that AdamW's have (Liu et
    al., 2025, "Muon is Scalable for LLM Training", section 2.2), and one learning rate serves both.

    Raises:
        ConfigError: none of the parameters is trainable.
    """
    trainable = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
    if not trainable:
        raise ConfigError("There is nothing to optimise: got no trainable parameter, expected at least one.")
    of_muon = [(name, parameter) for name, parameter in trainable if is_moved_by_muon(parameter, config)]
    of_adamw = [(name, parameter) for name, parameter in trainable if not is_moved_by_muon(parameter, config)]
    matrices = [(name, parameter) for name, parameter in of_adamw if parameter.ndim >= 2]
    vectors = [(name, parameter) for name, parameter in of_adamw if parameter.ndim < 2]
    decays = ((matrices, config.weight_decay), (vectors, 0.0))
    groups = [{"params": members, "weight_decay": decay} for members, decay in decays if members]
    parts: list[Optimizer] = []
    if of_muon:
        parts.append(
            Muon(
                of_muon,
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                momentum=BETAS[0],
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if groups:
        parts.append(AdamW(groups, lr=config.learning_rate, betas=BETAS, eps=1e-8))
    return parts[0] if len(parts) == 1 else JoinedOptimisers(parts)


def warmup_length(total_steps: int, config: OptimiserConfig) -> int:
    """Steps of warm-up in a stage of `total_steps`: the configured ones, or 5 % of a shorter stage."""
    return min(config.warmup_steps, total_steps // 20)


def learning_rate(step: int, total_steps: int, config: OptimiserConfig) -> float:
    """The learning rate of the update that follows `step` completed ones, in a stage of `total_steps`.

    Rises linearly to the peak, which the last warm-up step has in full (the first step is already above zero), then
    follows half a cosine to `final_learning_rate` at `total_steps` (Loshchilov & Hutter, 2017, without restarts) and
    stays there.
    """
    warmup = warmup_length(total_steps, config)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / (total_steps - warmup))
    height = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + height * (1 + math.cos(math.pi * progress)) / 2
