"""What a run measures and tells while it trains: validation, metrics on disk, the terminal."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

from gistnet.metrics_log import MetricsLog
from gistnet.run_folder import METRICS_FILE
from gistnet.training.config import Tracker
from gistnet.training.run import Progress, Run
from gistnet.training.schedule import is_due
from gistnet.training.trackers import Trackers
from gistnet.training.tracking import ProgressDisplay


class Recorder:
    """Keeps the run's record; in every process but the main one its methods write and show nothing.

    Records of a step are on disk before the step's checkpoint is, so that a resumed run lacks none.
    """

    def __init__(
        self, run: Run, progress: Progress, trackers: Sequence[Tracker], after_validation: Callable[[], object]
    ) -> None:
        self._open = ExitStack()
        self._spans_before, self._started = progress.spans_seen, time.monotonic()
        self._is_main = run.processes.is_main
        self._after_validation = after_validation
        if not self._is_main:
            return
        # A run killed before its first checkpoint starts anew, and so does its log.
        resumed_after = (progress.stage, progress.step) if progress.checks else None
        self._log = self._open.enter_context(MetricsLog(run.folder / METRICS_FILE, resumed_after=resumed_after))
        self._trackers = self._open.enter_context(Trackers(trackers, run.folder))
        self._stage = self._open.enter_context(ExitStack())

    def enter_stage(self, run: Run, progress: Progress) -> None:
        """Prepare what a stage is measured and shown with."""
        stage = run.stage(progress)
        if self._is_main:
            self._stage.close()
            self._display = self._stage.enter_context(
                ProgressDisplay(stage.name, stage.train.steps, completed_steps=progress.stage_step)
            )
        if progress.ended is None:
            self._validator = run.make_validator(run, stage)

    def record(self, run: Run, progress: Progress, metrics: dict[str, float], interrupted: bool) -> None:
        """Show a step, and log it where that is due; adds the speed in spans per second, validation time left out."""
        if not self._is_main:
            return
        seconds = time.monotonic() - self._started
        metrics = metrics | {"spans_per_second": (progress.spans_seen - self._spans_before) / seconds}
        self._display.update(progress.stage_step, metrics)
        train = run.stage(progress).train
        if is_due(progress.stage_step, train.log_every_steps, last_step=train.steps, interrupted=interrupted):
            self._write(progress, metrics)
        if interrupted:
            self._display.message(f"Asked to stop: saving step {progress.step}.")

    def measure(self, run: Run, progress: Progress) -> dict[str, float]:
        """What GistNet achieves on the stage's held-out spans: each process measures some, and all know the figures.

        Raises:
            TrainingError: a loss is not finite, in any process.
        """
        began = time.monotonic()
        measured = self._validator.measure(run.trained_gistnet(progress))
        # They decide what comes next: all go by those of one process, whatever the last bit is on another machine.
        result = run.processes.from_main(self._validator.figures(run.processes.gather(measured)))
        self._started += time.monotonic() - began
        return result

    def report(self, progress: Progress, result: dict[str, float], events: Sequence[dict[str, Any]]) -> None:
        """Log and show a validation and what followed from it."""
        if not self._is_main:
            return
        self._write(progress, {"spans_seen": progress.spans_seen, "validation": result})
        self._display.message(
            f"validation after {progress.spans_seen} spans: KL {result['kl']:.4f} (drop {result['kl_drop']:.4f}, "
            f"last token {result['kl_last_token']:.4f})  ΔNLL {result['delta_nll']:+.4f}  "
            f"recovered {result['recovered_kl']:.3f}"
        )
        for event in events:
            self._write(progress, event)
            self._display.message(_described(event))
        self._after_validation()

    def _write(self, progress: Progress, metrics: Mapping[str, Any]) -> None:
        place = {"stage": progress.stage, "stage_step": progress.stage_step}
        self._log.record(progress.step, {**place, **metrics})
        self._trackers.record(progress.step, metrics)

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()


def _described(event: Mapping[str, Any]) -> str:
    """An event of `judge`, as a sentence."""
    match event:
        case {"alarm": sentence}:
            return str(sentence)
        case {"contrastive_weight_raised": {"from": before, "to": after}}:
            return f"Gists are too alike: λ rises from {before:g} to {after:g}."
        case {"stage_end": end}:
            reached = "".join(f"; {_described_target(target)}" for target in end["targets"])
            best = f"its best is step {end['best_step']} with {end['best_value']:.4f}"
            return f"Stage '{end['name']}' ends ({end['reason']}); {best}{reached}."
        case _:
            raise ValueError(f"Got the event {dict(event)}, expected one that judge makes.")


def _described_target(target: Mapping[str, Any]) -> str:
    bounds = [f"{sign} {target[key]:g}" for key, sign in (("above", ">"), ("below", "<")) if target[key] is not None]
    verdict = {True: "met", False: "not met", None: "not measured"}[target["met"]]
    value = "" if target["value"] is None else f" {target['value']:.3f}"
    return f"{target['name']}{value}, target {' and '.join(bounds)}: {verdict}"
