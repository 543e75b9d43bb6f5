"""What makes a GistNet better: one change at a time from the default of configs/ablations.yaml.

    python benchmarks/ablations.py --corpus FILE… --group architecture --minutes 20    equal time
    python benchmarks/ablations.py --corpus FILE… --group architecture --spans 4096    equal spans
    python benchmarks/ablations.py --corpus FILE… --arm lr-1e-3 k-16 --minutes 1 --device cuda --seeds 0 1
    python benchmarks/ablations.py --curve NAME=RUN_FOLDER    add a longer run's curve, for the extrapolation
    python benchmarks/ablations.py --plots && python benchmarks/page.py     the page docs/ablations.md; takes seconds

Each arm (benchmarks/ablation_arms.py) is a real `gistnet train` in a process of its own. All arms end with a complete
learning-rate schedule, since one that was cut off compares nothing: with --spans each has the steps that see so many
spans; with --minutes each has the steps that fit into the time, at the speed of its own first steps (processor time on
a CPU; start-up and validation are not counted). The two answer different questions, and are kept apart.

Results are written as they come. A killed program is simply started again: arms that have a result are skipped, and one
that was interrupted goes on from its checkpoint. With --device cuda nothing but the device changes.
Costs, for each arm, the minutes asked for, a minute of measuring its speed, and its validations.
Results: benchmarks/results/ablations-<device>.json.
"""

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

import torch
import yaml

from benchmarks.ablation_arms import DEFAULT, GROUPS, all_arms, chosen_arms
from benchmarks.ablation_comparison import Ablations, Arm
from benchmarks.ablation_figures import Judge
from benchmarks.ablation_results import comparison, described, load, read_curve, same_arms, save
from benchmarks.ablation_runs import Interrupted, Trainer
from gistnet.config import load_config
from gistnet.errors import ConfigError, GistNetError
from gistnet.session import load_teacher, prepare_data

ROOT = Path(__file__).parent.parent
PROBE_SECONDS = {"cpu": 45.0, "cuda": 4.0}
TO_THE_END = ("train.stop.min_improvement=null", "train.stop.rises=null")
"""Every arm makes all its steps: one that ended early would be judged in the middle of its schedule."""


def corpus_sources(corpus: Sequence[str], max_documents: int) -> list[str]:
    """The setting that makes each file a source; none where the configuration's own sources are used."""
    sources = [
        {"kind": "jsonl", "name": Path(file).name, "domain": "narrative", "paths": [str(Path(file).resolve())]}
        | {"max_documents": max_documents}
        for file in corpus
    ]
    return [f"data.sources={yaml.safe_dump(sources, default_flow_style=True, width=10**6).strip()}"] if corpus else []


def prepare(arguments: argparse.Namespace, stop: threading.Event) -> tuple[Ablations, dict[str, Arm]]:
    """A comparison with its data, teacher and default, and the arms that are asked for, by their names.

    Raises:
        GistNetError: of any kind; nothing has been trained.
    """
    wanted = chosen_arms(arguments.group, arguments.arm)
    common = [*corpus_sources(arguments.corpus, arguments.max_documents), f"device={arguments.device}", *TO_THE_END]
    if arguments.compile:
        common.append("teacher.compile=true")
    arms = {
        name: Arm(name, settings, load_config(arguments.config, [*common, *settings, "run_folder=unused"]))
        for name, settings in all_arms().items()
    }
    default = arms[DEFAULT].config
    if len(default.stages) != 1:
        raise ConfigError(f"{arguments.config} has {len(default.stages)} stages, expected one.")
    dataset = prepare_data(default, lambda message: print(message, flush=True))
    torch.set_num_threads(arguments.threads)
    judge = Judge(default, load_teacher(default, torch.device(arguments.device)), dataset)
    budget = {"minutes": arguments.minutes} if arguments.spans is None else {"spans": arguments.spans}
    results = load(arguments.results)
    key, found = comparison(
        results, {"budget": budget, "default": described(default, stated=True), "data": dataset.content_fingerprint}
    )
    found["same_as"] = same_arms({name: arm.config for name, arm in arms.items()})
    probe_seconds = PROBE_SECONDS[arguments.device] if arguments.probe_seconds is None else arguments.probe_seconds
    ablations = Ablations(
        trainer=Trainer(arguments.config, common, arguments.threads, arguments.device == "cuda", stop),
        judge=judge,
        default=default,
        folder=arguments.folder / key,
        budget=budget,
        probe_seconds=probe_seconds,
        results_file=arguments.results,
        results=results,
        arms=found["arms"],
    )
    firsts = dict.fromkeys(found["same_as"].get(name, name) for name in wanted)
    return ablations, {name: arms[name] for name in firsts}


def run_all(arguments: argparse.Namespace) -> int:
    """Run what has no result yet; the exit status is 1 where an arm failed, 130 where the program was asked to stop."""
    stop = threading.Event()
    ablations, arms = prepare(arguments, stop)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            runs = []
            for seed in arguments.seeds:
                for name, arm in arms.items():
                    if ablations.has_result(arm, seed):
                        print(f"{name}, seed {seed}: has its result", flush=True)
                    else:
                        runs.append(pool.submit(ablations.run, arm, seed))
            try:
                for run in runs:
                    run.result()
            except BaseException:
                stop.set()  # before the pool waits for the others
                raise
    except Interrupted:
        print("Asked to stop; the same command goes on from here.", file=sys.stderr)
        return 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    failed = [name for name in arms for record in ablations.arms[name].values() if "failed" in record]
    return int(bool(failed))


def add_curve(named: str, results_file: Path) -> None:
    """Keep the curve of a run that is not an arm.

    Raises:
        ConfigError: it is not NAME=RUN_FOLDER, or NAME=RUN_FOLDER,NEXT where NEXT began where that ended.
        DataError: the run has no metrics.
    """
    name, equals, folder = named.partition("=")
    if not (name and equals and folder):
        raise ConfigError(f"Got the curve '{named}', expected NAME=RUN_FOLDER.")
    results = load(results_file)
    results["long_curves"][name] = read_curve(*map(Path, folder.split(",")))
    save(results_file, results)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", default=[], help="JSON lines files; else the configuration's sources")
    parser.add_argument("--max-documents", type=int, default=60, help="of each file")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "ablations.yaml", help="the default arm")
    parser.add_argument("--group", nargs="+", default=[], help=f"of {', '.join(GROUPS)}; else all")
    parser.add_argument("--arm", nargs="+", default=[], help="arms by name; the default is always among them")
    parser.add_argument("--minutes", type=float, default=20, help="of training for each arm")
    parser.add_argument("--spans", type=int, help="to be seen by each arm, in place of --minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--jobs", type=int, default=1, help="arms at once")
    parser.add_argument("--device", choices=list(PROBE_SECONDS), default="cpu")
    parser.add_argument("--compile", action="store_true", help="with teacher.compile")
    parser.add_argument("--probe-seconds", type=float, help="of steps that tell the speed of an arm")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "ablations")
    parser.add_argument("--results", type=Path, help="the results file")
    parser.add_argument("--curve", help="NAME=RUN_FOLDER[,NEXT…]: keep that run's curve, and run nothing")
    parser.add_argument("--plots", action="store_true", help="draw the plots of docs/ablations.md, and run nothing")
    parsed = parser.parse_args(arguments)
    parsed.results = parsed.results or ROOT / "benchmarks" / "results" / f"ablations-{parsed.device}.json"
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is asked for; bad input ends in one sentence."""
    parsed = parse(arguments)
    try:
        if parsed.plots:
            from benchmarks.ablation_plots import draw_all  # needs matplotlib

            draw_all(parsed.results.parent, ROOT / "docs" / "plots" / "ablations")
            return 0
        if parsed.curve:
            add_curve(parsed.curve, parsed.results)
            return 0
        return run_all(parsed)
    except GistNetError as error:
        print(f"ablations: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
