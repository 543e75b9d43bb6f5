"""Kept results of the ablations, and the figures and intervals that follow from them.

A file for each kind of device, benchmarks/results/ablations-<device>.json:

    comparisons   key → what all arms of it have in common (budget, default, data), and the arms:
      arms          name → seed → record, or {"failed": why}
      same_as       name → the arm that is the same under another name
    long_curves   name → the validations of a longer run; only kept

A record has KL by document on held-out spans, after gists, nothing (`drop`) and last tokens. Documents are drawn anew
for all intervals (`gistnet.evaluation.resampling`); a document's spans count alike, so that its mean and the number of
its spans are all that has to be kept.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from gistnet.evaluation import metrics
from gistnet.evaluation.resampling import DocumentDraws, percentile_interval
from gistnet.files import write_text

DEFAULT = "default"
"""The arm without any change, which all others are compared with."""
ARMS_FILE = Path(__file__).parent / "arms.yaml"
HORIZON = 32
"""Tokens after a span on which all arms are judged."""
PARTS = {"1–32": {"kl_1_8": 8 / 32, "kl_9_32": 24 / 32}, "1–8": {"kl_1_8": 1.0}, "9–32": {"kl_9_32": 1.0}}
"""Offsets after the span, and the share that each kept column has in their mean."""
RESAMPLES = 2000

Floats = NDArray[np.float64]
Comparison = dict[str, Any]
Record = dict[str, Any]
"""One arm with one seed."""


@dataclass(frozen=True)
class Group:
    """Arms that answer one question.

    Attributes:
        question: of the group.
        arms: name → settings that differ from the default; None: retired, results only.
        config: name of the only default in configs/ that its arms are for; None: of any.
    """

    question: str
    arms: Mapping[str, list[str] | None]
    config: str | None = None

    @property
    def runnable(self) -> dict[str, list[str]]:
        """Arms that can be trained."""
        return {name: settings for name, settings in self.arms.items() if settings is not None}


def read_groups(path: Path = ARMS_FILE) -> dict[str, Group]:
    """Groups of arms by name, in the order of the file."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {
        name: Group(**group | {"arms": {arm: None if s == "retired" else s for arm, s in group["arms"].items()}})
        for name, group in content.items()
    }


# The file -------------------------------------------------------------------------------------------------------------


def load(path: Path) -> dict[str, Any]:
    """Contents of a results file; nothing yet where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"comparisons": {}}


def save(path: Path, results: Mapping[str, Any]) -> None:
    """Replace a results file, atomically; lists of numbers stand on one line, so that changes can be read."""
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    one_line = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text)
    write_text(path, re.sub(r"\{[^\[\]{}]*\}", lambda found: " ".join(found[0].split()), one_line) + "\n")


def digest(value: Any) -> str:
    """12 hexadecimal digits that name a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def records(comparison: Comparison, arm: str) -> list[Record]:
    """Finished records of an arm, by seed; none where it has not been run or failed."""
    by_seed = comparison["arms"].get(comparison["same_as"].get(arm, arm), {})
    return [record for _, record in sorted(by_seed.items()) if "failed" not in record]


def budget_text(comparison: Comparison) -> str:
    """Budget of each arm, in words."""
    ((unit, amount),) = comparison["budget"].items()
    return f"{amount:{'g' if unit == 'minutes' else ','}} {unit} each"


# Figures --------------------------------------------------------------------------------------------------------------


def kl_sums(records: Sequence[Record], name: str, part: str) -> Floats:
    """Sum of KL over each document's spans, [documents], averaged over records of the same spans.

    Args:
        name: "gist", "drop" or "last_token".
        part: of `PARTS`.
    """
    sums = [
        sum(share * np.asarray(record["kl_by_document"][name][column]) for column, share in PARTS[part].items())
        * np.asarray(record["spans_by_document"])
        for record in records
    ]
    return np.asarray(np.mean(sums, axis=0), dtype=np.float64)


def mean_kl(records: Sequence[Record], name: str, part: str) -> float:
    """Mean KL over spans, nats per token."""
    return float(kl_sums(records, name, part).sum() / sum(records[0]["spans_by_document"]))


def recovered(records: Sequence[Record], part: str, name: str = "gist") -> float:
    """Share of the cost of dropping that is won back."""
    return float(metrics.recovered_share(mean_kl(records, name, part), mean_kl(records, "drop", part)))


def recovered_interval(records: Sequence[Record], part: str) -> tuple[float, float]:
    """95 % interval over documents of the share recovered; of the mean where there are several seeds."""
    draws = _draws(records[0])
    gist, drop = (draws.sums(kl_sums(records, name, part)) for name in ("gist", "drop"))
    return percentile_interval(metrics.recovered_share(gist, drop))


def paired_difference(
    arm: Sequence[Record], default: Sequence[Record], part: str
) -> tuple[float, tuple[float, float]] | None:
    """Difference of an arm and the default on the same spans and with the same seeds, and its 95 % interval.

    Documents are drawn for both at once: what makes a document hard for both does not count as noise. None where they
    have no seed in common, or other spans.
    """
    seeds = {record["seed"] for record in arm} & {record["seed"] for record in default}
    ours, theirs = ([r for r in records if r["seed"] in seeds] for records in (arm, default))
    if not seeds or any(ours[0][key] != theirs[0][key] for key in ("span_tokens", "spans_by_document")):
        return None
    gains = kl_sums(theirs, "gist", part) - kl_sums(ours, "gist", part)
    drop = kl_sums(theirs, "drop", part)
    draws = _draws(ours[0])
    interval = percentile_interval(draws.sums(gains) / draws.sums(drop))
    return float(gains.sum() / drop.sum()), interval


def row_kl(records: Sequence[Record], row: str, name: str) -> Floats:
    """KL of each passage after a row, `[passages]`, nats per token, averaged over records.

    Args:
        row: as "30+64": gists, and the raw tokens behind them.
        name: "drop", or with a position policy "gist/end", "shuffled/end", "last_token/end", "recent_tokens/end".
    """
    return np.asarray(np.mean([record["row_kl_by_passage"][row][name] for record in records], axis=0))


def row_recovered(records: Sequence[Record], rows: Sequence[str], names: Sequence[str]) -> float:
    """Mean over rows and names of the share of the cost of dropping the row that is won back."""
    lost = [row_kl(records, row, name).sum() / row_kl(records, row, "drop").sum() for row in rows for name in names]
    return 1 - float(np.mean(lost))


def paired_row_difference(
    arm: Sequence[Record], default: Sequence[Record], rows: Sequence[str], names: Sequence[str]
) -> tuple[float, tuple[float, float]] | None:
    """Difference of an arm and the default in `row_recovered`, and its 95 % interval over passages, with equal seeds.

    None where they have no seed in common.
    """
    seeds = {record["seed"] for record in arm} & {record["seed"] for record in default}
    if not seeds:
        return None
    ours, theirs = ([r for r in records if r["seed"] in seeds] for records in (arm, default))
    draws = DocumentDraws(range(len(row_kl(ours, rows[0], "drop"))), RESAMPLES, seed=0)
    differences, resampled = [], []
    for row in rows:
        drop = row_kl(theirs, row, "drop")
        for name in names:
            gains = row_kl(theirs, row, name) - row_kl(ours, row, name)
            differences.append(gains.sum() / drop.sum())
            resampled.append(draws.sums(gains) / draws.sums(drop))
    return float(np.mean(differences)), percentile_interval(np.mean(resampled, axis=0))


def _draws(record: Record) -> DocumentDraws:
    return DocumentDraws(range(len(record["spans_by_document"])), RESAMPLES, seed=0)


def at_spans(curve: Sequence[Mapping[str, float]], spans: float) -> float:
    """Share recovered on validation spans after so many spans; between two validations on a line over log2."""
    x, y = curve_points(curve)
    return float(np.interp(np.log2(spans), np.log2(x), y))


def curve_points(curve: Sequence[Mapping[str, float]]) -> tuple[list[float], list[float]]:
    """Spans seen, and the shares recovered, of all validations but that before the first step."""
    seen = [point for point in curve if point["spans_seen"] > 0]
    return [point["spans_seen"] for point in seen], [point["recovered_kl"] for point in seen]
