"""GistNets of tiny teachers that are not at their beginning."""

from collections.abc import Sequence

import torch

from gistnet.model.config import GistNetConfig
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher

SPAN = 8
"""Branching of every level of these GistNets, where no others are asked for."""
CONFIG = GistNetConfig(architecture="bottleneck", width=16, heads=2)


def woken_gistnet(teacher: Teacher, levels: int = 1, seed: int = 0, branchings: Sequence[int] | None = None) -> GistNet:
    """Untrained but for W_out, random and the same at every call, so that everything inside matters."""
    gistnet: GistNet | None = None
    for level, branching in enumerate(branchings or [SPAN] * levels):
        gistnet = GistNet.build(CONFIG, teacher, branching, below=gistnet)
        torch.nn.init.normal_(gistnet.w_out.weight, std=0.3, generator=torch.Generator().manual_seed(seed + level))
    assert gistnet is not None
    return gistnet


CONTEXT_CONFIG = GistNetConfig(reads="context", teacher_layers=2, token_layers=2, width=16, heads=2)


def context_gistnet(teacher: Teacher, *, levels: int = 1, woken: bool = True) -> GistNet:
    """One that reads spans where they stand, as a new one begins or with adapters and W_out away from zero."""
    gistnet: GistNet | None = None
    for _ in range(levels):
        gistnet = GistNet.build(CONTEXT_CONFIG, teacher, SPAN, below=gistnet)
    assert gistnet is not None
    if woken:
        generator = torch.Generator().manual_seed(0)
        for name, parameter in gistnet.named_parameters():
            if "lora_B" in name or "w_out" in name:
                torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return gistnet
