"""Packed engine and spec loop: seconds a span, where they go, and that both agree. Cost of a context."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig

from benchmarks.flops import TeacherSize, engine_flops
from benchmarks.machine import now, peak_megabytes, reset_peak, timed
from benchmarks.workload import Branches, all_starts, build_gistnet, build_teacher, engine, loop, read_text, spread
from gistnet.context.assembly import Context, continue_context
from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import GistNet
from gistnet.model.prefix_attention import largest_difference_of_kernels
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import gist_replacements, replaced_hidden
from gistnet.objective.config import ObjectiveConfig
from gistnet.objective.losses import largest_difference_of_kernel, token_losses

ENGINE_REPEATS = {"cpu": 1, "cuda": 3}
MOST_LOOP_SPANS = 8
"""KL of the engine is kept for the spans that a loop of up to so many would be timed on."""


def measure_engine(branches: Branches, teacher: Teacher, gistnet: GistNet, branches_per_pass: int) -> dict[str, Any]:
    """Time the engine on all branches, after a warm-up."""
    device = teacher.device.type
    engine(teacher, gistnet, warm_up_branches(branches, device), branches_per_pass)
    reset_peak(device)
    kls, seconds = timed(
        lambda: engine(teacher, gistnet, branches, branches_per_pass), device, repeats=ENGINE_REPEATS[device]
    )
    window, starts = branches.tokens.shape[1], branches.starts
    flops = engine_flops(TeacherSize.of(teacher), gistnet, window, starts, branches.horizon)
    kept = sorted({start for count in range(1, MOST_LOOP_SPANS + 1) for start in spread(starts, count)})
    return {
        "windows_read_at_once": len(branches.tokens),
        "branches_per_pass": branches_per_pass,
        "flops_per_span": sum(flops.values()) / len(starts),
        **_timing(seconds / len(branches), len(branches), device),
        "kl": {str(start): kls[starts.index(start)] for start in kept},
    }


def measure_loop(branches: Branches, teacher: Teacher, gistnet: GistNet, *, cached: bool, spans: int) -> dict[str, Any]:
    """Time the spec's loop on so many spans, evenly over the first window, after a warm-up."""
    device = teacher.device.type
    few = Branches(branches.tokens[:1], spread(branches.starts, spans), branches.horizon)
    warm_up = warm_up_branches(branches, device)
    list(loop(teacher, gistnet, Branches(warm_up.tokens[:1], warm_up.starts[:2], few.horizon), cached=cached))
    reset_peak(device)
    kls, seconds = timed(lambda: list(loop(teacher, gistnet, few, cached=cached)), device)
    # The original forward serves all spans of the window, not only those timed.
    once = timed(lambda: teacher.prefill(few.tokens), device)[1] if cached else 0.0
    per_span = (seconds - once) / len(few) + once / len(branches.starts)
    kl = {str(start): value for start, value in zip(few.starts, kls, strict=True)}
    return {**_timing(per_span, len(few), device), "kl": kl}


def _timing(seconds_per_span: float, spans: int, device: str) -> dict[str, float]:
    return {
        "seconds_per_span": seconds_per_span,
        "spans_per_second": 1 / seconds_per_span,
        "spans_timed": spans,
        "peak_memory_megabytes": peak_megabytes(device),
    }


def warm_up_branches(branches: Branches, device: str) -> Branches:
    """Branches to run before others are timed: on a GPU the same ones, since kernels are tuned to sizes.

    On a CPU two branches of a short window are enough to load and allocate what is needed.
    """
    if device == "cuda":
        return branches
    tokens = branches.tokens[:1, :512]
    return Branches(tokens, all_starts(tokens.shape[1], branches.horizon)[:2], branches.horizon)


def breakdown(
    branches: Branches, teacher: Teacher, gistnet: GistNet, branches_per_pass: int
) -> dict[str, dict[str, float]]:
    """Seconds a span of the engine's parts, and the operations a second of each, on one pass of branches.

    The branches of the pass are taken evenly from all over the window, since those further on cost more.
    """
    device = teacher.device.type
    starts = spread(branches.starts, max(1, branches_per_pass // len(branches.tokens)))
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
    device, objective, segments = teacher.device.type, ObjectiveConfig(), branches.segments()
    marks = [now(device)]
    read = teacher.prefill(branches.tokens)
    marks.append(now(device))
    gists = SpanEncoder(teacher, gistnet).encode(segments.replaced)
    marks.append(now(device))
    replacements = gist_replacements(segments, gists.detach().requires_grad_(), objective.positions)
    hidden = replaced_hidden(teacher, read, segments, replacements)
    marks.append(now(device))
    original = segments.original_hidden(read)
    losses = token_losses(teacher, original, hidden, segments.targets)
    marks.append(now(device))
    losses.kl.sum().backward()
    marks.append(now(device))
    assert replacements.vectors.grad is not None
    gists.backward(replacements.vectors.grad)
    marks.append(now(device))
    return marks


Outcome = tuple[Tensor, Tensor]
"""KL of each span, nats, and GistNet's gradient as one vector, both on the CPU."""


def outcome(variant: str, branches: Branches, teacher: Teacher, gistnet: GistNet) -> Outcome:
    """KL and gradient by "engine" or "loop"; GistNet has no gradient afterwards."""
    if variant == "engine":
        kls = engine(teacher, gistnet, branches, len(branches))
    else:
        kls = list(loop(teacher, gistnet, branches, cached=False))
    gradients = [p.grad.flatten() for p in gistnet.parameters() if p.grad is not None]
    gistnet.zero_grad()
    return torch.tensor(kls), torch.cat(gradients).cpu()


def difference(found: Outcome, expected: Outcome) -> dict[str, float]:
    """Largest difference of a span's KL, and norm of the gradient's difference over its norm."""
    return {
        "kl_difference_nats": float((found[0] - expected[0]).abs().max()),
        "gradient_relative_difference": float((found[1] - expected[1]).norm() / expected[1].norm()),
    }


def equality(teacher: Teacher, gistnet: GistNet, window: int) -> dict[str, float]:
    """Differences of engine and loop on three spans from all over one window; use float32."""
    horizon = 32
    branches = Branches(read_text(teacher, 1, window), spread(all_starts(window, horizon), 3), horizon)
    one, other = (outcome(variant, branches, teacher, gistnet) for variant in ("engine", "loop"))
    return {"window": window, **difference(one, other)}


def equality_of_devices(teacher_name: str, device: str, window: int) -> dict[str, Any]:
    """Differences between a device and the CPU, and between engine and loop, on 16 spans of two windows.

    In float32 the engine on the device is compared with the engine on the CPU, and with the loop on the device
    (transformers' own attention). In bfloat16 engine and loop are each compared with the float32 result of the CPU:
    neither should be farther off than the other.
    """
    spans, horizon = 8, 32
    teacher = build_teacher(teacher_name, "float32", "cpu")
    gistnet = build_gistnet(teacher)

    def run(variant: str) -> Outcome:
        branches = Branches(read_text(teacher, 2, window), spread(all_starts(window, horizon), spans), horizon)
        return outcome(variant, branches, teacher, gistnet)

    on_cpu = run("engine")
    teacher.model.to(device)
    gistnet.to(device)
    float32 = {variant: run(variant) for variant in ("engine", "loop")}
    teacher.model.to(torch.bfloat16)
    bfloat16 = {variant: run(variant) for variant in ("engine", "loop")}
    return {
        "window": window,
        "spans": 2 * spans,
        "mean_kl_nats": float(on_cpu[0].mean()),
        "engine, float32 - engine, cpu": difference(float32["engine"], on_cpu),
        "engine, float32 - loop, float32": difference(float32["engine"], float32["loop"]),
        "engine, bfloat16 - engine, cpu": difference(bfloat16["engine"], on_cpu),
        "loop, bfloat16 - engine, cpu": difference(bfloat16["loop"], on_cpu),
    }


def differences_of_kernels(device: str) -> dict[str, float | str]:
    """Difference of each GPU kernel from plain PyTorch, as a share of the largest entry; or the error it ended in."""
    cases: dict[str, Callable[[], float]] = {}
    for dtype in (torch.bfloat16, torch.float32):
        format_name = str(dtype).removeprefix("torch.")
        for width in (64, 128):  # of the heads of SmolLM2-135M and SmolLM3-3B
            attention = partial(largest_difference_of_kernels, dtype, width, torch.device(device))
            cases[f"branch attention, {format_name}, heads of {width}"] = attention
        cases[f"losses, {format_name}"] = partial(largest_difference_of_kernel, dtype, torch.device(device))
    found: dict[str, float | str] = {}
    for name, measure in cases.items():
        try:
            found[name] = measure()
        except Exception as error:  # the other kernels are tried all the same
            found[name] = f"{type(error).__name__}: {error}"
    return found


def measure_context(teacher: Teacher, context: Context, new_tokens: int = 32) -> dict[str, Any]:
    """Bytes of a context's keys and values, seconds to the first new token, and tokens a second after it."""

    def write(count: int) -> Cache:
        settings = GenerationConfig(max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
        return continue_context(teacher, context, settings)[1]

    write(2)  # warms up
    _, first = timed(partial(write, 1), teacher.device.type)
    cache, all_seconds = timed(partial(write, new_tokens), teacher.device.type)
    stored = [part[..., : len(context), :] for layer in cache.layers for part in (layer.keys, layer.values)]
    return {
        "vectors": len(context),
        "kv_bytes": sum(part.numel() * part.element_size() for part in stored),
        "first_token_seconds": first,
        "tokens_per_second": (new_tokens - 1) / (all_seconds - first),
    }
