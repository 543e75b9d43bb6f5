"""The teacher: which models are refused and why, what identifies one, and that it computes what transformers does."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from gistnet.errors import TeacherError
from gistnet.model import loading
from gistnet.model import teacher as teacher_module
from gistnet.model.config import TeacherConfig
from gistnet.model.loading import load_tokenizer
from gistnet.model.teacher import Teacher
from gistnet.model.teacher_support import refuse_unsupported
from gistnet.objective import reference
from gistnet.objective.reference import require_exact
from tests.teachers import tiny_teacher

PLAIN = {"rope_type": "default", "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
LONGROPE = {**YARN, "rope_type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64}

REFUSED = {
    "mamba": ("MambaConfig", {}, "branches cannot share the state"),
    "mamba 2": ("Mamba2Config", {}, "branches cannot share the state"),
    "recurrent": ("RwkvConfig", {}, "recurrent layers of rwkv"),
    "hybrid": ("Qwen3NextConfig", {}, "linear_attention"),
    "chunked attention": ("Llama4TextConfig", {}, "chunked_attention"),
    "embeddings in every layer": ("Gemma3nTextConfig", {}, "look up embeddings by token id"),
    "ALiBi": ("BloomConfig", {}, "ALiBi"),
    "ALiBi by choice": ("FalconConfig", {"alibi": True}, "ALiBi"),
    "ALiBi of MPT": ("MptConfig", {}, "ALiBi"),
    "no attention interface": ("FalconConfig", {"alibi": False}, "attention interface"),
    "attention sinks": ("GptOssConfig", {}, "more than a softmax"),
    "dynamic RoPE": ("LlamaConfig", {"rope_parameters": DYNAMIC}, "'dynamic' changes with the length"),
    "longrope": ("LlamaConfig", {"rope_parameters": LONGROPE}, "'longrope' changes with the length"),
    "dynamic RoPE in one kind of layer": (
        "Gemma3TextConfig",
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": DYNAMIC,
            }
        },
        "'dynamic' changes with the length",
    ),
    "absolute positions": ("GPT2Config", {}, "rotary positions"),
    "encoder-decoder": ("T5Config", {}, "encoder-decoder t5"),
    "encoder": ("BertConfig", {}, "rotary positions"),
    "encoder that names itself": ("BertConfig", {"architectures": ["BertForMaskedLM"]}, "got BertForMaskedLM"),
    "capped attention": ("Gemma2Config", {}, "caps attention scores"),
    "scaled logits of Cohere": ("CohereConfig", {}, "scales logits"),
    "scaled logits of Granite": ("GraniteConfig", {"logits_scaling": 8.0}, "scales logits"),
    "multi-modal": (
        "Gemma3Config",
        {"architectures": ["Gemma3ForConditionalGeneration"]},
        "of text alone, got the multi-modal gemma3",
    ),
    "no stated length": ("LlamaConfig", {"max_position_embeddings": 0}, "max_position_embeddings"),
}

ACCEPTED = {
    "llama": ("LlamaConfig", {}),
    "llama, YaRN": ("LlamaConfig", {"rope_parameters": YARN}),
    "llama, llama3": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama, linear": ("LlamaConfig", {"rope_parameters": LINEAR}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"architectures": ["Qwen3ForCausalLM"]}),
    "smollm3": ("SmolLM3Config", {}),
    "gemma3": ("Gemma3TextConfig", {}),
    "mistral": ("MistralConfig", {}),
    "granite without a scale": ("GraniteConfig", {"logits_scaling": 1.0}),
}


def configuration(name: str, settings: dict) -> transformers.PretrainedConfig:
    return getattr(transformers, name)(**settings)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_branches_cannot_share_is_refused_by_name_with_the_reason(kind):
    name, settings, reason = REFUSED[kind]
    with pytest.raises(TeacherError, match=f"'some-model' cannot be a teacher: .*{reason}"):
        refuse_unsupported(configuration(name, settings), "some-model")


@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_model_with_plain_causal_attention_and_fixed_rope_is_not_refused(kind):
    name, settings = ACCEPTED[kind]
    assert refuse_unsupported(configuration(name, settings), "some-model") is None


@pytest.mark.parametrize("rope", [YARN, LLAMA3, LINEAR, DYNAMIC, LONGROPE], ids=lambda rope: rope["rope_type"])
def test_the_refused_ropes_are_those_that_change_with_the_length(rope):
    """The rotation of position 3 in contexts of 8 and of 300 tokens, in transformers' own rotary embedding."""
    head = {"hidden_size": 512, "num_attention_heads": 4, "max_position_embeddings": 64}
    settings = LlamaConfig(**head, rope_parameters=rope)
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(settings)
    short, long = (rotary(torch.zeros(1), torch.arange(length)[None])[0][0, 3] for length in (8, 300))
    assert torch.equal(short, long) is (rope["rope_type"] in ("yarn", "llama3", "linear"))


def test_float16_is_not_offered():
    with pytest.raises(ValidationError, match="precision"):
        TeacherConfig(precision="float16")


def tiny_llama(**changes: object) -> LlamaForCausalLM:
    settings = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_a_model_is_the_same_in_any_precision_and_the_precision_is_recorded(stored, tmp_path):
    tiny_llama().to(stored).save_pretrained(tmp_path)
    first, *others = (
        Teacher(
            LlamaForCausalLM.from_pretrained(tmp_path, dtype=getattr(torch, precision)), name=precision, revision="v2"
        ).fingerprint
        for precision in ("bfloat16", "float32", "float64")
    )
    assert all(first.same_model(other) for other in others)
    assert [each.precision for each in (first, *others)] == ["bfloat16", "float32", "float64"]
    assert (others[0].name, others[0].revision) == ("float32", "v2")


def test_a_row_or_a_column_of_any_tensor_makes_another_model():
    """Wide and tall matrices, norms, the embeddings and an untied head."""
    model = tiny_llama()
    original = Teacher(model, name="x").fingerprint
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == 2 * 9 + 3
    for name in names:
        tensor = model.get_parameter(name)
        for part in (tensor[-1:], tensor[..., -1:], tensor[..., tensor.shape[-1] // 2]):
            kept = tensor.clone()
            part.add_(0.5)
            changed = Teacher(model, name="x").fingerprint
            assert not original.same_model(changed), (name, part.shape)
            assert original.config_hash == changed.config_hash
            tensor.copy_(kept)
    assert original.same_model(Teacher(model, name="x").fingerprint)


def test_a_merged_adapter_makes_another_model():
    """A LoRA of rank 1 on one projection of one layer, whose entries change by a thousandth."""
    original = Teacher(tiny_llama(), name="x").fingerprint
    adapted = get_peft_model(tiny_llama(), LoraConfig(r=1, target_modules=r".*layers\.1\.self_attn\.q_proj"))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.constant_(parameter, 0.03)
    merged = Teacher(adapted.merge_and_unload(), name="x").fingerprint
    assert not original.same_model(merged)
    assert original.config_hash == merged.config_hash


def test_a_model_is_the_same_when_it_is_checkpointed_or_compiled():
    plain, other = (Teacher(tiny_llama(), name="x") for _ in range(2))
    other.enable_gradient_checkpointing()
    other.compile_layers(backend="eager")
    assert Teacher(other.model, name="x").fingerprint == plain.fingerprint


def test_a_model_in_float16_is_refused():
    with pytest.raises(TeacherError, match="float16"):
        Teacher(tiny_llama().to(torch.float16), name="x")


def test_the_fingerprint_changes_with_a_config_field():
    original = Teacher(tiny_llama(), name="x").fingerprint
    other_norm = Teacher(tiny_llama(rms_norm_eps=1e-3), name="x").fingerprint
    assert not original.same_model(other_norm)
    assert original.weights_hash == other_norm.weights_hash
    other_rope = tiny_llama(rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert not original.same_model(Teacher(other_rope, name="x").fingerprint)


@pytest.mark.parametrize("precision", ["bfloat16", "float32", "float64"])
def test_a_teacher_of_a_folder_is_frozen_in_eval_and_of_the_asked_precision(teacher_folder, precision):
    teacher = Teacher.from_pretrained(TeacherConfig(name=str(teacher_folder), precision=precision))
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert {p.dtype for p in teacher.model.parameters()} == {teacher.dtype} == {getattr(torch, precision)}
    sizes = (teacher.hidden_size, teacher.vocabulary_size, teacher.max_positions)
    assert sizes == (32, 256, 256)
    assert teacher.tokenizer is not None
    assert teacher.tokenizer.decode(teacher.tokenizer.encode_batch(["a quiet bridge"])[0]) == "a quiet bridge"


def test_a_teacher_of_a_folder_holds_the_folder_s_weights_wherever_it_lies(teacher_folder, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(teacher_folder, moved)
    first, second = (Teacher.from_pretrained(str(folder)) for folder in (teacher_folder, moved))
    assert first.fingerprint.same_model(second.fingerprint)
    stored = load_file(moved / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(second.model.model.layers[1].mlp.up_proj.weight, stored.to(torch.bfloat16))


def test_flops_count_two_per_weight_of_the_layers(teacher_folder):
    """Per layer: q and o 32x32, k and v 32x16, three MLP matrices 32x48, two norms of 32."""
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    assert Teacher.from_pretrained(str(teacher_folder)).flops_per_token == 2 * 2 * layer


@pytest.mark.parametrize("damage", ["no such folder", "no weights", "truncated weights", "a missing tensor"])
def test_a_folder_that_is_not_a_whole_model_is_refused(teacher_folder, tmp_path, damage):
    folder = tmp_path / "damaged"
    if damage != "no such folder":
        shutil.copytree(teacher_folder, folder)
    weights = folder / "model.safetensors"
    if damage == "no weights":
        weights.unlink()
    elif damage == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif damage == "a missing tensor":
        tensors = load_file(weights)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    expected = "weights are missing, first .*up_proj" if damage == "a missing tensor" else "Could not load"
    with pytest.raises(TeacherError, match=expected):
        Teacher.from_pretrained(str(folder))


def newer_tokenizer(folder: Path) -> str:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["type"] = "SomethingNewer"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return "ModelUntagged|data did not match"


def configured(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


def quantised_by_a_package_that_is_not_here(folder: Path) -> str:
    configured(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    return "bitsandbytes"


def other_shapes(folder: Path) -> str:
    configured(folder, intermediate_size=64)
    return r"6 of its weights.*down_proj\.weight, \[32, 48\] and not \[32, 64\]"


def number_in_quotes(folder: Path) -> str:
    configured(folder, num_hidden_layers="2")
    return "num_hidden_layers.*expected int, got str"


NEEDS_NO_BITSANDBYTES = pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")


@pytest.mark.parametrize(
    "damage",
    [
        newer_tokenizer,
        pytest.param(quantised_by_a_package_that_is_not_here, marks=NEEDS_NO_BITSANDBYTES),
        other_shapes,
        number_in_quotes,
    ],
)
def test_what_other_libraries_raise_while_they_load_becomes_one_sentence(teacher_folder, tmp_path, damage):
    folder = tmp_path / "teacher"
    shutil.copytree(teacher_folder, folder)
    reason = damage(folder)
    with pytest.raises(TeacherError, match=reason) as refusal:
        Teacher.from_pretrained(str(folder))
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)


class Panic(BaseException):
    """As the Rust code of tokenizers raises where it panics."""


@pytest.mark.parametrize("raised", [Panic("index out of bounds"), MemoryError(), TypeError("unhashable")])
def test_so_does_a_panic_but_no_interruption(teacher_folder, monkeypatch, raised):
    def fail(*arguments: object, **options: object) -> None:
        raise raised

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(TeacherError, match=str(raised) or type(raised).__name__):
        load_tokenizer(TeacherConfig(name=str(teacher_folder)))
    raised = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        load_tokenizer(TeacherConfig(name=str(teacher_folder)))


def test_a_bug_of_ours_keeps_its_traceback(teacher_folder, monkeypatch):
    def fail(*arguments: object) -> None:
        raise KeyError("ours")

    for module, name in ((teacher_module, "refuse_unsupported"), (loading, "TeacherTokenizer")):
        with monkeypatch.context() as broken:
            broken.setattr(module, name, fail)
            with pytest.raises(KeyError, match="ours"):
                Teacher.from_pretrained(str(teacher_folder))


def test_an_unsupported_folder_is_refused_before_its_weights_are_looked_for(tmp_path):
    transformers.GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="rotary positions"):
        Teacher.from_pretrained(str(tmp_path))


def test_a_token_id_without_an_embedding_is_refused_with_the_range():
    teacher = tiny_teacher("llama")
    with pytest.raises(TeacherError, match="ids run from 5 to 97, but tiny-llama has ids 0 to 96"):
        teacher.embed(torch.tensor([[5, 97]]))
    with pytest.raises(TeacherError, match="ids run from -1 to 5"):
        teacher.embed(torch.tensor([[5, -1]]))
    assert teacher.embed(torch.tensor([[0, 96]])).shape == (1, 2, 32)


def test_embeddings_are_scaled_as_the_family_scales_them():
    """Gemma multiplies its embedding table by the square root of the dimension, Llama does not."""
    tokens = torch.tensor([4, 9])
    for family, scale in (("llama", 1.0), ("gemma3", 32**0.5)):
        teacher = tiny_teacher(family)
        table = teacher.model.get_input_embeddings().weight
        torch.testing.assert_close(teacher.embed(tokens), table[tokens] * scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_padding_at_the_end_of_a_window_does_not_change_what_comes_before(family):
    teacher = tiny_teacher(family)
    tokens = torch.randint(3, 97, (2, 40), generator=torch.Generator().manual_seed(2))
    padded = torch.cat([tokens, torch.full((2, 9), 96)], dim=1)
    short, long = teacher.prefill(tokens), teacher.prefill(padded)
    torch.testing.assert_close(long.hidden[:, :40], short.hidden, rtol=1e-12, atol=1e-12)
    assert not short.hidden.requires_grad
    for layer, keys in short.cache.keys.items():
        torch.testing.assert_close(long.cache.keys[layer][:, :, :40], keys, rtol=1e-12, atol=1e-12)


def plain_layer_outputs(teacher: Teacher, tokens: torch.Tensor) -> list[torch.Tensor]:
    """What each decoder layer gives in transformers' own forward of token ids."""
    outputs: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda *call: outputs.append(call[-1])) for layer in teacher.model.base_model.layers
    ]
    with torch.no_grad():
        teacher.model(tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize("family", ["llama", "smollm3", "gemma3"])
def test_copied_layers_compute_what_the_teacher_s_do(family):
    """Spans longer than Gemma's sliding window of 20 tokens, so that a copy without the window would show."""
    teacher = tiny_teacher(family)
    tokens = torch.randint(3, 97, (2, 32), generator=torch.Generator().manual_seed(3))
    expected = plain_layer_outputs(teacher, tokens)
    copy = teacher.copy_layers(3)
    first = copy(teacher.embed(tokens), 0, 1)
    torch.testing.assert_close(first, expected[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(copy(first, 1, 3), expected[2], rtol=1e-9, atol=1e-10)


def test_a_copy_is_frozen_and_changing_it_does_not_change_the_teacher():
    teacher = tiny_teacher("llama")
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    copy = teacher.copy_layers(2)
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.model.state_dict().items())


@pytest.mark.parametrize("n_layers", [0, 4])
def test_copying_layers_that_are_not_there_is_refused(n_layers):
    with pytest.raises(TeacherError, match=f"Cannot copy {n_layers} layers of tiny-llama: it has 3"):
        tiny_teacher("llama").copy_layers(n_layers)


def unverified(family: str) -> Teacher:
    shared = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
    }
    torch.manual_seed(1)
    if family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**shared))
    else:
        model = MistralForCausalLM(MistralConfig(**shared))
    return Teacher(model, name=f"tiny-{family}")


@pytest.mark.parametrize("family", ["qwen2", "mistral"])
def test_an_unverified_family_that_the_engine_reads_exactly_passes_the_check(family):
    teacher = unverified(family)
    assert teacher.config.model_type not in reference.VERIFIED_FAMILIES  # otherwise nothing is checked
    require_exact(teacher)


def test_an_unverified_family_that_the_engine_misreads_is_refused(monkeypatch):
    def one_position_late(teacher, read, segments, replacements, tokens=None):
        late = reference.Replacements(replacements.vectors, replacements.positions + 1, replacements.continuation + 1)
        return exact(teacher, read, segments, late, tokens)

    exact = reference.replaced_hidden
    monkeypatch.setattr(reference, "replaced_hidden", one_position_late)
    require_exact(tiny_teacher("llama", torch.float32))  # verified by the tests, so not checked again
    monkeypatch.setattr(reference, "VERIFIED_FAMILIES", ())
    with pytest.raises(TeacherError, match=r"'tiny-llama' cannot be a teacher: .*\(llama\).* differs .* nats"):
        require_exact(tiny_teacher("llama", torch.float32))


def test_a_head_with_a_scale_that_the_fused_loss_does_not_know_is_noticed(monkeypatch):
    """The check compares the teacher's logits with the model's own, not only the engine with the loop."""
    teacher = unverified("qwen2")
    plain = teacher.model.forward

    def scaled(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    monkeypatch.setattr(teacher.model, "forward", scaled)
    with pytest.raises(TeacherError, match="qwen2"):
        require_exact(teacher)


def test_the_tokenizer_says_how_a_window_begins(teacher_folder, tmp_path):
    """Nothing where the tokenizer adds nothing; BOS where it does, once, and never inside the text."""
    from tokenizers.processors import TemplateProcessing

    plain = load_tokenizer(TeacherConfig(name=str(teacher_folder)))
    assert plain.window_prefix == ()
    assert plain.vocabulary_size == 256
    folder = tmp_path / "with-bos"
    shutil.copytree(teacher_folder, folder)
    inner = load_tokenizer(TeacherConfig(name=str(folder))).inner
    inner.add_special_tokens({"bos_token": "<s>"})
    bos = inner.bos_token_id
    inner.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    inner.save_pretrained(folder)
    beginning = load_tokenizer(TeacherConfig(name=str(folder)))
    assert beginning.window_prefix == (bos,)
    assert beginning.vocabulary_size == 257
    assert beginning.encode_batch(["stone"]) == plain.encode_batch(["stone"])
    assert beginning.fingerprint != plain.fingerprint


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path):
    tiny_llama(architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="Could not load"):
        load_tokenizer(TeacherConfig(name=str(tmp_path)))
