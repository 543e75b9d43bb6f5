"""The report: one HTML file that shows a run, or several side by side, and opens offline.

Style, script and data are all in the file, and its content security policy forbids every request and every script but
its own. Text from documents reaches the page as JSON and is shown as text, never as markup. The charts are drawn by
the page's own script: a plotting library that draws as much weighs megabytes and took seconds to start.

    gistnet report RUN                     writes RUN/report.html, within a second
    gistnet report --compare RUN RUN …     writes comparison.html

The page draws what it is given as plain JSON values and computes nothing of its own but the reading of a selection.
Nothing here imports torch, so that a report is written in a second.
"""

import base64
import hashlib
import html
import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from gistnet.errors import DataError
from gistnet.evaluation.probes.span_map import SpanMap
from gistnet.evaluation.records import MetricRecord, read_records, rounded_record
from gistnet.files import write_text
from gistnet.metrics_log import read_metrics
from gistnet.paths import local_path
from gistnet.release_folder import is_release
from gistnet.run_folder import (
    BEST_FILE,
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    METRICS_FILE,
    REPORT_FILE,
    RESULTS_FILE,
    SPAN_MAP_FILE,
    read_config_values,
)
from gistnet.terminal import escaped
from gistnet.version import __version__

COMPARISON_FILE = "comparison.html"
_SCRIPTS = (
    "dom.js",
    "looks.js",
    "charts.js",
    "dots.js",
    "selection.js",
    "curves.js",
    "results.js",
    "long_context.js",
    "span_map.js",
    "span_panel.js",
    "pages.js",
)


def write_report(run_folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page of a run, also while it trains, and return where: `out`, or `report.html` in the run folder.

    What evaluation adds may be absent; the page then says which command adds it.

    Raises:
        DataError, ConfigError: see `read_run`.
        StorageError: the page cannot be written.
    """
    run_folder = local_path(run_folder)
    target = run_folder / REPORT_FILE if out is None else local_path(out)
    data = run_data(read_run(run_folder))
    write_text(target, page(data["name"], {"kind": "report", "run": data}))
    return target


def write_comparison(run_folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write the page that puts runs side by side, and return where.

    Raises:
        DataError, ConfigError: fewer than two runs, or see `read_run`.
        StorageError: the page cannot be written.
    """
    if len(run_folders) < 2:
        raise DataError(f"Got {len(run_folders)} run to compare, expected two at least.")
    runs, out = [read_run(local_path(folder)) for folder in run_folders], local_path(out)
    data = [comparable_data(run) | {"name": name} for run, name in zip(runs, _names(runs), strict=True)]
    content = {"kind": "comparison", "runs": data, "differences": differences([run.config for run in runs])}
    write_text(out, page(f"{len(runs)} runs compared", content))
    return out


def page(title: str, content: dict[str, Any]) -> str:
    """The HTML of a page that shows `content`, which is plain JSON values."""
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    parts = {
        "title": html.escape(escaped(title)),
        "policy": f"default-src 'none'; script-src {_hash(script)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        "style": _asset("style.css"),
        "data": embedded_json({"version": __version__, **content}),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("template.html"))


def embedded_json(value: Any) -> str:
    """`value` as JSON that is inert inside a script element: ASCII, without `<`, `>` and `&`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _names(runs: "Sequence[RunRecord]") -> list[str]:
    """The folders' names, with as many of their parents' as tell them apart; a run given twice keeps one name."""
    paths = [run.folder.resolve() for run in runs]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _asset(name: str) -> str:
    return files("gistnet.report").joinpath("page", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


# A run folder as data -------------------------------------------------------------------------------------------------

DECIMALS = 5
"""Decimals of figures in the page, which shows four at most."""
MOST_POINTS = 800
"""Points of a training curve; a longer log is shown as means of consecutive lines."""

_EVENTS = ("validation", "stage_end", "contrastive_weight_raised", "alarm")
NETWORK_FILE, BELOW_FOLDER = "config.json", "below"
"""Configuration that `GistNet.save_pretrained` writes, and the folder of the level below. Importing its module would
import torch."""


@dataclass(frozen=True)
class RunRecord:
    """A run's own words and numbers, as they lie in its folder."""

    folder: Path
    config: dict[str, Any]
    """The resolved configuration as plain values, so that keys of another version are shown too."""
    log: list[dict[str, Any]]
    """The lines of `metrics.jsonl`, at least one of them a validation."""
    results: list[MetricRecord] | None
    """The evaluation, or None before there is one."""
    span_map: SpanMap | None
    """The span map, or None before there is one."""
    best: str | None
    """Name of the best checkpoint."""
    is_released: bool
    """True for a release, to which no command adds anything."""
    networks: list[dict[str, Any]]
    """Description of the best checkpoint's, or a release's, network and of those below it, highest level first: trained
    parameters together with all below, compute; empty without one."""


def read_run(folder: Path) -> RunRecord:
    """Read a run folder; what evaluation adds to it may be absent, and the checkpoints may be gone.

    Raises:
        ConfigError: there is no configuration in YAML.
        DataError: the folder or its log is missing, it has no validation yet, or a file is damaged or of a newer
            version.
    """
    if not folder.is_dir():
        raise DataError(f"There is no run folder at {folder}.")
    log = read_metrics(folder / METRICS_FILE)
    if not any(isinstance(line.get("validation"), dict) for line in log):
        raise DataError(f"{folder / METRICS_FILE} holds no validation, expected one at least: train the run first.")
    results, span_map = folder / RESULTS_FILE, folder / SPAN_MAP_FILE
    checkpoints = folder / CHECKPOINTS_FOLDER
    # The best of each stage, in order: that of the latest is the run's.
    marks = [mark for mark in _read_if_there(checkpoints / BEST_FILE).values() if isinstance(mark, dict)]
    best = marks[-1].get("checkpoint") if marks else None
    return RunRecord(
        folder=folder,
        config=read_config_values(folder / CONFIG_FILE),
        log=log,
        results=read_records(results) if results.exists() else None,
        span_map=SpanMap.read(span_map) if span_map.exists() else None,
        best=best if isinstance(best, str) else None,
        is_released=is_release(folder),
        networks=list(_networks(folder if best is None else checkpoints / str(best) / "gistnet")),
    )


def _networks(folder: Path) -> Iterator[dict[str, Any]]:
    """Descriptions of a saved network and of those below it."""
    while description := _read_if_there(folder / NETWORK_FILE):
        yield description
        folder = folder / BELOW_FOLDER


def _read_if_there(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint; empty where it is gone or damaged, for a page that does without."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# What the page shows --------------------------------------------------------------------------------------------------


def run_data(run: RunRecord) -> dict[str, Any]:
    """Everything the page shows of one run."""
    return comparable_data(run) | {
        "path": shlex.quote(str(run.folder)),
        "released": run.is_released,
        "facts": _facts(run),
        "stages": _stages(run),
        "events": _events(run.log),
        "map": None if run.span_map is None else shortened(run.span_map.model_dump(mode="json")),
    }


def comparable_data(run: RunRecord) -> dict[str, Any]:
    """Data of a run to be put side by side with others: name, curves and results."""
    return {
        "name": run.folder.resolve().name,
        "positions": _positions(run.config),
        "span_tokens": (run.config.get("levels") or [None])[0],
        "curves": curves(run.log),
        "periods": _periods(run),
        "results": None if run.results is None else [_record(record) for record in run.results],
    }


def _record(record: MetricRecord) -> dict[str, Any]:
    """The record without what is default, which the page fills in, and with numbers that nobody sees rounded."""
    fields = rounded_record(record, DECIMALS).model_dump(mode="json", exclude_defaults=True)
    return {name: value for name, value in fields.items() if value is not None}


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
    validations = [dict(line["validation"]) | _step(line) for line in log if isinstance(line.get("validation"), dict)]
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


def _step(line: Mapping[str, Any]) -> dict[str, Any]:
    return {key: line[key] for key in ("step", "spans_seen", "stage") if key in line}


def _columns(lines: Sequence[Mapping[str, Any]], log: Sequence[Mapping[str, Any]], averaged: int) -> dict[str, Any]:
    """Columns of `lines`, each entry the mean over `averaged` consecutive ones; None where a name has no number."""
    groups = [lines[first : first + averaged] for first in range(0, len(lines), averaged)]
    steps = [group[-1]["step"] for group in groups]
    no_values = ("step", "stage", "stage_step", "spans_seen")
    names = dict.fromkeys(name for line in lines for name in line if name not in no_values)
    values = {name: [_mean(line.get(name) for line in group) for group in groups] for name in names}
    return {
        "step": steps,
        "spans": _spans_at(steps, log),
        "stage": [group[-1].get("stage", 1) for group in groups],
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
    configured = dict(enumerate(_configured(run.config), start=1))
    last_step: dict[int, int] = {}
    for line in run.log:
        stage = line.get("stage", 1)
        last_step[stage] = max(last_step.get(stage, 0), line["step"])
    ends = [last_step[stage] for stage in sorted(last_step)]
    steps = [0, *ends]
    spans = _spans_at(steps, run.log)
    return [
        {
            "name": stage["name"],
            "stage": number,
            "level": stage["settings"]["level"] or 0,
            "horizon": stage["settings"]["H"],
            "step": steps[n : n + 2],
            "spans": None if spans is None else spans[n : n + 2],
            "targets": stage["targets"],
        }
        for n, number in enumerate(sorted(last_step))
        for stage in (configured.get(number, _stage({}, False)),)
    ]


def _configured(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The stages of a configuration: name, settings and targets."""
    levels = config.get("levels")
    several = isinstance(levels, list) and len(levels) > 1
    return [_stage(stage, several) for stage in config.get("stages") or [{}]]


def _stage(stage: Mapping[str, Any], several_levels: bool) -> dict[str, Any]:
    train, objective = stage.get("train", {}), stage.get("objective", {})
    return {
        "name": stage.get("name", "unnamed"),
        "settings": {
            "level": train.get("level") if several_levels else None,
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
    """Events beside steps, in order: ends of stages, changes of λ, alarms."""
    return [{"step": line["step"], "text": text} for line in log for text in _event_texts(line)]


def _event_texts(line: Mapping[str, Any]) -> Iterable[str]:
    if isinstance(end := line.get("stage_end"), dict):
        name, reason = end.get("name", "unnamed"), end.get("reason", "no reason given")
        yield f"Stage {line.get('stage', 1)}, {name}, ended: {reason}."
    if isinstance(raised := line.get("contrastive_weight_raised"), dict):
        yield f"λ raised from {raised.get('from')} to {raised.get('to')}."
    if "alarm" in line:
        yield f"Alarm: {line['alarm']}"


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    """Facts about the run, as label and value; unknown ones are left out."""
    config, network = run.config, run.networks[0] if run.networks else {}
    steps = max(line["step"] for line in run.log)
    share = network.get("share_of_teacher")
    shape = network.get("config", {})
    beside = f", beside its own first {shape.get('teacher_layers')} layers" if shape.get("reads") == "context" else ""
    facts = [
        ("teacher", config.get("teacher", {}).get("name")),
        ("architecture", config.get("gistnet", {}).get("architecture")),
        ("trained parameters", _trained_parameters(run.networks)),
        ("compute per span", None if share is None else f"{share:.3g} of the teacher's{beside}"),
        ("spans seen", _spans_seen(run)),
        ("optimiser steps", f"{steps:,}"),
        ("positions", _positions(config)),
        ("best checkpoint", run.best),
    ]
    return [(label, str(value)) for label, value in facts if value]


def _trained_parameters(networks: Sequence[Mapping[str, Any]]) -> str | None:
    """Trained parameters of all levels, and of each where there are several."""
    totals = [n for network in networks if isinstance(n := network.get("trained_parameters"), int)]
    if not totals:
        return None
    own = [total - below for total, below in zip(totals, [*totals[1:], 0], strict=True)]
    each = ", ".join(f"level {level} {count / 1e6:.2f}M" for level, count in enumerate(reversed(own)))
    return f"{totals[0]:,}" + (f" ({each})" if len(own) > 1 else "")


def _spans_seen(run: RunRecord) -> str | None:
    """Spans seen in this run, those of each stage, and what they do not count."""
    spans = [line["spans_seen"] for line in run.log if isinstance(line.get("spans_seen"), int)]
    if not spans:
        return None
    periods = [period for period in _periods(run) if period["spans"]]
    each = ", ".join(f"{p['name']} {p['spans'][1] - p['spans'][0]:,}" for p in periods) if len(periods) > 1 else ""
    begun = run.config.get("start_from")
    return (
        f"{max(spans):,}{f' ({each})' if each else ''}"
        f"{f'; those of {begun}, with whose weights it began, are not counted' if begun else ''}"
    )


def _positions(config: Mapping[str, Any]) -> str:
    """The position policy, which all stages share."""
    first, *_ = config.get("stages") or [{}]
    return str(first.get("objective", {}).get("positions", ""))


def _leaves(value: Any, key: str = "") -> Iterable[tuple[str, str]]:
    """The settings in `value` by dotted key, as text."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for n, item in enumerate(value, start=1):
            yield from _leaves(item, f"{key}.{item.get('name', n) if isinstance(item, Mapping) else n}")
    else:
        yield key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
