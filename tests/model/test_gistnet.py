"""GistNet: what it is before training, where its gradients go, what it costs, and what its files hold."""

import hashlib
import json

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from gistnet.errors import CheckpointError, ConfigError, DataError, StorageError, TeacherError
from gistnet.model.config import GistNetConfig
from gistnet.model.gistnet import Cost, GistNet
from gistnet.model.layers import Dropout, StatelessDropout
from gistnet.model.saved_gistnet import FORMAT_VERSION
from gistnet.model.teacher import Teacher

ARCHITECTURES = ("full", "bottleneck", "teacher_lora")
DIM, SPANS, LENGTH = 32, 5, 8


def make_teacher(seed: int = 0, dtype: torch.dtype = torch.float32, **sizes: int) -> Teacher:
    """A Llama with random weights, large enough for its layers to matter."""
    settings = {
        "vocab_size": 50,
        "hidden_size": DIM,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
    }
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **sizes})).to(dtype)
    return Teacher(model, name=f"tiny-{seed}")


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return make_teacher()


def make_config(architecture: str, **settings: object) -> GistNetConfig:
    """With the anchor `token`, which all architectures have, where nothing else is asked for."""
    plain = {"width": 16, "heads": 2, "anchor": "token", "teacher_layers": 4}
    return GistNetConfig(architecture=architecture, **(plain | settings))


def make_gistnet(architecture: str, teacher: Teacher, **arguments: object) -> GistNet:
    return GistNet.build(make_config(architecture), teacher, LENGTH, **arguments)


def waken(gistnet: GistNet) -> GistNet:
    """Give random values to what starts at zero: W_out and the second factors of the adapters."""
    torch.manual_seed(1)
    for parameter in gistnet.parameters():
        if parameter.requires_grad and not parameter.any() and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return gistnet


def plain_model(teacher: Teacher) -> LlamaForCausalLM:
    """The teacher as transformers has it."""
    plain = LlamaForCausalLM(teacher.model.config)
    plain.load_state_dict(teacher.model.state_dict())
    return plain


def read_by_second_slot(gistnet: GistNet, spans: torch.Tensor) -> torch.Tensor:
    """The tokens behind all that comes before the second slot, with the expansion closed: [spans, K, width]."""
    gistnet.expansion.gate.data.zero_()
    seen = []
    gistnet.second_read.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    gistnet(spans)
    return seen[0]


def make_spans(seed: int = 2) -> torch.Tensor:
    return 0.13 * torch.randn(SPANS, LENGTH, DIM, generator=torch.Generator().manual_seed(seed))


# --- before training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_untrained_gist_is_exactly_the_last_embedding(architecture, teacher):
    spans = make_spans()
    assert torch.equal(make_gistnet(architecture, teacher)(spans), spans[:, -1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_untrained_only_w_out_has_a_gradient(architecture, teacher):
    gistnet = make_gistnet(architecture, teacher)
    gistnet(make_spans()).square().sum().backward()
    assert [n for n, p in gistnet.named_parameters() if p.grad is not None and p.grad.any()] == ["w_out.weight"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_trained_parameter_has_a_gradient_once_w_out_is_not_zero(architecture, teacher):
    gistnet = waken(make_gistnet(architecture, teacher))
    gistnet(make_spans()).square().sum().backward()
    for name, parameter in gistnet.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.any(), name
        else:
            assert parameter.grad is None, name


def test_everything_is_trained_except_the_copy_of_the_teacher(teacher):
    for architecture in ("full", "bottleneck"):
        assert all(p.requires_grad for p in make_gistnet(architecture, teacher).parameters())
    lora = make_gistnet("teacher_lora", teacher)
    frozen = {name for name, p in lora.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in lora.named_parameters() if n.startswith("teacher_layers.") and ".lora_" not in n}
    assert len(frozen) == 4 * 9  # per Llama layer seven matrices and two norms


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_follow_from_the_seed_and_not_from_the_global_random_state(architecture, teacher):
    torch.manual_seed(5)
    first = make_gistnet(architecture, teacher, seed=3).trainable_state()
    state = torch.random.get_rng_state()
    second = make_gistnet(architecture, teacher, seed=3).trainable_state()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = make_gistnet(architecture, teacher, seed=4).trainable_state()
    above = make_gistnet(architecture, teacher, seed=3, below=make_gistnet(architecture, teacher, seed=3))
    assert not torch.equal(above.first_read.query, first["first_read.query"])  # every level has weights of its own
    assert not torch.equal(first["first_read.query"], other["first_read.query"])


# --- the map from spans to gists ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_gives_what_its_spans_give_one_by_one(architecture):
    gistnet = waken(make_gistnet(architecture, make_teacher(dtype=torch.float64))).double()
    spans, dropout = make_spans().double(), Dropout(0.3, torch.arange(SPANS) * 17)
    for settings in (None, dropout):
        singles = [
            gistnet(spans[i : i + 1], None if settings is None else Dropout(0.3, settings.keys[i : i + 1]))
            for i in range(SPANS)
        ]
        torch.testing.assert_close(gistnet(spans, settings), torch.cat(singles))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gist_depends_on_every_token_and_on_their_order(architecture, teacher):
    gistnet, spans = waken(make_gistnet(architecture, teacher)), make_spans().requires_grad_()
    gistnet(spans).square().sum().backward()
    assert (spans.grad.abs().amax(-1) > 0).all()
    with torch.no_grad():
        swapped = spans[:, [1, 0, *range(2, LENGTH)]]
        assert (gistnet(swapped) - gistnet(spans)).abs().max() > 1e-4


@pytest.mark.parametrize("architecture", ["full", "bottleneck"])
def test_the_first_slot_reaches_the_gist(architecture, teacher):
    """What the first slot reads changes the gist: the expansion is not a dead end."""
    gistnet, spans = waken(make_gistnet(architecture, teacher)), make_spans()
    before = gistnet(spans)
    gistnet.first_read.query.data += 3.0
    assert (gistnet(spans) - before).abs().max() > 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gist_is_the_anchor_plus_the_gain_times_the_rest(architecture, teacher):
    gistnet, spans = waken(make_gistnet(architecture, teacher)), make_spans()
    once = gistnet(spans) - spans[:, -1]
    gistnet.gain.data.fill_(-2.0)
    torch.testing.assert_close(gistnet(spans) - spans[:, -1], -2 * once)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_of_both_slots_comes_with_the_gist(architecture, teacher):
    gistnet, spans = waken(make_gistnet(architecture, teacher)), make_spans()
    gists, attention = gistnet.forward_with_attention(spans)
    assert torch.equal(gists, gistnet(spans))
    assert attention.shape == (2, SPANS, 2, LENGTH)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, SPANS, 2))
    assert not torch.allclose(attention[0], attention[1])


def test_stages_of_teacher_lora_are_the_teachers_layers_while_the_adapters_are_untrained(teacher):
    """With the expansion closed, the second slot reads what the teacher itself has after its four layers."""
    gistnet, spans = make_gistnet("teacher_lora", teacher), make_spans()
    plain = plain_model(teacher)
    plain.model.norm = torch.nn.Identity()  # the hidden states before the last norm
    torch.testing.assert_close(
        read_by_second_slot(gistnet, spans), plain.model(inputs_embeds=spans).last_hidden_state, atol=1e-4, rtol=1e-4
    )


def test_an_adapter_adds_alpha_over_rank_times_the_product_of_its_factors(teacher):
    """Hu et al. (2021), section 4.1, for every linear layer of a copied layer, with a scale of 6 / 4."""
    gistnet = waken(GistNet.build(make_config("teacher_lora", lora_rank=4, lora_alpha=6.0), teacher, LENGTH))
    adapters = {name: p for name, p in gistnet.teacher_layers.layers[1].named_parameters() if ".lora_" in name}
    names = [name.partition(".lora_A")[0] for name in adapters if ".lora_A" in name]
    assert len(names) == 7
    for name in names:
        plain, adapted = (m.layers[1].get_submodule(name) for m in (teacher.model.model, gistnet.teacher_layers))
        first, second = (adapters[f"{name}.lora_{factor}.default.weight"] for factor in "AB")
        assert (len(first), second.shape[1]) == (4, 4)
        states = torch.randn(3, first.shape[1], generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(adapted(states), plain(states) + 1.5 * states @ first.T @ second.T)


def test_the_anchor_state_is_the_direction_of_the_last_token_s_state_at_the_length_asked_for(teacher):
    """At every level: a gist of gists is as long as a gist of tokens."""
    plain = plain_model(teacher)
    plain.model.norm = torch.nn.Identity()
    length = 30 * teacher.embed(torch.arange(50)).norm(dim=-1).mean()
    below = None
    for spans in (make_spans(), 300 * make_spans()):
        config = make_config("teacher_lora", anchor="state", gist_scale=30.0, token_layers=4)
        below = GistNet.build(config, teacher, LENGTH, below=below)
        below.expansion.gate.data.zero_()
        states = plain.model(inputs_embeds=spans).last_hidden_state[:, -1]
        expected = length * states / states.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(below(spans), expected, atol=1e-3, rtol=1e-3)


def test_layers_for_the_last_token_alone_see_the_others_as_they_left_the_layers_for_all(teacher):
    """Written out: all tokens through two layers, then two more of which only the last token's state is kept."""
    config = make_config("teacher_lora", anchor="state", teacher_layers=4, token_layers=2)
    gistnet, spans = GistNet.build(config, teacher, LENGTH), make_spans()
    gistnet.expansion.gate.data.zero_()
    plain = plain_model(teacher)
    hidden, rotations = spans, plain.model.rotary_emb(spans, torch.arange(LENGTH)[None])
    for number, layer in enumerate(plain.model.layers):
        after = layer(hidden, position_embeddings=rotations)
        hidden = after if number < 2 else torch.cat([hidden[:, :-1], after[:, -1:]], dim=1)
    expected = torch.nn.functional.normalize(hidden[:, -1], dim=-1)
    torch.testing.assert_close(torch.nn.functional.normalize(gistnet(spans), dim=-1), expected, atol=1e-5, rtol=1e-4)
    gistnet.expansion.gate.data.fill_(0.1)
    waken(gistnet)(spans).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in gistnet.trained_parameters(with_below=False).values()
    )


def test_layers_for_the_last_token_alone_cost_what_is_counted(teacher):
    config = make_config("teacher_lora", anchor="state", teacher_layers=4, token_layers=2)
    gistnet = GistNet.build(config, teacher, LENGTH)
    with FlopCounterMode(display=False) as counter:
        gistnet(make_spans())
    attention = 2 * 4 * LENGTH * LENGTH * DIM + 2 * 4 * LENGTH * DIM  # fused, which this counter passes over on a CPU
    assert SPANS * (gistnet.parameter_budget().flops_per_span - attention) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("settings", "layers", "chosen"),
    [
        ({}, 30, ("state", 100.0, 16, 4)),
        ({}, 4, ("state", 100.0, 3, 2)),
        ({"anchor": "token"}, 30, ("token", 1.0, 4, 4)),
        ({"teacher_layers": 6, "gist_scale": 9.0}, 30, ("state", 9.0, 6, 4)),
        ({"architecture": "bottleneck"}, 30, ("token", 1.0, 4, 4)),
    ],
)
def test_what_is_left_open_follows_from_the_anchor_and_the_layers_of_the_teacher(settings, layers, chosen):
    assert GistNetConfig(**settings).resolved(layers) == chosen


def test_what_was_chosen_is_saved(teacher, tmp_path):
    GistNet.build(GistNetConfig(width=16, heads=2), teacher, LENGTH).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["config"]
    chosen = {"anchor": "state", "gist_scale": 100.0, "teacher_layers": 3, "token_layers": 2}
    assert {name: saved[name] for name in chosen} == chosen


def test_long_gists_above_long_gists_keep_their_length(teacher):
    """The anchor is the last gist itself, and not that many times as long."""
    lower = GistNet.build(make_config("bottleneck", gist_scale=10.0), teacher, LENGTH)
    spans = make_spans()
    torch.testing.assert_close(lower(spans), 10 * spans[:, -1])
    upper = GistNet.build(make_config("bottleneck", gist_scale=10.0), teacher, LENGTH, below=lower)
    torch.testing.assert_close(upper(10 * spans), 10 * spans[:, -1])


def test_training_teacher_lora_leaves_the_teacher_and_its_copy_as_they_were(teacher):
    gistnet = waken(make_gistnet("teacher_lora", teacher))
    frozen = {n: p.clone() for n, p in gistnet.named_parameters() if not p.requires_grad}
    original = {n: p.clone() for n, p in teacher.model.state_dict().items()}
    optimiser = torch.optim.AdamW(gistnet.parameters(), lr=0.1, weight_decay=0.1)
    gistnet.train()(make_spans()).square().sum().backward()
    optimiser.step()
    assert all(torch.equal(p, frozen[n]) for n, p in gistnet.named_parameters() if n in frozen)
    assert all(torch.equal(p, original[n]) for n, p in teacher.model.state_dict().items())
    assert not any("lora" in name for name in original)
    assert not any(module.training for module in gistnet.teacher_layers.modules())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dropout", [None, Dropout(0.3, torch.arange(SPANS))], ids=["plain", "dropout"])
def test_a_gistnet_computes_the_same_in_train_and_in_eval(architecture, dropout, teacher):
    """Dropout is what a call asks for, so that nobody has to switch it on before a step or off after it."""
    gistnet, spans = waken(make_gistnet(architecture, teacher)), make_spans()
    trained, evaluated = gistnet.train()(spans, dropout), gistnet.eval()(spans, dropout)
    assert torch.equal(trained, evaluated)
    assert torch.equal(evaluated, gistnet(spans)) == (dropout is None)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bf16_autocast_keeps_the_anchor_exact_and_the_rest_close(architecture, teacher):
    gistnet, spans = make_gistnet(architecture, teacher), make_spans()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gistnet(spans), spans[:, -1])
    waken(gistnet)  # outside, because autocast keeps its bf16 copies of the weights until the block ends
    with torch.autocast("cpu", torch.bfloat16):
        mixed, attention = gistnet.forward_with_attention(spans)
    exact = gistnet(spans)
    assert mixed.dtype == attention.dtype == torch.float32
    assert (mixed - exact).norm() < 0.1 * (exact - spans[:, -1]).norm()


def test_a_teacher_in_bf16_gives_gists_and_trained_weights_in_float32():
    gistnet = waken(make_gistnet("teacher_lora", make_teacher(dtype=torch.bfloat16)))
    spans = make_spans().bfloat16()
    assert {t.dtype for t in gistnet.trainable_state().values()} == {torch.float32}
    assert {p.dtype for p in gistnet.parameters() if not p.requires_grad} == {torch.bfloat16}
    gistnet.w_out.weight.data.zero_()
    assert torch.equal(gistnet(spans), spans[:, -1].float())


# --- dropout --------------------------------------------------------------------------------------------------------


def test_dropout_modules_have_different_salts(teacher):
    salts = [m.salt for m in make_gistnet("full", teacher).modules() if isinstance(m, StatelessDropout)]
    assert sorted(salts) == list(range(9))  # two blocks and two reads with two each, and the expansion


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dropout_follows_from_the_keys(architecture, teacher):
    gistnet, spans = waken(make_gistnet(architecture, teacher)), make_spans()
    keys = torch.arange(SPANS)
    dropped = gistnet(spans, Dropout(0.3, keys))
    assert torch.equal(gistnet(spans, Dropout(0.3, keys)), dropped)
    assert torch.equal(gistnet(spans, Dropout(0.0, keys)), gistnet(spans))
    changed = gistnet(spans, Dropout(0.3, torch.cat([keys[:-1], keys[-1:] + 100])))
    assert torch.equal(changed[:-1], dropped[:-1])
    assert not torch.equal(changed[-1], dropped[-1])
    assert not torch.allclose(dropped, gistnet(spans), atol=1e-3)


# --- bad input ------------------------------------------------------------------------------------------------------


def test_spans_of_another_shape_are_refused(teacher):
    gistnet = make_gistnet("full", teacher)
    for shape in [(2, LENGTH - 1, DIM), (2, LENGTH, DIM + 1), (LENGTH, DIM)]:
        with pytest.raises(DataError, match=r"expected \[spans, 8, 32\]"):
            gistnet(torch.zeros(shape))
    with pytest.raises(DataError, match="2 dropout keys for 5 spans"):
        gistnet(make_spans(), Dropout(0.1, torch.arange(2)))


def test_heads_that_do_not_fit_are_refused(teacher):
    with pytest.raises(ConfigError, match="5 heads do not fit a width of 16"):
        GistNetConfig(architecture="bottleneck", width=16, heads=5)
    with pytest.raises(ConfigError, match="16 heads do not fit a width of 16"):  # one dimension each: none to rotate
        GistNetConfig(architecture="teacher_lora", width=16, heads=16)
    with pytest.raises(ConfigError, match="3 heads do not fit a width of 32"):
        GistNet.build(GistNetConfig(architecture="full", heads=3), teacher)


def test_impossible_settings_are_refused(teacher):
    with pytest.raises(ValidationError, match="anchor is state in the architecture full, expected teacher_lora"):
        GistNetConfig(architecture="full", anchor="state")
    with pytest.raises(ValidationError, match="token_layers is 5, expected at most 4"):
        GistNetConfig(architecture="teacher_lora", teacher_layers=4, token_layers=5, anchor="state")
    with pytest.raises(ValidationError, match="anchor is token with layers for the last token alone, expected state"):
        GistNetConfig(architecture="teacher_lora", anchor="token", teacher_layers=4, token_layers=2)
    with pytest.raises(ConfigError, match="token_layers is 5, expected at most 3, as many as are copied"):
        GistNet.build(make_config("teacher_lora", anchor="state", teacher_layers=None, token_layers=5), teacher)
    for branching in (1, 65):
        with pytest.raises(ConfigError, match=f"branching of {branching}"):
            GistNet.build(make_config("full"), teacher, branching)
    with pytest.raises(TeacherError):
        GistNet.build(make_config("teacher_lora", teacher_layers=5), teacher)


# --- cost -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2_shape() -> Teacher:
    """The layer sizes of SmolLM2-135M, with six layers and hardly any vocabulary."""
    return make_teacher(
        dtype=torch.bfloat16,
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        num_hidden_layers=6,
    )


@pytest.mark.parametrize(
    ("settings", "fewest", "most"),
    [
        ({"architecture": "full"}, 12e6, 15e6),
        ({"architecture": "bottleneck"}, 0.4e6, 0.6e6),
        ({"architecture": "teacher_lora", "teacher_layers": 4}, 0.5e6, 1.0e6),
        ({"architecture": "teacher_lora", "teacher_layers": 6}, 0.5e6, 1.0e6),
    ],
)
def test_trained_parameters_at_the_size_of_smollm2(settings, fewest, most, smollm2_shape):
    gistnet = GistNet.build(GistNetConfig(**settings), smollm2_shape)
    budget = gistnet.parameter_budget()
    assert fewest < budget.trained < most
    assert budget.trained == sum(t.numel() for t in gistnet.trainable_state().values())
    per_layer = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576
    assert budget.frozen == settings.get("teacher_layers", 0) * per_layer


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("blocks_per_stage", [1, 2])
def test_counted_flops_agree_with_the_flops_executed(architecture, blocks_per_stage, teacher):
    gistnet = GistNet.build(make_config(architecture, blocks_per_stage=blocks_per_stage), teacher, LENGTH)
    with FlopCounterMode(display=False) as counter:
        gistnet(make_spans())
    assert gistnet.parameter_budget().flops_per_span == pytest.approx(counter.get_total_flops() / SPANS, rel=0.1)


def test_share_of_teacher_is_a_ratio_of_flops(teacher):
    assert Cost(trained=1, frozen=0, flops_per_span=300).share_of_teacher(1200) == 0.25
    layer = 2 * DIM * DIM + 2 * DIM * DIM // 2 + 3 * DIM * 48 + 2 * DIM
    assert make_gistnet("full", teacher).teacher_flops_per_span == LENGTH * 2 * 4 * layer
    two_levels = make_gistnet("full", teacher, below=make_gistnet("full", teacher))
    assert two_levels.teacher_flops_per_span == LENGTH**2 * 2 * 4 * layer
    of_one = make_gistnet("full", teacher).parameter_budget()
    expected = Cost(2 * of_one.trained, 0, (LENGTH + 1) * of_one.flops_per_span)
    assert two_levels.parameter_budget() == expected  # a gist above is made of LENGTH gists below


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_and_loaded_gistnet_is_the_same_bit_for_bit(architecture, teacher, tmp_path):
    gistnet, spans = waken(make_gistnet(architecture, teacher, positions="end", seed=9)), make_spans()
    gistnet.save_pretrained(tmp_path / "deep" / "net")
    loaded = GistNet.from_pretrained(tmp_path / "deep" / "net", teacher)
    assert torch.equal(loaded(spans), gistnet(spans))
    assert (loaded.config, loaded.level, loaded.positions) == (gistnet.config, 0, "end")
    assert not torch.equal(gistnet(spans), spans[:, -1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_levels_are_saved_and_loaded_together(architecture, teacher, tmp_path):
    gistnet, spans = make_gistnet(architecture, teacher), make_spans()
    for _ in range(2):
        gistnet = make_gistnet(architecture, teacher, below=gistnet)
    gistnet.longest_row = 5
    waken(gistnet).save_pretrained(tmp_path)
    loaded = GistNet.from_pretrained(tmp_path, teacher)
    assert [level.level for level in loaded.levels] == [0, 1, 2] and loaded.longest_row == 5
    for ours, theirs in zip(gistnet.levels, loaded.levels, strict=True):
        assert torch.equal(ours(spans), theirs(spans))
    assert loaded.fingerprint == gistnet.fingerprint
    assert len({level.fingerprint for level in loaded.levels}) == 3
    middle = GistNet.from_pretrained(tmp_path / "below", teacher)
    assert middle.fingerprint == gistnet.below.fingerprint
    assert load_file(tmp_path / "model.safetensors").keys() == gistnet.trained_parameters(with_below=False).keys()
    assert len(gistnet.trainable_state()) == 3 * len(gistnet.levels[0].trainable_state())


def test_rounded_weights_take_half_the_bytes_and_are_read_back_as_they_were_rounded(teacher, tmp_path):
    lower = waken(make_gistnet("bottleneck", teacher))
    gistnet = waken(make_gistnet("bottleneck", teacher, below=lower))
    before = gistnet.w_out.weight.detach().clone()
    gistnet.round_weights(torch.float16)
    assert not torch.equal(gistnet.w_out.weight, before)
    torch.testing.assert_close(gistnet.w_out.weight, before, rtol=2**-11, atol=1e-7)
    gistnet.save_pretrained(tmp_path, dtype=torch.float16)
    assert {t.dtype for t in load_file(tmp_path / "below" / "model.safetensors").values()} == {torch.float16}
    again = GistNet.from_pretrained(tmp_path, teacher)
    assert again.fingerprint == gistnet.fingerprint and again.gain.dtype == torch.float32
    gistnet.gain.data.fill_(1e5)
    with pytest.raises(CheckpointError, match="A weight of 'gain' is not finite in torch"):
        gistnet.round_weights(torch.float16)


def test_levels_of_different_saves_are_not_mixed(teacher, tmp_path):
    make_gistnet("bottleneck", teacher, below=make_gistnet("bottleneck", teacher)).save_pretrained(tmp_path)
    waken(make_gistnet("bottleneck", teacher)).save_pretrained(tmp_path / "below")
    with pytest.raises(CheckpointError, match="below is not the GistNet that the one in"):
        GistNet.from_pretrained(tmp_path, teacher)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_files_hold_the_trained_parameters_and_a_complete_configuration(architecture, teacher, tmp_path):
    gistnet = make_gistnet(architecture, teacher, positions="compact")
    gistnet.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == {name for name, p in gistnet.named_parameters() if p.requires_grad}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["format_version"] == FORMAT_VERSION
    assert config["config"]["architecture"] == architecture
    assert (config["dim"], config["branchings"], config["positions"]) == (DIM, [LENGTH], "compact")
    assert config["teacher"] == teacher.fingerprint.model_dump()
    assert config["trained_parameters"] == sum(tensor.numel() for tensor in stored.values())
    assert config["share_of_teacher"] == pytest.approx(
        config["flops_per_span"] / (teacher.flops_per_token * LENGTH), rel=1e-12
    )


def test_freezing_a_gistnet_does_not_empty_its_state(teacher, tmp_path):
    gistnet = make_gistnet("teacher_lora", teacher)
    names = gistnet.trainable_state().keys()
    gistnet.requires_grad_(False).save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == names


def test_saving_again_replaces_both_files(teacher, tmp_path):
    make_gistnet("full", teacher).save_pretrained(tmp_path)
    gistnet = waken(make_gistnet("full", teacher, seed=1))
    gistnet.save_pretrained(tmp_path)
    assert torch.equal(GistNet.from_pretrained(tmp_path, teacher)(make_spans()), gistnet(make_spans()))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_a_storage_error(teacher, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Could not write"):
        make_gistnet("full", teacher).save_pretrained(tmp_path / "file")


@pytest.fixture
def saved(teacher, tmp_path):
    make_gistnet("bottleneck", teacher).save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_teacher_is_refused_by_name(saved):
    with pytest.raises(CheckpointError, match=r"trained with tiny-0 .*got the teacher tiny-7 "):
        GistNet.from_pretrained(saved, make_teacher(seed=7))


def test_the_same_teacher_under_another_name_is_accepted(saved, teacher):
    renamed = Teacher(teacher.model, name="renamed")
    assert GistNet.from_pretrained(saved, renamed).dim == DIM


@pytest.mark.parametrize("size", [0, 7, 200, -1])
def test_truncated_weights_are_refused(size, saved, teacher):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="damaged"):
        GistNet.from_pretrained(saved, teacher)


def test_a_flipped_bit_in_the_weights_is_noticed(saved, teacher):
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        GistNet.from_pretrained(saved, teacher)


def test_weights_of_another_save_are_refused(saved, teacher, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    make_gistnet("bottleneck", teacher, seed=1).save_pretrained(other)
    (saved / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="not the weights"):
        GistNet.from_pretrained(saved, teacher)


def test_weights_that_are_no_safetensors_are_refused_whatever_their_checksum(saved, teacher):
    (saved / "model.safetensors").write_bytes(b"no tensors here")
    edit_config(saved, weights_sha256=hashlib.sha256(b"no tensors here").hexdigest())
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        GistNet.from_pretrained(saved, teacher)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(name, saved, teacher):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"expected a file {name}"):
        GistNet.from_pretrained(saved, teacher)


@pytest.mark.parametrize("version", [FORMAT_VERSION - 1, FORMAT_VERSION + 1])
def test_another_format_is_refused(version, saved, teacher):
    edit_config(saved, format_version=version, something_else=True)
    with pytest.raises(CheckpointError, match=f"format {version}, expected {FORMAT_VERSION}"):
        GistNet.from_pretrained(saved, teacher)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", f'{{"format_version": {FORMAT_VERSION}}}', "\udcff"])
def test_a_config_that_is_none_is_refused(text, saved, teacher):
    (saved / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match="not the configuration of a saved GistNet"):
        GistNet.from_pretrained(saved, teacher)


def test_an_unknown_or_contradictory_setting_in_the_config_is_refused(saved, teacher):
    for changes in ({"extra": 1}, {"config": {"architecture": "bottleneck", "width": 16, "heads": 5}}, {"level": -1}):
        kept = (saved / "config.json").read_bytes()
        edit_config(saved, **changes)
        with pytest.raises(CheckpointError, match="not the configuration of a saved GistNet"):
            GistNet.from_pretrained(saved, teacher)
        (saved / "config.json").write_bytes(kept)


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(teacher, tmp_path):
    gistnet = waken(make_gistnet("bottleneck", teacher))
    before = gistnet(make_spans())
    state = {name: torch.zeros_like(tensor) for name, tensor in gistnet.trainable_state().items()}
    missing = {name: tensor for name, tensor in state.items() if name != "gain"}
    with pytest.raises(CheckpointError, match="'gain' is in one of them only"):
        gistnet.load_trainable_state(missing)
    with pytest.raises(CheckpointError, match="'stranger' is in one of them only"):
        gistnet.load_trainable_state({**state, "stranger": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"'w_out.weight' has shape \[3, 16\]; expected \[32, 16\]"):
        gistnet.load_trainable_state({**state, "w_out.weight": torch.zeros(3, 16)})
    assert torch.equal(gistnet(make_spans()), before)


def test_state_moves_from_one_gistnet_to_another(teacher, tmp_path):
    """Through a file, as a training checkpoint keeps it."""
    trained, fresh = waken(make_gistnet("teacher_lora", teacher)), make_gistnet("teacher_lora", teacher, seed=1)
    save_file(trained.trainable_state(), tmp_path / "state.safetensors")
    fresh.load_trainable_state(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(fresh(make_spans()), trained(make_spans()))
