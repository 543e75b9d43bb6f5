"""What a step needs, estimated from shapes, beside what it is seen to take."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.profiler import profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM

from gistnet.data.sampling import SpanLayout, WindowSample
from gistnet.model.gistnet import GistNet, GistNetConfig
from gistnet.model.prefix_attention import BranchPass
from gistnet.model.sharded_teacher import is_sharded
from gistnet.model.teacher import Teacher
from gistnet.objective.losses import default_chunk_tokens
from gistnet.objective.objective import ObjectiveConfig
from gistnet.training.counting import count
from gistnet.training.fitting import PassSizes
from gistnet.training.memory import step_memory
from gistnet.training.schedule import OptimiserConfig
from gistnet.training.stage import Stage, TrainConfig
from gistnet.training.step import accumulate_gradient
from tests.gistnets import woken_gistnet
from tests.teachers import FAMILIES, tiny_teacher

WIDTH, MLP, LAYERS, KEY_WIDTH, HEADS, VOCABULARY = 256, 688, 6, 64, 8, 4000


def small_llama(dtype: torch.dtype) -> Teacher:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
    )
    return Teacher(LlamaForCausalLM(config).to(dtype), name="small-llama")


def most_allocated(compute: Callable[[], object]) -> int:
    """Bytes that PyTorch's allocator held at most while `compute` ran, over those before, by the profiler's record."""
    with profile(profile_memory=True) as recorded:
        compute()
    held = most = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


class Windows:
    """Stands in for a dataset: random windows of one length."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def read(self, window: int) -> np.ndarray:
        return np.random.default_rng(window).integers(0, VOCABULARY, self.tokens)


MUON = OptimiserConfig(kind="muon")


def stage_of(spans_per_window: int, horizon: int = 32, **train) -> Stage:
    return Stage(
        name="only",
        train=TrainConfig(spans_per_window=spans_per_window, **train),
        objective=ObjectiveConfig(horizon_tokens=horizon, chunk_tokens=128),
    )


def estimated_and_seen(
    teacher: Teacher, gistnet: GistNet, stage: Stage, tokens: int, windows: int, *, recompute: bool = False
) -> tuple[int, int]:
    """Bytes of what grows with windows and branches; weights and their gradients are there before."""
    train, trained = stage.train, gistnet.levels[stage.train.level]
    for parameter in gistnet.parameters():
        parameter.grad = torch.zeros_like(parameter)
    teacher.enable_gradient_checkpointing(recompute)
    layout = SpanLayout(
        span_tokens=gistnet.config.span_tokens,
        level=train.level,
        horizon_tokens=stage.objective.horizon_tokens,
        spans_per_window=train.spans_per_window,
    )
    gists = train.runs.most
    last = tokens - gists * trained.tokens_per_gist - layout.horizon_tokens
    starts = np.linspace(4, last, train.spans_per_window).astype(np.int64)
    samples = [WindowSample(item, item, 0, starts, np.full_like(starts, gists)) for item in range(windows)]
    branches = windows * train.spans_per_window
    seen = most_allocated(
        lambda: accumulate_gradient(
            teacher,
            trained,
            Windows(tokens),
            samples,
            layout,
            stage.objective,
            train_below=train.train_below,
            branches_in_batch=branches,
            sizes=PassSizes(windows, branches),
            dropout_rate=0.1,
            dropout_seed=(0, 0),
        )
    )
    memory = step_memory(teacher, gistnet, stage, window_tokens=tokens, device_type="cpu")
    return memory.peak(windows, branches, recompute=recompute) - sum(memory.fixed.values()), seen


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("dtype", "windows", "tokens", "spans", "horizon"),
    [
        (torch.float32, 2, 512, 8, 32),
        (torch.float32, 4, 1024, 2, 16),  # windows are most of it
        (torch.float32, 1, 512, 16, 64),  # branches are most of it
        (torch.bfloat16, 2, 512, 8, 32),
    ],
)
def test_the_estimate_is_within_a_fifth_of_what_a_step_allocates(dtype, windows, tokens, spans, horizon, recompute):
    teacher = small_llama(dtype)
    gistnet = GistNet.build(GistNetConfig(architecture="bottleneck", width=64, heads=4), teacher)
    estimated, seen = estimated_and_seen(
        teacher, gistnet, stage_of(spans, horizon), tokens, windows, recompute=recompute
    )
    assert 0.8 < estimated / seen < 1.2


@pytest.mark.parametrize("architecture", ["full", "teacher_lora"])
def test_so_it_is_where_gistnet_takes_much_of_it(architecture):
    teacher = small_llama(torch.float32)
    gistnet = GistNet.build(GistNetConfig(architecture=architecture, width=64), teacher)
    estimated, seen = estimated_and_seen(teacher, gistnet, stage_of(8, runs={"lengths": {4: 1.0}}), 512, 2)
    assert 0.8 < estimated / seen < 1.2


@pytest.mark.parametrize("train_below", [False, True])
def test_so_it_is_for_a_level_above(train_below):
    """Each of its gists is made of eight of the level below, with or without their gradient."""
    teacher = small_llama(torch.float32)
    config = GistNetConfig(architecture="bottleneck", span_tokens=8, width=64, heads=4)
    gistnet = GistNet.build(config, teacher, below=GistNet.build(config, teacher))
    stage = stage_of(6, level=1, train_below=train_below, runs={"lengths": {2: 1.0}})
    estimated, seen = estimated_and_seen(teacher, gistnet, stage, 512, 2)
    assert 0.8 < estimated / seen < 1.2


@pytest.mark.parametrize("loss", [{"loss": "mixed"}, {"contrastive_weight": 0.1}, {"reconstruction_weight": 0.5}])
def test_so_it_is_for_every_term_of_the_objective(loss):
    teacher = small_llama(torch.float32)
    gistnet = GistNet.build(GistNetConfig(architecture="bottleneck", width=64, heads=4), teacher)
    stage = stage_of(8)
    stage = stage.model_copy(update={"objective": stage.objective.model_copy(update=loss)})
    estimated, seen = estimated_and_seen(teacher, gistnet, stage, 512, 2)
    assert 0.8 < estimated / seen < 1.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_branch_keeps_is_what_the_engine_saves_for_its_backward_pass(family, dtype):
    """Counted a second way, by autograd's hooks on saved tensors; with what goes in and comes out, which lives on."""
    teacher = tiny_teacher(family, dtype)
    read = teacher.read_windows(torch.randint(0, 97, (1, 12), generator=torch.Generator().manual_seed(0)))
    vectors = torch.randn(8, 10, 32).to(dtype).requires_grad_()
    positions = torch.arange(4, 14).expand(8, 10)  # nearer than the windows of Gemma's sliding layers
    there = [*teacher.model.parameters(), *read.document.keys.values(), *read.document.values.values()]
    saved = {tensor.untyped_storage().data_ptr(): 0 for tensor in there}

    def note(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = teacher.read_branches(vectors, BranchPass(read.document, (0,) * 8, (4,) * 8, positions))
    for tensor in (vectors, hidden):
        note(tensor)
    counts = count(teacher, woken_gistnet(teacher), train_below=False, differentiate=("kl",))
    assert sum(saved.values()) == pytest.approx(80 * counts.branch.kept, rel=0.03)


def test_what_is_known_by_hand():
    """Three layers, width 32, two key heads of 8, 97 tokens, float32; a window of 96 tokens."""
    teacher = tiny_teacher("llama", torch.float32)
    gistnet = woken_gistnet(teacher)
    memory = step_memory(teacher, gistnet, stage_of(3), window_tokens=96, device_type="cpu")
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48 + 2 * 32
    assert memory.fixed["teacher weights"] == 4 * (3 * layer + 2 * 97 * 32 + 32)
    trained = sum(parameter.numel() for parameter in gistnet.parameters())
    assert memory.fixed["GistNet weights, gradient and optimiser"] == 16 * trained
    assert memory.fixed["GistNet's frozen copy"] == 0
    # Keys and values of each layer, and final hidden states.
    window = 96 * (3 * 2 * 16 + 32) * 4
    assert memory.window.kept == window
    assert memory.fixed["held-out windows kept for validation"] == 100 * window
    # A gist and the horizon but its last token, in passes of two windows with three branches each.
    assert memory.branch_tokens == 32
    parts = memory.parts(2, 6, recompute=False)
    assert parts["keys and values of the windows"] == 2 * window
    assert parts["activations of the branches"] == pytest.approx(6 * memory.branch.kept, abs=1)
    assert memory.peak(2, 6, recompute=False) == sum(parts.values())


def test_on_a_gpu_losses_are_made_where_their_logits_are():
    """Two tables of 4000 logits in bfloat16 for each predicted token of a chunk, and one of the chunk before."""
    teacher = small_llama(torch.bfloat16)
    gistnet = GistNet.build(GistNetConfig(architecture="bottleneck", width=64, heads=4), teacher)
    stage = stage_of(128)
    stage = stage.model_copy(update={"objective": stage.objective.model_copy(update={"chunk_tokens": None})})
    memory = step_memory(teacher, gistnet, stage, window_tokens=512, device_type="cuda")
    logits = memory.parts(1, 128, recompute=False)["logits of a chunk"]
    assert logits == pytest.approx(
        default_chunk_tokens("cuda") * 3 * VOCABULARY * 2, rel=0.07
    )  # and the states they are made from


def test_levels_that_are_not_trained_need_neither_gradient_nor_moments():
    teacher = tiny_teacher("llama", torch.float32)
    gistnet = woken_gistnet(teacher, levels=2)
    below, both = (sum(p.numel() for p in level.parameters()) for level in gistnet.levels)
    stages = (stage_of(2, 8, level=1, train_below=with_below) for with_below in (False, True))
    alone, together = (
        step_memory(teacher, gistnet, stage, window_tokens=96, device_type="cpu").fixed for stage in stages
    )
    assert alone["GistNet weights, gradient and optimiser"] == 16 * (both - below) + 4 * below
    assert together["GistNet weights, gradient and optimiser"] == 16 * both


def test_muon_keeps_one_moment_of_a_matrix():
    teacher = tiny_teacher("llama", torch.float32)
    gistnet = woken_gistnet(teacher)
    stage = stage_of(3)
    stage = stage.model_copy(update={"train": stage.train.model_copy(update={"optimiser": MUON})})
    memory = step_memory(teacher, gistnet, stage, window_tokens=96, device_type="cpu")
    matrices = sum(p.numel() for p in gistnet.parameters() if p.ndim == 2)
    others = sum(p.numel() for p in gistnet.parameters()) - matrices
    assert memory.fixed["GistNet weights, gradient and optimiser"] == 12 * matrices + 16 * others


@pytest.fixture
def one_of_two_processes():
    """This process among two, of which the other is made up: nothing is sent."""
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield init_device_mesh("cpu", (2,))
    torch.distributed.destroy_process_group()


def test_of_a_sharded_teacher_a_process_holds_its_part_and_two_whole_layers(one_of_two_processes):
    teacher = tiny_teacher("llama", torch.float32)
    assert not is_sharded(teacher)
    for layer in teacher.model.base_model.layers:
        fully_shard(layer, mesh=one_of_two_processes)
    assert is_sharded(teacher)
    layer = 4 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48 + 2 * 32)
    memory = step_memory(teacher, woken_gistnet(teacher), stage_of(3), window_tokens=96, device_type="cpu")
    assert memory.fixed["teacher weights"] == 3 * layer / 2 + 4 * (2 * 97 * 32 + 32) + 2 * layer
