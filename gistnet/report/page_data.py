"""What the report page shows of a run, as plain JSON values: facts, stages, curves, events, figures, span map.

Pure functions of a `RunRecord`; the page draws what it finds here and computes no figure of its own but the reading
of a selection.
"""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gistnet.report.run_record import RunRecord

MOST_POINTS = 800
"""Points of a training curve; a longer log is shown as means of consecutive lines."""

_EVENTS = ("validation", "stage_end", "contrastive_weight_raised", "alarm")


def run_data(run: RunRecord) -> dict[str, Any]:
    """Everything the page shows of one run."""
    return comparable_data(run) | {
        "path": shlex.quote(str(run.folder)),
        "facts": _facts(run),
        "stages": _stages(run),
        "events": _events(run.log),
        "map": None if run.span_map is None else shortened(run.span_map.model_dump(mode="json")),
    }


def comparable_data(run: RunRecord) -> dict[str, Any]:
    """What can be put side by side with other runs: name, curves and figures."""
    return {
        "name": run.folder.resolve().name,
        "positions": _positions(run.config),
        "curves": curves(run.log),
        "periods": _periods(run),
        "figures": None if run.figures is None else [record.model_dump(mode="json") for record in run.figures],
    }


def differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The settings that differ: key, and its value in each configuration (None where it has no such key)."""
    flat = [dict(_leaves(config)) for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config)
    return [
        {"key": key, "values": [config.get(key) for config in flat]}
        for key in keys
        if key != "run_folder" and len({config.get(key) for config in flat}) > 1
    ]


def curves(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The log as columns: `training` and `validation`, each with `step`, `spans` and `values` by name."""
    validations = [dict(line["validation"]) | _place(line) for line in log if isinstance(line.get("validation"), dict)]
    training = [line for line in log if not any(event in line for event in _EVENTS)]
    return {
        "training": _columns(training, log, math.ceil(len(training) / MOST_POINTS) or 1),
        "validation": _columns(validations, log, 1),
    }


def shortened(value: Any) -> Any:
    """`value` with numbers of four significant digits: a large map stays small, and nobody sees more."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shortened(item) for item in value]
    return value


def _place(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: line[key] for key in ("step", "spans_seen", "stage") if key in line}


def _columns(lines: Sequence[Mapping[str, Any]], log: Sequence[Mapping[str, Any]], averaged: int) -> dict[str, Any]:
    """Columns of `lines`, each entry the mean over `averaged` consecutive ones; None where a name has no number."""
    groups = [lines[first : first + averaged] for first in range(0, len(lines), averaged)]
    steps = [group[-1]["step"] for group in groups]
    places = ("step", "stage", "stage_step", "spans_seen")
    names = dict.fromkeys(name for line in lines for name in line if name not in places)
    values = {name: [_mean(line.get(name) for line in group) for group in groups] for name in names}
    return {
        "step": steps,
        "spans": _spans_at(steps, log),
        "values": {name: column for name, column in values.items() if any(item is not None for item in column)},
        "averaged": averaged,
    }


def _mean(values: Iterable[Any]) -> float | None:
    numbers = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return float(f"{np.mean(numbers):.6g}") if numbers else None


def _spans_at(steps: Sequence[int], log: Sequence[Mapping[str, Any]]) -> list[int] | None:
    """Spans seen by each step, between those that the log states; None where it states none."""
    known = {line["step"]: line["spans_seen"] for line in log if isinstance(line.get("spans_seen"), int)}
    if not known:
        return None
    at = sorted(known)
    return [round(spans) for spans in np.interp(steps, at, [known[step] for step in at])]


def _periods(run: RunRecord) -> list[dict[str, Any]]:
    """When each stage that has begun was trained: name, and from where to where in steps and in spans."""
    names = [stage["name"] for stage in _configured(run.config)]
    last_step: dict[int, int] = {}
    for line in run.log:
        stage = line.get("stage", 1)
        last_step[stage] = max(last_step.get(stage, 0), line["step"])
    ends = [last_step[stage] for stage in sorted(last_step)]
    steps = [0, *ends]
    spans = _spans_at(steps, run.log)
    return [
        {
            "name": names[stage - 1] if stage <= len(names) else f"stage {stage}",
            "step": steps[n : n + 2],
            "spans": None if spans is None else spans[n : n + 2],
            "targets": _configured(run.config)[stage - 1]["targets"] if stage <= len(names) else [],
        }
        for n, stage in enumerate(sorted(last_step))
    ]


def _configured(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages of a configuration; one that states none is a single stage."""
    stages = config.get("stages") or [{"name": "training"}]
    return [_stage(stage.get("name", f"stage {n}"), config, stage) for n, stage in enumerate(stages, start=1)]


def _stage(name: str, config: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    train = {**config.get("train", {}), **stage.get("train", {})}
    objective = {**config.get("objective", {}), **stage.get("objective", {})}
    return {
        "name": name,
        "settings": {
            "level": train.get("level") if config.get("levels", 1) > 1 else None,
            "H": objective.get("horizon_tokens"),
            "λ": objective.get("contrastive_weight"),
            "dropout": train.get("dropout"),
            "learning rate": train.get("optimiser", {}).get("learning_rate"),
            "mix": ", ".join(
                f"{domain} {share:g}" for domain, share in train.get("probabilities", {}).items() if share
            ),
            "steps at most": train.get("steps"),
        },
        "targets": [
            {"name": name, "above": target.get("above"), "below": target.get("below"), "value": None, "met": None}
            for name, target in (stage.get("targets") or {}).items()
            if isinstance(target, dict)
        ],
    }


def _stages(run: RunRecord) -> list[dict[str, Any]]:
    """The configured stages, each with how it ended and what became of its targets, once it has ended."""
    ended = {line.get("stage", 1): line["stage_end"] for line in run.log if isinstance(line.get("stage_end"), dict)}
    stages = _configured(run.config)
    for n, stage in enumerate(stages, start=1):
        end = ended.get(n)
        stage["end"] = None if end is None else {"reason": end.get("reason"), "best_step": end.get("best_step")}
        if end is not None and end.get("targets"):
            stage["targets"] = end["targets"]
    return stages


def _events(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What happened beside steps, in order: ends of stages, changes of λ, alarms."""
    return [{"step": line["step"], "text": text} for line in log for text in _told(line)]


def _told(line: Mapping[str, Any]) -> Iterable[str]:
    if isinstance(end := line.get("stage_end"), dict):
        name, reason = end.get("name", "unnamed"), end.get("reason", "no reason given")
        yield f"Stage {line.get('stage', 1)}, {name}, ended: {reason}."
    if isinstance(raised := line.get("contrastive_weight_raised"), dict):
        yield f"λ raised from {raised.get('from')} to {raised.get('to')}."
    if "alarm" in line:
        yield f"Alarm: {line['alarm']}"


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    """What the run is, as label and value; what is not known is left out."""
    config, network = run.config, run.network
    spans = [line["spans_seen"] for line in run.log if isinstance(line.get("spans_seen"), int)]
    steps = max(line["step"] for line in run.log)
    trained, share = network.get("trained_parameters"), network.get("share_of_teacher")
    shape = network.get("config", {})
    beside = f", beside its own first {shape.get('teacher_layers')} layers" if shape.get("reads") == "context" else ""
    facts = [
        ("teacher", config.get("teacher", {}).get("name") or network.get("teacher", {}).get("name")),
        ("architecture", config.get("gistnet", {}).get("architecture")),
        ("trained parameters", None if trained is None else f"{trained:,}"),
        ("compute per span", None if share is None else f"{share:.3g} of the teacher's{beside}"),
        ("spans seen", f"{max(spans):,}" if spans else None),
        ("optimiser steps", f"{steps:,}"),
        ("positions", _positions(config)),
        ("best checkpoint", run.best),
    ]
    return [(label, str(value)) for label, value in facts if value]


def _positions(config: Mapping[str, Any]) -> str:
    """The position policy, which all stages share; stated by each, or by an older run for all."""
    for group in (config, *(config.get("stages") or [])):
        if "positions" in group.get("objective", {}):
            return _listed(group["objective"]["positions"])
    return ""


def _listed(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {share}" for key, share in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _leaves(value: Any, key: str = "") -> Iterable[tuple[str, str]]:
    """The settings in `value` by dotted key, as text."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for n, item in enumerate(value, start=1):
            yield from _leaves(item, f"{key}.{item.get('name', n) if isinstance(item, Mapping) else n}")
    else:
        yield key, _listed(value) if isinstance(value, list) else str(value)
