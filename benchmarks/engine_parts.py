"""What `benchmarks/engine.py` and `benchmarks/on_gpu.py` measure: variants, the engine's parts, and that all agree."""

import itertools
from typing import Any

import torch

from benchmarks.fitted import branches_per_pass
from benchmarks.flops import TeacherSize, engine_flops
from benchmarks.machine import now, peak_megabytes, reset_peak, timed
from benchmarks.workload import Branches, all_starts, engine, loop, read_text, spread
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import gist_stand_ins, replaced_hidden
from gistnet.objective.losses import token_losses
from gistnet.objective.objective import ObjectiveConfig, encode

ENGINE_REPEATS = {"cpu": 1, "cuda": 3}
MOST_LOOP_SPANS = 8


def measure(variant: str, branches: Branches, teacher: Teacher, gistnet: GistNet, *, spans: int = 3) -> dict[str, Any]:
    """Time "engine", "loop" or "cached" after a warm-up: on a CPU on a short window, on a GPU on the same work.

    Args:
        spans: on how many the loops are timed, evenly over the first window.
    """
    device, in_window = teacher.device.type, len(branches.starts)
    warm_up = warm_up_branches(branches, device)
    result: dict[str, Any] = {}
    if variant == "engine":
        per_pass = branches_per_pass(teacher, gistnet, branches)
        engine(teacher, gistnet, warm_up, per_pass)
        reset_peak(device)
        kls, seconds = timed(
            lambda: engine(teacher, gistnet, branches, per_pass), device, repeats=ENGINE_REPEATS[device]
        )
        per_span, kl = seconds / len(branches), dict(zip(branches.starts, kls[:in_window], strict=True))
        flops = engine_flops(
            TeacherSize.of(teacher), gistnet, branches.tokens.shape[1], branches.starts, branches.horizon
        )
        result |= {
            "windows_read_at_once": len(branches.tokens),
            "branches_per_pass": per_pass,
            "flops_per_span": sum(flops.values()) / in_window,
        }
        kept = {start for n in range(1, MOST_LOOP_SPANS + 1) for start in spread(branches.starts, n)}
    else:
        cached = variant == "cached"
        few = Branches(branches.tokens[:1], spread(branches.starts, spans), branches.horizon)
        list(loop(teacher, gistnet, Branches(warm_up.tokens[:1], warm_up.starts[:2], few.horizon), cached=cached))
        reset_peak(device)
        kls, seconds = timed(lambda: list(loop(teacher, gistnet, few, cached=cached)), device)
        # The original forward serves all spans of the window, not only those timed.
        once = timed(lambda: teacher.read_windows(few.tokens), device)[1] if cached else 0.0
        per_span, kl = (seconds - once) / len(few) + once / in_window, dict(zip(few.starts, kls, strict=True))
        kept = set(few.starts)
    return result | {
        "seconds_per_span": per_span,
        "spans_per_second": 1 / per_span,
        "spans_timed": len(kls),
        "peak_memory_megabytes": peak_megabytes(device),
        "kl": {str(start): kl[start] for start in sorted(kept)},
    }


def breakdown(branches: Branches, teacher: Teacher, gistnet: GistNet) -> dict[str, dict[str, float]]:
    """Seconds per span of the engine's parts and the operations a second of each, on one pass of branches.

    The branches of the pass are taken evenly from all over the window, since those further on cost more.
    """
    device, per_pass = teacher.device.type, branches_per_pass(teacher, gistnet, branches)
    starts = spread(branches.starts, max(1, per_pass // len(branches.tokens)))
    few = Branches(branches.tokens, starts, branches.horizon)
    _marks(teacher, gistnet, warm_up_branches(few, device))
    marks = _marks(teacher, gistnet, few)
    flops = engine_flops(TeacherSize.of(teacher), gistnet, branches.tokens.shape[1], starts, few.horizon)
    parts = {}
    for (name, operations), (before, after) in zip(flops.items(), itertools.pairwise(marks), strict=True):
        spans = len(branches) if name == "document pass" else len(few)
        parts[name] = {
            "seconds_per_span": (after - before) / spans,
            "flops_per_second": operations * len(few.tokens) / (after - before),
        }
    return parts


def _marks(teacher: Teacher, gistnet: GistNet, branches: Branches) -> list[float]:
    """The times before, between and after the engine's parts, in the order of `engine_flops`."""
    device, objective, stretches = teacher.device.type, ObjectiveConfig(), branches.stretches()
    marks = [now(device)]
    read = teacher.read_windows(branches.tokens)
    marks.append(now(device))
    gists = encode(gistnet, teacher, stretches.replaced)
    marks.append(now(device))
    stand_ins = gist_stand_ins(stretches, gists.detach().requires_grad_(), objective.positions)
    hidden = replaced_hidden(teacher, read, stretches, stand_ins)
    marks.append(now(device))
    original = stretches.original_hidden(read)
    losses = token_losses(teacher, original, hidden, stretches.targets, chunk_tokens=objective.chunk_tokens)
    marks.append(now(device))
    losses.kl.sum().backward()
    marks.append(now(device))
    assert stand_ins.vectors.grad is not None
    gists.backward(stand_ins.vectors.grad)
    marks.append(now(device))
    return marks


def equality(teacher: Teacher, gistnet: GistNet, window: int) -> dict[str, float]:
    """Largest differences of loop and engine in float32, on three spans from all over one window."""
    horizon = 32
    branches = Branches(read_text(teacher, 1, window), spread(all_starts(window, horizon), 3), horizon)
    kl_loop = list(loop(teacher, gistnet, branches, cached=False))
    gradient_loop = take_gradient(gistnet)
    kl_engine = engine(teacher, gistnet, branches, len(branches))
    gradient_engine = take_gradient(gistnet)
    return {
        "window": window,
        "kl_difference_nats": float((torch.tensor(kl_loop) - torch.tensor(kl_engine)).abs().max()),
        "gradient_relative_difference": float((gradient_loop - gradient_engine).norm() / gradient_loop.norm()),
    }


def take_gradient(gistnet: GistNet) -> torch.Tensor:
    """The gradient of all trained parameters as one vector, on the CPU; afterwards there is none."""
    gradients = [p.grad.flatten() for p in gistnet.parameters() if p.grad is not None]
    gistnet.zero_grad()
    return torch.cat(gradients).cpu()


def warm_up_branches(branches: Branches, device: str) -> Branches:
    """What to run before timing branches: on a GPU the same, since kernels are tuned to sizes.

    On a CPU two branches of a short window are enough to load and allocate what it needs.
    """
    if device == "cuda":
        return branches
    tokens = branches.tokens[:1, :512]
    return Branches(tokens, all_starts(tokens.shape[1], branches.horizon)[:2], branches.horizon)
