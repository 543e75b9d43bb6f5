"""The releases: trains their runs by turns, over sessions and machines, then evaluates and releases them.

    python benchmarks/release_run.py train --minutes 120 --turn 20      all runs in turn; status 130 while some go on
    python benchmarks/release_run.py train --only gist32 --threads 1    one run on one core
    python benchmarks/release_run.py release --only gist32              release, evaluations, tables

Runs unattended; needs the corpora of configs/release.yaml. Words behind the options are changes to the configuration,
as stages.narrative.train.steps=300; say the same ones every time. What is finished is not done again; a run begins anew
where its folders in runs and benchmarks/state are deleted.

A run's turn ends with SIGTERM: the step under way ends in a checkpoint, from which the next turn goes on to the bit.
SIGTERM and SIGINT to this program do the same, and end it. After each turn the newest checkpoint is kept in
benchmarks/state, in bfloat16, to be committed: a machine that has not come as far goes on from there by step. So
a run is rounded once for each change of machine. Where the corpus is another one there (code is the standard library of
the Python that runs), what differs is printed: documents of the same text stay on their side of the split.

Every hour of a run's training its newest checkpoint is looked at, on few documents: rows of gists, minimal pairs and
recall, in a line of benchmarks/results/release-progress.jsonl.
"""

import argparse
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, Self

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import ROOT
from gistnet.config import RunConfig, config_text, load_config
from gistnet.errors import GistNetError
from gistnet.evaluation.records import read_records
from gistnet.files import atomic_folder, write_json, write_text
from gistnet.machine import describe_machine, device_name
from gistnet.preparation import prepare_data
from gistnet.run_folder import BEST_FILE, CHECKPOINTS_FOLDER, CONFIG_FILE, METRICS_FILE, RESULTS_FILE, remove_run
from gistnet.training.checkpoint import best_checkpoint, copy_checkpoint, latest_checkpoint, load_checkpoint

CONFIG = Path("configs/release.yaml")
RUNS_FOLDER = Path("runs")
STATE = Path("benchmarks/state")
PROGRESS = Path("benchmarks/results/release-progress.jsonl")
NOTES = Path("benchmarks/release_notes")
SPENT_FILE = "spent.json"
BESIDE = (METRICS_FILE, f"{CHECKPOINTS_FOLDER}/{BEST_FILE}", SPENT_FILE)
"""Files that are kept of a run beside its checkpoints."""
INTERRUPTED = (130, -signal.SIGTERM, -signal.SIGINT)
"""Statuses of a training command that was asked to stop: at a checkpoint, or before it had begun."""
RUNS = {
    "gist32": (),
    "gist8": (
        *("start_from=smollm2-135m-gist8", "levels=[8]"),
        *("train.window_tokens=448", "stages.narrative.objective.horizon_tokens=128"),  # thirty spans are 240 tokens
    ),
    "gist32-context": (
        *("start_from=smollm2-135m-gist32-context", "levels=[32]", "gistnet.reads=context"),
        *("gistnet.teacher_layers=20", "gistnet.gist_scale=120"),
    ),
}
"""Runs by name, and the changes to the configuration that make them."""
RELEASES = {name: f"smollm2-135m-{name}" for name in RUNS}
RELEASES_FOLDER = Path("src/gistnet/released")
NARRATIVE = (
    *("evaluation.domains=[narrative]", "evaluation.weights={}", "evaluation.positions=[end]"),
    *("evaluation.highest_level=0", "evaluation.map_documents=0"),
)
LOOK = (
    *(*NARRATIVE, "evaluation.horizons=[32]", "evaluation.documents=8", "evaluation.geometry_spans=2"),
    *("evaluation.minimal_pairs=36", "evaluation.rows={documents: 16, lengths: [30], tails: [64]}"),
    "evaluation.contexts={long_context: true, documents: 2, min_tokens: 1536, max_tokens: 1536, scored_tokens: 128, "
    "tokens_per_vector: [16], question_tokens_per_vector: [8, 16], retrieval_cases: 12, retrieval_tokens: 1024}",
)
"""Settings of a look at a run that trains."""
LOOKED_AT = ("kl", "delta_nll", "recovered_kl", "row_kl", "row_recovered_kl", "pair_accuracy", "retrieval_accuracy")
ALSO = (
    *("evaluation.domains=[]", "evaluation.weights={narrative: 0.6, code: 0.3, structured: 0.1}"),
    *("evaluation.horizons=[64, 128]", "evaluation.documents=16", "evaluation.segments_per_window=2"),
    *("evaluation.positions=[end, compact]", "evaluation.rows={documents: 16, lengths: [30], tails: [64]}"),
    *("evaluation.minimal_pairs=0", "evaluation.map_documents=0"),
)
"""Settings of the second evaluation on a card: all kinds of text, the later stages' horizons, both policies, rows."""
LONG_CONTEXT = (
    *(*NARRATIVE, "evaluation.documents=2", "evaluation.geometry_spans=100", "evaluation.minimal_pairs=0"),
    *("evaluation.contexts.documents=20", "evaluation.contexts.max_tokens=4608"),
    "evaluation.contexts.tokens_per_vector=[4, 8, 16, 32]",
)
"""Settings of the evaluation of long contexts, which leave out nearly everything else."""
ROWS = (
    *(*NARRATIVE, "evaluation.domains=[narrative, code]", "evaluation.positions=[end, compact]"),
    *("evaluation.documents=2", "evaluation.geometry_spans=2", "evaluation.minimal_pairs=0"),
    "evaluation.rows={documents: 20, lengths: [30], tails: [0, 64, 256]}",
)
"""Settings of the evaluation of rows, which leave out nearly everything else."""
FIGURES = {
    "long-context": (("--long-context", *LONG_CONTEXT), ("long_context", "retrieval")),
    "rows": (ROWS, ("row_",)),
}
"""Evaluations of a release besides its card, by name: words of `gistnet evaluate`, beginnings of records kept."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train or release; the status is that of the first command that fails."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--only", action="append", choices=RUNS, help="this run, and others named so; all by default")
    shared.add_argument("--threads", type=int, help="cores to compute with; all by default")
    shared.add_argument("settings", nargs="*", help="changes to the configuration, as train.windows_per_batch=4")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    training = parts.add_parser("train", parents=[shared], help="train the runs by turns")
    training.add_argument("--minutes", type=float, default=120.0, help="until no other turn begins")
    training.add_argument("--turn", type=float, default=20.0, help="minutes of a run before it is another one's turn")
    training.add_argument("--look", type=float, default=60.0, help="minutes of a run's training between looks at it")
    parts.add_parser("release", parents=[shared], help="make the releases, evaluations and tables")
    asked = parser.parse_args(arguments)
    if asked.threads:
        os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    configs = {name: load_config(CONFIG, settings_of(name, asked.settings)) for name in asked.only or RUNS}
    corpus = prepare_data(next(iter(configs.values()))).identity  # the same for all
    for name, config in configs.items():
        restore(STATE / name, config.run_folder, corpus)
    with Commands() as commands:
        if asked.part == "release":
            return release(commands, configs, asked.settings)
        return train(commands, configs, asked)


def settings_of(name: str, settings: Sequence[str]) -> list[str]:
    """Changes to the configuration that make a run."""
    return [*RUNS[name], *settings, f"run_folder={RUNS_FOLDER / name}"]


class Commands:
    """Runs commands of `gistnet`, one at a time; SIGTERM and SIGINT stop the one that runs, and no other begins."""

    def __init__(self) -> None:
        self.stopped = False
        self._running: subprocess.Popen[bytes] | None = None

    def run(self, *words: str, seconds: float | None = None) -> int:
        """Status of a command, which gets SIGTERM after so many seconds."""
        if self.stopped:
            return INTERRUPTED[0]
        print(f"$ gistnet {shlex.join(words)}", flush=True)
        self._running = subprocess.Popen([sys.executable, "-m", "gistnet.cli", *words])
        if self.stopped:  # a signal may have come before there was anything to pass it on to
            self._running.terminate()
        try:
            return self._running.wait(seconds)
        except subprocess.TimeoutExpired:
            self._running.terminate()
            return self._running.wait()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        if self._running is not None:
            self._running.terminate()

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


# Training by turns ----------------------------------------------------------------------------------------------------


def train(commands: Commands, configs: Mapping[str, RunConfig], asked: argparse.Namespace) -> int:
    """Give each run its turns until the time is over or all have ended; what a turn made is kept."""
    until = monotonic() + 60 * asked.minutes
    waiting = deque(configs)
    while waiting and not commands.stopped and (left := until - monotonic()) > 0:
        name = waiting.popleft()
        config, words = (
            configs[name],
            ("train", "--config", str(CONFIG), "--resume", *settings_of(name, asked.settings)),
        )
        began, processor, spent = monotonic(), _processor_seconds(), time_spent(config.run_folder)
        status = commands.run(*words, seconds=min(left, 60 * asked.turn))
        spent["hours"] += (monotonic() - began) / 3600
        spent["processor_hours"] += (_processor_seconds() - processor) / 3600
        spent["machines"] = sorted({*spent["machines"], device_name(describe_machine())})
        write_json(config.run_folder / SPENT_FILE, spent)
        keep(config, STATE / name)
        if status in INTERRUPTED:
            waiting.append(name)
        elif status:
            return status
        if monotonic() < until and not commands.stopped:
            look(commands, name, config.run_folder, every_hours=asked.look / 60, ended=not status)
    return INTERRUPTED[0] if waiting else 0


def time_spent(run_folder: Path) -> dict[str, Any]:
    """Time that a run's training has taken, on which machines, and how often it was rounded between machines."""
    path, none = run_folder / SPENT_FILE, {"hours": 0.0, "processor_hours": 0.0, "machines": [], "rounded": 0}
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else none


def _processor_seconds() -> float:
    return sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # user and system


def look(commands: Commands, name: str, run_folder: Path, *, every_hours: float, ended: bool) -> None:
    """Append a line to the progress where one is due: after so many hours of training, and at the end."""
    newest, spent = latest_checkpoint(run_folder), time_spent(run_folder)
    lines = PROGRESS.read_text(encoding="utf-8").splitlines() if PROGRESS.exists() else []
    before = [line for line in map(json.loads, lines) if line["run"] == name]
    last = before[-1] if before else {"hours": 0.0, "step": 0}
    if newest is None or not (ended or spent["hours"] - last["hours"] >= every_hours):
        return
    checkpoint, out = load_checkpoint(newest), run_folder / "look" / RESULTS_FILE
    if checkpoint.step == last["step"]:
        return
    if commands.run("evaluate", str(newest), *LOOK, "--out", str(out)):
        print(f"The look at {newest} failed; training goes on without it.", flush=True)
        return
    wanted = {"name", "value", "interval", "baselines", "offsets", "spans_per_segment", "tokens_per_vector"}
    figures = [
        record.model_dump(mode="json", include=wanted, exclude_none=True)
        for record in read_records(out)
        if record.name in LOOKED_AT and not record.kind
    ]
    seen = {key: checkpoint.train_state[key] for key in ("stage", "spans_seen")}
    with PROGRESS.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"run": name, "step": checkpoint.step, **seen, **spent, "figures": figures}) + "\n")


# What is kept of a run ------------------------------------------------------------------------------------------------


def keep(config: RunConfig, state: Path) -> None:
    """Keep a run in the folder `state/step-…`, like a run folder, in place of what was kept before.

    It has the newest checkpoint, and the weights of the best one, in bfloat16.
    """
    newest, best = latest_checkpoint(config.run_folder), best_checkpoint(config.run_folder)
    if newest is None or (state / newest.name).exists():
        return
    with atomic_folder(state / newest.name) as kept:
        for checkpoint in {newest, best or newest}:
            copy = kept / CHECKPOINTS_FOLDER / checkpoint.name
            copy_checkpoint(checkpoint, copy, torch.bfloat16, with_optimiser=checkpoint == newest)
        for name in BESIDE:
            if (config.run_folder / name).exists():
                shutil.copyfile(config.run_folder / name, kept / name)
        write_text(kept / CONFIG_FILE, config_text(config))  # the run's own has the absolute paths of this machine
    for older in state.glob("step-*"):
        if older.name != newest.name:
            shutil.rmtree(older)


def restore(state: Path, run_folder: Path, corpus: Mapping[str, Any]) -> None:
    """Make a run folder, for the corpus of this identity, of what was kept, unless the folder has come as far."""
    kept, here = max(state.glob("step-*"), default=None), latest_checkpoint(run_folder)
    if kept is None or (here is not None and here.name >= kept.name):
        return
    print(f"{run_folder} goes on from {kept}, rounded to bfloat16.", flush=True)
    before = load_checkpoint(kept / CHECKPOINTS_FOLDER / kept.name).identity["dataset"]
    if before != corpus:
        print(f"It was trained on another corpus: {before}, here {corpus}.", flush=True)
    remove_run(run_folder)
    (run_folder / CHECKPOINTS_FOLDER).mkdir(parents=True, exist_ok=True)
    for name in (CONFIG_FILE, *BESIDE):
        if (kept / name).exists():
            shutil.copyfile(kept / name, run_folder / name)
    spent = time_spent(run_folder)
    write_json(run_folder / SPENT_FILE, spent | {"rounded": spent["rounded"] + 1})
    for checkpoint in sorted((kept / CHECKPOINTS_FOLDER).glob("step-*")):  # the newest last: with it all is there
        copy_checkpoint(checkpoint, run_folder / CHECKPOINTS_FOLDER / checkpoint.name, torch.float32, dataset=corpus)


# Releasing ------------------------------------------------------------------------------------------------------------


def release(commands: Commands, configs: Mapping[str, RunConfig], settings: Sequence[str]) -> int:
    """Release and evaluate the best network of each run, as far as it has come."""
    for name, config in configs.items():
        for words in left_to_release(name, config.run_folder, settings):
            if status := commands.run(*words):
                return status
        for part, (_, names) in FIGURES.items():
            keep_figures(config.run_folder / part / RESULTS_FILE, kept_figures(part, RELEASES[name]), names)
    return subprocess.run([sys.executable, "benchmarks/tables.py"]).returncode


def left_to_release(name: str, run_folder: Path, settings: Sequence[str]) -> Iterator[list[str]]:
    """Commands still to run for the release of a run."""
    out, spent = RELEASES_FOLDER / RELEASES[name], time_spent(run_folder)
    if not out.exists():
        often = "once" if spent["rounded"] == 1 else f"{spent['rounded']} times"
        moved = f", rounded to bfloat16 {often} between machines" if spent["rounded"] else ""
        hardware = f"{' and '.join(spent['machines'])}, {spent['processor_hours']:.1f} hours of processor{moved}"
        command = shlex.join(["python", "benchmarks/release_run.py", "train", "--only", name, *settings])
        notes = ("--data-notes", str(NOTES / "data.md"), "--limits", str(NOTES / f"limits-{name}.md"))
        words = ["release", str(run_folder), "--out", str(out), "--hardware", hardware, "--command", command]
        yield [*words, "--also", shlex.join(ALSO), *notes]
    for part, (settings_of_part, _) in FIGURES.items():
        figures = run_folder / part / RESULTS_FILE
        if not figures.exists():
            yield ["evaluate", str(run_folder), *settings_of_part, "--out", str(figures)]


def kept_figures(part: str, release: str) -> Path:
    """Where a part of `FIGURES` is kept for the pages."""
    return Path(f"benchmarks/results/{part}-{release}.json")


def keep_figures(figures: Path, kept: Path, names: tuple[str, ...]) -> None:
    """Keep the records whose names begin so, with the machine that they were measured on."""
    records = [r for r in read_records(figures) if r.name.startswith(names)]
    write_json(kept, {"machine": describe_machine(), "records": [record.model_dump(mode="json") for record in records]})


if __name__ == "__main__":
    os.chdir(ROOT)
    try:
        sys.exit(main())
    except GistNetError as error:
        sys.exit(f"release_run: {error}")
