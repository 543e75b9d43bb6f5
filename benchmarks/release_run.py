"""The release from nothing: trains by configs/release.yaml, and makes released/smollm2-135m of what came out.

    make release-run ARGS="--processes 8"
    python benchmarks/release_run.py --processes 8
    python benchmarks/release_run.py train.windows_per_batch=4 stages.narrative.train.steps=300    on two cores

Runs unattended: every part is a command of its own, which is printed before it starts, and one that fails or is killed
ends the program with its status. Started again with the same words, it goes on: training from its newest checkpoint,
and what is finished is not done again. Needs the corpora of configs/release.yaml. Costs what the configuration costs,
then half an hour on two cores for the evaluations, less on a GPU.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import ROOT, describe_device
from gistnet.config import load_config
from gistnet.errors import GistNetError
from gistnet.evaluation.records import read_records
from gistnet.files import write_json
from gistnet.machine import describe_machine
from gistnet.run_folder import METRICS_FILE, RESULTS_FILE

CONFIG = Path("configs/release.yaml")
RELEASE = Path("released/smollm2-135m")
NOTES = Path("benchmarks/release_notes")
ALSO = (
    "evaluation.domains=[]",
    "evaluation.weights={narrative: 0.6, code: 0.3, structured: 0.1}",
    "evaluation.horizons=[64, 128]",
    "evaluation.documents=8",
    "evaluation.segments_per_window=2",
    "evaluation.minimal_pairs=0",
    "evaluation.map_documents=0",
)
"""Settings of what is evaluated besides narrative text at 32 tokens, for the targets of the later stages."""
LONG_CONTEXT = (
    "evaluation.domains=[narrative]",
    "evaluation.weights={}",
    "evaluation.positions=[end]",
    "evaluation.documents=2",
    "evaluation.geometry_spans=100",
    "evaluation.highest_level=0",
    "evaluation.minimal_pairs=0",
    "evaluation.map_documents=0",
)
"""Settings of the evaluation of long contexts, which leave out nearly everything else."""
KEPT = Path("benchmarks/results/long-context-smollm2-135m.json")


def commands(processes: int, settings: Sequence[str], *, hardware: str, made: Path = ROOT) -> Iterator[list[str]]:
    """Commands still to run, each as the words of a command line.

    Args:
        processes: that train together; 1 trains without a launcher.
        settings: changes to the configuration.
        hardware: of the model card.
        made: the folder that relative paths are under.
    """
    run_folder = load_config(ROOT / CONFIG, settings).run_folder
    python = [sys.executable, "-m"]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    train = [*python, *(launcher if processes > 1 else []), "gistnet.cli", "train", "--config", str(CONFIG)]
    begun = (made / run_folder / METRICS_FILE).is_file()
    yield [*train, *(["--resume"] if begun else []), *settings]

    together = ["--processes", str(processes)] if processes > 1 else []
    words = ["python", "benchmarks/release_run.py", *together, *settings]
    if not (made / RELEASE).exists():
        yield [
            *python,
            *("gistnet.cli", "release", str(run_folder), "--out", str(RELEASE)),
            *("--hardware", hardware, "--command", shlex.join(words)),
            *("--also", shlex.join(ALSO)),
            *("--data-notes", str(NOTES / "data.md"), "--limits", str(NOTES / "limits.md")),
        ]
    figures = long_context_figures(run_folder)
    if not (made / figures).exists():
        evaluate = [*python, "gistnet.cli", "evaluate", str(run_folder), "--long-context"]
        yield [*evaluate, *LONG_CONTEXT, "--out", str(figures)]


def long_context_figures(run_folder: Path) -> Path:
    """File of the evaluation of long contexts of a run."""
    return run_folder / "long-context" / RESULTS_FILE


def keep_long_context(figures: Path, kept: Path) -> None:
    """Keep the records of long contexts for README.md, with the machine that they were measured on."""
    records = [r for r in read_records(figures) if r.name.startswith(("long_context", "retrieval"))]
    write_json(kept, {"machine": describe_machine(), "records": [record.model_dump(mode="json") for record in records]})


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is left to do; the status is that of the first command that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1, help="processes, or GPUs, that train together")
    parser.add_argument("settings", nargs="*", help="changes to the configuration, as train.windows_per_batch=4")
    asked = parser.parse_args(arguments)
    machine = describe_machine()
    hardware = f"{describe_device({'machine': machine})}, torch {machine['torch']}"
    for command in commands(asked.processes, asked.settings, hardware=hardware):
        print(f"$ {shlex.join(command)}", flush=True)
        if status := subprocess.run(command, cwd=ROOT).returncode:
            return status
    keep_long_context(ROOT / long_context_figures(load_config(ROOT / CONFIG, asked.settings).run_folder), ROOT / KEPT)
    return subprocess.run([sys.executable, "benchmarks/tables.py"], cwd=ROOT).returncode


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GistNetError as error:
        sys.exit(f"release_run: {error}")
