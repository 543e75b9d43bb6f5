"""A frozen copy of a teacher's first layers, for a GistNet that builds on them."""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gistnet.errors import TeacherError
from gistnet.model.layers import attention_flops, matmul_flops
from gistnet.model.prefix_attention import (
    BranchPass,
    KeysAndValues,
    KeysPass,
    LastTokenPass,
    PrefixCache,
)


class TeacherLayers(nn.Module):
    """A frozen, independent copy of a teacher's first layers, as an encoder of spans."""

    def __init__(self, model: Any, n_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(layer) for layer in model.layers[:n_layers])
        self.rotary_embedding: Any = copy.deepcopy(model.rotary_emb)
        self.layer_types: list[str] = getattr(model.config, "layer_types", None) or []
        self.requires_grad_(False).eval()

    def adapt(self, rank: int, alpha: float) -> None:
        """Give every linear layer an adapter by LoRA (Hu et al., 2021), in float32; those alone are trained.

        Raises:
            TeacherError: there is no linear layer.
        """
        from peft import LoraConfig, inject_adapter_in_model  # slow to import, and only one architecture needs it

        targets = [name for name, module in self.named_modules() if isinstance(module, nn.Linear)]
        if not targets:
            raise TeacherError("The teacher has no linear layers that LoRA could adapt; use another architecture.")
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), self)
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def forward(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Run layers `first` to `last - 1` at positions 0, 1, …: `[spans, K, dim]` → `[spans, K, dim]`."""
        position_ids = torch.arange(hidden.shape[1], device=hidden.device)[None]
        for index in range(first, last):
            hidden = self.layers[index](
                hidden,
                attention_mask=None,
                position_ids=position_ids,
                position_embeddings=self._rotations(hidden, position_ids, index),
                attention_input=PrefixCache(),  # one a layer: no other layer needs the keys
            )
        return hidden

    def last_token(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Run layers `first` to `last - 1` for each span's last token only: `[spans, K, dim]` → `[spans, dim]`.

        The tokens before it stay as they are, and give each layer its keys and values from there: a state changes
        little from layer to layer, and the projections of keys and values are a small part of a layer.

        Raises:
            TeacherError: a layer does not reach the attention that its model was given.
        """
        position_ids = torch.arange(hidden.shape[1], device=hidden.device)[None]
        before, state = hidden[:, :-1], hidden[:, -1:]
        for index in range(first, last):
            state = self.layers[index](
                state,
                attention_mask=None,
                position_ids=position_ids[:, -1:],
                position_embeddings=self._rotations(state, position_ids[:, -1:], index),
                attention_input=LastTokenPass(*self._keys_and_values(before, position_ids[:, :-1], index)),
            )
        return state[:, 0]

    def in_context(self, hidden: Tensor, pass_in_context: BranchPass) -> Tensor:
        """Run all layers for single tokens that continue what the teacher has read: `[spans, dim]` → `[spans, dim]`.

        Args:
            hidden: the tokens' embeddings.
            pass_in_context: the tokens before each, by the teacher's own keys and values, and each token's position.
        """
        state = hidden[:, None]
        for index, layer in enumerate(self.layers):
            state = layer(
                state,
                attention_mask=None,
                position_ids=pass_in_context.positions,
                position_embeddings=self._rotations(state, pass_in_context.positions, index),
                attention_input=pass_in_context,
            )
        return state[:, 0]

    def flops(self, length: int, token_layers: int, width: int) -> int:
        """Forward FLOPs of a span: `length` tokens through `token_layers` layers, the last one through all others."""
        whole, deep = self.layers[:token_layers], self.layers[token_layers:]
        flops = matmul_flops(length, whole) + len(whole) * attention_flops(length, length, width)
        for index in range(token_layers, len(self.layers)) if length > 1 else ():
            flops += (length - 1) * self._flops_of_keys_and_values(index, width)
        return flops + matmul_flops(1, deep) + len(deep) * attention_flops(1, length, width)

    def _keys_and_values(self, hidden: Tensor, position_ids: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens `[spans, tokens, dim]`, by the layer itself, whose pass ends at its attention.

        So they are right for any family, whatever its norms, projections and rotations. Shapes: as `KeysAndValues`.
        """
        try:
            _without_queries(self.layers[index])(
                hidden,
                attention_mask=None,
                position_ids=position_ids,
                position_embeddings=self._rotations(hidden, position_ids, index),
                attention_input=KeysPass(),
            )
        except KeysAndValues as made:
            return made.keys, made.values
        raise TeacherError(f"Layer {index} of the teacher does not call the attention that its model was given.")

    @torch.no_grad()
    def _flops_of_keys_and_values(self, index: int, width: int) -> int:
        """Forward FLOPs of one token's keys and values."""
        weight = next(parameter for parameter in self.layers.parameters() if not parameter.requires_grad)
        token = torch.zeros(1, 1, width, dtype=weight.dtype, device=weight.device)
        with FlopCounterMode(display=False) as counter:
            self._keys_and_values(token, torch.zeros(1, 1, dtype=torch.long, device=weight.device), index)
        return counter.get_total_flops()

    def _rotations(self, hidden: Tensor, position_ids: Tensor, index: int) -> Any:
        # Families with sliding layers (Gemma 3) rotate those by another base, and ask which kind of layer it is.
        if "layer_type" in inspect.signature(self.rotary_embedding.forward).parameters:
            return self.rotary_embedding(hidden, position_ids, self.layer_types[index])
        return self.rotary_embedding(hidden, position_ids)


class _NoQueries(nn.Module):
    """Zeros in place of a projection, which cost nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., dim]` → `[..., width]`."""
        return hidden.new_zeros(()).expand(*hidden.shape[:-1], self.width)


def _without_queries(layer: nn.Module) -> nn.Module:
    """Copy of a layer that shares all its modules, except that a `q_proj` of its attention gives zeros.

    That saves time and nothing else. Where queries, keys and values come out of one product, they are made together.
    """
    shallow = copy.copy(layer)
    shallow._modules = dict(layer._modules)
    for name, part in layer.named_children():
        if isinstance(getattr(part, "q_proj", None), nn.Module):
            attention = copy.copy(part)
            attention._modules = {**part._modules, "q_proj": _NoQueries(part.q_proj.out_features)}  # type: ignore[arg-type, union-attr]
            shallow._modules[name] = attention
    return shallow
