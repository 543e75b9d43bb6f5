"""Tokens a second that GistNet compresses by itself, against the teacher's own prefill of the same tokens, in one run.

    python benchmarks/compression.py                                  the embedded teacher (three minutes on two cores)
    python benchmarks/compression.py --teacher smollm3-3b-shape       the large one's shape (better on a GPU)
    python benchmarks/compression.py --smoke --teacher tiny-shape --out FILE     only shows that it runs

GistNet: token ids to gists, without gradient, in the teacher's number format, for each architecture and for batches of
more and more spans. Prefill: one pass of the teacher over windows of tokens, its keys and values kept, the head left
out; the best of a few batches counts, so that the comparison flatters no one. On a GPU the largest batch is also timed
with `torch.compile`. Results: benchmarks/results/compression-cpu.json or compression-cuda.json.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.flops import TeacherSize
from benchmarks.machine import describe_machine, peak_megabytes, reset_peak, timed
from benchmarks.workload import EMBEDDED_TEACHER, SPAN, TEACHERS, build_gistnet, build_teacher, read_text
from gistnet.files import write_json
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.objective import encoding_precision

RESULTS = Path(__file__).parent / "results"
ARCHITECTURES = ("bottleneck", "full", "teacher_lora")
BATCHES = {"smoke": (4, 8), "cpu": (16, 64, 256, 1024), "cuda": (64, 256, 1024, 4096, 16384)}
"""Spans in a batch."""
PREFILLS = {"smoke": ((1, 64),), "cpu": ((1, 2048), (4, 512)), "cuda": ((4, 4096), (16, 4096), (64, 1024))}
"""Windows read at once, and their tokens."""
REPEATS = {"smoke": 1, "cpu": 3, "cuda": 10}


@torch.no_grad()
def measure_prefill(teacher: Teacher, scale: str) -> dict[str, float]:
    """Tokens a second of the teacher's pass over windows, in the best of the scale's batches; operations a token."""
    device, best = teacher.device.type, {"tokens_per_second": 0.0, "flops_per_token": 0.0}
    for windows, tokens in PREFILLS[scale]:
        text = read_text(teacher, windows, tokens)
        teacher.read_windows(text[:1])
        _, seconds = timed(partial(teacher.read_windows, text), device, REPEATS[scale])
        if text.numel() / seconds > best["tokens_per_second"]:
            flops = TeacherSize.of(teacher).read(tokens) / tokens
            best = {"tokens_per_second": text.numel() / seconds, "flops_per_token": flops}
    return best


def measure_gistnet(teacher: Teacher, gistnet: GistNet, spans: int, scale: str, *, compiled: bool) -> dict[str, Any]:
    """Tokens a second that become gists, in batches of so many spans.

    Args:
        compiled: whether `torch.compile` is given the network; compiling is not timed.
    """
    device, forward = teacher.device.type, torch.compile(gistnet) if compiled else gistnet
    text = read_text(teacher, spans, SPAN)
    action = encoding(teacher, forward, text)
    action()
    reset_peak(device)
    _, seconds = timed(action, device, REPEATS[scale])
    budget = gistnet.parameter_budget()
    return {
        "architecture": gistnet.config.architecture,
        "spans": spans,
        "compiled": compiled,
        "tokens_per_second": text.numel() / seconds,
        "flops_per_token": budget.flops_per_span / SPAN,
        "peak_memory_megabytes": peak_megabytes(device),
    }


def encoding(teacher: Teacher, forward: Callable[[Tensor], Tensor], text: Tensor) -> Callable[[], Tensor]:
    """What is timed: token ids `[spans, K]` to gists `[spans, dim]`, without gradient."""

    @torch.no_grad()
    def encode_all() -> Tensor:
        with encoding_precision(teacher):
            return forward(teacher.embed(text))

    return encode_all


def compression(teacher: Teacher, scale: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A line to print and the results so far, after the prefill and after each batch of each architecture."""
    prefill = measure_prefill(teacher, scale)
    content: dict[str, Any] = {"machine": describe_machine(), "teacher": teacher.name, "gistnet": []}
    content |= {f"prefill_{name}": value for name, value in prefill.items()}
    yield f"the teacher's prefill: {prefill['tokens_per_second']:,.0f} tokens/s", content
    for architecture in ARCHITECTURES:
        gistnet = build_gistnet(teacher, architecture).eval()
        cases = [(spans, False) for spans in BATCHES[scale]]
        cases += [(BATCHES[scale][-1], True)] if teacher.device.type == "cuda" else []
        for spans, compiled in cases:
            row = measure_gistnet(teacher, gistnet, spans, scale, compiled=compiled)
            row["times_prefill"] = row["tokens_per_second"] / prefill["tokens_per_second"]
            content["gistnet"].append(row)
            described = f"{architecture:>12} {spans:5} spans a batch{', compiled' if compiled else ''}"
            yield (
                f"{described}: {row['tokens_per_second']:,.0f} tokens/s, {row['times_prefill']:.1f} times the prefill",
                content,
            )


def main() -> None:
    """Measure, print, and keep all so far after each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", choices=TEACHERS, default=EMBEDDED_TEACHER)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--smoke", action="store_true", help="two tiny batches")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / f"compression-{arguments.device}.json"
    teacher = build_teacher(arguments.teacher, "bfloat16", arguments.device)
    for line, content in compression(teacher, "smoke" if arguments.smoke else arguments.device):
        print(line, flush=True)
        write_json(out, content)


if __name__ == "__main__":
    main()
