"""KL@32 against spans seen: the three architectures, and 1, 8 and 32 spans per window, at equal spans.

    python benchmarks/training_curves.py --corpus corpora/narrative/*.jsonl.zst --minutes 20

Each variant is a real `gistnet train` of configs/narrative-cpu.yaml in a process of its own with one thread, stopped
after the given minutes of processor time; as many run at once as there are cores. All variants have the same 32 spans
per step, schedule, held-out spans and seed, so that their curves are compared at equal spans, also where one was
stopped early; only the learning rate is each architecture's own, since one rate does not serve all. The data is the
first 60 documents of each file, every file drawn equally often. Five variants of 20 minutes take an hour on two cores.
Results: benchmarks/results/training-curves.json.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import describe_machine
from gistnet.training.tracking import read_metrics

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "narrative-cpu.yaml"
RESULT = ROOT / "benchmarks" / "results" / "training-curves.json"
VARIANTS = {
    "full, 8 spans per window": [],
    "bottleneck, 8 spans per window": ["gistnet.architecture=bottleneck", "train.optimiser.learning_rate=2.0e-3"],
    "teacher_lora, 8 spans per window": ["gistnet.architecture=teacher_lora", "train.optimiser.learning_rate=1.0e-3"],
    "full, 32 spans per window": ["train.windows_per_batch=1", "train.spans_per_window=32"],
    "full, 1 span per window": ["train.accumulation_steps=8", "train.spans_per_window=1"],
}


def run_variant(name: str, settings: list[str], minutes: float, folder: Path) -> dict[str, Any]:
    """Train one variant and read its curve."""
    run_folder = folder / name.replace(", ", "-").replace(" ", "-")
    command = [sys.executable, "-m", "gistnet.cli", "train", "--config", str(CONFIG), "--restart"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    minutes_used = 0.0
    with (folder / f"{run_folder.name}.log").open("w") as log:
        process = subprocess.Popen(
            [*command, *settings, f"run_folder={run_folder}"], env=environment, stdout=log, stderr=log
        )
        while process.poll() is None:
            minutes_used = _processor_minutes(process.pid) or minutes_used
            if minutes_used > minutes:
                process.send_signal(signal.SIGTERM)
                process.wait()
            time.sleep(1)
    if process.returncode not in (0, 130):
        raise SystemExit(f"{name} failed with status {process.returncode}: see {log.name}")
    records = read_metrics(run_folder / "metrics.jsonl")
    curve = [{"spans_seen": r["spans_seen"], **r["validation"]} for r in records if "validation" in r]
    steps = [r for r in records if "loss" in r]
    return {
        "settings": settings,
        "processor_minutes": minutes_used,
        "spans_seen": steps[-1]["spans_seen"],
        "spans_per_second": steps[-1]["spans_per_second"],
        "curve": curve,
    }


def _processor_minutes(pid: int) -> float:
    """Processor time of a process so far; 0 where it has just ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return (times.user + times.system) / 60


def table(results: dict[str, dict[str, Any]], score: str) -> str:
    """A Markdown table of one score: a row per number of spans seen, a column per variant."""
    seen = sorted({point["spans_seen"] for result in results.values() for point in result["curve"]})
    lines = ["| spans seen | " + " | ".join(results) + " |", "|---:" * (len(results) + 1) + "|"]
    for spans in seen:
        cells = []
        for result in results.values():
            values = [point[score] for point in result["curve"] if point["spans_seen"] == spans]
            cells.append(f"{values[0]:.4f}" if values else "–")
        lines.append(f"| {spans} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Prepare the data once, run the variants, write and print their curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True, help="JSON lines files; each becomes a source")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "curves")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    sources = [
        {"kind": "jsonl", "name": Path(file).name, "domain": "narrative", "paths": [file], "max_documents": 60}
        for file in arguments.corpus
    ]
    data = [f"data.sources={yaml.safe_dump(sources, default_flow_style=True, width=10**6).strip()}"]
    prepare = [sys.executable, "-m", "gistnet.cli", "prepare", "--config", str(CONFIG), *data, "run_folder=unused"]
    subprocess.run(prepare, check=True)
    jobs = os.cpu_count() or 1
    with ThreadPoolExecutor(jobs) as pool:
        futures = {
            name: pool.submit(run_variant, name, [*data, *settings], arguments.minutes, arguments.folder)
            for name, settings in VARIANTS.items()
        }
        results = {name: future.result() for name, future in futures.items()}
    for result in results.values():
        result["settings"] = result["settings"][1:]  # the corpus' place is this machine's affair
    RESULT.write_text(
        json.dumps(
            {"machine": describe_machine(), "processor_minutes": arguments.minutes, "variants": results}, indent=1
        )
        + "\n"
    )
    first = next(iter(results.values()))["curve"][0]
    print(f"KL@32, nats per token (drop {first['kl_drop']:.4f}, last token {first['kl_last_token']:.4f}):")
    print(table(results, "kl"))
    print("recovered at offsets 9–32:")
    print(table(results, "recovered_kl_9_32"))


if __name__ == "__main__":
    main()
