"""Fills the tables of README.md and of docs, and the cards of releases, so that no figure is copied by hand.

    python benchmarks/tables.py             after measuring, plotting or `gistnet release`; takes seconds
    python benchmarks/tables.py --check     exits with 1, and names the pages that are not what the results make

A block of a page begins with `<!-- table: NAME -->` and ends with `<!-- /table -->`; `BLOCKS` makes what is between of
benchmarks/results, docs/plots and the releases. Where a result is missing, it names the command that measures it.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

import numpy as np

from benchmarks import ablation_results as kept
from benchmarks.ablation_results import DEFAULT, PARTS, Comparison, Record, mean_kl, recovered
from benchmarks.flops import TeacherSize, engine_flops, loop_flops
from benchmarks.machine import ROOT
from benchmarks.workload import EMBEDDED_TEACHER, SMOLLM2_SHAPE, all_starts, build_teacher
from gistnet.config import config_reference
from gistnet.evaluation.records import BaselineName, MetricRecord
from gistnet.machine import device_name
from gistnet.model.config import GistNetConfig
from gistnet.model.gistnet import GistNet
from gistnet.release.card import card, results_tables, summary
from gistnet.release.contents import read_release
from gistnet.release_folder import CARD_FILE, is_release, releases_in
from gistnet.report.tables import markdown

FILLED = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in ("results", "samples", "long-contexts", "performance", "ablations", "configuration")
    ),
)
"""The pages that have blocks."""
DEVICES = ("cpu", "cuda")
ON_GPU = "on_gpu.py --out FOLDER"
RELEASE, CONTEXT_RELEASE, RELEASE_OF_8 = (f"smollm2-135m-{name}" for name in ("gist32", "gist32-context", "gist8"))
RELEASES_FOLDER = Path("src/gistnet/released")
"""The releases that README.md tells of: one that reads spans alone, and one that reads them where they stand."""
_BLOCK = re.compile(r"(<!-- table: (?P<name>\S+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def _load(root: Path, name: str) -> Any:
    """Contents of a results file, or None where there is none."""
    path = root / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _to_measure(command: str) -> str:
    return f"TO MEASURE: `python benchmarks/{command}`"


# docs/performance.md --------------------------------------------------------------------------------------------------


def engine_table(device: str, root: Path) -> str:
    """Loop, cached loop and engine, by teacher, window and horizon."""
    content = _load(root, f"engine-{device}")
    if content is None:
        return _to_measure("speed.py engine" if device == "cpu" else ON_GPU)
    rows = []
    for teacher, result in content["teachers"].items():
        size, gistnet = _size(teacher)
        for case in result["cases"]:
            seconds = (case.get(name, {}).get("seconds_per_span") for name in ("loop", "cached", "engine"))
            cells = [f"{value:.4g}" if value else "–" for value in seconds]
            for name in ("speedup_over_loop", "speedup_over_cached"):
                cells.append(f"**{case[name]:.0f}×**" if name in case else "–")
            cells.append(f"{counted_ratio(size, gistnet, case['window'], case['horizon']):.0f}×")
            cells.append(f"{case['model_flop_utilisation']:.0%}" if "model_flop_utilisation" in case else "–")
            cells.append(f"{case['engine']['peak_memory_megabytes'] / 1000:.1f} GB" if "engine" in case else "–")
            rows.append([f"{teacher}, {case['window']:,}, {case['horizon']}", *cells])
    header = ["teacher, window, H", "loop, s a span", "cached", "engine", "over loop", "over cached"]
    table = markdown([*header, "by operations", "utilisation", "peak"], rows)
    ceiling = content.get("matmul_flops_per_second")
    described = f"{device_name(content['machine'])}, torch {content['machine']['torch']}"
    reached = f"; large matrix products in bfloat16 reach {ceiling / 1e9:,.0f} GFLOP/s" if ceiling else ""
    return f"{described}{reached}.\n\n{table}\n\n{_equality(content)}".rstrip()


def _size(teacher: str) -> tuple[TeacherSize, GistNet]:
    model = build_teacher(SMOLLM2_SHAPE if teacher == EMBEDDED_TEACHER else teacher, "bfloat16", "meta")
    return TeacherSize.of(model), GistNet.build(GistNetConfig(architecture="full"), model)


def counted_ratio(size: TeacherSize, gistnet: GistNet, window: int, horizon: int) -> float:
    """Operations of the loop over those of the engine, for a span of a window where all spans are replaced."""
    starts = all_starts(window, horizon)
    engine = sum(engine_flops(size, gistnet, window, starts, horizon).values()) / len(starts)
    return loop_flops(size, gistnet, window=window, horizon=horizon) / engine


def _equality(content: dict[str, Any]) -> str:
    found = {
        name: result["float32_equality"] for name, result in content["teachers"].items() if "float32_equality" in result
    }
    lines = (
        f"{name}: losses {row['kl_difference_nats']:.1e} nats apart at most, gradient of GistNet "
        f"{row['gradient_relative_difference']:.1e} of its norm"
        for name, row in found.items()
    )
    return f"Loop against engine in float32: {'; '.join(lines)}." if found else ""


def against_table(root: Path) -> str:
    """Seconds a span of the engine now and at an earlier commit, by window: means over the rounds, and their range."""
    content = _load(root, "against")
    if content is None:
        return _to_measure("against.py 6bae44d")
    rows = []
    for window in dict.fromkeys(of["window"] for of in content["rounds"]):
        rounds = [of for of in content["rounds"] if of["window"] == window]
        before, now = (np.mean([of[name] for of in rounds]) for name in ("seconds_before", "seconds_now"))
        ratios = [of["ratio"] for of in rounds]
        apart = max(of["largest_difference"] for of in rounds)
        ratio = f"**{np.mean(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append([f"{window:,}, {content['horizon']}", f"{before:.3f}", f"{now:.3f}", ratio, f"{apart:.1g}"])
    header = ["window, H", f"commit {content['commit']}, s a span", "now", "of that time", "losses apart, nats"]
    machine = f"{device_name(content['machine'])}, torch {content['machine']['torch']}"
    return f"{machine}; a core each, {len(rounds)} rounds:\n\n{markdown(header, rows)}"


def parts_table(device: str, root: Path) -> str:
    """Parts of the engine's time, by case."""
    content = _load(root, f"engine-{device}") or {"teachers": {}}
    cases = [(name, case) for name, result in content["teachers"].items() for case in result["cases"]]
    cases = [(teacher, case) for teacher, case in cases if "breakdown" in case]
    if not cases:
        return _to_measure("speed.py engine --parts engine breakdown" if device == "cpu" else ON_GPU)
    names = list(cases[0][1]["breakdown"])
    rows = []
    for teacher, case in cases:
        parts = [case["breakdown"][name] for name in names]
        cells = [f"{1000 * part['seconds_per_span']:.3g} ({part['flops_per_second'] / 1e9:,.0f})" for part in parts]
        rows.append([f"{teacher}, {case['window']:,}, {case['horizon']}", *cells])
    return f"Milliseconds a span (GFLOP/s):\n\n{markdown(['teacher, window, H', *names], rows)}"


def compression_table(device: str, root: Path) -> str:
    """Tokens a second of GistNet alone, by architecture and batch."""
    content = _load(root, f"compression-{device}")
    if content is None:
        return _to_measure("speed.py compression" if device == "cpu" else ON_GPU)
    rows = [
        [
            f"{row['architecture']}, {row['spans']:,} spans a batch{', compiled' if row['compiled'] else ''}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['times_prefill']:.1f}×",
            f"{row['flops_per_token'] / 1e6:.2f}",
        ]
        for row in content["gistnet"]
    ]
    flops = content["prefill_flops_per_token"] / 1e6
    prefill = ["the teacher's prefill", f"{content['prefill_tokens_per_second']:,.0f}", "1×", f"{flops:.2f}"]
    table = markdown([content["teacher"], "tokens/s", "of the prefill", "MFLOP a token"], [prefill, *rows])
    return f"{device_name(content['machine'])}.\n\n{table}"


def sweep_table(device: str, root: Path) -> str:
    """All points of the sweep."""
    content = _load(root, f"sweep-{device}")
    if content is None:
        return _to_measure("speed.py sweep" if device == "cpu" else ON_GPU)
    rows = [
        [
            f"{series}: {row['window']:,}, {row['horizon']}, {row['spans']}, {row['branches_per_pass']}",
            f"{1000 * row['seconds_per_span_with_all_spans' if series == 'windows' else 'seconds_per_span']:.3g}",
            f"{1000 * row['branch_seconds']:.3g}",
            f"{row['peak_memory_megabytes']:,.0f}",
        ]
        for series, points in content["series"].items()
        for row in points
    ]
    header = ["series: window, H, spans, branches a pass", "ms a span", "without the document pass", "peak, MB"]
    return f"{content['teacher']}, {device_name(content['machine'])}.\n\n{markdown(header, rows)}"


def processes_table(root: Path) -> str:
    """One process with all cores against several, and with a compiled teacher."""
    content = _load(root, "processes-cpu")
    if content is None:
        return _to_measure("speed.py processes")
    alone = content["cases"][0]["spans_per_second"]
    rows = [
        [
            f"{case['processes']} × {case['threads_per_process']} threads{', compiled' if case['compiled'] else ''}",
            f"{case['spans_per_second']:.2f}",
            f"{case['spans_per_second'] / alone:.2f}×",
            f"{case['first_steps_seconds']:.0f}",
            f"{case['last_loss']:.4f}",
        ]
        for case in content["cases"]
    ]
    header = ["processes", "spans/s", "of the first", "seconds of the first steps", f"loss of step {content['steps']}"]
    return f"{device_name(content['machine'])}.\n\n{markdown(header, rows)}"


def plot_list(device: str, root: Path) -> str:
    """The plots of the speed of a kind of device that have been drawn."""
    found = sorted((root / "docs" / "plots").glob(f"*-{device}.svg"))
    images = (f"![{path.stem.removesuffix(f'-{device}').replace('-', ' ')}](plots/{path.name})" for path in found)
    return "\n".join(images) or _to_measure("speed.py sweep`, then `python benchmarks/plots.py")


# docs/ablations.md ----------------------------------------------------------------------------------------------------


def group_tables(group: str, device: str, root: Path) -> str:
    """Quality and cost of a group's arms, for each comparison that has one of them."""
    content = _load(root, f"ablations-{device}") or {"comparisons": {}}
    arms = [DEFAULT, *kept.read_groups()[group].arms]
    parts = [
        _comparison(comparison, arms)
        for comparison in content["comparisons"].values()
        if kept.records(comparison, DEFAULT)
        and any(kept.records(comparison, arm) and not _is_default(comparison, arm) for arm in arms)
    ]
    default = kept.read_groups()[group].config
    options = [f"--config configs/{default}"] * bool(default) + [f"--group {group}"]
    options += ["--device cuda"] * (device == "cuda")
    return "\n\n".join(parts) or _to_measure(f"ablations.py {' '.join(options)}")


def _comparison(content: Comparison, asked: Sequence[str]) -> str:
    default = kept.records(content, DEFAULT)
    arms = {arm: found for arm in asked if (found := kept.records(content, arm))}
    intro = f"**{kept.budget_text(content)}**, {device_name(default[0]['machine'])}; judged on {_spans_of(default[0])}."
    quality = [_quality_row(content, arm, records, default) for arm, records in arms.items()]
    for name in ("drop", "last_token"):
        shares = [f"{recovered(default, part, name):.1%}" if name != "drop" else "0" for part in PARTS]
        quality.append([f"`{name}`", f"{mean_kl(default, name, '1–32'):.4f}", *shares, "", ""])
    header = ["arm", "KL@32", "recovered", "at 1–8", "at 9–32", "more than the default", "of it at 9–32"]
    reached = min(record["spans_seen"] for records in arms.values() for record in records)
    costs = [_cost_row(content, arm, records, default[0], reached) for arm, records in arms.items()]
    at = f"recovered at {reached:,} spans" if reached else "recovered at equal spans"
    cost_header = ["arm", "trained", "compute", "spans seen", "minutes", at]
    failed = [
        f"Failed: {arm}, seed {seed}. {record['failed']}"
        for arm in asked
        for seed, record in content["arms"].get(arm, {}).items()
        if "failed" in record
    ]
    missing = [arm for arm in asked if arm not in arms and "failed" not in str(content["arms"].get(arm))]
    not_run = [f"Not run here: {', '.join(missing)}."] if missing else []
    rows = [_rows_of_arms(content, arms, default)] if all("row_kl_by_passage" in r for r in default) else []
    return "\n\n".join([intro, markdown(header, quality), *rows, markdown(cost_header, costs), *failed, *not_run])


def _rows_of_arms(content: Comparison, arms: Mapping[str, Sequence[Record]], default: Sequence[Record]) -> str:
    """Rows of gists after each arm, minimal pairs and how alike its gists are, and the baselines of rows."""
    there = list(default[0]["row_kl_by_passage"])
    longest = max(int(row.split("+")[0]) for row in there)
    rows = [row for row in there if row.startswith(f"{longest}+")]
    by_policy = [(row, policy) for row in rows for policy in ("end", "compact")]

    def cells(records: Sequence[Record], name: str) -> list[str]:
        return [f"{kept.row_recovered(records, [row], [f'{name}/{policy}']):.1%}" for row, policy in by_policy]

    lines, gists = [], ("gist/end", "gist/compact")
    for arm, records in arms.items():
        more = None if _is_default(content, arm) else kept.paired_row_difference(records, default, rows, gists)
        pairs, diversity = (np.mean(each) for each in zip(*((_pairs(r), r["diversity"]) for r in records), strict=True))
        mean = f"**{kept.row_recovered(records, rows, gists):.1%}**"
        if len(records) > 1:
            each = [100 * kept.row_recovered([record], rows, gists) for record in records]
            mean += f", {len(records)} seeds {min(each):.1f}–{max(each):.1f}"
        difference = "" if more is None else _points((more[0], *more[1]))
        lines.append(
            [_name(content, arm), *cells(records, "gist"), mean, difference, f"{pairs:.1%}", f"{diversity:.2f}"]
        )
    for name in ("recent_tokens", "last_token", "shuffled"):
        mean = f"{kept.row_recovered(default, rows, [f'{name}/end', f'{name}/compact']):.1%}"
        lines.append([f"`{name}`", *cells(default, name), mean, "", "", ""])
    header = ["arm", *(f"{row} `{policy}`" for row, policy in by_policy), "mean", "more than the default"]
    passages = len(kept.row_kl(default, rows[0], "drop"))
    intro = (
        f"Rows of {longest} gists and raw tokens behind them (`{longest}+tokens`): share of KL recovered, "
        f"{passages} held-out passages; minimal pairs told apart, and the mean cosine distance of gists:"
    )
    return f"{intro}\n\n{markdown([*header, 'pairs', 'diversity'], lines)}"


def _pairs(record: Record) -> float:
    return float(record["pair_accuracy"]["value"])


def _is_default(content: Comparison, arm: str) -> bool:
    """True if an arm is the default, perhaps under another name."""
    return bool(content["same_as"].get(arm, arm) == DEFAULT)


def _spans_of(record: Record) -> str:
    counts = record["spans_by_document"]
    return f"{sum(counts)} spans of {len(counts)} held-out documents"


def _quality_row(content: Comparison, arm: str, records: Sequence[Record], default: Sequence[Record]) -> list[str]:
    whole = _whole(records)
    if len(records) > 1:
        each = [recovered([record], "1–32") for record in records]
        whole += f", {len(records)} seeds {100 * min(each):.1f}–{100 * max(each):.1f}"
    shares = [f"{recovered(records, part):.1%}" for part in ("1–8", "9–32")]
    more = ["", ""] if _is_default(content, arm) else [_difference(records, default, part) for part in ("1–32", "9–32")]
    return [_name(content, arm), f"{mean_kl(records, 'gist', '1–32'):.4f}", whole, *shares, *more]


def _whole(records: Sequence[Record]) -> str:
    low, high = kept.recovered_interval(records, "1–32")
    return f"**{recovered(records, '1–32'):.1%}** [{100 * low:.1f}, {100 * high:.1f}]"


def _difference(records: Sequence[Record], default: Sequence[Record], part: str) -> str:
    found = kept.paired_difference(records, default, part)
    return "other spans" if found is None else _points((found[0], *found[1]))


def _points(share: Sequence[float]) -> str:
    value, low, high = (100 * part for part in share)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _cost_row(content: Comparison, arm: str, records: Sequence[Record], default: Record, reached: int) -> list[str]:
    record = records[0]
    comparable = all(record[key] == default[key] for key in ("span_tokens", "horizon_tokens"))
    at_equal = np.mean([kept.at_spans(r["curve"], reached) for r in records]) if comparable and reached else None
    return [
        _name(content, arm),
        f"{record['trained_parameters'] / 1e6:.2f}M",
        f"{record['share_of_teacher']:.1%}",
        f"{record['spans_seen']:,}",
        f"{np.mean([r['minutes'] for r in records]):.1f}",
        "–" if at_equal is None else f"{at_equal:.1%}",
    ]


def _name(content: Comparison, arm: str) -> str:
    same = content["same_as"].get(arm)
    return f"{arm} (= {same})" if same else arm


def ablation_plot_list(device: str, root: Path) -> str:
    """The plots of the ablations of a kind of device that have been drawn."""
    found = sorted((root / "docs" / "plots" / "ablations").glob(f"*-{device}.svg"))
    images = [f"![{path.stem.replace('-', ' ')}](plots/ablations/{path.name})" for path in found]
    return "\n".join(images) or _to_measure("ablations.py`, then `python benchmarks/plots.py")


def untrained_table(kind: str, root: Path) -> str:
    """Replacements without training: hidden states of the original context ("state"), or of a GistNet ("gistnet")."""
    content = _load(root, "untrained")
    if content is None:
        return _to_measure("untrained.py")
    rows = [
        [
            _untrained_name(row),
            f"{row['compute']:.1%}" if "compute" in row else "",
            f"{row['kl']:.4f}",
            *(f"{row[f'recovered_{part}']:.1%}" for part in ("1_32", "1_8", "9_32")),
            *("" if row["kind"] == "baseline" else _points(row[f"more_than_last_token_{p}"]) for p in ("1_32", "9_32")),
        ]
        for row in content["rows"]
        if row["kind"] in ("baseline", kind)
    ]
    header = ["replacement", "compute", "KL@32", "recovered", "at 1–8", "at 9–32", "more than the last token"]
    spans = f"{content['spans']} spans of {content['documents']} held-out documents"
    return f"{spans}, {device_name(content['machine'])}.\n\n{markdown([*header, 'of it at 9–32'], rows)}"


def _untrained_name(row: dict[str, Any]) -> str:
    if row["kind"] == "baseline":
        return f"`{row['name'].replace(' ', '_')}`"
    if row["kind"] == "state":
        return f"state behind layer {row['layers']}"
    return f"{row['token_layers']} layers for all tokens, {row['layers']} for the last, × {row['scale']}"


# README.md ------------------------------------------------------------------------------------------------------------


def release_tables(name: str, root: Path) -> str:
    """Figures of a released GistNet."""
    folder = root / RELEASES_FOLDER / name
    if not is_release(folder):
        return f"There is none yet: `gistnet release RUN --out {RELEASES_FOLDER / name}` makes it of a finished run."
    return summary(read_release(folder).shown)


def releases_table(root: Path) -> str:
    """The three releases side by side: one gist, thirty in a row, minimal pairs, and what these are beside."""
    names = (RELEASE, CONTEXT_RELEASE, RELEASE_OF_8)
    single = [_shares_kept(root, name) for name in names]
    rows = [
        ["one gist keeps, of KL", *(f"**{whole.value:.0%}** {_percent(whole.interval)}" for whole, _, _ in single)],
        ["its last token", *(f"{whole.baselines['last_token']:.0%}" for whole, _, _ in single)],
        ["one gist at offsets 9–32", *(f"**{far.value:.0%}** {_percent(far.interval)}" for _, _, far in single)],
        ["its last token", *(f"{far.baselines['last_token']:.0%}" for _, _, far in single)],
    ]
    compared = [_load(root, name) for name in ("compare", *(f"compare-{name}" for name in names[1:]))]
    for tail in (64, 256):
        shares = [
            {of["name"]: of["recovered"] for of in content["figures"] if _is_row(of, f"30+{tail} end", "delta_nll")}
            for content in compared
        ]
        own = (of[content["gistnets"][-1]] for of, content in zip(shares, compared, strict=True))
        rows.append([f"30 gists before {tail} tokens, of ΔNLL", *(f"**{share:.0f}%**" for share in own)])
        rows.append(["as many recent tokens", *(f"{of['recent_tokens']:.0f}%" for of in shares)])
    pairs = [_pair_accuracy(root, name) for name in names]
    rows.append(["minimal pairs told apart", *(f"**{of.value:.0%}** {_percent(of.interval)}" for of in pairs)])
    rows.append(["by the full text", *(f"{of.baselines['full']:.0%}" for of in pairs)])
    return markdown(["", *(f"`{name}`" for name in names)], rows)


def _is_row(figure: Mapping[str, Any], what: str, measure: str) -> bool:
    return figure["what"] == what and figure["measure"] == measure


def _pair_accuracy(root: Path, name: str) -> MetricRecord:
    records = read_release(root / RELEASES_FOLDER / name).shown
    return next(of for of in records if of.name == "pair_accuracy" and of.level == 0 and not of.kind)


def core_table(root: Path) -> str:
    """Shares that one vector keeps of what its span told the model, for both releases and what costs nothing."""
    alone, in_context = (_shares_kept(root, name) for name in (RELEASE, CONTEXT_RELEASE))
    rows = [
        [said, *(f"**{part.value:.0%}** {_percent(part.interval)}" for part in parts)]
        for said, parts in (("its gist, made of the span alone", alone), ("its gist, read in context", in_context))
    ]
    free: dict[BaselineName, str] = {
        "last_token": "its last token",
        "shuffled": "the gist of another document",
        "drop": "nothing",
    }
    rows += [[said, *(f"{part.baselines[name]:.0%}" for part in alone)] for name, said in free.items()]
    spans = f"{alone[0].n_spans} spans of {alone[0].n_documents} held-out documents"
    theirs = ", ".join(f"{part.baselines['last_token']:.0%}" for part in in_context)
    if any(a.baselines["last_token"] != b.baselines["last_token"] for a, b in zip(alone, in_context, strict=True)):
        spans += f"; in context, {in_context[0].n_spans} others, whose last tokens keep {theirs}"
    return f"{spans}:\n\n{markdown(['read in place of 32 tokens', 'next 32 tokens', '1–8', '9–32'], rows)}"


def _shares_kept(root: Path, name: str) -> list[MetricRecord]:
    """The recovered shares of a release for single gists of narrative text, at offsets 1–32, 1–8 and 9–32."""
    found = {
        record.offsets: record
        for record in read_release(root / RELEASES_FOLDER / name).shown
        if (record.name, record.domain, record.horizon, record.level) == ("recovered_kl", "narrative", 32, 0)
        and record.spans_per_segment == 1
    }
    return [found[offsets] for offsets in ((1, 32), (1, 8), (9, 32))]


def _percent(interval: tuple[float, float] | None) -> str:
    return f"({interval[0]:.0%} to {interval[1]:.0%})" if interval else ""


def demo_table(root: Path) -> str:
    """Figures of the demo's own GistNet, on the machine it ran on."""
    content = _load(root, "demo")
    if content is None:
        return "TO MEASURE: `make demo`"
    records = [MetricRecord.model_validate(record) for record in content["metrics"]]
    minutes = f"{content['minutes']['all']:.1f} minutes ({content['conditions']})"
    return f"{device_name(content['machine'])}, {minutes}; {results_tables(records)}"


def long_context_table(name: str, root: Path) -> str:
    """NLL of the ends of long documents after contexts of equally many vectors."""
    content = _load(root, f"long-context-{name}")
    if content is None:
        return "TO MEASURE: `gistnet evaluate RUN --long-context`"
    records = [MetricRecord.model_validate(record) for record in content["records"]]
    whole = [record for record in records if record.name == "long_context_nll" and not record.kind]
    header = ["vectors", "full text", "recent text", "**a row, then recent text**", "recent text − it", "gists of all"]
    header += ["recent text − them", "others' gists − them", "retrieved text", "oracle"]
    table = markdown(header, [_budget_row(record, records) for record in whole])
    return f"{whole[0].n_documents} documents, {device_name(content['machine'])}:\n\n{table}"


def _budget_row(nll: MetricRecord, records: list[MetricRecord]) -> list[str]:
    found = {
        record.name: record
        for record in records
        if not record.kind and record.tokens_per_vector == nll.tokens_per_vector
    }
    by = nll.baselines
    return [
        f"1/{nll.tokens_per_vector}",
        *(f"{value:.3f}" for value in (by["full"], by["truncated"], by["row"])),
        _paired(found["long_context_row_below_truncated"]),
        f"{nll.value:.3f}",
        *(_paired(found[f"long_context_below_{name}"]) for name in ("truncated", "shuffled")),
        *(f"{value:.3f}" for value in (by["retrieved"], by["oracle"])),
    ]


def rows_table(name: str, root: Path) -> str:
    """Shares of KL and of ΔNLL that rows of gists recover beside raw tails, with baselines, by domain and policy.

    That of ΔNLL is left out where what dropping the row costs on the true text may be nothing.
    """
    content = _load(root, f"rows-{name}")
    if content is None:
        return "TO MEASURE: `benchmarks/release_run.py release`"
    records = [MetricRecord.model_validate(record) for record in content["records"]]
    found = [record for record in records if record.name == "row_recovered_kl"]
    of_nll = {_row_context(record): record for record in records if record.name == "row_recovered_delta_nll"}
    baselines: dict[BaselineName, str] = {
        "last_token": "last tokens",
        "recent_tokens": "as many recent tokens",
        "shuffled": "another document's gists",
    }
    header = ["text, positions", "gists", "raw tail", "**gists keep**, of KL", *baselines.values()]
    header += ["**gists keep**, of ΔNLL", "as many recent tokens", "another document's gists"]
    rows = []
    for record in found:
        shares = [f"{record.baselines[name]:.0%}" if name in record.baselines else "" for name in baselines]
        cells = ["", "", ""]
        if nll := of_nll.get(_row_context(record)):
            cells = [_share_within(nll), *(f"{nll.baselines[name]:.0%}" for name in ("recent_tokens", "shuffled"))]
        rows.append([*_row_context(record), _share_within(record), *shares, *cells])
    assert found[0].offsets is not None
    scored = found[0].offsets[1] - found[0].offsets[0] + 1
    documents = f"{found[0].n_documents} documents of each kind, {scored} scored tokens"
    return f"{documents}, {device_name(content['machine'])}:\n\n{markdown(header, rows)}"


def _row_context(record: MetricRecord) -> tuple[str, str, str]:
    """Text and positions, the gists of a row, and the raw tail behind it."""
    assert record.offsets is not None
    return f"{record.domain}, {record.positions}", str(record.spans_per_segment), str(record.offsets[0] - 1)


def _share_within(record: MetricRecord) -> str:
    assert record.interval is not None
    return f"**{record.value:.0%}** {_percent(record.interval)}"


WRITTEN = {"full": "full text", "gists, compact": "gists", "recent": "recent text", "tail": "the tail alone"}
"""Contexts of `benchmarks/writing.py` whose texts are shown, and what they are called."""


def writing_table(root: Path) -> str:
    """Share of repeated 4-grams in what the teacher writes after rows of gists, beside other contexts."""
    content = _load(root, "writing")
    if content is None:
        return _to_measure("writing.py")
    rows = []
    for name, share in content["shares"].items():
        more = "" if name == "recent" else _signed(share["above_recent"], share["interval"])
        rows.append([name, f"{share['repeated']:.2f}", more])
    header = ["context", "repeated 4-grams, share", "more than after recent text"]
    passages = f"{len(content['passages'])} passages of {content['domain']} text, {device_name(content['machine'])}"
    return f"{passages}:\n\n{markdown(header, rows)}"


def compare_table(name: str, root: Path) -> str:
    """The last GistNet of a file of `benchmarks/compare.py`: shares kept, and points above as many recent tokens."""
    content = _load(root, name)
    if content is None:
        return _to_measure("compare.py")
    gistnet = content["gistnets"][-1]
    found = {(of["what"], of["measure"], of["name"]): of for of in content["figures"]}
    rows = []
    for what, measure in dict.fromkeys((what, measure) for what, measure, _ in found):
        names = (gistnet, "last_token", "recent_tokens", f"{gistnet}, another document's")
        shares = [found.get((what, measure, name)) for name in names]
        cells = [f"{of['recovered']:.1f}" if of else "" for of in shares]
        above = found[what, measure, gistnet].get("above recent_tokens")
        cells.append(_signed(above["points"], (above["low"], above["high"]), digits=1) if above else "")
        context = (
            "one gist" if what == "single" else "30 gists before {1} tokens, `{2}`".format(*re.split("[+ ]", what))
        )
        rows.append([context, {"kl": "KL", "delta_nll": "ΔNLL"}[measure], f"**{cells[0]}**", *cells[1:]])
    header = ["read", "of", "**gists**", "last tokens", "as many recent tokens", "another document's gists"]
    header.append("points above recent tokens")
    text = f"{content['spans']} single spans, {content['passages']} passages of narrative text"
    return f"{text}, percent kept, {device_name(content['machine'])}:\n\n{markdown(header, rows)}"


def fit_rows_table(root: Path) -> str:
    """Share of KL that rows recover of passages trained on, and of others, by the number of passages and by rank."""
    content = _load(root, "fit-rows")
    if content is None:
        return _to_measure("fit_rows.py")
    rows = [
        [str(of["passages"]), f"{content['contexts'] / of['passages']:.0f}", str(of["rank"])]
        + [f"**{of[judged]:.0%}**" for judged in ("own", "others")]
        for of in content["arms"]
    ]
    rows.append(["last tokens", "", "", *(f"{content['last_token'][judged]:.0%}" for judged in ("own", "others"))])
    header = ["passages", "times each", "rank", f"of {content['others']} of these", f"of {content['others']} others"]
    return f"{content['contexts']} contexts each, {device_name(content['machine'])}:\n\n{markdown(header, rows)}"


def cue_table(root: Path) -> str:
    """Share of KL recovered with and without a cue, by what it goes with and how many vectors it has on which side."""
    content = _load(root, "cue")
    if content is None:
        return _to_measure("cue.py")
    rows = [
        [
            f"`{of['arm']}`",
            f"{of['without']:.1f}%",
            f"**{of['with']:.1f}%**",
            _signed(of["points"], (of["low"], of["high"]), 1),
        ]
        for of in content["arms"]
    ]
    header = ["vectors and what is on which side", "without the cue", "with it", "points more"]
    counts = f"{content['contexts']} contexts of {content['passages']} passages, judged on {content['judged']} others"
    return f"{counts}, {device_name(content['machine'])}:\n\n{markdown(header, rows)}"


def fit_answers_table(root: Path) -> str:
    """Share of KL that rows recover before answers and before prose, by the contexts trained on."""
    content = _load(root, "fit-answers")
    if content is None:
        return _to_measure("fit_answers.py")
    kinds = ("chat", "prose")
    rows = []
    for name, of in content["arms"].items():
        changes = [
            of[kind]["more"] and _signed(of[kind]["more"], (of[kind]["low"], of[kind]["high"]), 1) for kind in kinds
        ]
        kept = [f"**{of[kind]['recovered']:.0f}%**" for kind in kinds]
        rows.append([name, kept[0], changes[0] or "", f"{of['chat']['kept']:.0f}%", kept[1], changes[1] or ""])
    for name in ("recent_tokens", "last_token"):
        of_kind = [f"{content['baselines'][kind][name]:.0f}%" for kind in kinds]
        rows.append([f"`{name}`", of_kind[0], "", "", of_kind[1], ""])
    header = ["trained on", "before answers", "points more", "their tokens kept", "before prose", "points more"]
    counts = f"{content['contexts']} contexts each, judged on {content['judged']} of each kind"
    return f"{counts}, {device_name(content['machine'])}:\n\n{markdown(header, rows)}"


def writing_samples(root: Path) -> str:
    """Each passage, how it ends, and how the teacher goes on after each context."""
    content = _load(root, "writing")
    if content is None:
        return _to_measure("writing.py")
    samples = []
    for of in content["passages"]:
        texts = {"the text": f"… {of['ends'][-160:]}"} | {said: of[name]["text"] for name, said in WRITTEN.items()}
        lines = [f"{said:>14}  {' '.join(text.replace('`', chr(39)).split())}" for said, text in texts.items()]
        samples.append("\n".join([f"`{of['document']}`", "", "```text", *lines, "```"]))
    return "\n\n".join(samples)


def _paired(record: MetricRecord) -> str:
    return _signed(record.value, record.interval, 3)


def _signed(value: float, interval: Sequence[float] | None, digits: int = 2) -> str:
    """A difference and its interval."""
    low_to_high = f" ({' … '.join(f'{bound:+.{digits}f}' for bound in interval)})" if interval else ""
    return f"{value:+.{digits}f}{low_to_high}"


def fading_table(root: Path) -> str:
    """NLL after contexts of gists of one rate and of several, below that of as much recent text."""
    content = _load(root, "fading")
    if content is None:
        return _to_measure("fading.py")
    rows: dict[int, list[str]] = {}
    for of in content["contexts"]:
        is_first = of["tokens_per_vector"] not in rows
        row = rows.setdefault(of["tokens_per_vector"], [f"1/{of['tokens_per_vector']}", f"{of['nll']:.3f}"])
        if not is_first:
            row.append(_signed(of["below_recent"], of["interval"], 3))
    names = list(dict.fromkeys(of["row"] for of in content["contexts"]))[1:]
    header = ["vectors", "recent text, nats", *names]
    documents = f"{content['documents']} documents, {content['scored']} scored tokens"
    return f"{documents}, {device_name(content['machine'])}:\n\n{markdown(header, list(rows.values()))}"


def tree_table(root: Path) -> str:
    """Writing, reading and asking trees, small and large."""
    content = _load(root, "tree-cpu")
    if content is None:
        return _to_measure("tree.py speed")
    compress, first = content["compress"], content["first token"]
    rows = [
        [f"a book of {compress['tokens']:,} tokens into a tree", f"{compress['tokens_per_second']:,.0f} tokens/s"],
        [
            f"the same in {content['pieces']['pieces']} pieces of random lengths: every bit as at once",
            f"{content['pieces']['tokens_per_second']:,.0f} tokens/s",
        ],
        [
            f"from a question about it to the first token, within {first['vectors']} vectors; as many recent tokens",
            f"{first['selected_seconds']:.2f} s; {first['recent_seconds']:.2f} s",
        ],
    ]
    for name, library in content.items():
        if not name.startswith("library"):
            continue
        tokens = f"{library['tokens'] // 1_000_000}M tokens"
        for key, told in LIBRARY_ROWS.items():
            times = library[f"{key}_milliseconds"]
            rows.append([f"{tokens}, 300 documents: {told}", f"{times['p50']:,.1f} ms (p99 {times['p99']:,.1f})"])
        sizes = (f"{library[part] / 1e6:,.0f} MB" for part in ("token_bytes", "gist_bytes", "index_bytes"))
        rows.append([f"{tokens}: tokens, gists and the index of words on disk", ", ".join(sizes)])
        peak = library["peak_memory_megabytes"] / 1000
        before = library["memory_before_megabytes"] / 1000
        rows.append([f"{tokens}: peak memory, of building it too (before it)", f"{peak:.1f} GB ({before:.1f} GB)"])
    return f"{device_name(content['machine'])}:\n\n{markdown(['', ''], rows)}"


LIBRARY_ROWS = {
    "open_and_select": "open it, and select what a question needs of a document",
    "select": "select, once it is open",
    "find_in_all": "find passages in all documents",
    "read_64_nodes": "read 64 random nodes",
    "append_1000_tokens": "append 1,000 tokens, index and compaction included",
}
"""Timings of a library, and what a table calls them."""

REPEATING = ("fact", "list", "passage")
"""Kinds of questions that repeat the words before their answer."""


def recall_alone_table(root: Path) -> str:
    """Shares of questions answered right from gists of all of a text, by GistNet, and nats of the right answer."""
    content = _load(root, "recall-alone")
    if content is None:
        return _to_measure("recall.py CORPORA --cases 72 --alone GISTNET…")
    rows = []
    for name, records in content["records"].items():
        accuracy, nll = (MetricRecord.model_validate(record) for record in records)
        others = [f"{accuracy.baselines[other]:.2f}" for other in ("shuffled", "truncated")]
        low, high = accuracy.interval or (accuracy.value, accuracy.value)
        cost = [f"{value:.2f}" for value in (nll.value, nll.baselines["shuffled"], nll.baselines["truncated"])]
        right = f"**{accuracy.value:.2f}** ({low:.2f} to {high:.2f})"
        rows.append([f"`{name}`", f"1/{accuracy.tokens_per_vector}", right, *others, " / ".join(cost)])
    header = ["gists of", "vectors", "right", "another text's gists", "recent tokens", "nats of the right answer"]
    text = f"{accuracy.n_spans} questions, chance 0.25, {device_name(content['machine'])}"
    return f"{text}; nats after gists / another text's / recent tokens:\n\n{markdown(header, rows)}"


def recall_table(name: str, root: Path) -> str:
    """Shares of questions about what stands far back that are answered right, by kind, budget and context."""
    content = _load(root, name)
    if content is None:
        return _to_measure("recall.py CORPORA")
    records = [MetricRecord.model_validate(record) for record in content["records"]]
    named: dict[tuple[str, int | None, str], MetricRecord] = {(r.name, r.tokens_per_vector, r.kind): r for r in records}
    groups = {"a fact, a row of a list, how a passage goes on": REPEATING, "a name in another form": ("name",)}
    groups |= {"two sentences to be joined": ("hops",), "asked in other words": ("paraphrase",)}
    names: tuple[BaselineName, ...] = ("full", "truncated", "gist", "retrieved", "with_gists", "by_meaning", "oracle")
    budgets = sorted({r.tokens_per_vector for r in records if r.tokens_per_vector})
    rows = []
    for (told, kinds), budget in product(groups.items(), budgets):
        of_kinds = [named["retrieval_accuracy", budget, kind] for kind in kinds]
        shares = [[record.value if name == "gist" else record.baselines[name] for record in of_kinds] for name in names]
        cases = sum(record.n_spans for record in of_kinds)
        rows.append([f"{told}: 1/{budget} ({cases})", *(f"{np.mean(share):.2f}" for share in shares)])
    header = ["asked for: vectors (cases)", "full text", "recent text", "gists of all that is old"]
    header += ["**passages opened**", "with a gist on either side", "by meaning, too", "the evidence opened"]
    gained = {
        (name, budget): named[f"retrieval_gain_{name}", budget, ""]
        for name in ("with_gists", "by_meaning")
        for budget in budgets
    }
    signed = {key: _signed(record.value, record.interval) for key, record in gained.items()}
    gains = [
        f"1/{budget}: a gist on either side {signed['with_gists', budget]}, by meaning {signed['by_meaning', budget]}"
        for budget in budgets
    ]
    found = [r for r in records if r.name == "retrieval_recall" and not r.kind]
    evidence = "; ".join(
        f"{r.index}: {r.value:.0%}, by meaning {r.baselines['by_meaning']:.0%}"
        for r in sorted(found, key=lambda r: r.index or 0)
    )
    return (
        f"{device_name(content['machine'])}, chance 0.25:\n\n{markdown(header, rows)}\n\n"
        f"All cases, share of right answers above that of passages opened: {'; '.join(gains)}. "
        f"Share of the evidence among the first passages: {evidence}."
    )


ANSWERED = {
    "full": "full text, where it fits",
    "recent": "recent text",
    "retrieved": "passages by words",
    "with_gists": "with a gist on either side",
    "reranked": "ranked again by meaning",
    "by_meaning": "by words and meaning",
    "oracle": "the evidence opened",
}
"""Contexts of `free_answers.py`, and what a table calls them."""


def free_answers_table(root: Path) -> str:
    """Right answers, written freely, by context; and where the evidence is among the passages found."""
    content = _load(root, "free-answers")
    if content is None:
        return _to_measure("free_answers.py CORPORA")
    shares, gains = content["shares"], content["gains over retrieved"]
    rows = [
        [
            name,
            f"{shares[key]['right']} of {shares[key]['asked']}",
            "" if key == "retrieved" else _signed(gains[key]["gain"], gains[key]["interval"]),
        ]
        for key, name in ANSWERED.items()
        if key in shares
    ]
    recall = content["recall"]
    found = "; ".join(
        f"{name} {', '.join(f'{share:.0%}' for share in recall[name])}"
        for name in ("words", "words, ranked again", "words and states")
    )
    table = markdown(["context", "right", "above passages by words, share of questions"], rows)
    return (
        f"{content['budget']} vectors, {device_name(content['machine'])}:\n\n{table}\n\n"
        f"The evidence is among the first {', '.join(map(str, recall['passages']))} passages for: {found}."
    )


# Pages ----------------------------------------------------------------------------------------------------------------

_BY_DEVICE: dict[str, Callable[[str, Path], str]] = {
    "engine": engine_table,
    "parts": parts_table,
    "compression": compression_table,
    "sweep": sweep_table,
    "plots": plot_list,
    "ablation-plots": ablation_plot_list,
    **{group: partial(group_tables, group) for group in kept.read_groups()},
}
BLOCKS: dict[str, Callable[[Path], str]] = {
    **{f"{name}-{device}": partial(make, device) for name, make in _BY_DEVICE.items() for device in DEVICES},
    **{f"untrained-{kind}": partial(untrained_table, kind) for kind in ("state", "gistnet")},
    "processes-cpu": processes_table,
    "release": partial(release_tables, RELEASE),
    "release-context": partial(release_tables, CONTEXT_RELEASE),
    "configuration": lambda root: config_reference(),
    "core": core_table,
    "releases": releases_table,
    "demo": demo_table,
    "long-context": partial(long_context_table, RELEASE),
    "rows": partial(rows_table, RELEASE),
    "release-8": partial(release_tables, RELEASE_OF_8),
    "rows-8": partial(rows_table, RELEASE_OF_8),
    "rows-context": partial(rows_table, CONTEXT_RELEASE),
    "fading": fading_table,
    "recall-8": partial(recall_table, f"recall-{RELEASE_OF_8}"),
    "compare": partial(compare_table, "compare"),
    "compare-8": partial(compare_table, f"compare-{RELEASE_OF_8}"),
    "compare-context": partial(compare_table, f"compare-{CONTEXT_RELEASE}"),
    "against": against_table,
    "recall-alone": recall_alone_table,
    "cue": cue_table,
    "fit-rows": fit_rows_table,
    "fit-answers": fit_answers_table,
    "writing": writing_table,
    "writing-samples": writing_samples,
    "tree": tree_table,
    "recall": partial(recall_table, "recall"),
    "free-answers": free_answers_table,
}
"""Functions that make the content of a block from a checkout, by its name."""


def pages(root: Path) -> dict[Path, str]:
    """Every page of a checkout that is made, or has blocks that are, as it should be.

    Raises:
        KeyError: there is no block of such a name.
        GistNetError: a release is damaged.
    """
    filled = {root / name: fill((root / name).read_text(encoding="utf-8"), root) for name in FILLED}
    return filled | {folder / CARD_FILE: card(folder) for folder in releases_in(root / RELEASES_FOLDER).values()}


def fill(text: str, root: Path) -> str:
    """A page with every block made anew.

    Raises:
        KeyError: there is no block of such a name.
    """
    return _BLOCK.sub(lambda block: f"{block[1]}{BLOCKS[block['name']](root)}\n{block[3]}", text)


def main() -> int:
    """Fill the pages, or name those that are not filled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    changed = {path: text for path, text in pages(ROOT).items() if path.read_text(encoding="utf-8") != text}
    for path, text in changed.items():
        if arguments.check:
            print(f"{path.relative_to(ROOT)} is not what the results make: run `python benchmarks/tables.py`.")
        else:
            path.write_text(text, encoding="utf-8")
    return int(arguments.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
