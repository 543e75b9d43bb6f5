"""Which language models cannot be teachers, and why.

The shared-prefix engine is exact where a token's activations depend on earlier tokens through attention alone, and on
positions through rotary embeddings that do not change with the length of the context. Anything else is refused by
name, before a weight is loaded. (What is left but has not been verified is checked when training or evaluation
starts, by `gistnet.objective.reference.require_exact`.)
"""

from collections.abc import Iterator
from typing import Any

from gistnet.errors import TeacherError

VERIFIED_FAMILIES = ("llama", "qwen3", "smollm3", "gemma3_text")
"""Model types for which the tests show the engine equal to plain forwards."""


def refuse_unsupported(config: Any, name: str) -> None:
    """Raise `TeacherError` for a kind of model for which branches over a shared prefix would not be exact."""
    reason = next(_unsupported_reasons(config), None)
    if reason is not None:
        raise TeacherError(f"'{name}' cannot be a teacher: {reason}.")


def _unsupported_reasons(config: Any) -> Iterator[str]:
    architecture = (getattr(config, "architectures", None) or [""])[0]
    if architecture and not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        yield f"expected a causal language model, got {architecture}"
    text = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        yield f"expected a causal language model, got the encoder-decoder {config.model_type}"
    layer_types = set(getattr(text, "layer_types", None) or ["full_attention"])
    if other := sorted(layer_types - {"full_attention", "sliding_attention"}):
        yield f"its layers of type {', '.join(other)} carry a state that branches cannot share"
    if text.model_type in _RECURRENT:
        yield f"the recurrent layers of {text.model_type} carry a state that branches cannot share"
    if getattr(text, "hidden_size_per_layer_input", None):
        yield "its layers look up embeddings by token id, and a gist has none"
    if getattr(text, "alibi", False) or text.model_type in ("bloom", "mpt"):
        yield "ALiBi biases count keys by index, so the positions of gists would be lost"
    if text.model_type in _WITHOUT_ROPE:
        yield f"{text.model_type} has no rotary positions, which gists need"
    if getattr(text, "attn_logit_softcapping", None) is not None:
        yield "it caps attention scores, which the shared-prefix attention does not compute"
    for rope in _rope_settings(text):
        if rope in ("dynamic", "longrope"):
            yield f"its RoPE of type '{rope}' changes with the length of the context"
    if not getattr(text, "max_position_embeddings", None):
        yield "its configuration does not state max_position_embeddings"
    if getattr(text, "logit_scale", None) not in (None, 1.0) or getattr(text, "logits_scaling", None) not in (
        None,
        1.0,
    ):
        yield "its head scales logits in a way the fused loss does not know"


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
_WITHOUT_ROPE = ("gpt2", "opt", "gpt_bigcode", "gpt_neo", "xglm", "biogpt", "codegen", "ctrl", "openai-gpt")


def _rope_settings(config: Any) -> list[str]:
    settings = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [s for s in settings.values() if isinstance(s, dict)]
    return [str(s.get("rope_type", s.get("type", "default"))) for s in (nested or [settings])]
