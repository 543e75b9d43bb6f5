"""A frozen copy of a teacher's first layers, for a GistNet that builds on them."""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from gistnet.model.attention_passes import DocumentPass


class TeacherLayers(nn.Module):
    """A frozen, independent copy of a teacher's first layers, as an encoder of spans."""

    def __init__(self, model: Any, n_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(layer) for layer in model.layers[:n_layers])
        self.rotary_embedding: Any = copy.deepcopy(model.rotary_emb)
        self.layer_types: list[str] = getattr(model.config, "layer_types", None) or []
        self.requires_grad_(False).eval()

    def forward(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Run layers `first` to `last - 1`, causally, at positions 0, 1, …: `[spans, K, dim]` → `[spans, K, dim]`."""
        position_ids = torch.arange(hidden.shape[1], device=hidden.device)[None]
        own_pass = DocumentPass()  # a span is read as the teacher reads a window, sliding layers included
        for index in range(first, last):
            hidden = self.layers[index](
                hidden,
                attention_mask=None,
                position_ids=position_ids,
                position_embeddings=self._rotations(hidden, position_ids, index),
                running_pass=own_pass,
            )
        return hidden

    def _rotations(self, hidden: Tensor, position_ids: Tensor, index: int) -> Any:
        # Families with sliding layers (Gemma 3) rotate those by another base, and ask which kind of layer it is.
        if "layer_type" in inspect.signature(self.rotary_embedding.forward).parameters:
            return self.rotary_embedding(hidden, position_ids, self.layer_types[index])
        return self.rotary_embedding(hidden, position_ids)
