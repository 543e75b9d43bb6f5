"""GistNets of tiny teachers that are not at their beginning."""

import torch

from gistnet.model.gistnet import GistNet, GistNetConfig
from gistnet.model.teacher import Teacher

SPAN = 8
"""K of these GistNets."""
CONFIG = GistNetConfig(architecture="bottleneck", span_tokens=SPAN, width=16, heads=2)


def woken_gistnet(teacher: Teacher, levels: int = 1) -> GistNet:
    """Untrained but for W_out, random and the same at every call, so that everything inside matters."""
    gistnet: GistNet | None = None
    for level in range(levels):
        gistnet = GistNet.build(CONFIG, teacher, below=gistnet)
        torch.nn.init.normal_(gistnet.w_out.weight, std=0.3, generator=torch.Generator().manual_seed(level))
    assert gistnet is not None
    return gistnet
