"""Teachers, windows, the spans cut from them, the spec's loop and the packed engine: what the benchmarks run.

The embedded teacher, SmolLM2-135M, reads real prose. Where it is not installed, or is too small, its shape or that of
SmolLM3-3B takes its place, with random weights that read random tokens: the cost of a pass depends on neither.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from gistnet.machine import keep_freed_memory
from gistnet.model.config import GistNetConfig, TeacherConfig
from gistnet.model.embedded_teacher import EMBEDDED_TEACHER
from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import PrefillOutput, Teacher
from gistnet.objective.branches import SegmentBatch, gist_replacements
from gistnet.objective.config import ObjectiveConfig
from gistnet.objective.losses import segment_losses, token_losses
from gistnet.objective.reference import reference_original_hidden, reference_replaced_hidden

SPAN, SINK = 32, 4
SMOLLM2_SHAPE, SMOLLM3_SHAPE, TINY_SHAPE = "smollm2-135m-shape", "smollm3-3b-shape", "tiny-shape"
TEACHERS = (EMBEDDED_TEACHER, SMOLLM2_SHAPE, SMOLLM3_SHAPE, TINY_SHAPE)
"""Teachers by name; the tiny one only shows that a program runs."""
# Weights are drawn so widely that attention is not flat: with a standard deviation of 0.02 nothing that it gets wrong
# would show. The defaults of SmolLM3Config are the 3B model's.
_SHAPES: dict[str, dict[str, Any]] = {
    SMOLLM2_SHAPE: {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        "tie_word_embeddings": True,
        "initializer_range": 0.06,
    },
    SMOLLM3_SHAPE: {"model_type": "smollm3", "tie_word_embeddings": True, "initializer_range": 0.03},
    TINY_SHAPE: {
        "model_type": "smollm3",
        "vocab_size": 256,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
GPU_TOKENS_READ_AT_ONCE = 32768


def build_teacher(name: str, precision: str, device: str) -> Teacher:
    """One of `TEACHERS`; the random weights of a shape are the same at every call on a kind of device."""
    keep_freed_memory()
    if name == EMBEDDED_TEACHER:
        return Teacher.from_pretrained(TeacherConfig(precision=precision), device)
    torch.manual_seed(0)
    with torch.device(device):
        shape = AutoConfig.for_model(**_SHAPES[name])
        model = AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, precision))
    return Teacher(model, name=name)


def build_gistnet(teacher: Teacher, architecture: str = "full") -> GistNet:
    """GistNet with a `W_out` that is not zero, so that all of its parameters have a gradient."""
    gistnet = GistNet.build(GistNetConfig.model_validate({"architecture": architecture}), teacher)
    generator = torch.Generator(teacher.device).manual_seed(0)
    torch.nn.init.normal_(gistnet.w_out.weight, std=0.02, generator=generator)
    return gistnet


@lru_cache(maxsize=1)
def load_models(name: str, precision: str, device: str) -> tuple[Teacher, GistNet]:
    """`build_teacher` and `build_gistnet`; the last models asked for are kept, for benchmarks in one process."""
    teacher = build_teacher(name, precision, device)
    return teacher, build_gistnet(teacher)


def read_text(teacher: Teacher, windows: int, tokens: int) -> Tensor:
    """Token ids `[windows, tokens]` of prose that every Python has, repeated as needed; random without a tokenizer."""
    if teacher.tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(teacher.vocabulary_size, (windows, tokens), generator=generator).to(teacher.device)
    from pydoc_data.topics import topics

    (ids,) = teacher.tokenizer.encode_batch(["\n".join(topics[name] for name in sorted(topics))])
    repeats = -(-windows * tokens // len(ids))
    return torch.tensor(ids, device=teacher.device).repeat(repeats)[: windows * tokens].view(windows, tokens)


def all_starts(window: int, horizon: int) -> list[int]:
    """First token of every aligned span that has room for the horizon behind it."""
    return list(range(SINK, window - SPAN - horizon + 1, SPAN))


def spread(values: Sequence[int], count: int) -> list[int]:
    """Evenly spaced `count` of the values, or all where there are no more; one alone is the middle one."""
    count = min(count, len(values))
    return [values[(2 * i + 1) * len(values) // (2 * count)] for i in range(count)]


@dataclass(frozen=True)
class Branches:
    """Single spans to replace, in windows that are read together.

    Attributes:
        tokens: `[windows, tokens]`.
        starts: the first tokens of the spans replaced, the same in each window.
        horizon: tokens predicted after a span (H).
    """

    tokens: Tensor
    starts: list[int]
    horizon: int

    def __len__(self) -> int:
        return len(self.tokens) * len(self.starts)

    def segments(self, first: int = 0, count: int | None = None) -> SegmentBatch:
        """`count` branches from `first` on, ordered by window, then by start."""
        last = len(self) if count is None else min(first + count, len(self))
        index = torch.arange(first, last, device=self.tokens.device)
        windows, order = index // len(self.starts), index % len(self.starts)
        starts = torch.tensor(self.starts, device=self.tokens.device)[order]
        return SegmentBatch(self.tokens, windows, starts, SPAN, 1, self.horizon)


def cut_windows(teacher: Teacher, window: int, horizon: int, windows: int | None = None) -> Branches:
    """All spans of windows that are read at once; None is one window on a CPU, 32k tokens of them on a GPU."""
    at_once = {"cpu": 1, "cuda": max(1, GPU_TOKENS_READ_AT_ONCE // window)}[teacher.device.type]
    return Branches(read_text(teacher, windows or at_once, window), all_starts(window, horizon), horizon)


def loop(teacher: Teacher, gistnet: GistNet, branches: Branches, *, cached: bool) -> Iterator[float]:
    """The spec's loop: yields the KL of each span after its backward pass.

    Args:
        cached: whether the original forward is made once for each window, and not once for each span.
    """
    original: PrefillOutput | None = None
    for branch in range(len(branches)):
        one = branches.segments(branch, 1)
        if cached and original is None:
            original = teacher.prefill(branches.tokens)
        states = one.original_hidden(original) if original else reference_original_hidden(teacher, one, 0)[None]
        gists = SpanEncoder(teacher, gistnet).encode(one.replaced)
        replaced = reference_replaced_hidden(teacher, one, gist_replacements(one, gists, "end"), 0)[None]
        kl = token_losses(teacher, states, replaced, one.targets).kl.mean()
        kl.backward()
        yield float(kl.detach())


def engine(
    teacher: Teacher, gistnet: GistNet, branches: Branches, branches_per_pass: int, read: PrefillOutput | None = None
) -> list[float]:
    """Run the packed engine to the last backward pass, and return the KL of each span.

    Args:
        read: the windows' prefill; None makes it here.
    """
    read = teacher.prefill(branches.tokens) if read is None else read
    objective = ObjectiveConfig(horizon_tokens=branches.horizon, positions="end")
    encoder, kls = SpanEncoder(teacher, gistnet), []
    for first in range(0, len(branches), branches_per_pass):
        losses = segment_losses(encoder, read, branches.segments(first, branches_per_pass), objective)
        losses.total.sum().backward()
        kls.append(losses.kl)  # read at the end, so that no pass waits for the one before
    return list(torch.cat(kls).tolist())
