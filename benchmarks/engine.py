"""Spans per second of the packed engine against the spec's training loop, in one run, with the real teacher.

    python benchmarks/engine.py --quick     window 4096, H = 32 (under four minutes on two cores)
    python benchmarks/engine.py             windows 1024 and 4096, H = 32 and 128 (about 15 minutes)
    python benchmarks/engine.py --long      also windows of 16384, beyond the teacher's trained positions (an hour)

Three ways to the same losses and gradients, GistNet's own cost included in each:

    loop      per span: original forward, replaced forward over the whole window, backward (the spec's loop, corrected)
    cached    per span: replaced forward and backward; the original forward once per window
    engine    one pass over the window, then all of its spans as packed branches

None of them computes logits anywhere but at the horizon, and all use the same fused loss. Each runs in a process of its
own, so that its peak memory is its own. The loops are timed on a few spans, since all of theirs cost the same. Before
anything is timed, losses and GistNet's gradient are compared in float32 on the same spans of a window of 1024.
Results: benchmarks/results/engine-<machine>.json.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import describe_machine
from gistnet.memory import keep_freed_memory
from gistnet.model.gistnet import GistNet, GistNetConfig
from gistnet.model.teacher import Teacher, TeacherConfig
from gistnet.objective.branches import Stretches, gist_stand_ins, replaced_hidden
from gistnet.objective.losses import token_losses
from gistnet.objective.objective import ObjectiveConfig, branch_losses, encode
from gistnet.objective.reference import reference_original_hidden, reference_replaced_hidden

RESULTS = Path(__file__).parent / "results"
SPAN, SINK = 32, 4
BRANCHES_PER_PASS = 64


def text_window(teacher: Teacher, tokens: int) -> Tensor:
    """A window of real prose that every Python has, `[1, tokens]`."""
    from pydoc_data.topics import topics

    assert teacher.tokenizer is not None
    (ids,) = teacher.tokenizer.encode_batch(["\n".join(topics[name] for name in sorted(topics))])
    return torch.tensor(ids[:tokens], device=teacher.device)[None]


def all_starts(window: int, horizon: int) -> list[int]:
    """Every aligned start with room for the horizon."""
    return list(range(SINK, window - SPAN - horizon + 1, SPAN))


def stretches_at(tokens: Tensor, starts: list[int], horizon: int) -> Stretches:
    """The stretches of one window."""
    begins = torch.tensor(starts, device=tokens.device)
    return Stretches(tokens, torch.zeros_like(begins), begins, SPAN, 1, horizon)


def loop(teacher: Teacher, gistnet: GistNet, stretches: Stretches, *, cached: bool) -> Iterator[float]:
    """The spec's loop: yields the KL of each span after its backward pass."""
    original = None
    for branch in range(len(stretches.starts)):
        one = stretches_at(stretches.tokens, [int(stretches.starts[branch])], stretches.horizon)
        if cached and original is None:
            original = teacher.read_windows(stretches.tokens)
        states = one.original_hidden(original) if original else reference_original_hidden(teacher, one, 0)[None]
        gists = encode(gistnet, teacher, one.replaced)
        replaced = reference_replaced_hidden(teacher, one, gist_stand_ins(one, gists, "center"), 0)[None]
        kl = token_losses(teacher, states, replaced, one.targets).kl.mean()
        kl.backward()
        yield float(kl.detach())


def engine(teacher: Teacher, gistnet: GistNet, tokens: Tensor, starts: list[int], horizon: int) -> Iterator[float]:
    """The packed engine: yields the KL of each span after the backward pass of its pack."""
    read = teacher.read_windows(tokens)
    objective = ObjectiveConfig(horizon_tokens=horizon)
    for first in range(0, len(starts), BRANCHES_PER_PASS):
        stretches = stretches_at(tokens, starts[first : first + BRANCHES_PER_PASS], horizon)
        losses = branch_losses(teacher, gistnet, read, stretches, objective)
        losses.total.sum().backward()
        yield from losses.kl.tolist()


def build(precision: str, device: str) -> tuple[Teacher, GistNet]:
    """The real teacher, and a GistNet whose output is not its anchor, so that all of it has a gradient."""
    keep_freed_memory()
    teacher = Teacher.from_pretrained(TeacherConfig(precision=precision), device)
    gistnet = GistNet.build(GistNetConfig(architecture="full"), teacher)
    torch.nn.init.normal_(gistnet.w_out.weight, std=0.02, generator=torch.Generator(device).manual_seed(0))
    return teacher, gistnet


def measure(variant: str, window: int, horizon: int, spans: int, device: str) -> dict[str, Any]:
    """Time one variant in this process, after a warm-up on a short window."""
    teacher, gistnet = build("bfloat16", device)
    tokens = text_window(teacher, window)
    starts = all_starts(window, horizon)
    few = starts[:: max(1, len(starts) // spans)][:spans]
    short = all_starts(512, horizon)[:2]
    if variant == "engine":
        list(engine(teacher, gistnet, tokens[:, :512], short, horizon))
    else:
        list(loop(teacher, gistnet, stretches_at(tokens[:, :512], short, horizon), cached=variant == "cached"))
    began = time.perf_counter()
    if variant == "engine":
        kls = dict(zip(starts, engine(teacher, gistnet, tokens, starts, horizon), strict=True))
    else:
        stretches = stretches_at(tokens, few, horizon)
        kls = dict(zip(few, loop(teacher, gistnet, stretches, cached=variant == "cached"), strict=True))
    seconds = _now(device) - began
    once = 0.0
    if variant == "cached":  # the original forward serves all spans of the window, not only those timed
        began = time.perf_counter()
        teacher.read_windows(tokens)
        once = time.perf_counter() - began
    per_span = (seconds - once) / len(kls) + once / len(starts)
    return {
        "seconds_per_span": per_span,
        "spans_per_second": 1 / per_span,
        "spans_timed": len(kls),
        "peak_memory_megabytes": _peak_megabytes(device),
        "kl": {str(start): kls[start] for start in few},
    }


def breakdown(window: int, horizon: int, device: str) -> dict[str, float]:
    """Seconds per span of the engine's parts, on one pack of branches from all over the window."""
    teacher, gistnet = build("bfloat16", device)
    tokens = text_window(teacher, window)
    starts = all_starts(window, horizon)
    pack = starts[:: max(1, len(starts) // BRANCHES_PER_PASS)][:BRANCHES_PER_PASS]
    list(engine(teacher, gistnet, tokens[:, :512], all_starts(512, horizon)[:2], horizon))
    marks = [_now(device)]
    read = teacher.read_windows(tokens)
    marks.append(_now(device))
    stretches = stretches_at(tokens, pack, horizon)
    gists = encode(gistnet, teacher, stretches.replaced)
    marks.append(_now(device))
    stand_ins = gist_stand_ins(stretches, gists.detach().requires_grad_(), "center")
    hidden = replaced_hidden(teacher, read, stretches, stand_ins)
    marks.append(_now(device))
    losses = token_losses(teacher, stretches.original_hidden(read), hidden, stretches.targets)
    marks.append(_now(device))
    losses.kl.sum().backward()
    marks.append(_now(device))
    assert stand_ins.vectors.grad is not None
    gists.backward(stand_ins.vectors.grad)
    marks.append(_now(device))
    names = (
        "document pass",
        "GistNet forward",
        "branches forward",
        "head and loss",
        "branches backward",
        "GistNet backward",
    )
    seconds = dict(zip(names, (b - a for a, b in itertools.pairwise(marks)), strict=True))
    return {name: s / (len(starts) if name == "document pass" else len(pack)) for name, s in seconds.items()}


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def compare(device: str) -> dict[str, float]:
    """Largest differences of loop and engine in float32, on three spans of a window of 1024."""
    starts, horizon, sides = [4, 516, 900], 32, []
    for variant in ("loop", "engine"):
        teacher, gistnet = build("float32", device)
        tokens = text_window(teacher, 1024)
        if variant == "loop":
            kls = list(loop(teacher, gistnet, stretches_at(tokens, starts, horizon), cached=False))
        else:
            kls = list(engine(teacher, gistnet, tokens, starts, horizon))
        sides.append((torch.tensor(kls), torch.cat([p.grad.flatten() for p in gistnet.parameters()])))  # type: ignore[union-attr]
    (kl_loop, grad_loop), (kl_engine, grad_engine) = sides
    return {
        "kl_difference_nats": float((kl_loop - kl_engine).abs().max()),
        "gradient_relative_difference": float((grad_loop - grad_engine).norm() / grad_loop.norm()),
    }


def _peak_megabytes(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _in_own_process(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.engine", *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    """Compare, measure each case in processes of their own, print ratios, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--spans", type=int, default=3, help="spans on which the loops are timed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs=3, metavar=("VARIANT", "WINDOW", "H"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = arguments.device
    if arguments.only:
        variant, window, horizon = arguments.only
        if variant == "compare":
            print(json.dumps(compare(device)))
        elif variant == "breakdown":
            print(json.dumps(breakdown(int(window), int(horizon), device)))
        else:
            print(json.dumps(measure(variant, int(window), int(horizon), arguments.spans, device)))
        return
    cases = [(4096, 32)] if arguments.quick else [(1024, 32), (1024, 128), (4096, 32), (4096, 128)]
    cases += [(16384, 32), (16384, 128)] if arguments.long else []
    options = ("--device", device, "--spans", str(1 if arguments.quick else arguments.spans))
    equality = _in_own_process(*options, "--only", "compare", "0", "0")
    print(
        f"float32, loop against engine: KL differs by {equality['kl_difference_nats']:.1e} nats at most, "
        f"GistNet's gradient by {equality['gradient_relative_difference']:.1e} of its norm"
    )
    results = []
    for window, horizon in cases:
        case: dict[str, Any] = {"window": window, "horizon": horizon}
        for variant in ("engine", "cached", "loop"):
            case[variant] = _in_own_process(*options, "--only", variant, str(window), str(horizon))
        if not arguments.quick:
            parts = _in_own_process(*options, "--only", "breakdown", str(window), str(horizon))
            case["engine_seconds_per_span"] = parts
            described = ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in parts.items())
            print(f"where the engine's time goes at window {window}, H {horizon}, ms a span: {described}")
        kls = [[case[v]["kl"][start] for start in case["loop"]["kl"]] for v in ("loop", "engine")]
        case["kl_difference_nats"] = max(abs(a - b) for a, b in zip(*kls, strict=True))
        case["speedup_over_loop"] = case["loop"]["seconds_per_span"] / case["engine"]["seconds_per_span"]
        case["speedup_over_cached"] = case["cached"]["seconds_per_span"] / case["engine"]["seconds_per_span"]
        results.append(case)
        for variant in ("loop", "cached", "engine"):
            row = case[variant]
            print(
                f"window {window} H {horizon} {variant:>7}: {row['seconds_per_span']:8.3f} s a span, "
                f"{row['spans_per_second']:8.3f} spans/s, peak {row['peak_memory_megabytes']:7.0f} MB"
            )
        print(
            f"window {window} H {horizon}: {case['speedup_over_cached']:.1f}x over cached; bfloat16 KL differs by "
            f"{case['kl_difference_nats']:.1e} nats"
        )
        print(f"speedup {case['speedup_over_loop']:.1f}", flush=True)
    name = f"engine-{'quick-' if arguments.quick else ''}{device}.json"
    RESULTS.mkdir(exist_ok=True)
    content = {"machine": describe_machine(), "float32_equality": equality, "cases": results}
    (RESULTS / name).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
