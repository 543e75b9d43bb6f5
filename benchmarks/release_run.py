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

from benchmarks.machine import describe_machine
from gistnet.config import load_config
from gistnet.run_folder import METRICS_FILE

ROOT = Path(__file__).parent.parent
CONFIG = Path("configs/release.yaml")
RELEASE = Path("released/smollm2-135m")
NOTES = Path("benchmarks/release_notes")
ALSO = (
    "evaluation.domains=[]",
    "evaluation.weights={narrative: 0.6, code: 0.3, structured: 0.1}",
    "evaluation.horizons=[64, 128]",
    "evaluation.documents=8",
    "evaluation.spans_per_document=2",
    "evaluation.pair_test.pairs=0",
    "evaluation.map_documents=0",
)
"""What is evaluated besides narrative text at 32 tokens, for the targets of the later stages."""
LONG_CONTEXT = "smollm2-135m"
"""The name of the long-context result, benchmarks/results/long-context-smollm2-135m.json."""


def commands(processes: int, settings: Sequence[str], *, hardware: str, made: Path = ROOT) -> Iterator[list[str]]:
    """What is still to do, each as the words of a command line.

    Args:
        processes: that train together; 1 trains without a launcher.
        settings: changes to the configuration.
        hardware: what the model card says of the machine.
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
    if not (made / "benchmarks" / "results" / f"long-context-{LONG_CONTEXT}.json").exists():
        program = [sys.executable, "benchmarks/long_context.py", str(run_folder)]
        yield [*program, "--positions", "end", "--name", LONG_CONTEXT]
    yield [sys.executable, "benchmarks/page.py"]


def describe_hardware(machine: dict[str, str | int | float]) -> str:
    """A machine in words: its GPU where there is one, its processor otherwise."""
    processor = f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gigabytes']} GB"
    return f"{processor if machine['gpu'] == 'none' else machine['gpu']}, torch {machine['torch']}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is left to do; the status is that of the first command that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1, help="processes, or GPUs, that train together")
    parser.add_argument("settings", nargs="*", help="changes to the configuration, as train.windows_per_batch=4")
    asked = parser.parse_args(arguments)
    hardware = describe_hardware(describe_machine())
    for command in commands(asked.processes, asked.settings, hardware=hardware):
        print(f"$ {shlex.join(command)}", flush=True)
        if status := subprocess.run(command, cwd=ROOT).returncode:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
