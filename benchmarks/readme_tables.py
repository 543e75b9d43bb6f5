"""The tables of README.md: the demo, the released GistNet, what made it better, and long contexts."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ablation_results as kept
from benchmarks.ablation_arms import DEFAULT
from benchmarks.ablation_figures import PARTS, Record, mean_kl, recovered, recovered_interval
from benchmarks.plots import describe_device
from gistnet.evaluation.records import MetricRecord
from gistnet.evaluation.tables import markdown
from gistnet.release.results import read_released, results_tables, summary
from gistnet.release_folder import is_release

RELEASE = "smollm2-135m"
"""The release that README.md tells of."""
CONTEXT_RELEASE = "smollm2-135m-context"
"""The one beside it that reads spans where they stand."""
BEGINNINGS = {
    "token-1": "beginning as the last token, 4 layers for all tokens",
    "lora-5-layers": "beginning as a state, 5 layers for all tokens",
    DEFAULT: "beginning as a state, 16 layers for the last token and 4 for all",
    "states-0": "the same without a loss that draws gists to the original's states",
}
"""Arms of the ablations, as README.md calls them."""


def release_tables(name: str, _: Path, released: Path) -> str:
    """How good a released GistNet is."""
    folder = released / name
    if not is_release(folder):
        return f"There is none yet: `gistnet release RUN --out released/{name}` makes it of a finished run."
    return summary(read_released(folder))


def demo_table(results: Path, _: Path) -> str:
    """What the demo's own GistNet came to, on the machine it ran on."""
    content = _load(results / "demo.json")
    if content is None:
        return "TO MEASURE: `make demo`"
    records = [MetricRecord.model_validate(record) for record in content["metrics"]]
    minutes = (
        f"{content['minutes']['demo']:.1f} minutes, after an installation of {content['minutes']['installation']:.1f}"
    )
    return f"{describe_device(content)}, {minutes}; {results_tables(records)}"


def beginnings_table(results: Path, _: Path) -> str:
    """What a GistNet begins as, and what came of it after the same time: arms of the ablations of a CPU."""
    for content in kept.load(results / "ablations-cpu.json")["comparisons"].values():
        if all(kept.records(content, arm) for arm in BEGINNINGS):
            default = kept.records(content, DEFAULT)
            rows = [_beginning(said, kept.records(content, arm)) for arm, said in BEGINNINGS.items()]
            for name in ("drop", "last_token"):
                shares = [f"{recovered(default, part, name):.1%}" for part in PARTS]
                rows.insert(0, [f"`{name}`", "0", f"{mean_kl(default, name, '1–32'):.3f}", *shares])
            header = ["", "compute", "KL@32", "recovered", "at 1–8", "at 9–32"]
            documents, spans = len(default[0]["spans_by_document"]), sum(default[0]["spans_by_document"])
            of = f"{spans} spans of {documents} held-out documents"
            return f"{kept.budget_text(content)}, {describe_device(default[0])}; {of}:\n\n{markdown(header, rows)}"
    return f"TO MEASURE: `python benchmarks/ablations.py --arm {' '.join(BEGINNINGS)}`"


def _beginning(said: str, records: list[Record]) -> list[str]:
    low, high = recovered_interval(records, "1–32")
    whole = f"**{recovered(records, '1–32'):.1%}** [{100 * low:.1f}, {100 * high:.1f}]"
    shares = [f"{recovered(records, part):.1%}" for part in ("1–8", "9–32")]
    return [said, f"{records[0]['share_of_teacher']:.1%}", f"{mean_kl(records, 'gist', '1–32'):.3f}", whole, *shares]


def long_context_table(name: str, results: Path, _: Path) -> str:
    """NLL of the ends of long documents after contexts of equally many vectors, and questions about far back."""
    content = _load(results / f"long-context-{name}.json")
    if content is None:
        return "TO MEASURE: `python benchmarks/long_context.py RUN`"
    records = [MetricRecord.model_validate(record) for record in content["records"]]
    budgets = [r.part for r in records if r.name == "long_context_nll" and "," not in r.part]
    rows = [_budget_row(budget, records) for budget in budgets]
    names = ["full text", "**gists**", "truncated", "gists of another document", "mean embeddings"]
    header = [
        "vectors",
        *names,
        "truncated − gists",
        "others' gists − gists",
        "questions: gists",
        "truncated",
        "full text",
    ]
    asked = next((r.n_spans for r in records if r.name == "retrieval_accuracy" and "," not in r.part), 0)
    of = f"{len(content['documents'])} documents, {asked} questions, {describe_device(content)}"
    return f"{of}:\n\n{markdown(header, rows)}"


def _budget_row(budget: str, records: list[MetricRecord]) -> list[str]:
    found = {record.name: record for record in records if record.part == budget}
    nll, asked = found["long_context_nll"], found.get("retrieval_accuracy")
    contexts = [nll.baselines["full"], nll.value, *(nll.baselines[n] for n in ("truncated", "shuffled", "mean"))]
    right = [asked.value, asked.baselines["truncated"], asked.baselines["full"]] if asked else []
    return [
        budget.removeprefix("budget "),
        *(f"{value:.3f}" for value in contexts),
        *(_paired(found[f"long_context_below_{name}"]) for name in ("truncated", "shuffled")),
        *([f"{share:.0%}" for share in right] or [""] * 3),
    ]


def _paired(record: MetricRecord) -> str:
    interval = f" ({record.interval[0]:+.3f} … {record.interval[1]:+.3f})" if record.interval else ""
    return f"{record.value:+.3f}{interval}"


def _load(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


BLOCKS: dict[str, Callable[[Path, Path], str]] = {
    "release": partial(release_tables, RELEASE),
    "release-context": partial(release_tables, CONTEXT_RELEASE),
    "demo": demo_table,
    "beginnings": beginnings_table,
    "long-context": partial(long_context_table, RELEASE),
    "long-context-context": partial(long_context_table, CONTEXT_RELEASE),
}
"""What makes the content of a block from the folders of results and of releases, by its name."""
