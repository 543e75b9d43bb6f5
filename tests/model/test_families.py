"""Families of teachers beside the verified ones: the default GistNet is built on them, exact, and learns."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gistnet.errors import TeacherError
from gistnet.model.config import GistNetConfig, TeacherConfig
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import SegmentBatch, gist_replacements, replaced_hidden
from gistnet.objective.losses import token_losses
from gistnet.objective.reference import require_exact
from tests.teachers import FAMILIES, SHARED, tiny_teacher

_FOUR_LAYERS = SHARED | {"num_hidden_layers": 4}
_EXPERTS = {"n_routed_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
_LATENT = {  # keys of 16 dimensions a head, values of 8
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
}
OTHERS = {
    "phi3": {},  # queries, keys and values out of one product
    "phi": {"partial_rotary_factor": 0.5},  # LayerNorm with biases, attention and MLP side by side
    "olmo2": {},  # the norm stands behind the attention, and keys are normed over all heads together
    "olmo3": {"sliding_window": 20},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "glm": {"partial_rotary_factor": 0.5},  # RoPE on neighbouring dimensions
    "glm4": {"partial_rotary_factor": 0.5},
    "gpt_neox": {"rotary_pct": 0.5},  # Pythia
    "exaone4": {"sliding_window": 20},
    "apertus": {},
    "persimmon": {"partial_rotary_factor": 0.5},
    "cohere": {"logit_scale": 1.0},
    "deepseek_v2": _EXPERTS | _LATENT,  # RoPE by complex numbers
    "deepseek_v3": _EXPERTS | _LATENT,
}
CONFIG = GistNetConfig(width=16, heads=2, teacher_layers=3, token_layers=2)


def teacher_of(family: str) -> Teacher:
    """A random teacher of the family, biases included; float32, which is what experts are computed in."""
    if family in FAMILIES:
        return tiny_teacher(family, torch.float32)
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(_FOUR_LAYERS | OTHERS[family])))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return Teacher(model.float(), name=f"tiny-{family}")


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_a_layer_that_only_the_last_token_passes_gives_it_what_the_whole_layer_would(family):
    """From the same states of the tokens before it; layers without RoPE and sliding ones among them."""
    teacher = teacher_of(family)
    layers = teacher.copy_layers(teacher.n_layers)
    hidden = teacher.embed(torch.randint(3, 97, (3, 8), generator=torch.Generator().manual_seed(1)))
    for index in range(teacher.n_layers):
        whole = layers(hidden, index, index + 1)
        torch.testing.assert_close(layers.last_token(hidden, index, index + 1), whole[:, -1], rtol=1e-4, atol=1e-4)
        changed = hidden.clone()
        changed[:, 2] = hidden[:, 5]
        assert not torch.allclose(layers.last_token(changed, index, index + 1), whole[:, -1], rtol=1e-4, atol=1e-4)
        hidden = whole


@pytest.mark.parametrize("family", OTHERS)
def test_the_engine_is_exact_and_a_step_reaches_every_parameter(family):
    teacher = teacher_of(family)
    require_exact(teacher, tolerance_nats=1e-3)
    gistnet = GistNet.build(CONFIG, teacher, 8)
    torch.manual_seed(1)
    for parameter in gistnet.parameters():
        if parameter.requires_grad and not parameter.any() and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(3, 97, (2, 64), generator=torch.Generator().manual_seed(0))
    windows, starts = torch.tensor([0, 0, 1, 1]), torch.tensor([3, 17, 9, 30])
    segments = SegmentBatch(tokens, windows, starts, span_tokens=8, n_spans=1, horizon=8)
    read = teacher.prefill(tokens)
    gists = gistnet(teacher.embed(segments.replaced))
    hidden = replaced_hidden(teacher, read, segments, gist_replacements(segments, gists[:, None], "end"))
    losses = token_losses(teacher, segments.original_hidden(read), hidden, segments.targets, differentiate=("kl",))
    losses.kl.mean().backward()
    for name, parameter in gistnet.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) is parameter.requires_grad, name
    assert not any(parameter.grad is not None for parameter in teacher.model.parameters())


def test_what_keys_and_values_cost_is_counted_of_what_the_layer_computes():
    """By hand, a token: keys and values 32 x 16 each of Llama; all of 32 x 64 where queries are made with them."""
    tokens, last = 2, 1  # layers that all of the eight tokens pass, and that the last one does
    for family, keys_and_values in (("llama", 2 * 2 * 32 * 16), ("phi3", 2 * 32 * 64)):
        teacher = teacher_of(family)
        layer = 2 * sum(p.numel() for p in teacher.model.base_model.layers[0].parameters() if p.ndim == 2)
        whole = tokens * (8 * layer + 4 * 8 * 8 * 32)
        deep = last * (7 * keys_and_values + layer + 4 * 8 * 32)
        assert teacher.copy_layers(3).flops(8, tokens, 32) == whole + deep


def test_a_plan_without_weights_knows_the_cost_of_any_family(tmp_path):
    config = AutoConfig.for_model("phi3", **_FOUR_LAYERS, architectures=["Phi3ForCausalLM"])
    config.save_pretrained(tmp_path)
    planned = GistNet.build(CONFIG, Teacher.without_weights(TeacherConfig(name=str(tmp_path))))
    assert planned.parameter_budget() == GistNet.build(CONFIG, teacher_of("phi3")).parameter_budget()


def test_a_layer_with_an_attention_of_its_own_is_refused():
    teacher = tiny_teacher("llama", torch.float32)
    layers = teacher.copy_layers(2)
    layers.layers[1].self_attn = torch.nn.Identity()
    layers.layers[1].forward = lambda hidden, **options: hidden
    with pytest.raises(TeacherError, match="Layer 1 of the teacher does not call the attention"):
        layers.last_token(teacher.embed(torch.ones(1, 8, dtype=torch.long)), 0, 2)


def test_a_family_whose_own_forward_fails_is_refused_in_one_sentence():
    """DeepSeek's attention has as many key heads as heads, whatever its configuration says."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("deepseek_v3", **(_FOUR_LAYERS | _EXPERTS | _LATENT | {"num_key_value_heads": 2}))
    )
    with pytest.raises(TeacherError, match=r"'x' cannot be a teacher.*deepseek_v3"):
        require_exact(Teacher(model, name="x"))
