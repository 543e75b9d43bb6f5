"""Record of a run while it trains: validations, metrics on disk, experiment trackers, progress on the terminal."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from accelerate import tracking

from gistnet.errors import ConfigError
from gistnet.metrics_log import MetricsLog
from gistnet.progress import ProgressDisplay
from gistnet.run_folder import METRICS_FILE, TRACKERS_FOLDER
from gistnet.training.config import Tracker
from gistnet.training.curriculum import is_due
from gistnet.training.run import Run, StageRun, TrainState

logger = logging.getLogger(__name__)


class Recorder:
    """Keeps the run's record; in every process but the main one its methods write and show nothing.

    Records of a step are on disk before the step's checkpoint is, so that a resumed run lacks none.
    """

    def __init__(
        self, run: Run, state: TrainState, trackers: Sequence[Tracker], after_validation: Callable[[], object]
    ) -> None:
        self._open = ExitStack()
        self._spans_before, self._started = state.spans_seen, time.monotonic()
        self._is_main = run.processes.is_main
        self._after_validation = after_validation
        if not self._is_main:
            return
        # A run killed before its first checkpoint starts anew, and so does its log.
        resumed_after = (state.stage, state.step) if state.validations else None
        self._log = self._open.enter_context(MetricsLog(run.folder / METRICS_FILE, resumed_after=resumed_after))
        self._trackers = self._open.enter_context(Trackers(trackers, run.folder))
        self._stage = self._open.enter_context(ExitStack())

    def enter_stage(self, run: Run, stage: StageRun, state: TrainState) -> None:
        """Make the stage's display and validator."""
        if self._is_main:
            self._stage.close()
            self._display = self._stage.enter_context(
                ProgressDisplay(stage.name, stage.train.steps, completed=state.stage_step)
            )
        if state.ended is None:
            self._validator = run.make_validator(run, stage)

    def record(self, stage: StageRun, state: TrainState, metrics: dict[str, float], interrupted: bool) -> None:
        """Show a step, and log it where that is due; adds the speed in spans per second, validation time left out."""
        if not self._is_main:
            return
        seconds = time.monotonic() - self._started
        metrics = metrics | {"spans_per_second": (state.spans_seen - self._spans_before) / seconds}
        self._display.update(state.stage_step, _shown(metrics))
        train = stage.train
        if is_due(state.stage_step, train.log_every_steps, last_step=train.steps, interrupted=interrupted):
            self._write(state, metrics)
        if interrupted:
            logger.info("Asked to stop: saving step %d.", state.step)

    def measure(self, run: Run, stage: StageRun) -> dict[str, float]:
        """Validate the stage's GistNet on its held-out spans: each process measures some, and all get the result.

        Raises:
            TrainingError: a loss is not finite, in any process.
        """
        began = time.monotonic()
        measured = self._validator.measure(stage.gistnet)
        # They decide what comes next: all go by those of one process, whatever the last bit is on another machine.
        result = run.processes.from_main(self._validator.metrics(run.processes.gather(measured)))
        seconds = time.monotonic() - began
        self._started += seconds
        if self._is_main:
            self._display.leave_out(seconds)
        return result

    def report(self, state: TrainState, result: dict[str, float], events: Sequence[dict[str, Any]]) -> None:
        """Log and show a validation and what followed from it."""
        if not self._is_main:
            return
        self._write(state, {"spans_seen": state.spans_seen, "validation": result})
        logger.info(
            "validation after %d spans: KL %.4f (drop %.4f, last token %.4f)  ΔNLL %+.4f  recovered %.3f",
            state.spans_seen,
            *(result[name] for name in ("kl", "kl_drop", "kl_last_token", "delta_nll", "recovered_kl")),
        )
        for event in events:
            self._write(state, event)
            logger.info("%s", _described(event))
        self._after_validation()

    def _write(self, state: TrainState, metrics: Mapping[str, Any]) -> None:
        self._log.record(state.step, {"stage": state.stage, "stage_step": state.stage_step, **metrics})
        self._trackers.record(state.step, metrics)

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()


def _described(event: Mapping[str, Any]) -> str:
    """Sentence for an event of `update_after_validation`."""
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
            raise ValueError(f"Got the event {dict(event)}, expected one of update_after_validation.")


def _described_target(target: Mapping[str, Any]) -> str:
    bounds = [f"{sign} {target[key]:g}" for key, sign in (("above", ">"), ("below", "<")) if target[key] is not None]
    verdict = {True: "met", False: "not met", None: "not measured"}[target["met"]]
    value = "" if target["value"] is None else f" {target['value']:.3f}"
    return f"{target['name']}{value}, target {' and '.join(bounds)}: {verdict}"


# Metrics beside the progress bar, the most telling first: name, and how it is written there.
_SHOWN = {
    "loss": "loss {:.4f}",
    "kl": "KL {:.4f}",
    "delta_nll": "ΔNLL {:+.3f}",
    "spans_per_second": "{:.1f} spans/s",
    "gist_norm": "gist norm {:.0f}",
}


def _shown(metrics: Mapping[str, float]) -> list[str]:
    hidden = {"kl"} if metrics.get("kl") == metrics.get("loss") else set()  # the loss is the KL by default
    return [form.format(metrics[name]) for name, form in _SHOWN.items() if name in metrics.keys() - hidden]


# Experiment trackers --------------------------------------------------------------------------------------------------


def require_installed(names: Sequence[Tracker]) -> None:
    """Make sure that the packages of these trackers are there.

    Raises:
        ConfigError: one is not; names the extra that installs it.
    """
    installed = {str(name) for name in tracking.get_available_trackers()}
    for name in names:
        if name not in installed:
            raise ConfigError(f"The tracker '{name}' is not installed, expected `pip install gistnet[{name}]` before.")


class Trackers:
    """The trackers of a run, each under the name of its folder. Open only in the main process.

    Args:
        names: which of them.
        run_folder: names the run; what is kept in files goes below it, into `trackers`.
    """

    def __init__(self, names: Sequence[Tracker], run_folder: Path) -> None:
        kinds = [tracking.LOGGER_TYPE_TO_CLASS[name] for name in names]
        files = run_folder / TRACKERS_FOLDER
        self._open = [
            kind(run_folder.name, logging_dir=files) if kind.requires_logging_directory else kind(run_folder.name)
            for kind in kinds
        ]
        for tracker in self._open:
            tracker.start()

    def record(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Pass on the numbers of a record; a nested one is named `group/name`."""
        numbers = dict(_numbers(metrics))
        for tracker in self._open:
            if numbers:
                tracker.log(numbers, step=step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for tracker in self._open:
            tracker.finish()


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)
