"""Tiny random teachers of each verified family, for tests of exactness.

Weights are drawn with a standard deviation of 0.3: with the usual 0.02 attention is so flat that a test passes even
when positions or masks are wrong.
"""

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from gistnet.model.teacher import Teacher

SHARED = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Settings that all tiny teachers have."""


def tiny_teacher(family: str, dtype: torch.dtype = torch.float64) -> Teacher:
    """A random teacher of `family` (llama, qwen3, smollm3, gemma3), the same at every call."""
    torch.manual_seed(5)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, **SHARED))
    elif family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=3, **SHARED))
    elif family == "smollm3":  # every second layer without rotary positions
        model = SmolLM3ForCausalLM(SmolLM3Config(num_hidden_layers=4, no_rope_layer_interval=2, **SHARED))
    elif family == "gemma3":  # two sliding layers with a window of 20 positions, one full; capped logits
        config = Gemma3TextConfig(
            num_hidden_layers=3,
            sliding_window=20,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            final_logit_softcapping=5.0,
            query_pre_attn_scalar=8,
            **SHARED,
        )
        model = Gemma3ForCausalLM(config)
    else:
        raise ValueError(family)
    return Teacher(model.to(dtype), name=f"tiny-{family}")


FAMILIES = ("llama", "qwen3", "smollm3", "gemma3")
