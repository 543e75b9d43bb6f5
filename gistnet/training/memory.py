"""What a run would need: parameters, memory, and one real step of each stage to show that it works."""

import resource
import sys
import time
from collections.abc import Iterator, Sequence

import torch
import yaml

from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.settings import Section
from gistnet.training.fitting import CPU_BRANCHES
from gistnet.training.run import Progress, Run
from gistnet.training.stage import Stage
from gistnet.training.trainer import train_step


def estimate_memory(
    teacher: Teacher, gistnet: GistNet, stage: Stage, *, window_tokens: int, processes: int
) -> dict[str, int]:
    """Bytes on one process's device at the peak of a step of a stage, by what takes them.

    Weights and cached keys are counted exactly; activations by what a layer of the usual kind keeps for its backward
    pass: about eight vectors of the hidden size and four of the MLP's per token.
    """
    shape, train, objective = teacher.config, stage.train, stage.objective
    gistnet = gistnet.levels[train.level]
    width = teacher.dtype.itemsize
    head_width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    key_width = shape.num_key_value_heads * head_width
    windows = max(1, train.windows_per_batch // processes)
    branches = min(train.branches_per_pass or CPU_BRANCHES, windows * train.spans_per_window)
    room = (window_tokens - train.sink_tokens - objective.horizon_tokens) // gistnet.tokens_per_gist
    branch_tokens = branches * (min(train.runs.most, room) + objective.horizon_tokens - 1)
    per_token = 8 * shape.hidden_size + 2 * key_width + 4 * shape.intermediate_size
    layers = int(shape.num_hidden_layers)
    kept_layers = 1 if any(layer.training for layer in teacher.model.base_model.layers) else layers
    trained = gistnet.parameter_budget().trained
    return {
        "teacher weights": sum(p.nbytes for p in teacher.model.parameters()),
        "GistNet weights, gradient and AdamW": 16 * trained,
        "GistNet's frozen copy": sum(p.nbytes for p in gistnet.parameters() if not p.requires_grad),
        "keys and values of the windows": 2 * layers * windows * window_tokens * key_width * width,
        "activations of the branches": kept_layers * branch_tokens * per_token * width,
        "logits of a chunk": 5 * min(objective.chunk_tokens, branch_tokens) * teacher.vocabulary_size * 4,
    }


def describe_plan(
    config: Section, teacher: Teacher, gistnet: GistNet, stages: Sequence[Stage], *, window_tokens: int, processes: int
) -> Iterator[str]:
    """The lines that need no weights: resolved configuration, sizes, and the memory of each stage."""
    yield yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip()
    budget = gistnet.parameter_budget()
    share = budget.share_of_teacher(gistnet.teacher_flops_per_span)
    yield f"teacher: {teacher.fingerprint.describe()}, {teacher.dtype}".replace("torch.", "")
    yield f"GistNet: {budget.trained:,} trained and {budget.frozen:,} frozen parameters"
    yield f"compute per span: {budget.flops_per_span / 1e9:.2f} GFLOP, {share:.1%} of the teacher's on the same tokens"
    for stage in stages:
        where = f"stage '{stage.name}', " if len(stages) > 1 else ""
        memory = estimate_memory(teacher, gistnet, stage, window_tokens=window_tokens, processes=processes)
        for name, size in memory.items():
            yield f"memory, {where}{name}: {size / 1e6:,.0f} MB"
        yield f"memory, {where}sum of these estimates: {sum(memory.values()) / 1e6:,.0f} MB"


def describe_steps(run: Run) -> Iterator[str]:
    """The lines that need weights and data: what one real step of each stage gave. Nothing is saved."""
    for number, stage in enumerate(run.stages, start=1):
        progress = Progress(stage=number)
        began = time.monotonic()
        metrics = train_step(run, progress, run.optimiser(progress))
        seconds = time.monotonic() - began
        where = f" of stage '{stage.name}'" if len(run.stages) > 1 else ""
        yield (
            f"one step{where}: {metrics['spans_seen']} spans in {seconds:.1f} s, loss {metrics['loss']:.4f}, "
            f"ΔNLL {metrics['delta_nll']:+.4f}"
        )
    yield f"peak memory measured: {_peak_bytes(run) / 1e6:,.0f} MB{'' if _on_gpu(run) else ' (the whole process)'}"


def _on_gpu(run: Run) -> bool:
    return run.teacher.device.type == "cuda"


def _peak_bytes(run: Run) -> int:
    if _on_gpu(run):
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
