"""What the ablations have found so far: one file for each kind of device, benchmarks/results/ablations-<device>.json.

comparisons   key → what all arms of it have in common (budget, default, data), and the arms:
  arms          name → seed → record, or {"failed": why}
  same_as       name → the arm that is the same under another name
long_curves   name → the validations of a longer run, for the extrapolation
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ablation_arms import DEFAULT
from gistnet.config import RunConfig
from gistnet.files import write_text
from gistnet.run_folder import METRICS_FILE
from gistnet.training.tracking import read_metrics

Comparison = dict[str, Any]
CURVE = ("kl", "delta_nll", "recovered_kl", "recovered_kl_1_8", "recovered_kl_9_32", "gist_norm")


def load(path: Path) -> dict[str, Any]:
    """What is in a results file; nothing yet where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"comparisons": {}, "long_curves": {}}


def save(path: Path, results: Mapping[str, Any]) -> None:
    """Replace a results file, atomically; lists of numbers stand on one line, so that changes can be read."""
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    one_line = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text)
    write_text(path, re.sub(r"\{[^\[\]{}]*\}", lambda found: " ".join(found[0].split()), one_line) + "\n")


def described(config: RunConfig, *, stated: bool = False) -> dict[str, Any]:
    """All of a configuration that decides what is trained, without the places of things.

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


def digest(value: Any) -> str:
    """12 hexadecimal digits that name a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def comparison(results: dict[str, Any], common: dict[str, Any]) -> tuple[str, Comparison]:
    """The comparison whose arms have `common` in common, and its key; a new one where there is none."""
    key = digest(common)
    return key, results["comparisons"].setdefault(key, common | {"same_as": {}, "arms": {}})


def same_arms(arms: Mapping[str, RunConfig]) -> dict[str, str]:
    """Arms that are another arm under another name: name → the first arm of the same configuration."""
    first: dict[str, str] = {}
    found = {name: first.setdefault(digest(described(config)), name) for name, config in arms.items()}
    return {name: other for name, other in found.items() if name != other}


def records(comparison: Comparison, arm: str) -> list[dict[str, Any]]:
    """The finished records of an arm, by seed; none where it has not been run or failed."""
    by_seed = comparison["arms"].get(comparison["same_as"].get(arm, arm), {})
    return [record for _, record in sorted(by_seed.items()) if "failed" not in record]


def read_curve(*run_folders: Path) -> list[dict[str, float]]:
    """The validations of a run's first stage, in the order of spans seen; and of runs that each began where one ended.

    Later stages are validated on other text.
    """
    curve, before = [], 0
    for folder in run_folders:
        of_first_stage = [record for record in read_metrics(folder / METRICS_FILE) if record.get("stage", 1) == 1]
        curve += [
            {"spans_seen": before + record["spans_seen"]}
            | {name: round(record["validation"][name], 5) for name in CURVE if name in record["validation"]}
            for record in of_first_stage
            if "validation" in record
        ]
        before += max(record.get("spans_seen", 0) for record in of_first_stage)
    return curve


def longest_curve(results: Mapping[str, Any]) -> tuple[str, list[dict[str, float]]] | None:
    """The longest curve there is, a long run's or the default's, with the name of the run."""
    curves = dict(results["long_curves"])
    for content in results["comparisons"].values():
        for record in records(content, DEFAULT):
            curves[f"the default, {budget_text(content)}, seed {record['seed']}"] = record["curve"]
    return max(curves.items(), key=lambda item: item[1][-1]["spans_seen"], default=None)


def ends_of_schedules(results: Mapping[str, Any]) -> Sequence[tuple[int, float]]:
    """(spans seen, share recovered) at the end of each run of the default with a schedule of its own, by spans."""
    ends = {
        (record["curve"][-1]["spans_seen"], record["curve"][-1]["recovered_kl"])
        for content in results["comparisons"].values()
        for record in records(content, DEFAULT)
    }
    return sorted(ends)


def budget_text(comparison: Comparison) -> str:
    """What each arm was given, in words."""
    ((unit, amount),) = comparison["budget"].items()
    return f"{amount:g} minutes each" if unit == "minutes" else f"{amount:,} spans each"
