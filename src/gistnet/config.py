"""A run's configuration, composed of the sections that each package declares; without torch.

Defaults give way to the YAML file, and the file to `key=value` settings of the command line. The result is immutable,
every key is known, and it is written into the run folder.

A run is a sequence of stages. A file that lists `stages` states in `train` and `objective` what they have in common,
and in each stage what differs; one without has the single stage that its `train` and `objective` describe.
"""

import copy
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from gistnet.data.config import SINK_TOKENS, DataConfig
from gistnet.errors import ConfigError
from gistnet.evaluation.config import EvaluationConfig
from gistnet.files import write_text
from gistnet.model.config import GistNetConfig, TeacherConfig
from gistnet.paths import local_path
from gistnet.run_folder import CONFIG_FILE, FORMAT_VERSION, read_config_values
from gistnet.settings import Branching, LocalPath, Name, Section, Seed
from gistnet.settings_reference import ITEM, Group, groups_of, markdown, similar_keys
from gistnet.training.config import Stage, Tracker
from gistnet.yaml_format import read_yaml, write_yaml

ONLY_STAGE = "training"
"""The name of a run's only stage, where the file does not name it."""


class RunConfig(Section):
    """Everything a run depends on."""

    format_version: int = FORMAT_VERSION
    """The format of the run folder; written there, and not worth setting."""
    run_folder: LocalPath
    """Folder of the run's configuration, metrics and checkpoints."""
    seed: Seed = 0
    """Decides initial weights, the order of data, dropout and what is validated on."""
    device: Name = "auto"
    """A torch device, or auto: CUDA where there is one, otherwise the CPU."""
    teacher: TeacherConfig = TeacherConfig()
    data: DataConfig
    gistnet: GistNetConfig = GistNetConfig()
    """The shape of the GistNet of every level."""
    levels: tuple[Branching, ...] = Field(default=(32,), min_length=1)
    """Branching of each level: how many tokens become one gist of level 0, then how many gists of a level become one of
    the next. `[8, 4, 32]` has gists of 8, 32 and 1024 tokens. A stage says which level it trains."""
    start_from: LocalPath | None = None
    """A saved GistNet that the run begins with, in place of new weights; it may have fewer levels."""
    stages: tuple[Stage, ...] = ()
    """The curriculum, in order; each begins with the best network of the one before. Empty: a single stage, which
    `train` and `objective` describe."""
    evaluation: EvaluationConfig = EvaluationConfig()
    trackers: tuple[Tracker, ...] = ()
    """Experiment trackers that get the metrics as well; each needs the extra of its name."""

    @model_validator(mode="before")
    @classmethod
    def _complete_stages(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        completed = {key: value for key, value in values.items() if key not in _SHARED_BY_STAGES}
        shared = {key: values.get(key, {}) for key in _SHARED_BY_STAGES}
        stages = values.get("stages") or [{"name": ONLY_STAGE}]
        if isinstance(stages, Sequence):
            completed["stages"] = [_merged(shared, stage) for stage in stages]
        return completed

    @model_validator(mode="after")
    def _stages_agree(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"the names of the stages must differ, got {names}")
        policies = {stage.objective.positions for stage in self.stages}
        if len(policies) > 1:
            raise ValueError(f"objective.positions is {' and '.join(sorted(policies))}, expected one for all stages")
        for stage in self.stages:
            self._require_room(stage)
        return self

    @property
    def longest_row(self) -> int:
        """The most gists of level 0 in a row that training can read; 0 where it trains higher levels only."""
        trained = [stage.train for stage in self.stages if stage.train.level == 0]
        longest = max((train.segments.most for train in trained), default=0)
        return min(longest, (self.data.window_tokens - SINK_TOKENS) // self.levels[0])

    def _require_room(self, stage: Stage) -> None:
        train, horizon = stage.train, stage.objective.horizon_tokens
        if train.level >= len(self.levels):
            raise ValueError(
                f"stage '{stage.name}' trains level {train.level}, expected one below {len(self.levels)}, the number "
                "of levels"
            )
        tokens_per_gist = prod(self.levels[: train.level + 1])
        span = tokens_per_gist * max(*train.segments.lengths, train.validation.spans_per_segment)
        needed = SINK_TOKENS + span + horizon
        available = min(self.data.window_tokens, train.window_tokens or self.data.window_tokens)
        if needed > available:
            raise ValueError(
                f"window_tokens is {available}, expected at least {needed}: {SINK_TOKENS} "
                f"first tokens, {span} replaced and {horizon} predicted (stage '{stage.name}')"
            )
        if stage.objective.contrastive_weight > 0 and horizon < tokens_per_gist:
            raise ValueError(
                f"horizon_tokens is {horizon} with a contrastive_weight above 0, expected at least the "
                f"{tokens_per_gist} tokens of a span, so that every span has a neighbour (stage "
                f"'{stage.name}')"
            )


_SHARED_BY_STAGES = ("train", "objective")


def load_config(path: str | Path, settings: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `key.sub=value` settings, whose values are YAML too.

    In a list, a name takes the place of a key: `stages.code.train.steps=100` changes one stage, and `train.steps=100`
    all of them.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown or stands twice, a value is wrong, or fields
            contradict; or a newer gistnet wrote it.
    """
    values = read_config_values(local_path(path))
    for setting in settings:
        _apply(values, setting)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        names = [str(stage.get("name")) for stage in _listed_stages(values)]
        raise ConfigError(f"{path}: {_one_sentence(error, names)}.") from error
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply for a configuration.") from error


def save_config(config: RunConfig) -> None:
    """Write the resolved configuration into the run folder, by absolute paths: it is read from other folders too.

    Raises:
        StorageError: the folder cannot be written.
    """
    teacher = Path(config.teacher.name)
    start_from = config.start_from
    located = {
        "run_folder": config.run_folder.absolute(),
        "data": config.data.with_absolute_paths(),
        "teacher": config.teacher.model_copy(update={"name": str(teacher.absolute() if teacher.is_dir() else teacher)}),
        # What is no folder is the name of a release or of a repository.
        "start_from": start_from.absolute() if start_from is not None and start_from.is_dir() else start_from,
    }
    write_text(config.run_folder / CONFIG_FILE, config_text(config.model_copy(update=located)))


def config_text(config: RunConfig) -> str:
    """The resolved configuration as YAML, every field stated."""
    return write_yaml(config.model_dump(mode="json"), allow_unicode=True)


def setting_groups() -> list[Group]:
    """Every setting of a run, group by group; those that stages share by the keys that set them for all stages."""
    shared = {f"stages.{ITEM}.{key}": key for key in _SHARED_BY_STAGES}
    return list(groups_of(RunConfig, renamed=shared))


def config_reference() -> str:
    """The reference of a run's configuration, as Markdown."""
    return markdown(setting_groups())


def _apply(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if setting.startswith("-"):
        meant = " or ".join(
            f"{similar}=…" for similar in similar_keys(setting_groups(), key.strip("-").replace("-", "_"))
        )
        raise ConfigError(f"Got the option '{setting}', expected {meant or 'one that --help lists'}.")
    if not equals or not key:
        raise ConfigError(f"Got the setting '{setting}', expected key=value, as in train.steps=100.")
    try:
        value = read_yaml(text)
    except ValueError as error:
        raise ConfigError(f"The value of the setting '{setting}' is not valid YAML: {error}.") from error
    path = key.split(".")
    # A setting of all stages goes before a stage's own value.
    for group in (values, *_listed_stages(values)) if path[0] in _SHARED_BY_STAGES else (values,):
        _set(group, path, value, setting)


def _listed_stages(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    stages = values.get("stages")
    return [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []


def _set(values: Any, path: Sequence[str], value: Any, setting: str) -> None:
    *groups, last = path
    for group in groups:
        if isinstance(values, list):
            named = {str(item.get("name")): item for item in values if isinstance(item, dict)}
            if group not in named:
                raise ConfigError(f"Got the setting '{setting}', but '{group}' is none of {', '.join(named)}.")
            values = named[group]
        else:
            values = values.setdefault(group, {})
        if not isinstance(values, dict | list):
            raise ConfigError(f"Got the setting '{setting}', but '{group}' is not a group of settings.")
    if not isinstance(values, dict):
        raise ConfigError(f"Got the setting '{setting}', but '{last}' names a whole group, expected one of its keys.")
    values[last] = value


def _merged(shared: Any, own: Any) -> Any:
    """`own` settings over `shared` ones, group by group."""
    if not (isinstance(shared, Mapping) and isinstance(own, Mapping)):
        return own
    merged = {key: copy.deepcopy(value) for key, value in shared.items()}
    for key, value in own.items():
        replaced_whole = key in _NOT_GROUPS or key not in merged
        merged[key] = value if replaced_whole else _merged(merged[key], value)
    return merged


# Mappings that are values: a stage's mix takes the place of the shared one, and is not added to it.
_NOT_GROUPS = ("probabilities", "lengths", "targets")


def _one_sentence(error: ValidationError, stages: Sequence[str]) -> str:
    first = error.errors()[0]
    key = ".".join(_in_the_file(first["loc"], stages)) or "the configuration"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        meant = " or ".join(similar_keys(setting_groups(), key))
        return f"unknown key '{key}' ({f'did you mean {meant}?' if meant else '`gistnet config` lists all'}){more}"
    got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}{got}{more}"


def _in_the_file(path: Sequence[str | int], stages: Sequence[str]) -> list[str]:
    """Path of a value by keys as the file has them: a stage by its name, the only stage not at all."""
    parts = [str(part) for part in path]
    if len(path) > 1 and path[0] == "stages" and isinstance(path[1], int):
        return [parts[0], stages[path[1]], *parts[2:]] if path[1] < len(stages) else parts[2:]
    return parts
