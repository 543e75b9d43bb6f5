"""The ablations: arms are trained, judged, interrupted and resumed; intervals and lines are what hands compute."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml

from benchmarks import ablation_comparison, ablations
from benchmarks.ablation_arms import GROUPS, Group, all_arms, chosen_arms
from benchmarks.ablation_figures import PARTS, mean_kl, paired_difference, recovered, recovered_interval
from benchmarks.ablation_line import fit_line, second_half
from benchmarks.ablation_plots import draw_all
from benchmarks.ablation_results import load, longest_curve, save
from benchmarks.ablation_runs import Trainer, seconds_per_step, steps_done
from benchmarks.ablation_tables import BLOCKS, at_spans
from gistnet.config import load_config
from gistnet.errors import ConfigError, DataError
from gistnet.training.tracking import read_metrics

CONFIGS = Path(__file__).parent.parent.parent / "configs"


@pytest.fixture
def tiny_default(tmp_path: Path, tiny_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A default arm with the tiny teacher, and a group of its own; one of its arms is the default once more."""
    tiny_config["objective"]["horizon_tokens"] = 32
    tiny_config["train"] |= {"accumulation_steps": 1, "checkpoint_every_steps": 1000}
    tiny_config["train"]["validation"] |= {"every_steps": 20, "documents": 2}
    path = tmp_path / "ablations.yaml"
    path.write_text(yaml.safe_dump(tiny_config), encoding="utf-8")
    rate = "train.optimiser.learning_rate"
    for name in list(GROUPS):
        monkeypatch.delitem(GROUPS, name)
    monkeypatch.setitem(GROUPS, "rate", Group("How fast?", {"slow": [f"{rate}=0.01"], "fast": [f"{rate}=0.1"]}))
    return path


def stop_after_steps(folder: Path, steps: int) -> threading.Thread:
    """Ask this process to stop once a run below `folder` has made so many steps; returns the thread that waits."""

    def wait() -> None:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            if any(steps_done(path.parent) >= steps for path in folder.glob("*/default-*-seed0/metrics.jsonl")):
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_arms_are_trained_judged_resumed_and_skipped(
    tiny_default: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in the middle of the default, the program goes on from its checkpoint; the second arm is `fast`."""
    monkeypatch.setattr(ablation_comparison, "seconds_per_step", lambda *_: 0.05)
    results, folder = tmp_path / "results.json", tmp_path / "runs"
    common = ["--config", str(tiny_default), "--folder", str(folder), "--results", str(results)]
    command = [*common, "--group", "rate", "--spans", "720"]

    stopper = stop_after_steps(folder, steps=5)
    assert ablations.main(command) == 130
    stopper.join()
    assert not results.exists()
    (run,) = folder.glob("*/default-*-seed0")
    stopped_at = steps_done(run)
    assert 5 <= stopped_at < 120

    assert ablations.main(command) == 0
    steps = [record["step"] for record in read_metrics(run / "metrics.jsonl") if "loss" in record]
    assert steps == list(range(1, 121))  # 720 spans, 6 a step: no step twice, and none left out

    (found,) = load(results)["comparisons"].values()
    assert found["same_as"] == {"slow": "default"}
    assert found["arms"].keys() == {"default", "fast"}
    fast = found["arms"]["fast"]["0"]
    assert fast["settings"] == ["train.optimiser.learning_rate=0.1"]
    assert (fast["steps"], fast["spans_seen"], fast["spans_per_second"]) == (120, 720, 120.0)
    assert fast["kl_by_document"]["drop"] == found["arms"]["default"]["0"]["kl_by_document"]["drop"]
    assert fast["kl_by_document"]["gist"] != found["arms"]["default"]["0"]["kl_by_document"]["gist"]
    assert [point["spans_seen"] for point in fast["curve"]][:3] == [0, 120, 240]
    assert str(tmp_path) not in results.read_text()

    before = results.read_bytes()
    capsys.readouterr()
    assert ablations.main(command) == 0
    assert capsys.readouterr().out.count("has its result") == 2
    assert results.read_bytes() == before


def test_an_arm_that_reads_its_context_is_judged_on_the_same_spans(
    tiny_default: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = ["gistnet.architecture=teacher_lora", "gistnet.reads=context"]
    monkeypatch.setitem(GROUPS, "input", Group("Where?", {"context": reads}))
    results = tmp_path / "results.json"
    places = ["--folder", str(tmp_path / "runs"), "--results", str(results)]
    assert ablations.main(["--config", str(tiny_default), *places, "--group", "input", "--spans", "12"]) == 0
    (found,) = load(results)["comparisons"].values()
    default, context = (found["arms"][name]["0"] for name in ("default", "context"))
    assert context["kl_by_document"]["drop"] == default["kl_by_document"]["drop"]
    assert context["kl_by_document"]["gist"] != default["kl_by_document"]["gist"]


class FakeTrainer:
    """In place of a process: a step every half a second, after ten of start-up, asked every quarter."""

    def train(self, run_folder: Path, settings: list[str], until: Callable[[float], bool]) -> float:
        run_folder.mkdir()
        lines = ""
        for quarter in range(1000):
            if quarter % 2 == 0 and quarter > 0:
                lines += json.dumps({"step": quarter // 2, "loss": 1.0}) + "\n"
                (run_folder / "metrics.jsonl").write_text(lines)
            if until(10 + quarter / 4):
                return 10 + quarter / 4
        raise AssertionError("it was never enough")


def test_the_speed_is_that_of_the_steps_after_the_first(tmp_path: Path) -> None:
    """Half a second a step, whatever the start took; nothing of the run is left."""
    trainer = cast(Trainer, FakeTrainer())
    assert seconds_per_step(trainer, tmp_path / "probe", [], at_least_seconds=0) == pytest.approx(0.5)
    assert seconds_per_step(trainer, tmp_path / "probe", [], at_least_seconds=4) == pytest.approx(0.5)
    assert not (tmp_path / "probe").exists()


def record(gist: list[float], seed: int = 0, **other: Any) -> dict[str, Any]:
    """A record of two documents with one span and three, whose KL is the same at all offsets."""
    columns = {"gist": gist, "drop": [1.0, 2.0], "last_token": [0.5, 1.0]}
    kl = {name: {"kl_1_8": values, "kl_9_32": values} for name, values in columns.items()}
    return {"seed": seed, "span_tokens": 32, "spans_by_document": [1, 3], "kl_by_document": kl} | other


def test_means_weigh_spans_and_offsets() -> None:
    one = record([0.4, 1.2])
    one["kl_by_document"]["gist"]["kl_9_32"] = [0.0, 0.4]
    assert mean_kl([one], "gist", "1–8") == pytest.approx((0.4 + 3 * 1.2) / 4)
    assert mean_kl([one], "gist", "1–32") == pytest.approx(((8 * 0.4) + 3 * (8 * 1.2 + 24 * 0.4)) / 32 / 4)
    assert recovered([one], "1–8") == pytest.approx(1 - 4.0 / 7)
    assert recovered([one], "1–32", "last_token") == pytest.approx(0.5)
    assert set(PARTS) == {"1–32", "1–8", "9–32"}


def test_the_paired_interval_is_that_of_a_hand_computation() -> None:
    """Two documents: both are the first with probability 1/4, the second with 1/4, one of each with 1/2.

    The arm gains 0.1 of 1 in the first document and 3 · 0.8 of 3 · 2 in the second: 0.1, 0.4, and 2.5 / 7 with both.
    """
    arm, default = record([0.4, 0.4]), record([0.5, 1.2])
    found = paired_difference([arm], [default], "9–32")
    assert found is not None
    value, interval = found
    assert value == pytest.approx(2.5 / 7)
    assert interval == (pytest.approx(0.1), pytest.approx(0.4))
    # Unpaired, the arm alone recovers 0.6 of the first document and 0.8 of the second.
    assert recovered_interval([arm], "9–32") == (pytest.approx(0.6), pytest.approx(0.8))


def test_pairs_have_a_seed_in_common_and_the_same_spans() -> None:
    arm = [record([0.4, 0.4], seed=0), record([0.0, 0.0], seed=2)]
    default = [record([0.5, 1.2], seed=0), record([9.0, 9.0], seed=1)]
    found = paired_difference(arm, default, "1–32")
    assert found is not None and found[0] == pytest.approx(2.5 / 7)  # of seed 0 alone
    assert paired_difference(arm[1:], default, "1–32") is None
    assert paired_difference([record([0.4, 0.4], span_tokens=16)], default, "1–32") is None


def test_a_line_through_known_points() -> None:
    """Two points a doubling, at 0.3 after 1,024 spans; and one that a residual pulls away."""
    spans = [1024, 2048, 4096, 8192]
    line = fit_line(spans, [0.30, 0.32, 0.34, 0.36])
    assert line.per_doubling == pytest.approx(0.02)
    assert line.at(2**20) == pytest.approx(0.5)
    assert line.interval(2**20) == (pytest.approx(0.5), pytest.approx(0.5))  # no residuals, no doubt
    bent = fit_line(spans, [0.30, 0.33, 0.33, 0.36])
    assert bent.per_doubling == pytest.approx(np.polyfit(np.log2(spans), [0.30, 0.33, 0.33, 0.36], 1)[0])
    low, high = bent.interval(2**20)
    assert low < bent.at(2**20) < high
    near_low, near_high = bent.interval(4096)
    assert near_high - near_low < high - low  # farther away is less certain
    with pytest.raises(DataError, match="Got 2 points at 2 places"):
        fit_line([1, 2], [0.1, 0.2])


def test_the_second_half_of_a_curve() -> None:
    curve = [(0, 0.1), (10, 0.2), (20, 0.3), (30, 0.4), (40, 0.5)]
    assert second_half(curve) == ([30, 40], [0.4, 0.5])
    points = [{"spans_seen": spans, "recovered_kl": share} for spans, share in ((0, 0.0), (16, 0.2), (64, 0.4))]
    assert at_spans(points, 32) == pytest.approx(0.3)


def test_what_there_is_not_is_a_sentence(
    tiny_default: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"Got the arm 'x', expected one of default, slow, fast\."):
        chosen_arms([], ["x"])
    assert list(chosen_arms(["rate"], [])) == ["default", "slow", "fast"]
    assert list(chosen_arms([], ["fast"])) == ["default", "fast"]
    assert ablations.main(["--config", str(tiny_default), "--group", "colour"]) == 1
    assert capsys.readouterr().err == "ablations: Got the group 'colour', expected one of rate.\n"
    assert ablations.main(["--curve", "long", "--results", str(tmp_path / "r.json")]) == 1
    assert capsys.readouterr().err == "ablations: Got the curve 'long', expected NAME=RUN_FOLDER.\n"


def test_every_real_arm_is_a_configuration() -> None:
    for name, settings in all_arms().items():
        load_config(CONFIGS / "ablations.yaml", [*settings, *ablations.TO_THE_END])
        assert name == name.lower() and " " not in name


def test_no_two_arms_have_one_name() -> None:
    names = [name for group in GROUPS.values() for name in group.arms]
    assert len(set(names)) == len(names)


def test_the_same_results_give_the_same_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curve = [{"spans_seen": 16 * n, "recovered_kl": n / 20 + n % 2 / 50} for n in range(9)]
    machine = {"gpu": "none", "cores": 2, "processor": "a processor"}
    arms = {
        name: {"0": record([0.5, 1.2], span_tokens=k, curve=curve, machine=machine)}
        for name, k in (("default", 32), ("k-8", 8), ("k-64", 64))
    }
    content = {"budget": {"minutes": 1.0}, "default": {}, "data": "", "same_as": {"k-32": "default"}, "arms": arms}
    save(tmp_path / "ablations-cuda.json", {"comparisons": {"a": content}, "long_curves": {}})
    first, again = (draw_all(tmp_path, tmp_path / name) for name in ("first", "again"))
    kinds = ["span", "rate-quality", "extrapolation"]
    assert len(first) == 3 and all(path.name.startswith(kind) for path, kind in zip(first, kinds, strict=True))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    shown = BLOCKS["ablation-plots-cuda"](tmp_path, tmp_path / "first")
    assert f"![{first[2].stem.replace('-', ' ')}](plots/first/extrapolation-cuda.svg)" in shown


def test_a_longer_run_lends_its_curve(tmp_path: Path) -> None:
    lines = [{"step": step, "spans_seen": 8 * step, "validation": {"kl": 0.5, "recovered_kl": 0.3}} for step in (0, 5)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = tmp_path / "results.json"
    assert ablations.main(["--curve", f"long={tmp_path}", "--results", str(results)]) == 0
    assert longest_curve(load(results)) == (
        "long",
        [{"spans_seen": spans, "kl": 0.5, "recovered_kl": 0.3} for spans in (0, 40)],
    )
    # A run that began where it ended, whose second stage is validated on something else.
    (tmp_path / "next").mkdir()
    (tmp_path / "next" / "metrics.jsonl").write_text(
        "".join(json.dumps(lines[1] | {"stage": s}) + "\n" for s in (1, 2))
    )
    assert ablations.main(["--curve", f"long={tmp_path},{tmp_path / 'next'}", "--results", str(results)]) == 0
    assert [point["spans_seen"] for point in longest_curve(load(results))[1]] == [0, 40, 80]


def test_results_become_tables(tmp_path: Path) -> None:
    filled = BLOCKS["depth-cuda"](tmp_path, tmp_path)
    assert "TO MEASURE: `python benchmarks/ablations.py --group depth --device cuda`" in filled
    common = {"spans_seen": 64, "minutes": 1.5, "spans_per_second": 2.0, "trained_parameters": 820_000}
    common |= {"share_of_teacher": 0.125, "horizon_tokens": 32, "settings": []}
    common |= {"machine": {"gpu": "none", "cores": 2, "processor": "a processor"}}
    common["curve"] = [{"spans_seen": spans, "recovered_kl": spans / 160} for spans in (0, 16, 32, 64)]
    arms = {
        "default": {"0": record([0.5, 1.2], **common)},
        "2-blocks": {"0": record([0.4, 0.4], **common), "1": record([0.6, 0.4], seed=1, **common)},
        "3-blocks": {"0": {"failed": "It did not fit."}},
    }
    content = {"budget": {"spans": 64}, "default": {}, "data": "", "same_as": {"1-block": "default"}, "arms": arms}
    save(tmp_path / "ablations-cpu.json", {"comparisons": {"a": content}, "long_curves": {}})
    filled = "\n".join(BLOCKS[name](tmp_path, tmp_path) for name in ("depth-cpu", "extrapolation-cpu"))
    assert "**64 spans each**, 2 cores of a processor; judged on 4 spans of 2 held-out documents." in filled
    assert "| default | 1.0250 | **41.4%** [40.0, 50.0] | 41.4% | 41.4% |  |  |" in filled
    assert "| 1-block (= default) | 1.0250 |" in filled
    # The mean of 0.4 · 4 and 0.6 + 0.4 · 3, of 7; the pair is of seed 0 alone.
    assert "| 2-blocks | 0.4250 | **75.7%** [50.0, 80.0], 2 seeds 74.3–77.1 |" in filled
    assert "| +35.7 [+10.0, +40.0] | +35.7 [+10.0, +40.0] |" in filled
    assert "| `last_token` | 0.8750 | 50.0% | 50.0% | 50.0% |  |  |" in filled
    assert "| default | 0.82M | 12.5% | 2.00 | 64 | 1.5 | 40.0% |" in filled
    assert "Failed: 3-blocks, seed 0. It did not fit." in filled
    assert "TO MEASURE" in filled  # two points are no line


def test_the_default_under_another_name_is_no_comparison(tmp_path: Path) -> None:
    arms = {"default": {"0": record([0.5, 1.2])}}
    content = {"budget": {"spans": 64}, "default": {}, "data": "", "same_as": {"1-block": "default"}, "arms": arms}
    save(tmp_path / "ablations-cpu.json", {"comparisons": {"a": content}, "long_curves": {}})
    assert BLOCKS["depth-cpu"](tmp_path, tmp_path) == "TO MEASURE: `python benchmarks/ablations.py --group depth`"
