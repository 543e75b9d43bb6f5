"""What lies past one machine: training on 10B tokens through SmolLM3-3B, and compressing 1T tokens, on 8 and 64 GPUs.

    python benchmarks/scaling_plan.py                          from what is in benchmarks/results, in seconds
    python benchmarks/scaling_plan.py --results FOLDER         from the results of `on_gpu.py`
    python benchmarks/scaling_plan.py --utilisation 0.25       with another assumption where nothing is measured

Prints a Markdown table for each. The last column says what a figure is: `counted` from shapes, `measured` here,
`extrapolated` from what was measured to another size or number, or `assumed`; what follows from several is as good as
the worst of them. Measured rates are taken where there are: engine-cuda.json (utilisation at the 3B shape, window 4096,
H = 32), compression-cuda.json (tokens a second), tree-cpu.json (bytes a row, and a writer's rate).
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.fitted import memory_of_step
from benchmarks.flops import TeacherSize, engine_flops, loop_flops
from benchmarks.workload import SMOLLM3_SHAPE, all_starts, build_teacher, spread
from gistnet.model.gistnet import GistNet, GistNetConfig
from gistnet.model.teacher import Teacher

RESULTS = Path(__file__).parent / "results"
GPUS = (8, 64)
WINDOW, HORIZON, SPAN = 4096, 32, 32
TRAINING_TOKENS, COMPRESSED_TOKENS = 10_000_000_000, 1_000_000_000_000
WINDOWS_PER_STEP = 64
BRANCHES_PER_PASS = 256
GPUS_OF_A_MACHINE = 8
BASES = ("counted", "measured", "extrapolated", "assumed")
"""What a figure can be, the surest first."""

Row = tuple[str, list[str], str]
"""What it is, its value for each number of GPUs, and its basis."""


def worst(*bases: str) -> str:
    """The basis of what follows from figures of several."""
    return max(bases, key=BASES.index)


@dataclass(frozen=True)
class Rate:
    """A figure that the plan rests on, and its basis."""

    value: float
    basis: str


@dataclass(frozen=True)
class Rates:
    """All that the plans rest on and that cannot be counted.

    Attributes:
        ceiling: floating-point operations a second of a GPU's large matrix products in bfloat16.
        utilisation: the engine's share of it at the 3B shape.
        compression: tokens a second that one GPU compresses with a GistNet of the 3B teacher.
        token_bytes: bytes on disk of a token of the tree.
        row_overhead: bytes on disk of a gist besides its vector: document, index, date, checksum.
        writer: bytes a second that one writer appends to a tree.
        node_link, cluster_link: bytes a second between GPUs of one machine, and of a GPU to other machines.
    """

    ceiling: Rate
    utilisation: Rate
    compression: Rate
    token_bytes: Rate
    row_overhead: Rate
    writer: Rate
    node_link: Rate = Rate(300e9, "assumed")
    cluster_link: Rate = Rate(25e9, "assumed")

    @classmethod
    def read(
        cls, results: Path, *, teacher: Teacher, ceiling: float, utilisation: float, compression: float
    ) -> "Rates":
        """Measured rates where the folder has them, and the given assumptions where not.

        Args:
            teacher: of the plan; what was measured with a smaller one is scaled to it.
            compression: tokens a second with a teacher of the hidden size of SmolLM2-135M, 576.
        """
        engine, gists = (_load(results / f"{name}-cuda.json") for name in ("engine", "compression"))
        peak, share = Rate(ceiling, "assumed"), Rate(utilisation, "assumed")
        if engine:
            peak = Rate(engine.get("matmul_flops_per_second", ceiling), "measured")
            for case in engine["teachers"].get(SMOLLM3_SHAPE, {}).get("cases", ()):
                if (case["window"], case["horizon"]) == (WINDOW, HORIZON) and "model_flop_utilisation" in case:
                    share = Rate(case["model_flop_utilisation"], "measured")
        # A narrow GistNet spends its time on reading embeddings, so that time goes with their width.
        speed = Rate(compression * 576 / teacher.hidden_size, "assumed")
        rows = [row for row in (gists or {}).get("gistnet", ()) if row["architecture"] == "bottleneck"]
        if gists and rows:
            measured = max(row["tokens_per_second"] for row in rows)
            same = gists["teacher"] == SMOLLM3_SHAPE
            factor = 1.0 if same else 576 / teacher.hidden_size
            speed = Rate(measured * factor, "measured" if same else "extrapolated")
        tree = _load(results / "tree-cpu.json") or _load(RESULTS / "tree-cpu.json")
        assert tree is not None, "benchmarks/results has a tree-cpu.json"
        book, level = tree["compress"], tree["compress"]["levels"][0]
        row = level["bytes"] / level["gists"]
        token = book["token_bytes"] / book["tokens"]
        large = tree["large"]
        written = large["tokens"] * (token + row / SPAN + row / SPAN**2)
        return cls(
            ceiling=peak,
            utilisation=share,
            compression=speed,
            token_bytes=Rate(token * 17 / 16, "extrapolated"),  # 128,256 ids take 17 bits, 49,152 take 16
            row_overhead=Rate(row - 2 * 576, "measured"),
            writer=Rate(written / large["build_seconds"], "measured"),
        )


def _load(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def training_plan(teacher: Teacher, gistnet: GistNet, rates: Rates, spans_per_window: int) -> list[Row]:
    """Training on `TRAINING_TOKENS` tokens of windows, by number of GPUs.

    Args:
        spans_per_window: how many spans of each window are replaced, evenly over it.
    """
    windows, both = TRAINING_TOKENS // WINDOW, len(GPUS)
    size, starts = TeacherSize.of(teacher), spread(all_starts(WINDOW, HORIZON), spans_per_window)
    flops = sum(engine_flops(size, gistnet, WINDOW, starts, HORIZON).values())
    in_loop = len(starts) * loop_flops(size, gistnet, window=WINDOW, horizon=HORIZON)
    rate, basis = rates.ceiling.value * rates.utilisation.value, worst(rates.ceiling.basis, rates.utilisation.basis)
    steps, whole = windows // WINDOWS_PER_STEP, worst(basis, "extrapolated")
    step_seconds = [flops * WINDOWS_PER_STEP / (rate * gpus) for gpus in GPUS]
    gradient = 4 * gistnet.parameter_budget().trained
    sent = [2 * gradient * (gpus - 1) / gpus for gpus in GPUS]  # in a ring, by each GPU; it receives as much
    links = [rates.node_link if gpus <= GPUS_OF_A_MACHINE else rates.cluster_link for gpus in GPUS]
    shares = [bytes_ / link.value / step for bytes_, link, step in zip(sent, links, step_seconds, strict=True)]
    in_step = [WINDOWS_PER_STEP / gpus for gpus in GPUS]
    loop_hours = [in_loop * windows / (rate * gpus) / 3600 for gpus in GPUS]
    return [
        ("windows of 4,096 tokens", [f"{windows:,}"] * both, "counted"),
        ("prepared tokens on disk, 4 bytes each", [f"{4 * TRAINING_TOKENS / 1e9:.0f} GB"] * both, "counted"),
        ("spans supervised", [f"{windows * len(starts) / 1e6:,.0f}M"] * both, "counted"),
        ("operations of a window", [f"{flops / 1e12:.0f} TFLOP"] * both, "counted"),
        ("operations a second of a GPU", [f"{rate / 1e12:.0f} TFLOP/s"] * both, basis),
        (f"steps of {WINDOWS_PER_STEP} windows", [f"{steps:,}"] * both, "counted"),
        ("windows of a GPU in a step", [f"{n:.0f}" for n in in_step], "counted"),
        ("vectors of branches of a GPU in a step", [f"{n * len(starts) * HORIZON:,.0f}" for n in in_step], "counted"),
        ("seconds a step", [f"{seconds:.2f}" for seconds in step_seconds], whole),
        ("**hours in all**", [f"**{steps * seconds / 3600:,.1f}**" for seconds in step_seconds], whole),
        ("hours of the spec's loop at the same rate", [f"{hours:,.0f}" for hours in loop_hours], whole),
        ("gradient of GistNet, a step", [f"{gradient / 1e6:.1f} MB"] * both, "counted"),
        ("sent by a GPU, a step", [f"{bytes_ / 1e6:.1f} MB" for bytes_ in sent], "counted"),
        ("share of a step, if nothing overlaps", [f"{share:.2%}" for share in shares], worst(whole, links[0].basis)),
    ]


def memory_plan(teacher: Teacher, gistnet: GistNet) -> list[Row]:
    """What a GPU holds at the peak of a step, whatever their number; as `gistnet train --dry-run` counts it."""
    spans, windows = len(all_starts(WINDOW, HORIZON)), WINDOWS_PER_STEP // GPUS[0]
    memory = memory_of_step(teacher, gistnet, window=WINDOW, horizon=HORIZON, spans=spans, device_type="cuda")
    rows: list[Row] = []
    for branches in (BRANCHES_PER_PASS, BRANCHES_PER_PASS // 8):
        parts = memory.parts(windows, branches, recompute=False)
        held = {name: size for name, size in parts.items() if size and (not rows or name.startswith("activations"))}
        held["**together**"] = sum(parts.values())
        cells = {f"{name} ({branches} branches a pass)": size for name, size in held.items()}
        rows += [(name, [f"{size / 1e9:.2f} GB"] * len(GPUS), "counted") for name, size in cells.items()]
    return rows


def compression_plan(teacher: Teacher, rates: Rates) -> list[Row]:
    """Compressing `COMPRESSED_TOKENS` tokens into trees of two levels, by number of GPUs."""
    tokens, vector = COMPRESSED_TOKENS, 2 * teacher.hidden_size
    row = vector + rates.row_overhead.value
    levels = [("level 0, one for 32 tokens", tokens / SPAN), ("level 1, one for 1,024", tokens / SPAN**2)]
    sizes = {"tokens": tokens * rates.token_bytes.value} | {name: gists * row for name, gists in levels}
    total = sum(sizes.values())
    # Level 1 reads one vector where level 0 reads 32.
    seconds = [tokens * (1 + 1 / SPAN) / (rates.compression.value * gpus) for gpus in GPUS]
    basis = worst(rates.compression.basis, "extrapolated")
    both = len(GPUS)
    rows: list[Row] = [
        ("tokens a second of a GPU", [f"{rates.compression.value / 1e6:.2f}M"] * both, rates.compression.basis),
        ("**hours of the GPUs**", [f"**{s / 3600:,.1f}**" for s in seconds], basis),
    ]
    stored = worst(rates.row_overhead.basis, "extrapolated")
    rows += [(f"storage: {name}", [f"{size / 1e12:.2f} TB"] * both, stored) for name, size in sizes.items()]
    rows += [
        ("storage: together, of one copy", [f"{total / 1e12:.1f} TB"] * both, stored),
        ("of it checksums, names and dates", [f"{rates.row_overhead.value / row:.2%}"] * both, stored),
        ("gists of level 0", [f"{tokens / SPAN / 1e9:.1f}B"] * both, "counted"),
        ("written a second to keep up", [f"{total / s / 1e9:.2f} GB/s" for s in seconds], worst(basis, stored)),
        ("one writer appends", [f"{rates.writer.value / 1e6:.0f} MB/s"] * both, rates.writer.basis),
        (
            "writers, each of its own tree",
            [f"{total / s / rates.writer.value:,.0f}" for s in seconds],
            worst(basis, stored),
        ),
    ]
    return rows


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    lines = [f"| | {' | '.join(f'{gpus} GPUs' for gpus in GPUS)} | basis |", f"|---|{'---:|' * len(GPUS)}---|"]
    lines += [f"| {name} | {' | '.join(values)} | {basis} |" for name, values, basis in rows]
    return "\n".join(lines)


def plan(rates: Rates | None, results: Path, **assumed: float) -> dict[str, str]:
    """The tables of all plans, by title.

    Args:
        rates: what they rest on; None reads `results`, with `assumed` where nothing is measured.
    """
    teacher = build_teacher(SMOLLM3_SHAPE, "bfloat16", "meta")
    gistnet = GistNet.build(GistNetConfig(architecture="bottleneck", width=128), teacher)
    rates = rates or Rates.read(results, teacher=teacher, **assumed)
    every = len(all_starts(WINDOW, HORIZON))
    return {
        f"Training on 10B tokens, all {every} spans of each window": table(
            training_plan(teacher, gistnet, rates, every)
        ),
        "Training on 10B tokens, 8 spans of each window": table(training_plan(teacher, gistnet, rates, 8)),
        "Memory of a GPU in training": table(memory_plan(teacher, gistnet)),
        "Compressing 1T tokens": table(compression_plan(teacher, rates)),
    }


ASSUMED = {"ceiling": 700e12, "utilisation": 0.4, "compression": 1.5e6}


def main() -> None:
    """Print the plans."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--ceiling", type=float, default=ASSUMED["ceiling"], help="operations a second of a GPU")
    parser.add_argument("--utilisation", type=float, default=ASSUMED["utilisation"], help="the engine's share of it")
    parser.add_argument("--compression", type=float, default=ASSUMED["compression"], help="tokens/s at hidden size 576")
    arguments = parser.parse_args()
    assumed = {name: getattr(arguments, name) for name in ASSUMED}
    for title, text in plan(None, arguments.results, **assumed).items():
        print(f"### {title}\n\n{text}\n")


if __name__ == "__main__":
    main()
