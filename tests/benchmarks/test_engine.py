"""The program that holds the engine against the loop: what it times is comparable, and its parts come together."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from benchmarks.engine_parts import breakdown, equality, measure
from benchmarks.engine_results import EngineResults
from benchmarks.machine import describe_machine, matmul_ceiling
from benchmarks.own_process import in_own_process
from benchmarks.workload import Branches, all_starts, build_gistnet, build_teacher, cut_windows, spread


def test_spread_is_even_and_over_the_whole_range() -> None:
    assert spread(range(126), 1) == [63]
    assert spread(range(12), 3) == [2, 6, 10]
    assert spread(range(126), 126) == list(range(126))
    assert spread(range(126), 500) == list(range(126))
    taken = spread(range(126), 64)  # taking every n-th would stop half way
    assert (len(set(taken)), taken[0], taken[-1]) == (64, 0, 125)
    assert {b - a for a, b in itertools.pairwise(taken)} == {1, 2}


def test_starts_leave_room_for_the_horizon() -> None:
    starts = all_starts(4096, 32)
    assert (len(starts), starts[0], starts[-1] + 32 + 32) == (126, 4, 4068)
    assert all_starts(4096, 33)[-1] + 32 + 33 <= 4096


def test_branches_run_through_the_windows_in_order() -> None:
    branches = Branches(torch.zeros(3, 200, dtype=torch.long), [4, 36, 68], horizon=8)
    stretches = branches.stretches(first=2, count=5)
    assert stretches.windows.tolist() == [0, 1, 1, 1, 2]
    assert stretches.starts.tolist() == [68, 4, 36, 68, 4]
    assert branches.stretches(first=7, count=5).starts.tolist() == [36, 68]


def test_variants_agree_and_utilisation_is_of_what_was_timed(tmp_path: Path) -> None:
    teacher = build_teacher("tiny-shape", "float32", "cpu")
    gistnet = build_gistnet(teacher)
    branches = cut_windows(teacher, 256, 32, windows=2)
    results = EngineResults.read(tmp_path / "engine.json", "tiny-shape")
    results.add_general("ceiling", 1e9)
    for variant in ("engine", "cached", "loop"):
        results.add(256, 32, variant, measure(variant, branches, teacher, gistnet, spans=2))
    (case,) = json.loads((tmp_path / "engine.json").read_text())["teachers"]["tiny-shape"]["cases"]
    assert case["kl_difference_nats"] < 1e-4
    assert case["cached"]["kl"] == pytest.approx(case["loop"]["kl"], abs=1e-4)
    assert case["engine"]["spans_timed"] == 2 * 6
    assert case["speedup_over_loop"] == pytest.approx(
        case["loop"]["seconds_per_span"] * case["engine"]["spans_per_second"]
    )
    rate = case["engine"]["flops_per_span"] / case["engine"]["seconds_per_span"]
    assert case["model_flop_utilisation"] == pytest.approx(rate / 1e9)


def test_loop_and_engine_are_equal_in_float32() -> None:
    teacher = build_teacher("tiny-shape", "float32", "cpu")
    figures = equality(teacher, build_gistnet(teacher), 256)
    assert figures["kl_difference_nats"] < 1e-5
    assert figures["gradient_relative_difference"] < 1e-4


def test_breakdown_names_all_parts() -> None:
    teacher = build_teacher("tiny-shape", "bfloat16", "cpu")
    parts = breakdown(cut_windows(teacher, 256, 16), teacher, build_gistnet(teacher))
    assert [name.split()[-1] for name in parts] == ["pass", "forward", "forward", "loss", "backward", "backward"]
    assert all(row["seconds_per_span"] > 0 and row["flops_per_second"] > 0 for row in parts.values())


def test_parts_measured_apart_come_together(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    row = {"seconds_per_span": 0.5, "spans_per_second": 2.0, "spans_timed": 4, "peak_memory_megabytes": 1.0}
    EngineResults.read(path, "a").add(4096, 32, "engine", row | {"kl": {"4": 1.0, "36": 1.5}, "flops_per_span": 1e9})
    later = EngineResults.read(path, "a")
    later.add(4096, 32, "loop", row | {"seconds_per_span": 45.0, "kl": {"36": 1.25}})
    assert later.case(4096, 32)["speedup_over_loop"] == 90
    assert later.case(4096, 32)["kl_difference_nats"] == 0.25
    assert later.describe(4096, 32).splitlines()[-1] == "speedup 90.0"
    EngineResults.read(path, "b").add(512, 32, "engine", row | {"kl": {}, "flops_per_span": 1e9})
    assert set(json.loads(path.read_text())["teachers"]) == {"a", "b"}


def test_results_of_another_machine_are_not_added_to(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    path.write_text(json.dumps({"machine": describe_machine() | {"cores": -1}, "teachers": {}}))
    with pytest.raises(SystemExit, match="another machine"):
        EngineResults.read(path, "a")
    assert EngineResults.read(path, "a", restart=True).content["machine"] == describe_machine()


def test_the_ceiling_is_that_of_the_best_size() -> None:
    assert 1e8 < matmul_ceiling("cpu", torch.float32, sizes=(64, 256)) < 1e14


def test_the_program_runs_a_part_in_a_process_of_its_own() -> None:
    figures = in_own_process(
        "benchmarks.engine", "--device", "cpu", "--teacher", "tiny-shape", "--only", "engine", 128, 32
    )
    assert figures["spans_timed"] == 2
