"""What a run would need: parameters, memory on GPUs and here, and one real step of each stage to show that it works."""

import resource
import sys
import time
from collections.abc import Iterator, Sequence

import torch
from rich.table import Table

from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.settings import Section
from gistnet.terminal import at_full_width
from gistnet.training.fitting import USABLE, Batch, find_fit, least_bytes
from gistnet.training.memory import StepMemory, step_memory
from gistnet.training.run import Progress, Run
from gistnet.training.stage import Stage
from gistnet.training.trainer import train_step
from gistnet.yaml_format import write_yaml

GPUS = {"24 GB (L4)": 24e9, "80 GB (A100, H100)": 80e9, "141 GB (H200)": 141e9}
"""Bytes of memory of the GPUs that are planned for."""
WINDOWS = (4096, 8192, 16_384)
"""Tokens of the windows that are planned for, besides the configured ones, where the teacher reads as many."""

_PARTS = (
    "teacher\nweights",
    "GistNet\nand optimiser",
    "its frozen\ncopy",
    "held-out\nwindows kept",
    "keys, values\nof a window",
    "reading\na window",
    "activations\nof a branch",
    "or where\nrecomputed",
    "logits of\na chunk",
)


def describe_plan(config: Section, teacher: Teacher, gistnet: GistNet) -> Iterator[str]:
    """The lines that need no weights: resolved configuration and sizes."""
    yield from write_yaml(config.model_dump(mode="json"), allow_unicode=True).rstrip("\n").split("\n")
    budget = gistnet.parameter_budget()
    share = budget.share_of_teacher(gistnet.teacher_flops_per_span)
    yield f"teacher: {teacher.fingerprint.describe()}, {teacher.dtype}".replace("torch.", "")
    yield f"GistNet: {budget.trained:,} trained and {budget.frozen:,} frozen parameters"
    yield f"compute per span: {budget.flops_per_span / 1e9:.2f} GFLOP, {share:.1%} of the teacher's on the same tokens"


def memory_tables(
    teacher: Teacher,
    gistnet: GistNet,
    stages: Sequence[Stage],
    *,
    window_tokens: int,
    processes: int,
    gradient_checkpointing: bool | None,
) -> Iterator[Table]:
    """What a step of each stage takes of a GPU, and how much of it runs at once on GPUs of several sizes.

    Args:
        window_tokens: the configured length of windows.
        processes: GPUs among which a batch is shared; the figures are those of one.
        gradient_checkpointing: as in `TeacherConfig`.
    """
    takes = Table(title="What a step takes of a GPU, in GB (estimated)", title_justify="left")
    whose = "a batch" if processes == 1 else f"a GPU's share of a batch, among {processes}"
    fits = Table(title=f"What of {whose} fits at a time, what that needs, and what is left", title_justify="left")
    for table, columns in ((takes, _PARTS), (fits, tuple(GPUS))):
        table.add_column("stage")
        for name in ("window\ntokens", *columns):
            table.add_column(name, justify="right")
    for stage in stages:
        own = stage.train.window_tokens or window_tokens
        lengths = sorted({own, *(tokens for tokens in WINDOWS if tokens <= teacher.max_positions)})
        batch = Batch.of(stage.train, processes, gradient_checkpointing)
        for tokens in lengths:
            memory = step_memory(teacher, gistnet, stage, window_tokens=tokens, device_type="cuda")
            if memory.shortest_window > tokens or tokens > (stage.train.window_tokens or tokens):
                continue
            takes.add_row(stage.name, f"{tokens:,}", *(f"{size / 1e9:.3f}" for size in _parts(memory)))
            fits.add_row(stage.name, f"{tokens:,}", *(_fit(memory, batch, size) for size in GPUS.values()))
    yield at_full_width(takes)
    yield at_full_width(fits)


def _parts(memory: StepMemory) -> tuple[float, ...]:
    chunk = memory.chunk_tokens * memory.prediction.forward
    window, branch = memory.window, memory.branch
    return *memory.fixed.values(), window.kept, window.forward, branch.kept, memory.recomputed_branch.kept, chunk


def _fit(memory: StepMemory, batch: Batch, gpu_bytes: float) -> str:
    """What runs at once, what it needs, and what is left; or what the least would need."""
    found = find_fit(memory, batch, room_bytes=USABLE * gpu_bytes, device_type="cuda")
    if found is None:
        return f"does not fit: needs {least_bytes(memory, batch, 'cuda') / USABLE / 1e9:.1f} GB"
    needed = memory.peak(*found.sizes, recompute=found.gradient_checkpointing)
    recomputed = ", recomputed" if found.gradient_checkpointing else ""
    return f"{found.sizes.describe()}{recomputed}: {needed / 1e9:.1f} GB, {(gpu_bytes - needed) / 1e9:.1f} left"


def describe_steps(run: Run, stages: Sequence[Stage], *, window_tokens: int) -> Iterator[str]:
    """The lines that need weights and data: how a step fits into memory here, and what one gave. Nothing is saved."""
    device = run.teacher.device.type
    for number, (stage, described) in enumerate(zip(run.stages, stages, strict=True), start=1):
        where = f"stage '{stage.name}', " if len(stages) > 1 else ""
        of_stage = f" of stage '{stage.name}'" if len(stages) > 1 else ""
        sizes, recompute = stage.fit
        yield f"at a time{of_stage}: {sizes.describe()}, {'with' if recompute else 'without'} gradient checkpointing"
        longest = stage.layout.used(window_tokens)
        memory = step_memory(run.teacher, run.gistnet, described, window_tokens=longest, device_type=device)
        parts = memory.parts(*sizes, recompute=recompute)
        for name, size in parts.items():
            yield f"memory, {where}{name}: {size / 1e6:,.0f} MB"
        yield f"memory, {where}sum of these estimates: {sum(parts.values()) / 1e6:,.0f} MB"
        progress = Progress(stage=number)
        began = time.monotonic()
        metrics = train_step(run, progress, run.optimiser(progress))
        seconds = time.monotonic() - began
        yield (
            f"one step{of_stage}: {metrics['spans_seen']} spans in {seconds:.1f} s, loss {metrics['loss']:.4f}, "
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
