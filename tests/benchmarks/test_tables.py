"""Pages with tables: they are made from the results and releases, and say so where there are none."""

import json
from pathlib import Path

import pytest

from benchmarks.flops import TeacherSize
from benchmarks.machine import ROOT
from benchmarks.tables import RELEASE, RELEASES_FOLDER, counted_ratio, fill, pages
from benchmarks.workload import SMOLLM2_SHAPE, build_teacher
from gistnet.model.config import GistNetConfig
from gistnet.model.gistnet import GistNet

MACHINE = {"gpu": "none", "cores": 2, "processor": "a processor", "torch": "9.9"}


def block(name: str) -> str:
    return f"before\n<!-- table: {name} -->\nold\n<!-- /table -->\nafter\n"


def test_the_pages_are_what_the_results_make() -> None:
    """After measuring, `python benchmarks/tables.py` writes them anew."""
    made = pages(ROOT)
    assert {path.name for path in made} >= {"README.md", "performance.md"}
    assert [path for path, text in made.items() if path.read_text(encoding="utf-8") != text] == []


def test_what_is_missing_says_what_measures_it(tmp_path: Path) -> None:
    filled = fill(block("compression-cpu"), tmp_path)
    assert filled == block("compression-cpu").replace("old", "TO MEASURE: `python benchmarks/speed.py compression`")
    assert f"gistnet release RUN --out {RELEASES_FOLDER / RELEASE}" in fill(block("release"), tmp_path)
    with pytest.raises(KeyError):
        fill(block("no-such-table"), tmp_path)


def test_the_table_of_a_release_is_that_of_its_card() -> None:
    rows = [line for line in fill(block("release"), ROOT).splitlines() if line.startswith(("| kl |", "| recovered_kl"))]
    card = (ROOT / RELEASES_FOLDER / RELEASE / "README.md").read_text(encoding="utf-8")
    assert rows and [row for row in rows if row not in card] == []


def test_results_become_tables(tmp_path: Path) -> None:
    row = {"seconds_per_span": 0.25, "peak_memory_megabytes": 2500.0}
    case = {"window": 4096, "horizon": 32, "engine": row, "loop": row | {"seconds_per_span": 30.0}}
    case |= {"speedup_over_loop": 120.0, "model_flop_utilisation": 0.42}
    case["breakdown"] = {"document pass": {"seconds_per_span": 0.05, "flops_per_second": 2.5e11}}
    teachers = {SMOLLM2_SHAPE: {"cases": [case, {"window": 16384, "horizon": 32}]}}
    content = {"machine": MACHINE, "matmul_flops_per_second": 4.2e11, "teachers": teachers}
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "engine-cpu.json").write_text(json.dumps(content))
    filled = fill(block("engine-cpu") + block("parts-cpu"), tmp_path)
    assert "2 cores of a processor, torch 9.9; large matrix products in bfloat16 reach 420 GFLOP/s" in filled
    assert f"| {SMOLLM2_SHAPE}, 4,096, 32 | 30 | – | 0.25 | **120×** | – | 118× | 42% | 2.5 GB |" in filled
    assert f"| {SMOLLM2_SHAPE}, 16,384, 32 | – | – | – | – | – | 577× | – | – |" in filled
    assert f"| {SMOLLM2_SHAPE}, 4,096, 32 | 50 (250) |" in filled


def test_token_passes_are_the_ratio_where_nothing_else_counts() -> None:
    """Linear layers alone: three passes over the window against one of n, and two of H: 12,225 / 96.5 here."""
    model = build_teacher(SMOLLM2_SHAPE, "bfloat16", "meta")
    gistnet = GistNet.build(GistNetConfig(architecture="bottleneck"), model)
    only_layers = TeacherSize(30, 10**15, 0, 1, 1)  # so many weights that GistNet is nothing beside them
    expected = (3 * 4096 - 2 * 31) / (4096 / 126 + 2 * 32)
    assert counted_ratio(only_layers, gistnet, 4096, 32) == pytest.approx(expected, rel=1e-4)


def test_plots_are_made_of_what_is_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plots import draw_all

    costs = {"seconds_per_span_with_all_spans": 0.1, "branch_seconds": 0.05, "peak_memory_megabytes": 100.0}
    rows = [{"window": window, **costs} for window in (512, 1024)]
    sweep = {"machine": MACHINE, "teacher": "some teacher", "series": {"windows": rows}}
    (tmp_path / "sweep-cpu.json").write_text(json.dumps(sweep))
    case = {"window": 4096, "horizon": 32, "speedup_over_loop": 123.0}
    case["breakdown"] = {"document pass": {"seconds_per_span": 0.5}, "GistNet forward": {"seconds_per_span": 0.25}}
    engine = {"machine": MACHINE, "teachers": {"some teacher": {"cases": [case]}}}
    (tmp_path / "engine-cpu.json").write_text(json.dumps(engine))
    (tmp_path / "some run").mkdir()
    validations = [{"recovered_kl": 0.5, "row_recovered_kl": share} for share in (0.25, 0.125, 0.5)]
    lines = [
        json.dumps({"step": step, "stage": 1, "spans_seen": 1000 * step, "validation": validation})
        for step, validation in enumerate(validations, 1)
    ]
    (tmp_path / "some run" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "learning-another-run.jsonl").write_text("\n".join(lines).replace("000", "0000") + "\n")
    for number in range(7):  # more than there are colours
        (tmp_path / f"learning-run-{number}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "learning-at-its-ends.jsonl").write_text("\n".join(lines[:2]) + "\n")
    rates = [
        {"tokens_per_vector": budget, "row": row, "below_recent": 0.01, "interval": [-0.01, 0.02]}
        for budget in (4, 8)
        for row in ("recent", "some rate")
    ]
    (tmp_path / "fading.json").write_text(json.dumps({"contexts": rates}))
    made = draw_all(tmp_path, tmp_path / "plots", tmp_path)
    names = ["engine-speedup-cpu.svg", "engine-parts-cpu.svg", "cost-by-windows-cpu.svg", "learning.svg", "rates.svg"]
    assert [path.name for path in made] == names
    learning = made[3].read_text()
    assert "30,000" in learning and "some run" in learning and "another run" in learning
    assert "at its ends" not in learning and all(f"run {number}" in learning for number in range(7))
    assert "some rate" in made[4].read_text() and "1/8" in made[4].read_text()
    assert "123×" in made[0].read_text()
    assert "GistNet forward" in made[1].read_text()
    drawn = made[2].read_text()
    assert "some teacher, 2 cores of a processor" in drawn and "1,024" in drawn
    draw_all(tmp_path, tmp_path / "plots", tmp_path)
    assert made[2].read_text() == drawn  # the same results give the same file
