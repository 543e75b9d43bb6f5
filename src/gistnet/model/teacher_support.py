"""Kinds of language models that cannot be teachers, and why; and the check that one can be compiled.

The shared-prefix engine is exact where a token's activations depend on earlier tokens through attention alone, and on
positions through rotary embeddings that do not change with the length of the context. Anything else is refused by
name, before a weight is loaded. (What is left but has not been verified is checked when training or evaluation
starts, by `gistnet.objective.reference.require_exact`.)
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from gistnet.errors import TeacherError

VERIFIED_FAMILIES = ("llama", "qwen3", "smollm3", "gemma3_text")
"""Model types for which the tests show the engine equal to plain forwards."""


def refuse_unsupported(config: Any, name: str) -> None:
    """Raise `TeacherError` for a kind of model for which branches over a shared prefix would not be exact."""
    reason = next(_unsupported_reasons(config), None)
    if reason is not None:
        raise TeacherError(f"'{name}' cannot be a teacher: {reason}.")


def _unsupported_reasons(config: Any) -> Iterator[str]:
    if getattr(config, "is_encoder_decoder", False):
        yield f"expected a causal language model, got the encoder-decoder {config.model_type}"
    text = config.get_text_config()
    if text is not config:
        yield f"expected a causal language model of text alone, got the multi-modal {config.model_type}"
    architecture = (getattr(config, "architectures", None) or [""])[0]
    if architecture and not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        yield f"expected a causal language model, got {architecture}"
    layer_types = set(getattr(text, "layer_types", None) or ["full_attention"])
    if other := sorted(layer_types - {"full_attention", "sliding_attention"}):
        yield f"branches cannot share the state of its layers of type {', '.join(other)}"
    if text.model_type in _RECURRENT:
        yield f"branches cannot share the state of the recurrent layers of {text.model_type}"
    if getattr(text, "hidden_size_per_layer_input", None):
        yield "its layers look up embeddings by token id, and a gist has none"
    if getattr(text, "alibi", False) or text.model_type in ("bloom", "mpt"):
        yield "ALiBi biases count keys by index, so the positions of gists would be lost"
    if not (getattr(text, "rope_parameters", None) or getattr(text, "rope_theta", None)):
        yield f"gists need rotary positions, and the configuration of {text.model_type} states none"
    if getattr(text, "attn_logit_softcapping", None) is not None:
        yield "it caps attention scores, which the shared-prefix attention does not compute"
    for rope in _rope_types(text):
        if "dynamic" in rope or rope == "longrope":
            yield f"its RoPE of type '{rope}' changes with the length of the context"
    if not getattr(text, "max_position_embeddings", None):
        yield "its configuration does not state max_position_embeddings"
    if any(getattr(text, scale, None) not in (None, 1.0) for scale in ("logit_scale", "logits_scaling")):
        yield "its head scales logits in a way the fused loss does not know"
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model_class is not None and not model_class._supports_attention_backend:
        yield f"the attention of {text.model_type} does not go through the attention interface of transformers"
    # What transformers does not trust its own SDPA function with (attention sinks), ours would leave out too.
    if model_class is not None and not model_class._supports_sdpa:
        yield f"the attention of {text.model_type} is more than a softmax of scaled products"


_RECURRENT = (
    "mamba",
    "mamba2",
    "falcon_mamba",
    "rwkv",
    "recurrent_gemma",
    "jamba",
    "bamba",
    "zamba",
    "zamba2",
    "xlstm",
)


def _rope_types(config: Any) -> list[str]:
    """The kind of RoPE, or the kinds where layers of different types rotate differently."""
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [s for s in settings.values() if isinstance(s, dict)]
    return [str(s.get("rope_type", s.get("type", "default"))) for s in (nested or [settings])]


def require_compiler(device: torch.device) -> None:
    """Compile next to nothing, so that what is missing shows now and not in the first step.

    Raises:
        TeacherError: torch.compile does not work for `device`.
    """
    try:
        torch.compile(torch.square)(torch.zeros(2, device=device))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise TeacherError(
            f"teacher.compile is true, but torch.compile does not work for {device.type} here ({reason}); expected a "
            "C++ compiler for a CPU and Triton for a GPU, or teacher.compile=false."
        ) from error
