"""Experiment trackers, through accelerate: they get the numbers that metrics.jsonl gets."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from accelerate import tracking

from gistnet.errors import ConfigError
from gistnet.run_folder import TRACKERS_FOLDER
from gistnet.training.config import Tracker


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
