"""What the main process of a run measures and tells while it trains: validation, metrics on disk, the terminal."""

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from gistnet.evaluation.validation import Validator
from gistnet.train.schedule import is_due
from gistnet.train.tracking import MetricsLog, ProgressDisplay

if TYPE_CHECKING:
    from gistnet.train.trainer import Progress, Run

METRICS_FILE = "metrics.jsonl"


class Recorder:
    """Keeps the run's record; in every process but the main one its methods do nothing.

    Records of a step are on disk before the step's checkpoint is, so that a resumed run lacks none.
    """

    def __init__(self, run: "Run", progress: "Progress") -> None:
        self._open = ExitStack()
        self._spans_before, self._started = progress.spans_seen, time.monotonic()
        self._is_main = run.processes.is_main
        if not self._is_main:
            return
        self._validator = Validator(
            run.teacher,
            run.dataset,
            run.layout,
            run.objective.positions,
            run.config.probabilities,
            run.config.validation,
            run.seed,
        )
        # A run killed before its first checkpoint starts anew, and so does its log.
        self._log = self._open.enter_context(MetricsLog(run.folder / METRICS_FILE, resumed_after=progress.step or None))
        self._display = self._open.enter_context(
            ProgressDisplay("training", run.config.steps, completed_steps=progress.step)
        )

    def record(self, run: "Run", progress: "Progress", metrics: dict[str, float], interrupted: bool) -> None:
        """Show a step, and log it where that is due; adds the speed in spans per second, validation time left out."""
        if not self._is_main:
            return
        seconds = time.monotonic() - self._started
        metrics = metrics | {"spans_per_second": (progress.spans_seen - self._spans_before) / seconds}
        self._display.update(progress.step, metrics)
        if is_due(progress.step, run.config.log_every_steps, last_step=run.config.steps, interrupted=interrupted):
            self._log.record(progress.step, metrics)
        if interrupted:
            self._display.message(f"Asked to stop: saving step {progress.step}.")

    def validate(self, run: "Run", progress: "Progress") -> None:
        """Measure GistNet on the held-out spans, log it, and note in `progress` whether it is the best so far."""
        progress.validated_step = progress.step
        if not self._is_main:
            return
        began = time.monotonic()
        run.gistnet.eval()
        result = self._validator.validate(run.gistnet)
        if progress.best_score is None or result["kl"] < progress.best_score:
            progress.best_score, progress.best_step = result["kl"], progress.step
        self._log.record(progress.step, {"spans_seen": progress.spans_seen, "validation": result})
        self._display.message(
            f"validation after {progress.spans_seen} spans: KL {result['kl']:.4f} (drop {result['kl_drop']:.4f}, "
            f"last token {result['kl_last_token']:.4f})  ΔNLL {result['delta_nll']:+.4f}  "
            f"recovered {result['recovered_kl']:.3f}"
        )
        self._started += time.monotonic() - began

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()
