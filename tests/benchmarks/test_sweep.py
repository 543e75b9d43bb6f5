"""The sweep of the engine's cost: each series varies one thing, and what is reported adds up."""

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks.sweep import SERIES, Point, measure_point, points, sweep
from benchmarks.workload import all_starts, build_gistnet, build_teacher


@pytest.mark.parametrize("scale", ["smoke", "cpu", "cuda"])
def test_a_series_varies_one_thing(scale: str) -> None:
    for series in SERIES:
        rows = [dataclasses.asdict(point) for point in points(series, scale)]
        varied = {name for name in rows[0] if len({row[name] for row in rows}) > 1}
        assert (
            varied
            == {
                "windows": {"window"} if scale != "cuda" else {"window", "windows_at_once"},
                "horizons": {"horizon"},
                "spans": {"spans"},
                "passes": {"branches_per_pass"},
            }[series]
        )
        for row in rows:
            assert len(all_starts(row["window"], row["horizon"])) > 0


def test_the_document_pass_is_shared_by_the_spans() -> None:
    teacher = build_teacher("tiny-shape", "bfloat16", "cpu")
    figures = measure_point(teacher, build_gistnet(teacher), Point(256, 16, spans=3, branches_per_pass=2))
    assert figures["spans"] == 3
    shared = figures["document_pass_seconds"]
    assert figures["seconds_per_span"] == pytest.approx(figures["branch_seconds"] + shared / 3)
    assert figures["seconds_per_span_with_all_spans"] == pytest.approx(figures["branch_seconds"] + shared / 7)


def test_every_point_is_measured() -> None:
    found = list(sweep("tiny-shape", "cpu", "smoke"))
    assert [series for series, _ in found] == [series for series in SERIES for _ in range(2)]
    json.dumps(found)


def test_plots_are_made_of_what_is_there(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.plots import draw_all

    machine = {"gpu": "none", "cores": 2, "processor": "a processor"}
    rows = [
        {
            "window": window,
            "seconds_per_span_with_all_spans": window / 1e4,
            "branch_seconds": window / 2e4,
            "peak_memory_megabytes": 100.0,
        }
        for window in (512, 1024)
    ]
    sweep_results = {"machine": machine, "teacher": "some teacher", "series": {"windows": rows}}
    (tmp_path / "sweep-cpu.json").write_text(json.dumps(sweep_results))
    case = {"window": 4096, "horizon": 32, "speedup_over_loop": 123.0}
    case["breakdown"] = {"document pass": {"seconds_per_span": 0.5}, "GistNet forward": {"seconds_per_span": 0.25}}
    engine_results = {"machine": machine, "teachers": {"some teacher": {"cases": [case]}}}
    (tmp_path / "engine-cpu.json").write_text(json.dumps(engine_results))
    made = draw_all(tmp_path, tmp_path / "plots")
    assert [path.name for path in made] == ["engine-speedup-cpu.svg", "engine-parts-cpu.svg", "cost-by-windows-cpu.svg"]
    assert "123×" in made[0].read_text()
    assert "GistNet forward" in made[1].read_text()
    drawn = made[2].read_text()
    assert "some teacher, 2 cores of a processor" in drawn
    assert "1,024" in drawn
    draw_all(tmp_path, tmp_path / "plots")
    assert made[2].read_text() == drawn
