"""A frozen copy of a teacher's first layers, for a GistNet that builds on them."""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from gistnet.errors import TeacherError
from gistnet.model.attention_passes import BidirectionalPass, BranchPass, DocumentPass, LastTokenPass
from gistnet.model.layers import attention_flops, matmul_flops


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

    def forward(self, hidden: Tensor, first: int, last: int, *, bidirectional: bool = False) -> Tensor:
        """Run layers `first` to `last - 1` at positions 0, 1, …: `[spans, K, dim]` → `[spans, K, dim]`.

        Args:
            bidirectional: whether tokens see those after them, too; else a span is read as the teacher reads a window.
        """
        position_ids = torch.arange(hidden.shape[1], device=hidden.device)[None]
        own_pass = BidirectionalPass() if bidirectional else DocumentPass()
        for index in range(first, last):
            hidden = self.layers[index](
                hidden,
                attention_mask=None,
                position_ids=position_ids,
                position_embeddings=self._rotations(hidden, position_ids, index),
                running_pass=own_pass,
            )
        return hidden

    def last_token(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Run layers `first` to `last - 1` for each span's last token only: `[spans, K, dim]` → `[spans, dim]`.

        The tokens before it stay as they are, and give each layer its keys and values from there: a state changes
        little from layer to layer, and the projections of keys and values are a small part of a layer.
        """
        position_ids = torch.arange(hidden.shape[1], device=hidden.device)[None]
        before, state = hidden[:, :-1], hidden[:, -1:]
        for index in range(first, last):
            cosines, sines = self._rotations(hidden, position_ids, index)
            state = self.layers[index](
                state,
                attention_mask=None,
                position_ids=position_ids[:, -1:],
                position_embeddings=(cosines[:, -1:], sines[:, -1:]),
                running_pass=LastTokenPass(
                    *_keys_and_values(self.layers[index], before, cosines[:, :-1], sines[:, :-1])
                ),
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
                running_pass=pass_in_context,
            )
        return state[:, 0]

    @torch.no_grad()
    def require_last_token(self, first: int, hidden_size: int) -> None:
        """Make sure that from layer `first` on `last_token` gives layers the keys and values that they make themselves.

        Raises:
            TeacherError: a layer makes them in another way.
        """
        parameter = next(self.layers.parameters())
        if parameter.is_meta:
            return
        hidden = torch.linspace(-1, 1, 3 * hidden_size, device=parameter.device).to(parameter.dtype)
        hidden = hidden.view(1, 3, hidden_size)
        position_ids = torch.arange(3, device=parameter.device)[None]
        for index in range(first, len(self.layers)):
            rotations = self._rotations(hidden, position_ids, index)
            own = DocumentPass()
            options = {"position_ids": position_ids, "position_embeddings": rotations, "running_pass": own}
            self.layers[index](hidden, attention_mask=None, **options)
            given = _keys_and_values(self.layers[index], hidden, *rotations)
            made = (next(iter(own.keys.values())), next(iter(own.values.values())))
            if not all(torch.allclose(a, b, rtol=1e-2, atol=1e-3) for a, b in zip(given, made, strict=True)):
                raise TeacherError(
                    f"Layer {index} of the teacher makes its keys and values in a way that is not known; expected "
                    "token_layers to be all of teacher_layers."
                )

    def flops(self, length: int, token_layers: int, width: int) -> int:
        """Forward FLOPs of a span: `length` tokens through `token_layers` layers, the last one through all others."""
        whole, deep = self.layers[:token_layers], self.layers[token_layers:]
        flops = matmul_flops(length, whole) + len(whole) * attention_flops(length, length, width)
        for layer in deep:
            projections: list[nn.Module] = [layer.self_attn.k_proj, layer.self_attn.v_proj]  # type: ignore[list-item, union-attr]
            flops += matmul_flops(length - 1, *projections)
        return flops + matmul_flops(1, deep) + len(deep) * attention_flops(1, length, width)

    def _rotations(self, hidden: Tensor, position_ids: Tensor, index: int) -> Any:
        # Families with sliding layers (Gemma 3) rotate those by another base, and ask which kind of layer it is.
        if "layer_type" in inspect.signature(self.rotary_embedding.forward).parameters:
            return self.rotary_embedding(hidden, position_ids, self.layer_types[index])
        return self.rotary_embedding(hidden, position_ids)


def _keys_and_values(layer: Any, hidden: Tensor, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer's attention would make of states `[spans, tokens, dim]`: `[spans, heads, tokens, head_dim]` each.

    By the parts that the families have in common: a norm, two projections, a norm of the keys, RoPE on halves.
    """
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    heads = (*hidden.shape[:-1], -1, attention.head_dim)
    keys, values = attention.k_proj(normed).view(heads), attention.v_proj(normed).view(heads)
    if hasattr(attention, "k_norm"):
        keys = attention.k_norm(keys)
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if getattr(attention, "use_rope", True):  # SmolLM3 has layers without
        first, second = keys.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        keys = keys * cosines[:, None] + turned * sines[:, None]
    return keys, values
