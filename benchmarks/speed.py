"""Speed of training and compressing, in one run on one machine.

    python benchmarks/speed.py engine --quick                       window 4096, H = 32 (four minutes on two cores)
    python benchmarks/speed.py engine                               window 4096, H = 32, 64 and 128 (15 minutes)
    python benchmarks/speed.py engine --windows 16384 --spans 1     an hour
    python benchmarks/speed.py sweep                                12 minutes on two cores
    python benchmarks/speed.py compression                          three minutes
    python benchmarks/speed.py processes                            ten minutes
    python benchmarks/speed.py context                              five minutes
    python benchmarks/speed.py equality --device cuda               a minute

    engine       three ways to the same losses and gradients, GistNet's own cost included: `loop`, the spec's loop (per
                 span an original forward, a replaced forward, a backward); `cached`, with one original forward a
                 window; `engine`, one prefill of the window, then all of its spans as packed branches. `equality`
                 compares loop and engine in float32, `breakdown` times the engine's parts, `ceiling` large matrix
                 products in bfloat16 on all cores, of which model FLOP utilisation is the engine's share
                 (benchmarks/flops.py)
    sweep        cost and memory of the engine as windows, horizons, spans per window and branches per pass grow
    compression  token ids to gists without gradient, by architecture and batch, against the best of the teacher's own
                 prefills (keys and values kept, no head)
    processes    training through the real command: one process with all cores, several that share them, and both with
                 `teacher.compile`; CPU only
    context      memory of keys and values, time to the first token and tokens a second after contexts of all of a
                 document's tokens and of ever fewer vectors
    equality     the engine on this device against the CPU and against the loop, and each kernel against PyTorch

No variant computes logits anywhere but at the horizon, and all use the same fused loss. The loops are timed on a few
spans, evenly over the window, since all of theirs cost the same. On a CPU each part of `engine` and `sweep` runs in a
process of its own, so that its peak memory is its own; on a GPU, where the peak can be reset, one process runs all.

`engine` adds to what its file holds (`--restart` begins it anew), so that a long run can be cut into parts:
`--parts engine breakdown`, then `--parts loop`.

Results: benchmarks/results/NAME-cpu.json or NAME-cuda.json.
"""

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`


from benchmarks import machine, measurements, workload
from benchmarks.flops import TeacherSize
from gistnet.context.assembly import assemble
from gistnet.context.plan import Plan, Raw
from gistnet.evaluation.contexts.equal_budget import gist_plan
from gistnet.files import write_json
from gistnet.machine import describe_machine
from gistnet.model.encoder import encoding_precision
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.tree.document import compress
from gistnet.tree.gist_encoder import GistEncoder

Arguments = argparse.Namespace

# Engine against the spec's loop ---------------------------------------------------------------------------------------

PARTS = ("ceiling", "equality", "engine", "breakdown", "cached", "loop")
LOOP_SPANS = {"cpu": 3, "cuda": 8}
BRANCHES_PER_PASS = {"cpu": 64, "cuda": 256}


def run_engine(asked: Arguments) -> None:
    """Measure parts one after another; print and keep what is known after each."""
    results = EngineResults(asked.out, asked.teacher, restart=asked.restart or asked.quick)
    cases = list(itertools.product(asked.windows, asked.horizons))
    wanted = [(part, 0, 0) for part in PARTS[:2]] + [(part, *case) for case in cases for part in PARTS[2:]]
    for part, window, horizon in wanted:
        if part not in asked.parts:
            continue
        measured = isolated(asked, engine_part, part, window, horizon, asked)
        where = f"window {window} H {horizon} {part}" if window else part
        if measured is None:
            print(f"{where}: does not fit", flush=True)
            continue
        results.add(part, window, horizon, measured)
        shown = {k: v for k, v in measured.items() if k != "kl"} if isinstance(measured, dict) else measured
        print(f"{where}: {machine.in_short(shown)}", flush=True)
    for case in cases:
        print(results.describe(*case), flush=True)


def isolated(asked: Arguments, action: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a process of its own on a CPU, in this one on a GPU; None where the memory of a GPU does not suffice."""
    if asked.device == "cpu" and not asked.smoke:
        return machine.in_own_process(action, *arguments)
    try:
        return action(*arguments)
    except torch.OutOfMemoryError:
        workload.load_models.cache_clear()
        torch.cuda.empty_cache()
        return None


def engine_part(part: str, window: int, horizon: int, asked: Arguments) -> Any:
    """Measure one of `PARTS` in this process."""
    if part == "ceiling":
        return machine.matmul_ceiling(asked.device)
    precision = "float32" if part == "equality" else "bfloat16"
    teacher, gistnet = workload.load_models(asked.teacher, precision, asked.device)
    gistnet.zero_grad()
    if part == "equality":
        # A window of 1024 of the large teacher, in float32, would be too much for a CPU.
        return measurements.equality(teacher, gistnet, 256 if asked.teacher == workload.SMOLLM3_SHAPE else 1024)
    branches = workload.cut_windows(teacher, window, horizon)
    if part == "engine":
        return measurements.measure_engine(branches, teacher, gistnet, asked.branches_per_pass)
    if part == "breakdown":
        return measurements.breakdown(branches, teacher, gistnet, asked.branches_per_pass)
    return measurements.measure_loop(branches, teacher, gistnet, cached=part == "cached", spans=asked.spans)


class EngineResults:
    """Results of one teacher within a file, parts of which may be measured at different times on one machine.

    The file has `machine`, `matmul_flops_per_second`, and under `teachers` for each its `float32_equality` and `cases`:
    one for each window and horizon, with what has been measured of it and the ratios that follow.

    Args:
        restart: forget what the file holds.
    """

    def __init__(self, path: Path, teacher: str, *, restart: bool = False) -> None:
        self.path = path
        self.content: dict[str, Any] = {"machine": describe_machine(), "teachers": {}}
        if path.exists() and not restart:
            self.content = json.loads(path.read_text())
            if self.content.get("machine") != describe_machine():
                raise SystemExit(f"{path} is of another machine: name another file with --out, or --restart.")
        self.of_teacher: dict[str, Any] = self.content["teachers"].setdefault(teacher, {"cases": []})

    def add(self, part: str, window: int, horizon: int, measured: Any) -> None:
        """Keep a part, in place of an earlier measurement; window and horizon are 0 where it holds for all cases."""
        if part == "ceiling":
            self.content["matmul_flops_per_second"] = measured
        elif part == "equality":
            self.of_teacher["float32_equality"] = measured
        else:
            case = self.case(window, horizon)
            case[part] = measured
            case |= self._ratios(case)
        write_json(self.path, self.content)

    def case(self, window: int, horizon: int) -> dict[str, Any]:
        """Results of a window and horizon; a new case where there are none."""
        cases: list[dict[str, Any]] = self.of_teacher["cases"]
        for case in cases:
            if (case["window"], case["horizon"]) == (window, horizon):
                return case
        cases.append({"window": window, "horizon": horizon})
        cases.sort(key=lambda case: (case["window"], case["horizon"]))
        return self.case(window, horizon)

    def describe(self, window: int, horizon: int) -> str:
        """The ratios of a case that are known, as lines to print; the last is the speedup over the loop."""
        case = self.case(window, horizon)
        lines = {
            "model_flop_utilisation": "model FLOP utilisation {:.1%} of the ceiling",
            "kl_difference_nats": "bfloat16 KL differs by {:.1e} nats at most",
            "speedup_over_cached": "speedup over cached {:.1f}",
            "speedup_over_loop": "speedup {:.1f}",
        }
        return "\n".join(line.format(case[name]) for name, line in lines.items() if name in case)

    def _ratios(self, case: dict[str, Any]) -> dict[str, float]:
        ratios: dict[str, float] = {}
        if "engine" not in case:
            return ratios
        ours = case["engine"]
        for variant in ("loop", "cached"):
            if variant in case:
                ratios[f"speedup_over_{variant}"] = case[variant]["seconds_per_span"] / ours["seconds_per_span"]
        if "loop" in case and (shared := case["loop"]["kl"].keys() & ours["kl"].keys()):
            ratios["kl_difference_nats"] = max(abs(case["loop"]["kl"][start] - ours["kl"][start]) for start in shared)
        if ceiling := self.content.get("matmul_flops_per_second"):
            ratios["model_flop_utilisation"] = ours["flops_per_span"] / ours["seconds_per_span"] / ceiling
        return ratios


# Cost as things grow --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One setting of the engine.

    Attributes:
        window: tokens of a window.
        horizon: H, in tokens.
        spans: how many spans of each window are replaced, evenly over it.
        branches_per_pass: how many of them run through the teacher at once.
        tokens_at_once: of the windows that are read at once, one at least.
    """

    window: int
    horizon: int
    spans: int
    branches_per_pass: int
    tokens_at_once: int = 0


SERIES = {"windows": "window", "horizons": "horizon", "spans": "spans", "passes": "branches_per_pass"}
"""Series of points, and the field that varies in each."""
_MIDDLE = {"smoke": Point(256, 16, 4, 4), "cpu": Point(4096, 32, 64, 64), "cuda": Point(4096, 32, 126, 256, 32768)}
_WINDOWS, _HORIZONS, _SPANS = (512, 1024, 2048, 4096, 8192, 16384), (16, 32, 64, 128, 256), (1, 4, 16, 64, 126)
_VALUES: dict[str, dict[str, tuple[int, ...]]] = {
    "smoke": {"windows": (128, 256), "horizons": (8, 16), "spans": (1, 4), "passes": (2, 4)},
    "cpu": {"windows": _WINDOWS[:-1], "horizons": _HORIZONS[:-1], "spans": _SPANS, "passes": (4, 16, 64)},
    "cuda": {"windows": _WINDOWS, "horizons": _HORIZONS, "spans": _SPANS, "passes": (16, 64, 256, 1024)},
}


def points(series: str, scale: str) -> list[Point]:
    """Points of a series; the scale is a kind of device, or "smoke"."""
    middle = _MIDDLE[scale]
    if series == "spans":  # memory grows until they fill a pass: most points are to lie beyond
        middle = dataclasses.replace(middle, branches_per_pass=middle.branches_per_pass // 4)
    return [dataclasses.replace(middle, **{SERIES[series]: value}) for value in _VALUES[scale][series]]


def measure_point(teacher_name: str, device: str, point: Point) -> dict[str, Any]:
    """Seconds of the prefill and of the branches of a point, and the peak memory of both."""
    teacher, gistnet = workload.load_models(teacher_name, "bfloat16", device)
    starts, windows = workload.all_starts(point.window, point.horizon), max(1, point.tokens_at_once // point.window)
    tokens = workload.read_text(teacher, windows, point.window)
    branches = workload.Branches(tokens, workload.spread(starts, point.spans), point.horizon)
    workload.engine(teacher, gistnet, measurements.warm_up_branches(branches, device), point.branches_per_pass)
    machine.reset_peak(device)
    read, read_seconds = machine.timed(lambda: teacher.prefill(tokens), device)
    _, seconds = machine.timed(
        lambda: workload.engine(teacher, gistnet, branches, point.branches_per_pass, read), device
    )
    gistnet.zero_grad()
    per_branch, per_window = seconds / len(branches), read_seconds / windows
    return dataclasses.asdict(point) | {
        "spans": len(branches.starts),
        "document_pass_seconds": per_window,
        "branch_seconds": per_branch,
        "seconds_per_span": per_branch + per_window / len(branches.starts),
        "seconds_per_span_with_all_spans": per_branch + per_window / len(starts),
        "peak_memory_megabytes": machine.peak_megabytes(device),
    }


def run_sweep(asked: Arguments) -> None:
    """Measure every point, print it, and keep all so far after each."""
    content: dict[str, Any] = {"machine": describe_machine(), "teacher": asked.teacher, "series": {}}
    for series in asked.series:
        for point in points(series, "smoke" if asked.smoke else asked.device):
            figures = isolated(asked, measure_point, asked.teacher, asked.device, point)
            print(f"{series}: {machine.in_short(figures) if figures else f'{point} does not fit'}", flush=True)
            if figures:
                content["series"].setdefault(series, []).append(figures)
                write_json(asked.out, content)


# Compression ----------------------------------------------------------------------------------------------------------

ARCHITECTURES = ("bottleneck", "full", "teacher_lora")
BATCHES = {"smoke": (4, 8), "cpu": (16, 64, 256, 1024), "cuda": (64, 256, 1024, 4096, 16384)}
"""Spans in a batch."""
PREFILLS = {"smoke": ((1, 64),), "cpu": ((1, 2048), (4, 512)), "cuda": ((4, 4096), (16, 4096), (64, 1024))}
"""Windows read at once, and their tokens."""
REPEATS = {"smoke": 1, "cpu": 3, "cuda": 10}


def run_compression(asked: Arguments) -> None:
    """Measure the prefill, then each batch of each architecture; print, and keep all so far after each."""
    teacher = workload.build_teacher(asked.teacher, "bfloat16", asked.device)
    scale = "smoke" if asked.smoke else asked.device
    prefill = measure_prefill(teacher, scale)
    print(machine.in_short(prefill), flush=True)
    content: dict[str, Any] = {"machine": describe_machine(), "teacher": teacher.name, **prefill, "gistnet": []}
    for architecture in ARCHITECTURES:
        gistnet = workload.build_gistnet(teacher, architecture).eval()
        cases = [(spans, False) for spans in BATCHES[scale]]
        cases += [(BATCHES[scale][-1], True)] if asked.device == "cuda" else []
        for spans, compiled in cases:
            row = measure_gistnet(teacher, gistnet, spans, scale, compiled=compiled)
            row["times_prefill"] = row["tokens_per_second"] / prefill["prefill_tokens_per_second"]
            print(machine.in_short(row), flush=True)
            content["gistnet"].append(row)
            write_json(asked.out, content)


@torch.no_grad()
def measure_prefill(teacher: Teacher, scale: str) -> dict[str, float]:
    """Tokens a second of the teacher's prefill of windows, in the best of the scale's batches; operations a token."""
    device, best = teacher.device.type, {"prefill_tokens_per_second": 0.0}
    for windows, tokens in PREFILLS[scale]:
        text = workload.read_text(teacher, windows, tokens)
        teacher.prefill(text[:1])
        _, seconds = machine.timed(partial(teacher.prefill, text), device, REPEATS[scale])
        if text.numel() / seconds > best["prefill_tokens_per_second"]:
            flops = TeacherSize.of(teacher).read(tokens) / tokens
            best = {"prefill_tokens_per_second": text.numel() / seconds, "prefill_flops_per_token": flops}
    return best


def measure_gistnet(teacher: Teacher, gistnet: GistNet, spans: int, scale: str, *, compiled: bool) -> dict[str, Any]:
    """Tokens a second that become gists, in batches of so many spans.

    Args:
        compiled: whether `torch.compile` is given the network; compiling is not timed.
    """
    device, text = teacher.device.type, workload.read_text(teacher, spans, workload.SPAN)
    action = encoding(teacher, torch.compile(gistnet) if compiled else gistnet, text)
    action()
    machine.reset_peak(device)
    _, seconds = machine.timed(action, device, REPEATS[scale])
    return {
        "architecture": gistnet.config.architecture,
        "spans": spans,
        "compiled": compiled,
        "tokens_per_second": text.numel() / seconds,
        "flops_per_token": gistnet.parameter_budget().flops_per_span / workload.SPAN,
        "peak_memory_megabytes": machine.peak_megabytes(device),
    }


def encoding(teacher: Teacher, forward: Callable[[Tensor], Tensor], text: Tensor) -> Callable[[], Tensor]:
    """The action that is timed: token ids `[spans, K]` to gists `[spans, dim]`, without gradient."""

    @torch.no_grad()
    def encode_all() -> Tensor:
        with encoding_precision(teacher):
            return forward(teacher.embed(text))

    return encode_all


# Processes on a CPU ---------------------------------------------------------------------------------------------------

NOT_TIMED = 4
"""First steps, in which layers are compiled, and once more as shapes change."""


def run_processes(asked: Arguments) -> None:
    """Train with each way to use the cores, print the figures, keep them."""
    if asked.steps <= NOT_TIMED:
        raise SystemExit(f"Got {asked.steps} steps, expected more than the {NOT_TIMED} that are not timed.")
    cores = len(os.sched_getaffinity(0))
    ways = ((1, cores, False), (cores, 1, False), (1, cores, True), (cores, 1, True))
    content: dict[str, Any] = {"machine": describe_machine(), "steps": asked.steps, "cases": []}
    for processes, threads, compiled in ways[:1] if asked.smoke else ways:
        case = measure_processes(processes, threads, asked.steps, compiled=compiled, spans=1 if asked.smoke else 14)
        print(machine.in_short(case), flush=True)
        content["cases"].append(case)
        write_json(asked.out, content)


def measure_processes(processes: int, threads: int, steps: int, *, compiled: bool, spans: int) -> dict[str, Any]:
    """Spans a second of the later steps of the demo's GistNet, trained by `processes` of `threads` each.

    Validation, the start of the processes and compilation, whose time comes with the first steps, do not count.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"run_folder={folder}/run",
            f"train.steps={steps}",
            "train.log_every_steps=1",
            "train.windows_per_batch=4",
            f"train.segments_per_window={spans}",
            "train.validation.documents=4",
            "device=cpu",
            f"teacher.compile={str(compiled).lower()}",
        ]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), "-m", "gistnet.cli", "train"]
        command += ["--config", "configs/demo.yaml", *settings]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_CACHE_DIR": f"{folder}/compiled"}
        subprocess.run(command, check=True, cwd=machine.ROOT, env=environment, stdout=subprocess.DEVNULL)
        steps_seen = machine.seconds_of_steps(Path(folder) / "run")
    (_, seen_before, began), (loss, seen, ended) = steps_seen[NOT_TIMED - 1], steps_seen[-1]
    return {
        "processes": processes,
        "threads_per_process": threads,
        "compiled": compiled,
        "spans_per_second": (seen - seen_before) / (ended - began),
        "first_steps_seconds": began,
        "last_loss": loss,
    }


# Contexts -------------------------------------------------------------------------------------------------------------


def run_context(asked: Arguments) -> None:
    """Compress a document with an untrained `bottleneck`, which costs what a trained one does, and write after it."""
    teacher = workload.build_teacher(asked.teacher, "bfloat16", asked.device)
    encoder = GistEncoder(teacher, workload.build_gistnet(teacher, "bottleneck"))
    tokens = workload.read_text(teacher, 1, 512 if asked.smoke else 7850)[0].cpu().numpy()
    began = time.perf_counter()
    document = compress(tokens, encoder)
    content: dict[str, Any] = {"machine": describe_machine(), "teacher": asked.teacher, "tokens": len(tokens)}
    content |= {"compression_seconds": time.perf_counter() - began, "budgets": []}
    plans = {"full": Plan([Raw(0, len(tokens))], encoder.info.branchings)}
    for ratio in (2, 4, 8, 16, 32):
        plans[f"1/{ratio}"] = gist_plan(len(tokens), encoder.info.branchings, ratio, 4)
    for name, plan in plans.items():
        context = assemble(document, plan, teacher, positions="end")
        content["budgets"].append({"budget": name, **measurements.measure_context(teacher, context)})
        print(machine.in_short(content["budgets"][-1]), flush=True)
        write_json(asked.out, content)


# Equality of devices --------------------------------------------------------------------------------------------------


def run_equality(asked: Arguments) -> None:
    """Compare, print and keep; on a machine without a GPU this only shows that it runs."""
    found = measurements.equality_of_devices(asked.teacher, asked.device, 128 if asked.smoke else 1024)
    if asked.device == "cuda":
        found["kernels"] = measurements.differences_of_kernels(asked.device)
    print(machine.in_short(found))
    write_json(asked.out, {"machine": describe_machine(), "teacher": asked.teacher, **found})


# Command line ---------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> Arguments:
    """Read the command line, and fill in what depends on teacher and device."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--teacher", choices=workload.TEACHERS)
    shared.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    shared.add_argument("--smoke", action="store_true", help="tiny sizes in this process: only shows that it runs")
    shared.add_argument("--out", type=Path, help="the file of results")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    engine_command = commands.add_parser("engine", parents=[shared])
    engine_command.add_argument(
        "--quick", action="store_true", help="window 4096, H 32, loops on one span, no breakdown"
    )
    engine_command.add_argument("--windows", type=int, nargs="+", metavar="TOKENS")
    engine_command.add_argument("--horizons", type=int, nargs="+", metavar="H")
    engine_command.add_argument("--parts", nargs="+", choices=PARTS)
    engine_command.add_argument("--spans", type=int, help="on how many the loops are timed (3 on a CPU, 8 on a GPU)")
    engine_command.add_argument("--branches-per-pass", type=int, help="64 on a CPU, 256 on a GPU")
    engine_command.add_argument("--restart", action="store_true", help="forget what the file holds")
    sweep_command = commands.add_parser("sweep", parents=[shared])
    sweep_command.add_argument("--series", nargs="+", choices=list(SERIES), default=list(SERIES))
    processes_command = commands.add_parser("processes", parents=[shared])
    processes_command.add_argument("--steps", type=int, default=12)
    for name in ("compression", "context", "equality"):
        commands.add_parser(name, parents=[shared])
    asked = parser.parse_args(arguments)
    asked.teacher = asked.teacher or (workload.TINY_SHAPE if asked.smoke else workload.EMBEDDED_TEACHER)
    kind = "smoke-" if asked.smoke else ""
    if asked.command == "engine":
        kind = "quick-" if asked.quick else kind
        _complete_engine(asked)
    asked.out = asked.out or machine.RESULTS / f"{asked.command}-{kind}{asked.device}.json"
    return asked


def _complete_engine(asked: Arguments) -> None:
    large_on_cpu = asked.teacher == workload.SMOLLM3_SHAPE and asked.device == "cpu"
    window = 128 if asked.smoke else 512 if large_on_cpu else 4096
    asked.windows = asked.windows or [window]
    asked.horizons = asked.horizons or ([32] if asked.quick or asked.smoke or large_on_cpu else [32, 64, 128])
    asked.parts = asked.parts or [part for part in PARTS if part != "breakdown" or not asked.quick]
    asked.spans = asked.spans or (1 if asked.quick or asked.smoke else LOOP_SPANS[asked.device])
    asked.branches_per_pass = asked.branches_per_pass or BRANCHES_PER_PASS[asked.device]


RUN = {
    "engine": run_engine,
    "sweep": run_sweep,
    "compression": run_compression,
    "processes": run_processes,
    "context": run_context,
    "equality": run_equality,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    asked = parse(arguments)
    RUN[asked.command](asked)


if __name__ == "__main__":
    main()
