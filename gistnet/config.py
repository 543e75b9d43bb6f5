"""A run's configuration, composed of what each room declares.

Defaults give way to the YAML file, and the file to `key=value` settings of the command line. The result is immutable,
every key is known, and it is written into the run folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from gistnet.data.prepare import DataConfig
from gistnet.errors import ConfigError
from gistnet.evaluation.evaluator import EvaluationConfig
from gistnet.files import write_text
from gistnet.model.gistnet import GistNetConfig
from gistnet.model.teacher import TeacherConfig
from gistnet.objective.objective import ObjectiveConfig
from gistnet.settings import Section
from gistnet.train.trainer import TrainConfig

CONFIG_FILE = "config.yaml"


class RunConfig(Section):
    """Everything a run depends on."""

    run_folder: Path
    """Where the run writes its configuration, metrics and checkpoints."""
    seed: int = Field(default=0, ge=0)
    """Decides initial weights, the order of data, dropout and what is validated on."""
    device: str = "auto"
    """A torch device, or auto: CUDA where there is one, otherwise the CPU."""
    teacher: TeacherConfig = TeacherConfig()
    data: DataConfig
    gistnet: GistNetConfig = GistNetConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _horizon_fits(self) -> Self:
        span, horizon = self.gistnet.span_tokens * self.train.gists_in_a_row, self.objective.horizon_tokens
        needed = self.train.sink_tokens + span + horizon
        if needed > self.data.window_tokens:
            raise ValueError(
                f"window_tokens is {self.data.window_tokens}, expected at least {needed}: {self.train.sink_tokens} "
                f"first tokens, {span} replaced and {horizon} predicted"
            )
        if self.objective.contrastive_weight > 0 and horizon < self.gistnet.span_tokens:
            raise ValueError(
                f"horizon_tokens is {horizon} with a contrastive_weight above 0, expected at least the "
                f"{self.gistnet.span_tokens} tokens of a span, so that every span has a neighbour"
            )
        return self


def load_config(path: Path, settings: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `key.sub=value` settings, whose values are YAML too.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, a value is wrong, or fields contradict.
    """
    values = _read_yaml(path)
    for setting in settings:
        _apply(values, setting)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_one_sentence(error)}.") from error


def save_config(config: RunConfig) -> None:
    """Write the resolved configuration into the run folder.

    Raises:
        StorageError: the folder cannot be written.
    """
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_text(config.run_folder / CONFIG_FILE, text)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Could not read the configuration {path}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"The configuration {path} is not valid YAML in UTF-8: {reason}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The configuration {path} holds {type(values).__name__}, expected keys with values.")
    return values


def _apply(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ConfigError(f"Got the setting '{setting}', expected key=value, as in train.steps=100.")
    *groups, last = key.split(".")
    for group in groups:
        inner = values.setdefault(group, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"Got the setting '{setting}', but '{group}' is not a group of settings.")
        values = inner
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of the setting '{setting}' is not valid YAML.") from error


def _one_sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the configuration"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key '{place}'{more}"
    got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message}{got}{more}"
