"""What a run would need: time and one real step of each stage, parameters, memory on GPUs, and its configuration."""

import time
from collections.abc import Iterator, Sequence

from rich.table import Table

from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.settings import Section
from gistnet.terminal import at_full_width
from gistnet.training.config import Stage
from gistnet.training.micro_batch import USABLE, choose_micro_batch
from gistnet.training.run import Progress, Run
from gistnet.training.trainer import train_step
from gistnet.yaml_format import write_yaml

GPUS = {"24 GB (L4)": 24e9, "80 GB (A100, H100)": 80e9, "141 GB (H200)": 141e9}
"""Bytes of memory of the GPUs that the table is for."""


def describe_sizes(teacher: Teacher, gistnet: GistNet) -> Iterator[str]:
    """Lines on the teacher, and on parameters and compute of a GistNet."""
    budget = gistnet.parameter_budget()
    share = budget.share_of_teacher(gistnet.teacher_flops_per_span)
    yield f"teacher: {teacher.fingerprint.describe()}, {teacher.dtype}".replace("torch.", "")
    yield f"GistNet: {budget.trained:,} trained and {budget.frozen:,} frozen parameters"
    yield f"compute per span: {budget.flops_per_span / 1e9:.2f} GFLOP, {share:.1%} of the teacher's on the same tokens"


def describe_config(config: Section) -> Iterator[str]:
    """Lines of the resolved configuration, YAML."""
    yield from write_yaml(config.model_dump(mode="json"), allow_unicode=True).rstrip("\n").split("\n")


def describe_steps(run: Run) -> Iterator[str]:
    """Make one step of each stage; how long all of them would take, and what the step gave. Nothing is saved."""
    seconds_of_all = 0.0
    for number, stage in enumerate(run.stages, start=1):
        progress = Progress(stage=number)
        began = time.monotonic()
        metrics = train_step(run, progress, run.optimiser(progress))
        seconds = time.monotonic() - began
        seconds_of_all += seconds * stage.train.steps
        yield (
            f"stage '{stage.name}': {stage.train.steps:,} steps take about {_duration(seconds * stage.train.steps)} "
            f"here, validations and checkpoints left out; one step of {metrics['spans_seen']} spans took "
            f"{seconds:.1f} s with a micro-batch of {progress.micro_batch}: loss {metrics['loss']:.4f}, "
            f"ΔNLL {metrics['delta_nll']:+.4f}"
        )
    if len(run.stages) > 1:
        yield f"the whole run: about {_duration(seconds_of_all)}"


def memory_table(
    teacher: Teacher,
    gistnet: GistNet,
    stages: Sequence[Stage],
    *,
    window_tokens: int,
    processes: int,
    gradient_checkpointing: bool,
) -> Table:
    """Micro-batches that fit into GPUs of several sizes, and the memory that they take (estimated).

    Args:
        window_tokens: the configured length of windows.
        processes: GPUs among which a batch is shared; the figures are those of one.
    """
    table = Table(title="Micro-batch that fits on a GPU, and the memory it takes (estimated)", title_justify="left")
    table.add_column("stage")
    for name in GPUS:
        table.add_column(name, justify="right")
    for stage in stages:
        cells = []
        for room in GPUS.values():
            sizes, needed = choose_micro_batch(
                teacher,
                gistnet,
                stage,
                window_tokens=min(window_tokens, stage.train.window_tokens or window_tokens),
                processes=processes,
                device_type="cuda",
                recompute=gradient_checkpointing,
                room_bytes=USABLE * room,
            )
            verdict = "" if needed <= USABLE * room else "does not fit: "
            cells.append(f"{verdict}{sizes}, {needed / 1e9:.1f} GB")
        table.add_row(stage.name, *cells)
    return at_full_width(table)


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
