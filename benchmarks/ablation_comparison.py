"""A comparison of the ablations under way: plans, trains and judges one arm after another, and keeps their records."""

import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.ablation_figures import Judge
from benchmarks.ablation_results import described, digest, read_curve, save
from benchmarks.ablation_runs import Trainer, seconds_per_step, trained
from benchmarks.machine import describe_machine
from gistnet.config import RunConfig
from gistnet.errors import CheckpointError, TrainingError
from gistnet.files import write_json
from gistnet.model.saved_gistnet import read_saved
from gistnet.training.checkpoint import latest_checkpoint


@dataclass(frozen=True)
class Arm:
    """One arm: the settings that differ from the default, and the configuration that they make."""

    name: str
    settings: list[str]
    config: RunConfig


@dataclass
class Ablations:
    """A comparison under way: what its arms have in common, and where their results go."""

    trainer: Trainer
    judge: Judge
    default: RunConfig
    folder: Path
    """Of the runs of this comparison."""
    budget: dict[str, float]
    probe_seconds: float
    results_file: Path
    results: dict[str, Any]
    arms: dict[str, Any]
    """The results' part that holds the arms of this comparison: name → seed → record."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    plans: dict[str, threading.Lock] = field(default_factory=dict)

    def run(self, arm: Arm, seed: int) -> None:
        """Train and judge an arm with one seed and keep its record; one that fails is kept as failed.

        Raises:
            Interrupted: the program was asked to stop.
        """
        try:
            record = self._record(arm, seed)
        except TrainingError as error:
            record = {"failed": str(error)}
        with self.lock:
            self.arms.setdefault(arm.name, {})[str(seed)] = record
            save(self.results_file, self.results)
        print(f"{arm.name}, seed {seed}: {record.get('failed') or self._in_short(record)}", flush=True)

    def _record(self, arm: Arm, seed: int) -> dict[str, Any]:
        config = arm.config
        (stage,) = config.stages
        name = f"{arm.name}-{digest(described(config))[:6]}"
        every = _validation_steps(self.default, config)
        own = [*arm.settings, f"seed={seed}"]
        plan = self._plan(name, own, config)
        run_folder = self.folder / f"{name}-seed{seed}"
        planned = [f"train.steps={plan['steps']}", f"train.validation.every_steps={every}"]
        seconds = trained(self.trainer, run_folder, [*own, *planned])
        gistnet_folder = _last_network(run_folder)
        saved, _ = read_saved(gistnet_folder)
        with self.lock:  # one at a time: the held-out passes are shared
            figures = self.judge.figures(gistnet_folder, stage.objective.positions)
        curve = read_curve(run_folder)
        return {
            "settings": arm.settings,
            "seed": seed,
            "span_tokens": config.gistnet.span_tokens,
            "horizon_tokens": stage.objective.horizon_tokens,
            "steps": plan["steps"],
            "spans_seen": curve[-1]["spans_seen"],
            "minutes": round(seconds / 60, 2),
            "spans_per_second": round(_spans_per_step(config) / plan["seconds_per_step"], 3),
            "trained_parameters": saved.trained_parameters,
            "share_of_teacher": round(saved.share_of_teacher, 5),
            "curve": curve,
            **figures,
            "threads": self.trainer.threads,
            "machine": describe_machine(),
        }

    def _plan(self, name: str, settings: list[str], config: RunConfig) -> dict[str, Any]:
        """How many steps an arm makes: as many with every seed."""
        with self.lock:
            planning = self.plans.setdefault(name, threading.Lock())
        with planning:
            path = self.folder / f"{name}.plan.json"
            if not path.exists():
                probe = self.folder / f"{name}-probe"
                seconds = seconds_per_step(self.trainer, probe, settings, self.probe_seconds)
                write_json(path, {"seconds_per_step": seconds, "steps": self._steps(config, seconds)})
            return json.loads(path.read_text(encoding="utf-8"))

    def _steps(self, config: RunConfig, seconds_per_step: float) -> int:
        """How many steps the budget is good for."""
        minutes = self.budget.get("minutes")
        steps = self.budget["spans"] / _spans_per_step(config) if minutes is None else 60 * minutes / seconds_per_step
        return max(1, round(steps))

    def has_result(self, arm: Arm, seed: int) -> bool:
        """Whether an arm, as it is now, was trained and judged with a seed."""
        record = self.arms.get(arm.name, {}).get(str(seed), {"failed": ""})
        return "failed" not in record and record["settings"] == arm.settings

    @staticmethod
    def _in_short(record: dict[str, Any]) -> str:
        last = record["curve"][-1]
        return (
            f"{last['spans_seen']:,} spans in {record['minutes']:.1f} minutes, {last['recovered_kl']:.1%} recovered "
            f"on its validation spans"
        )


def _spans_per_step(config: RunConfig) -> int:
    """Branches of a step; a run of several gists counts once."""
    (stage,) = config.stages
    return stage.train.windows_per_batch * stage.train.accumulation_steps * stage.train.spans_per_window


def _validation_steps(default: RunConfig, config: RunConfig) -> int:
    """Steps between an arm's validations: the default's number of spans, so that the curves have common places."""
    spans = default.stages[0].train.validation.every_steps * _spans_per_step(default)
    return max(1, round(spans / _spans_per_step(config)))


def _last_network(run_folder: Path) -> Path:
    checkpoint = latest_checkpoint(run_folder)
    if checkpoint is None:
        raise CheckpointError(f"The run {run_folder} has no checkpoint, expected that of its last step.")
    return checkpoint / "gistnet"
