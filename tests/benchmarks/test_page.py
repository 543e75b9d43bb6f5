"""Pages with tables: they are made from the results and releases, and say so where there are none."""

import json
from pathlib import Path

import pytest

from benchmarks.flops import TeacherSize
from benchmarks.page import ROOT, fill, pages
from benchmarks.page_tables import Sources, counted_ratio
from benchmarks.workload import SMOLLM2_SHAPE, build_teacher
from gistnet.model.gistnet import GistNet, GistNetConfig

MACHINE = {"gpu": "none", "cores": 2, "processor": "a processor", "torch": "9.9"}


def block(name: str) -> str:
    return f"before\n<!-- table: {name} -->\nold\n<!-- /table -->\nafter\n"


def test_the_pages_are_what_the_results_make() -> None:
    """After measuring, `python benchmarks/page.py` writes them anew."""
    made = pages(ROOT)
    assert {path.name for path in made} >= {"README.md", "performance.md"}
    assert [path for path, text in made.items() if path.read_text(encoding="utf-8") != text] == []


def test_what_is_missing_says_what_measures_it(tmp_path: Path) -> None:
    filled = fill(block("compression-cpu"), Sources.of(tmp_path))
    assert filled == block("compression-cpu").replace("old", "TO MEASURE: `python benchmarks/compression.py`")
    with pytest.raises(KeyError):
        fill(block("no-such-table"), Sources.of(tmp_path))


def test_results_become_tables(tmp_path: Path) -> None:
    row = {"seconds_per_span": 0.25, "peak_memory_megabytes": 2500.0}
    case = {"window": 4096, "horizon": 32, "engine": row, "loop": row | {"seconds_per_span": 30.0}}
    case |= {"speedup_over_loop": 120.0, "model_flop_utilisation": 0.42}
    case["breakdown"] = {"document pass": {"seconds_per_span": 0.05, "flops_per_second": 2.5e11}}
    teachers = {SMOLLM2_SHAPE: {"cases": [case, {"window": 16384, "horizon": 32}]}}
    content = {"machine": MACHINE, "matmul_flops_per_second": 4.2e11, "teachers": teachers}
    sources = Sources.of(tmp_path)
    sources.results.mkdir(parents=True)
    (sources.results / "engine-cpu.json").write_text(json.dumps(content))
    filled = fill(block("engine-cpu") + block("parts-cpu"), sources)
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
