"""What of an evaluation is shown on the terminal, and what is not."""

from rich.console import Console

from gistnet.evaluation.records import MetricRecord
from gistnet.report.tables import results_tables
from gistnet.settings import Target

BASELINES = {"drop": 0.9, "last_token": 0.6, "surprisal_token": 0.8, "mean": 3.0, "shuffled": 0.7}


def record(name: str, value: float, **changes: object) -> MetricRecord:
    fields = {"name": name, "domain": "narrative", "positions": "end", "value": value, "n_spans": 8, "n_documents": 4}
    return MetricRecord.model_validate(fields | changes)


def shown(records: list[MetricRecord]) -> list[tuple[str, list[list[str]]]]:
    """Title and cells of each table."""
    console = Console(width=400)
    tables = []
    for table in results_tables(records):
        with console.capture() as capture:
            console.print(table)
        title, *lines = capture.get().splitlines()
        rows = [[cell.strip() for cell in line[1:-1].replace("┃", "│").split("│")] for line in lines if line[0] in "│┃"]
        tables.append((title.strip(), rows))
    return tables


def test_three_kinds_of_tables_and_neither_offsets_nor_heads():
    losses = {"horizon": 12, "offsets": (1, 12), "baselines": BASELINES}
    records = [
        record("kl", 0.5, interval=(0.4, 0.6), **losses),
        record("delta_nll", 0.55, target=Target(below=0.5), **losses),
        record("delta_nll_by_offset", 0.25, horizon=12, offsets=(3, 3), baselines=BASELINES),
        record("kl_by_kind", 1.25, kind="names", **losses),
        record("kl", 0.45, **losses | {"positions": "compact"}),
        record("kl_by_kind", 1.5, kind="names", **losses | {"positions": "compact"}),
        record("gist_diversity", 0.875, target=Target(above=0.5), baselines={"last_token": 0.5, "mean": 0.25}),
        record("attention_entropy", 3.0, target=Target(above=2.0, below=4.0), n_spans=1000),
        record("attention_entropy", 3.5, kind="slot 1", index=2),
    ]
    baselines = ["drop", "last token", "surprisal token", "mean", "shuffled"]
    costs = ["0.900", "0.600", "0.800", "3.000", "0.700"]
    head = ["gist", "95 % interval"]
    assert shown(records) == [
        (
            "narrative · H = 12 · positions end · level 0 · segments of 1 span · 8 spans of 4 documents",
            [
                ["metric", "offsets", *head, *baselines, "target"],
                ["kl", "1–12", "0.500", "0.400 … 0.600", *costs, ""],
                ["delta_nll", "1–12", "0.550", "", *costs, "< 0.5: not met"],
            ],
        ),
        (
            "narrative · H = 12 · positions compact · level 0 · segments of 1 span · 8 spans of 4 documents",
            [["metric", "offsets", *head, *baselines, "target"], ["kl", "1–12", "0.450", "", *costs, ""]],
        ),
        (
            "narrative · by kind of token · H = 12 · positions end · level 0 · 8 spans of 4 documents",
            [["metric", "kind", *head, *baselines, "target"], ["kl_by_kind", "names", "1.250", "", *costs, ""]],
        ),
        (
            "narrative · gists by themselves · level 0 · positions end · 1000 spans of 4 documents",
            [
                ["metric", *head, "last token", "mean", "target"],
                ["gist_diversity", "0.875", "", "0.500", "0.250", "> 0.5: met"],
                ["attention_entropy", "3.000", "", "", "", "> 2.0 and < 4.0: met"],
            ],
        ),
    ]


def test_tables_of_one_evaluation_have_different_titles():
    losses = {"horizon": 12, "offsets": (1, 12), "baselines": BASELINES}
    policies = ("end", "center", "compact")
    records = [
        record(name, 0.5, **losses | {"positions": policy, "level": level, "kind": kind})
        for level in (0, 1)
        for policy in policies
        for name, kind in (("kl", ""), ("kl_by_kind", "names"))
    ]
    records += [record("gist_diversity", 0.5, domain=of, level=level) for level in (0, 1) for of in ("a", "b")]
    records += [record("pair_accuracy", 0.5, positions=policy) for policy in policies]
    records += [record("reconstruction_ce", 0.5, domain=domain) for domain in ("a", "b")]
    titles = [title for title, _ in shown(records)]
    assert len(set(titles)) == len(titles)


def test_no_records_have_no_tables():
    assert shown([]) == []
