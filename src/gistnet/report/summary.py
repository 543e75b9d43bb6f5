"""Summary of an evaluation for the terminal: a few lines, each figure beside its baselines and its interval."""

import textwrap
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from gistnet.evaluation.records import MetricRecord
from gistnet.report.tables import bounds_text, met_for_free, offsets_text

COLUMNS = 80
"""Width of a line; only paths are longer."""
MOST_ROWS = 4
"""Rows of the table, at most."""
TARGET_LINES = 2
"""Lines about targets, at most."""


def evaluation_summary(records: Sequence[MetricRecord], span_tokens: int) -> list[str]:
    """At most nine lines: KL recovered by range of offsets and level, a sentence that says it, targets.

    They are of the first position policy and horizon; of the mean over kinds of text where there is one, otherwise of
    each kind.

    Args:
        span_tokens: tokens of a gist of level 0.
    """
    shown = _shown(records)
    if not shown:
        return [
            *in_columns("Leaving these spans out costs the model nothing that was measured, so no share is recovered."),
            *_targets(records),
        ]
    first = shown[0]
    n_spans, documents = f"{first.n_spans:,} spans", f"{first.n_documents:,} documents"
    # The title may be as long as the names of domains are.
    title = f"KL recovered, in %: {first.domain}, {n_spans} of {documents}, positions {first.positions}"
    return [
        *in_columns(title),
        f"  {'tokens after the span':<24}{'gist':>5}{'95 % interval':>15}{'last token':>12}{'shuffled':>10}",
        *(_row(record, first.domain) for record in shown[:MOST_ROWS]),
        *in_columns(verdict(first, span_tokens)),
        *_targets(records),
    ]


def verdict(record: MetricRecord, span_tokens: int) -> str:
    """A sentence that says what a record of `recovered_kl` means.

    Args:
        span_tokens: tokens of a gist of level 0.
    """
    k, interval = record.spans_per_segment, record.interval
    low_to_high = "" if interval is None else f" ({_percent(interval[0])}–{_percent(interval[1])})"
    subject = "One gist keeps" if k == 1 else f"{k} gists in a row keep"
    beside = record.baselines.get("last_token")
    alone = "" if beside is None else f"; the last token alone keeps {_percent(beside)} %"
    is_part = record.offsets not in (None, (1, record.horizon))
    where = f", for tokens {offsets_text(record)} behind them" if is_part else ""
    return (
        f"{subject} {_percent(record.value)} %{low_to_high} of what {'its' if k == 1 else 'their'} {k * span_tokens} "
        f"tokens told the model{where}{alone}."
    )


def training_summary(log: Sequence[Mapping[str, Any]], seconds: float) -> list[str]:
    """Lines on what a finished run reached: the best validation of its last stage, steps, spans, time.

    Args:
        log: lines of `metrics.jsonl`.
        seconds: that the command took.
    """
    last = log[-1].get("stage", 1)
    ends = [line["stage_end"] for line in log if "stage_end" in line]
    best_step = ends[-1]["best_step"] if ends else None
    validations = [line for line in log if "validation" in line and line.get("stage", 1) == last]
    best = next((line for line in validations if line["step"] == best_step), validations[-1])
    result = best["validation"]
    reached = f"KL {result['kl']:.3f} (last token {result['kl_last_token']:.3f}, nothing {result['kl_drop']:.3f})"
    if result["kl_drop"] > 0:
        of_last_token = 1 - result["kl_last_token"] / result["kl_drop"]
        reached = (
            f"{_percent(result['recovered_kl'])} % of the KL recovered; the last token alone recovers "
            f"{_percent(of_last_token)} %"
        )
    steps, spans = log[-1]["step"], max(line["spans_seen"] for line in log if "spans_seen" in line)
    return [
        *in_columns(f"Best validation, after step {best['step']:,}: {reached}."),
        *in_columns(f"Trained {steps:,} steps on {spans:,} spans; this took {timedelta(seconds=round(seconds))}."),
    ]


def _shown(records: Sequence[MetricRecord]) -> list[MetricRecord]:
    """The records of `recovered_kl` that the table has, the one that the sentence is about first."""
    recovered = [record for record in records if record.name == "recovered_kl" and record.is_whole]
    if not recovered:
        return []
    policy, horizon = recovered[0].positions, recovered[0].horizon
    recovered = [record for record in recovered if (record.positions, record.horizon) == (policy, horizon)]
    domains = list(dict.fromkeys(record.domain for record in recovered))
    if "mixed" in domains:
        domains = ["mixed"]
    of_level_0 = [r for r in recovered if r.level == 0 and (r.domain == domains[0] or r.offsets == (1, horizon))]
    above = [r for r in recovered if r.level > 0 and r.domain == domains[0] and r.offsets == (1, horizon)]
    return [record for record in (*of_level_0, *above) if record.domain in domains]


def _row(record: MetricRecord, of_table: str) -> str:
    label = offsets_text(record)
    label += f", {record.domain}" if record.domain != of_table else ""
    label += f", level {record.level}" if record.level else ""
    interval = "" if record.interval is None else f"{_percent(record.interval[0])}–{_percent(record.interval[1])}"
    last_token, shuffled = (
        _percent(record.baselines[name]) if name in record.baselines else "" for name in ("last_token", "shuffled")
    )
    return f"  {label:<24}{_percent(record.value):>5}{interval:>15}{last_token:>12}{shuffled:>10}"


def _targets(records: Sequence[MetricRecord]) -> list[str]:
    """Lines on the targets under the first position policy: how many are met, and which are not."""
    judged = [record for record in records if record.target is not None and record.positions == records[0].positions]
    if not judged:
        return []
    met = [record for record in judged if record.met]
    free = sum(bool(met_for_free(record)) for record in met)
    sentence = f"Targets: {len(met)} of {len(judged)} met"
    sentence += f", {free} of them without a gist too" if free else ""
    missed = [
        f"{record.name} {record.value:.2f} ({bounds_text(record)}, {record.domain})"
        for record in judged
        if not record.met
    ]
    sentence += f"; not met: {', '.join(missed)}" if missed else ""
    return in_columns(sentence + ".", TARGET_LINES)


def in_columns(text: str, lines: int | None = None) -> list[str]:
    return textwrap.wrap(
        text, COLUMNS, max_lines=lines, placeholder=" …", break_long_words=False, break_on_hyphens=False
    )


def _percent(share: float) -> str:
    return str(round(100 * share))
