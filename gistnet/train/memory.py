"""What a run would need: parameters, memory, and one real step to show that it works."""

import resource
import sys
import time
from collections.abc import Iterator

import torch
import yaml

from gistnet.settings import Section
from gistnet.train.trainer import Progress, Run, train_step


def estimate_memory(run: Run) -> dict[str, int]:
    """Bytes on this process's device at the peak of a step, by what takes them.

    Weights and cached keys are counted exactly; activations by what a layer of the usual kind keeps for its backward
    pass: about eight vectors of the hidden size and four of the MLP's per token.
    """
    teacher, config = run.teacher.config, run.config
    width = run.teacher.dtype.itemsize
    key_width = teacher.num_key_value_heads * getattr(teacher, "head_dim", teacher.hidden_size)
    window_tokens = int(run.dataset.lengths.max())
    windows = max(1, config.windows_per_batch // run.processes.count)
    branches = min(config.branches_per_pass, windows * config.spans_per_window)
    branch_tokens = branches * (run.layout.gists_in_a_row + run.layout.horizon_tokens - 1)
    per_token = 8 * teacher.hidden_size + 2 * key_width + 4 * teacher.intermediate_size
    kept_layers = 1 if any(layer.training for layer in run.teacher.model.base_model.layers) else None
    layers = int(teacher.num_hidden_layers)
    trained = run.gistnet.parameter_budget().trained
    return {
        "teacher weights": sum(p.nbytes for p in run.teacher.model.parameters()),
        "GistNet weights, gradient and AdamW": 16 * trained,
        "GistNet's frozen copy": sum(p.nbytes for p in run.gistnet.parameters() if not p.requires_grad),
        "keys and values of the windows": 2 * layers * windows * window_tokens * key_width * width,
        "activations of the branches": (kept_layers or layers) * branch_tokens * per_token * width,
        "logits of a chunk": 5 * min(run.objective.chunk_tokens, branch_tokens) * run.teacher.vocabulary_size * 4,
    }


def describe_run(run: Run, config: Section) -> Iterator[str]:
    """The lines of a dry run: resolved configuration, sizes, memory, and what one step gave. Nothing is saved."""
    yield yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip()
    budget = run.gistnet.parameter_budget()
    share = budget.share_of_teacher(run.gistnet.teacher_flops_per_span)
    yield f"teacher: {run.teacher.fingerprint.describe()}, {run.teacher.dtype}".replace("torch.", "")
    yield f"GistNet: {budget.trained:,} trained and {budget.frozen:,} frozen parameters"
    yield f"compute per span: {budget.flops_per_span / 1e9:.2f} GFLOP, {share:.1%} of the teacher's on the same tokens"
    memory = estimate_memory(run)
    for name, size in memory.items():
        yield f"memory, {name}: {size / 1e6:,.0f} MB"
    yield f"memory, sum of these estimates: {sum(memory.values()) / 1e6:,.0f} MB"
    began = time.monotonic()
    metrics = train_step(run, Progress())
    seconds = time.monotonic() - began
    spans = metrics["spans_seen"]
    yield f"one step: {spans} spans in {seconds:.1f} s, loss {metrics['loss']:.4f}, ΔNLL {metrics['delta_nll']:+.4f}"
    yield f"peak memory measured: {_peak_bytes(run) / 1e6:,.0f} MB{'' if _on_gpu(run) else ' (the whole process)'}"


def _on_gpu(run: Run) -> bool:
    return run.teacher.device.type == "cuda"


def _peak_bytes(run: Run) -> int:
    if _on_gpu(run):
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
