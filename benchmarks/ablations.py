"""Ablations: arms that change one thing at a time from the default of configs/ablations.yaml.

    python benchmarks/ablations.py --corpus FILE… --group architecture --minutes 20    equal time
    python benchmarks/ablations.py --corpus FILE… --group architecture --contexts 4096    equal contexts
    python benchmarks/ablations.py --corpus FILE… --arm lr-1e-3 k-16 --minutes 1 --device cuda --seeds 0 1
    python benchmarks/plots.py && python benchmarks/tables.py     the page docs/ablations.md; takes seconds

Each arm (benchmarks/arms.yaml) is a real `gistnet train` in a process of its own. All arms end with a complete
learning-rate schedule, since one that was cut off compares nothing: with --contexts each has the steps that see so many
training contexts; with --minutes each has the steps that fit into the time, at the speed of its own first steps
(processor time on a CPU; start-up and validation are not counted). The two answer different questions, and are kept
apart.

Results are written as they come. A killed program is simply started again: arms that have a result are skipped, and one
that was interrupted goes on from its checkpoint. With --device cuda nothing but the device changes.
Costs, for each arm, the minutes asked for, a minute of measuring its speed, and its validations.

Where the default's evaluation has rows (configs/rows.yaml), the last network is also judged by rows of gists, by
minimal pairs, and by how alike its gists are:

    python benchmarks/ablations.py --config configs/rows.yaml --group prefix --minutes 6 --seeds 0 1
Results: benchmarks/results/ablations-<device>.json.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

import numpy as np
import torch
import yaml

from benchmarks.ablation_results import DEFAULT, HORIZON, Group, Record, digest, load, read_groups, save
from benchmarks.machine import RESULTS, ROOT, seconds_of_steps
from gistnet.config import RunConfig, load_config
from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, fixed_windows
from gistnet.errors import CheckpointError, ConfigError, GistNetError, TrainingError
from gistnet.evaluation import baselines, metrics
from gistnet.evaluation.baselines import Baseline
from gistnet.evaluation.config import EvaluationConfig
from gistnet.evaluation.held_out import HeldOut
from gistnet.evaluation.probes.minimal_pairs import minimal_pairs
from gistnet.evaluation.rows import HeldOutRows
from gistnet.files import write_json, write_text
from gistnet.machine import describe_machine
from gistnet.metrics_log import read_metrics
from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import GistNet
from gistnet.model.saved_gistnet import read_saved
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions
from gistnet.preparation import prepare_data
from gistnet.run_folder import METRICS_FILE
from gistnet.session import load_teacher
from gistnet.training.checkpoint import latest_checkpoint

CURVE = ("kl", "delta_nll", "recovered_kl", "recovered_kl_1_8", "recovered_kl_9_32", "gist_norm")
ROW_POSITIONS: tuple[Positions, ...] = ("end", "compact")
"""Policies that all arms are judged under by rows: an arm may have been trained with another."""
TO_THE_END = ("train.stop.min_improvement=null", "train.stop.rises=null")
"""Every arm makes all its steps: one that ended early would be judged in the middle of its schedule."""
PROBE = {
    on_gpu: (
        f"train.steps={steps}",
        "train.log_every_steps=1",
        f"train.checkpoint_every_steps={steps}",
        "train.validation={every_steps: 1000000, documents: 2, segments_per_window: 2}",
    )
    for on_gpu, steps in ((False, 4), (True, 40))
}
"""Settings of the run that tells an arm's speed, on a CPU and on a GPU."""

# What is compared -----------------------------------------------------------------------------------------------------


def chosen_arms(groups: Mapping[str, Group], asked: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """Settings by arm: the default, the arms of the groups asked for, and some arms by name; all if none is asked for.

    Raises:
        ConfigError: there is no such group or arm, or it is retired.
    """
    known: dict[str, list[str]] = {DEFAULT: []}
    for group in groups.values():
        known |= group.runnable
    for kind, named, there in (("group", asked, groups), ("arm", names, known)):
        if unknown := [name for name in named if name not in there]:
            raise ConfigError(f"Got the {kind} '{unknown[0]}', expected one of {', '.join(there)}.")
    wanted = {DEFAULT, *names, *(name for group in asked for name in groups[group].runnable)}
    return {name: settings for name, settings in known.items() if name in wanted or not (asked or names)}


def corpus_sources(corpus: Sequence[str], max_documents: int = 60) -> list[str]:
    """The setting that makes each file a source; none where the configuration's own sources are used."""
    sources = [
        {"kind": "files", "name": Path(file).name, "domain": "narrative", "paths": [str(Path(file).resolve())]}
        | {"max_documents": max_documents}
        for file in corpus
    ]
    return [f"data.sources={yaml.safe_dump(sources, default_flow_style=True, width=10**6).strip()}"] if corpus else []


def described(config: RunConfig, *, stated: bool = False) -> dict[str, Any]:
    """Values of a configuration that decide what is trained, without folders and devices.

    Args:
        stated: only what the file and the settings say. A later version may have new options, and the results of arms
            that do not use them stay comparable; so the file must say all that a comparison rests on.
    """
    elsewhere = {"run_folder", "device", "seed", "trackers", "format_version"}
    values = config.model_dump(mode="json", exclude=elsewhere, exclude_unset=stated)
    if "name" in values.get("teacher", {}):
        values["teacher"]["name"] = Path(values["teacher"]["name"]).name
    for name in ("sources", "folder"):  # the prepared data's fingerprint stands for them
        values["data"].pop(name, None)
    return values


def same_arms(arms: Mapping[str, RunConfig]) -> dict[str, str]:
    """Arms that are another arm under another name: name → the first arm of the same configuration."""
    first: dict[str, str] = {}
    found = {name: first.setdefault(digest(described(config)), name) for name, config in arms.items()}
    return {name: other for name, other in found.items() if name != other}


# Training -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trainer:
    """Runs `gistnet train` in a process of its own.

    Attributes:
        config: the default's file.
        common: settings of every run.
        threads: of the process.
        on_gpu: whether time is the clock's; on a CPU it is the processor's, since machines are shared.
    """

    config: Path
    common: list[str]
    threads: int
    on_gpu: bool

    def train(self, run_folder: Path, settings: Sequence[str]) -> float:
        """Train to the last step, from the newest checkpoint if there is one.

        Returns:
            The seconds taken, those of earlier attempts that were interrupted too.

        Raises:
            TrainingError: training failed; has the last line that it printed.
        """
        log, note = (run_folder.with_name(f"{run_folder.name}.{ending}") for ending in ("log", "seconds"))
        log.parent.mkdir(parents=True, exist_ok=True)
        # --resume also begins a run that has no checkpoint yet.
        command = [sys.executable, "-m", "gistnet.cli", "train", "--config", str(self.config), "--resume"]
        command += [*self.common, *settings, f"run_folder={run_folder}"]
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        seconds = (float(note.read_text()) if note.exists() else 0.0) - self._time()
        with log.open("a", encoding="utf-8") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            try:
                process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
                seconds += self._time()
                write_text(note, f"{seconds:.1f}\n")
        if process.returncode != 0:
            lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
            last = lines[-1] if lines else f"status {process.returncode}"
            raise TrainingError(f"{run_folder.name} failed: {last.removeprefix('gistnet: ')}")
        return seconds

    def _time(self) -> float:
        if self.on_gpu:
            return time.monotonic()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return (used.ru_utime + used.ru_stime) / self.threads

    def seconds_per_step(self, folder: Path, settings: Sequence[str]) -> float:
        """Seconds a step by the first steps, without start-up and validation; the first one does not count.

        Args:
            folder: of the run that tells it; deleted afterwards.

        Raises:
            TrainingError: training failed.
        """
        folder.with_name(f"{folder.name}.seconds").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        share = self.train(folder, [*settings, *PROBE[self.on_gpu]]) / (time.monotonic() - began)
        seconds = [seconds for _, _, seconds in seconds_of_steps(folder)]
        shutil.rmtree(folder, ignore_errors=True)
        return share * (seconds[-1] - seconds[0]) / (len(seconds) - 1)


def read_curve(run_folder: Path) -> list[dict[str, float]]:
    """Validations of a run by spans seen."""
    return [
        {"spans_seen": record["spans_seen"]}
        | {name: round(record["validation"][name], 5) for name in CURVE if name in record["validation"]}
        for record in read_metrics(run_folder / METRICS_FILE)
        if "validation" in record
    ]


# Judging --------------------------------------------------------------------------------------------------------------


def held_out_spans(
    teacher: Teacher,
    dataset: PreparedDataset,
    default: RunConfig,
    branchings: tuple[int, ...],
    hidden_state_layer: int | None = None,
) -> HeldOut:
    """Held-out spans with H = 32, which depend on the default's `evaluation` section and on their length alone."""
    (stage,), evaluation = default.stages, default.evaluation
    layout = SpanLayout(
        branchings,
        horizon_tokens=HORIZON,
        segments_per_window=evaluation.segments_per_window,
        sink_tokens=evaluation.sink_tokens,
    )
    samples = fixed_windows(
        dataset,
        layout,
        documents=evaluation.documents,
        segments_per_window=evaluation.segments_per_window,
        seed=evaluation.seed,
        domains=[domain for domain, share in sorted(stage.train.probabilities.items()) if share > 0],
    )
    return HeldOut(teacher, dataset, samples, layout, cache_gigabytes=0, hidden_state_layer=hidden_state_layer)


def judge(teacher: Teacher, dataset: PreparedDataset, default: RunConfig, folder: Path, policy: Positions) -> Record:
    """KL by document of a saved GistNet, nats per token, beside `drop` and `last_token`: one gist, H = 32."""
    gistnet = GistNet.from_pretrained(folder, teacher).eval()
    held_out = held_out_spans(teacher, dataset, default, gistnet.branchings, gistnet.hidden_state_layer)
    gists = held_out.encode(gistnet)[0]
    replacements: dict[str, tuple[Baseline | torch.Tensor, Positions]] = {
        "gist": (gists, policy),
        "drop": (baselines.drop, policy),
        "last_token": (baselines.last_token, policy),
    }
    _, rows, spans = np.unique(held_out.documents, return_inverse=True, return_counts=True)

    def by_document(kl: Any, offsets: tuple[int, int]) -> list[float]:
        sums = np.bincount(rows, weights=metrics.mean_over_offsets(kl, offsets))
        return [round(float(value), 5) for value in sums / spans]

    per_document = {
        name: {f"kl_{first}_{last}": by_document(losses.kl, (first, last)) for first, last in ((1, 8), (9, HORIZON))}
        for name, losses in held_out.measure(replacements).items()
    }
    diversity = round(metrics.gist_diversity(gists[:, 0].float().cpu().numpy()), 4)
    return {"spans_by_document": spans.tolist(), "kl_by_document": per_document, "diversity": diversity}


def judge_rows(teacher: Teacher, held_out: HeldOutRows, evaluation: EvaluationConfig, folder: Path) -> Record:
    """KL of each passage after rows, nats per token, by row and replacement; and minimal pairs told apart."""
    gistnet = GistNet.from_pretrained(folder, teacher).eval()
    measured = held_out.measure(SpanEncoder(teacher, gistnet), ROW_POSITIONS)
    pairs = minimal_pairs(
        teacher, gistnet, evaluation.minimal_pairs, sink_tokens=evaluation.sink_tokens, positions=["end"]
    )
    return {
        "row_kl_by_passage": {
            str(row): {name: [round(float(kl), 5) for kl in of.kl.mean(axis=1)] for name, of in of_row.items()}
            for row, of_row in measured.items()
        },
        "pair_accuracy": {
            "value": pairs[0].value,
            "interval": pairs[0].interval,
            "baselines": pairs[0].baselines,
        },
    }


# A comparison under way -----------------------------------------------------------------------------------------------


class Ablations:
    """A comparison: what its arms have in common, and where their results go.

    Args:
        asked: of the command line.
        arms: all that can be trained, with their settings.

    Raises:
        GistNetError: of any kind; nothing has been trained.
    """

    def __init__(self, asked: argparse.Namespace, arms: Mapping[str, list[str]]) -> None:
        common = [*corpus_sources(asked.corpus), f"device={asked.device}", *TO_THE_END]
        self.configs = {
            name: load_config(asked.config, [*common, *settings, "run_folder=unused"])
            for name, settings in arms.items()
        }
        self.default = self.configs[DEFAULT]
        if len(self.default.stages) != 1:
            raise ConfigError(f"{asked.config} has {len(self.default.stages)} stages, expected one.")
        self.trainer = Trainer(asked.config, common, asked.threads, asked.device == "cuda")
        self.budget = {"minutes": asked.minutes} if asked.contexts is None else {"contexts": asked.contexts}
        self.dataset = prepare_data(self.default)
        torch.set_num_threads(asked.threads)
        self.teacher = load_teacher(self.default, torch.device(asked.device))
        self.held_out_rows: dict[int, HeldOutRows] = {}  # by tokens per gist; each measures its baselines once
        default, data = described(self.default, stated=True), self.dataset.content_fingerprint
        shared = {"budget": self.budget, "default": default, "data": data}
        key = digest(shared)
        self.folder = asked.folder / key
        self.results_file, self.results = asked.results, load(asked.results)
        found = self.results["comparisons"].setdefault(key, shared | {"same_as": {}, "arms": {}})
        retired = {name: other for name, other in found["same_as"].items() if name not in arms}
        self.same_as = found["same_as"] = retired | same_arms(self.configs)
        self.arms: dict[str, Any] = found["arms"]

    def run(self, name: str, settings: list[str], seed: int) -> bool:
        """Train and judge an arm unless it has its result, and keep its record; False where it failed."""
        known = self.arms.get(name, {}).get(str(seed), {"failed": ""})
        if "failed" not in known and known["settings"] == settings:
            print(f"{name}, seed {seed}: has its result", flush=True)
            return True
        try:
            record = self._record(name, settings, seed)
        except TrainingError as error:
            record = {"failed": str(error)}
        self.arms.setdefault(name, {})[str(seed)] = record
        save(self.results_file, self.results)
        last = record["curve"][-1] if "curve" in record else None
        print(f"{name}, seed {seed}: {record['failed'] if last is None else last}", flush=True)
        return last is not None

    def _record(self, name: str, settings: list[str], seed: int) -> Record:
        config = self.configs[name]
        (stage,) = config.stages
        own = [*settings, f"seed={seed}"]
        named = f"{name}-{digest(described(config))[:6]}"
        steps = self._steps(named, own, config)
        # The default's number of contexts between validations, so that all curves have points in common.
        every = self.default.stages[0].train.validation.every_steps * _contexts_per_step(self.default)
        every = max(1, round(every / _contexts_per_step(config)))
        run_folder = self.folder / f"{named}-seed{seed}"
        planned = [f"train.steps={steps}", f"train.validation.every_steps={every}"]
        seconds = self.trainer.train(run_folder, [*own, *planned])
        checkpoint = latest_checkpoint(run_folder)
        if checkpoint is None:
            raise CheckpointError(f"The run {run_folder} has no checkpoint, expected that of its last step.")
        saved, _ = read_saved(checkpoint / "gistnet")
        curve = read_curve(run_folder)
        return {
            "settings": settings,
            "seed": seed,
            "span_tokens": config.levels[0],
            "horizon_tokens": stage.objective.horizon_tokens,
            "steps": steps,
            "spans_seen": curve[-1]["spans_seen"],
            "minutes": round(seconds / 60, 2),
            "trained_parameters": saved.trained_parameters,
            "share_of_teacher": round(saved.share_of_teacher, 5),
            "curve": curve,
            **judge(self.teacher, self.dataset, self.default, checkpoint / "gistnet", stage.objective.positions),
            **self._judged_by_rows(checkpoint / "gistnet", config.levels[0]),
            "threads": self.trainer.threads,
            "machine": describe_machine(),
        }

    def _judged_by_rows(self, folder: Path, span: int) -> Record:
        evaluation = self.default.evaluation
        if not evaluation.rows.documents:
            return {}
        if span not in self.held_out_rows:
            rows = HeldOutRows(self.dataset, ["narrative"], evaluation.rows, tokens_per_gist=span)
            self.held_out_rows[span] = rows
        return judge_rows(self.teacher, self.held_out_rows[span], evaluation, folder)

    def _steps(self, named: str, settings: list[str], config: RunConfig) -> int:
        """The steps that the budget is good for. What fits into a time is kept, to be the same with every seed."""
        if "contexts" in self.budget:
            return max(1, round(self.budget["contexts"] / _contexts_per_step(config)))
        path = self.folder / f"{named}.plan.json"
        if not path.exists():
            seconds = self.trainer.seconds_per_step(self.folder / f"{named}-probe", settings)
            write_json(path, {"steps": max(1, round(60 * self.budget["minutes"] / seconds))})
        return int(json.loads(path.read_text(encoding="utf-8"))["steps"])


def _contexts_per_step(config: RunConfig) -> int:
    """Training contexts of a step, however many gists each has."""
    (stage,) = config.stages
    train = stage.train
    return train.windows_per_batch * train.accumulation_steps * train.segments_per_window


# Command line ---------------------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", default=[], help="JSON lines files; else the configuration's sources")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "ablations.yaml", help="the default arm")
    parser.add_argument(
        "--arms", type=Path, default=ROOT / "benchmarks" / "arms.yaml", help="the file of groups of arms"
    )
    parser.add_argument("--group", nargs="+", default=[], help="groups by name; else all")
    parser.add_argument("--arm", nargs="+", default=[], help="arms by name; the default is always among them")
    parser.add_argument("--minutes", type=float, default=20, help="of training for each arm")
    parser.add_argument("--contexts", type=int, help="to be seen by each arm, in place of --minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "ablations")
    parser.add_argument("--results", type=Path, help="the results file")
    asked = parser.parse_args(arguments)
    asked.results = asked.results or RESULTS / f"ablations-{asked.device}.json"
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what has no result yet; the status is 1 where an arm failed or input is bad, 130 where asked to stop."""
    asked = parse(arguments)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        groups = {
            name: group for name, group in read_groups(asked.arms).items() if group.config in (None, asked.config.name)
        }
        wanted, arms = chosen_arms(groups, asked.group, asked.arm), chosen_arms(groups, [], [])
        ablations = Ablations(asked, arms)
        firsts = dict.fromkeys(ablations.same_as.get(name, name) for name in wanted)
        done = [ablations.run(name, arms[name], seed) for seed in asked.seeds for name in firsts]
        return int(not all(done))
    except GistNetError as error:
        print(f"ablations: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Asked to stop; the same command goes on from here.", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
