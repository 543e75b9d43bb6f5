"""`python benchmarks/speed.py`: what is timed is comparable, what is reported adds up, and parts come together."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch

from benchmarks import machine, speed
from benchmarks.measurements import breakdown, equality, equality_of_devices, measure_engine, measure_loop
from benchmarks.speed import SERIES, EngineResults, Point, encoding, measure_point, points
from benchmarks.workload import SPAN, Branches, all_starts, build_gistnet, build_teacher, cut_windows, read_text, spread
from gistnet.machine import describe_machine
from gistnet.model.encoder import SpanEncoder


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
    segments = branches.segments(first=2, count=5)
    assert segments.windows.tolist() == [0, 1, 1, 1, 2]
    assert segments.starts.tolist() == [68, 4, 36, 68, 4]
    assert branches.segments(first=7, count=5).starts.tolist() == [36, 68]


def test_variants_agree_and_utilisation_is_of_what_was_timed(tmp_path: Path) -> None:
    teacher = build_teacher("tiny-shape", "float32", "cpu")
    gistnet = build_gistnet(teacher)
    branches = cut_windows(teacher, 256, 32, windows=2)
    results = EngineResults(tmp_path / "engine.json", "tiny-shape")
    results.add("ceiling", 0, 0, 1e9)
    results.add("engine", 256, 32, measure_engine(branches, teacher, gistnet, branches_per_pass=5))
    for cached, part in ((True, "cached"), (False, "loop")):
        results.add(part, 256, 32, measure_loop(branches, teacher, gistnet, cached=cached, spans=2))
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


def test_equality_of_devices_measures_rounding_and_nothing_else() -> None:
    """On the CPU the engine equals itself to the bit, and the loop to rounding; bfloat16 is far from both."""
    figures = equality_of_devices("tiny-shape", "cpu", 192)
    same = figures["engine, float32 - engine, cpu"]
    assert same == {"kl_difference_nats": 0, "gradient_relative_difference": 0}
    assert 0 < figures["engine, float32 - loop, float32"]["gradient_relative_difference"] < 1e-4
    for variant in ("engine", "loop"):
        assert 1e-4 < figures[f"{variant}, bfloat16 - engine, cpu"]["gradient_relative_difference"] < 0.5


def test_breakdown_names_all_parts() -> None:
    teacher = build_teacher("tiny-shape", "bfloat16", "cpu")
    parts = breakdown(cut_windows(teacher, 256, 16), teacher, build_gistnet(teacher), branches_per_pass=4)
    assert [name.split()[-1] for name in parts] == ["pass", "forward", "forward", "loss", "backward", "backward"]
    assert all(row["seconds_per_span"] > 0 and row["flops_per_second"] > 0 for row in parts.values())


def test_parts_measured_apart_come_together(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    ours = {"seconds_per_span": 0.5, "kl": {"4": 1.0, "36": 1.5}, "flops_per_span": 1e9}
    EngineResults(path, "a").add("engine", 4096, 32, ours)
    later = EngineResults(path, "a")
    later.add("loop", 4096, 32, {"seconds_per_span": 45.0, "kl": {"36": 1.25}})
    assert later.case(4096, 32)["speedup_over_loop"] == 90
    assert later.case(4096, 32)["kl_difference_nats"] == 0.25
    assert later.describe(4096, 32).splitlines()[-1] == "speedup 90.0"
    EngineResults(path, "b").add("engine", 512, 32, ours)
    assert set(json.loads(path.read_text())["teachers"]) == {"a", "b"}


def test_results_of_another_machine_are_not_added_to(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"
    path.write_text(json.dumps({"machine": describe_machine() | {"cores": -1}, "teachers": {}}))
    with pytest.raises(SystemExit, match="another machine"):
        EngineResults(path, "a")
    assert EngineResults(path, "a", restart=True).content["machine"] == describe_machine()


def test_a_part_runs_in_a_process_of_its_own_and_results_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "CEILING_SIZES", {"cpu": (64, 128)})
    assert 1e6 < machine.matmul_ceiling("cpu") < 1e14
    out = tmp_path / "engine.json"
    sizes = ["--windows", "128", "--horizons", "32", "--parts", "engine"]
    speed.main(["engine", "--device", "cpu", "--teacher", "tiny-shape", *sizes, "--out", str(out)])
    (case,) = json.loads(out.read_text())["teachers"]["tiny-shape"]["cases"]
    assert case["engine"]["spans_timed"] == 2


@pytest.mark.parametrize("scale", ["smoke", "cpu", "cuda"])
@pytest.mark.parametrize("series", SERIES)
def test_a_series_varies_one_thing(series: str, scale: str) -> None:
    rows = [dataclasses.asdict(point) for point in points(series, scale)]
    assert {name for name in rows[0] if len({row[name] for row in rows}) > 1} == {SERIES[series]}
    assert all(all_starts(row["window"], row["horizon"]) for row in rows)


def test_the_document_pass_is_shared_by_the_spans() -> None:
    figures = measure_point("tiny-shape", "cpu", Point(256, 16, spans=3, branches_per_pass=2))
    assert figures["spans"] == 3
    shared = figures["document_pass_seconds"]
    assert figures["seconds_per_span"] == pytest.approx(figures["branch_seconds"] + shared / 3)
    assert figures["seconds_per_span_with_all_spans"] == pytest.approx(figures["branch_seconds"] + shared / 7)


def test_every_point_of_a_sweep_is_kept(tmp_path: Path) -> None:
    speed.main(["sweep", "--smoke", "--device", "cpu", "--out", str(tmp_path / "sweep.json")])
    series = json.loads((tmp_path / "sweep.json").read_text())["series"]
    assert {name: len(rows) for name, rows in series.items()} == dict.fromkeys(SERIES, 2)


def test_all_architectures_are_held_against_the_prefill(tmp_path: Path) -> None:
    speed.main(["compression", "--smoke", "--device", "cpu", "--out", str(tmp_path / "compression.json")])
    content = json.loads((tmp_path / "compression.json").read_text())
    rows = content["gistnet"]
    assert [(row["architecture"], row["spans"]) for row in rows] == [
        (architecture, spans) for architecture in ("bottleneck", "full", "teacher_lora") for spans in (4, 8)
    ]
    for row in rows:
        assert row["times_prefill"] == pytest.approx(row["tokens_per_second"] / content["prefill_tokens_per_second"])
    # 30,720 weights in the four layers, 64 tokens, four layers of attention 32 wide over 1 + … + 64 pairs.
    assert content["prefill_flops_per_token"] == 2 * 30720 + 4 * 4 * 32 * 65 / 2


def test_what_is_timed_makes_the_gists_of_training() -> None:
    teacher = build_teacher("tiny-shape", "bfloat16", "cpu")
    gistnet, text = build_gistnet(teacher), read_text(teacher, 8, SPAN)
    gists = encoding(teacher, gistnet, text)()
    assert torch.equal(gists, SpanEncoder(teacher, gistnet).encode(text)[:, 0].detach())
    assert not gists.requires_grad


def test_smaller_contexts_keep_fewer_keys_and_values(tmp_path: Path) -> None:
    speed.main(["context", "--smoke", "--device", "cpu", "--out", str(tmp_path / "context.json")])
    content = json.loads((tmp_path / "context.json").read_text())
    full, *smaller = content["budgets"]
    # Keys and values of 512 tokens, in bfloat16, in four layers of two heads of 8.
    assert (full["vectors"], full["kv_bytes"]) == (512, 512 * 2 * 2 * 4 * 2 * 8)
    assert all(row["kv_bytes"] * 512 == full["kv_bytes"] * row["vectors"] for row in smaller)
    assert [row["vectors"] for row in smaller] == sorted((row["vectors"] for row in smaller), reverse=True)


def test_processes_are_timed_after_the_first_steps(tmp_path: Path) -> None:
    """Losses, spans and seconds of a run's steps, of which `spans_per_second` is the mean so far."""
    lines = [{"step": n, "loss": 1 / n, "spans_seen": 8 * n, "spans_per_second": 8 * n / (3 + n)} for n in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": 3}]))
    found = machine.seconds_of_steps(tmp_path)
    assert [(loss, spans) for loss, spans, _ in found] == [(1.0, 8), (0.5, 16), (1 / 3, 24)]
    assert [seconds for _, _, seconds in found] == pytest.approx([4, 5, 6])
    with pytest.raises(SystemExit, match="4"):
        speed.main(["processes", "--steps", "4"])
