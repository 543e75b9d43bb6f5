"""The ablations: arms are trained, judged, interrupted and resumed; intervals and lines are what hands compute."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import ablations
from benchmarks.ablation_results import (
    PARTS,
    at_spans,
    load,
    mean_kl,
    paired_difference,
    read_groups,
    recovered,
    recovered_interval,
    save,
)
from benchmarks.ablations import Trainer, chosen_arms
from benchmarks.plots import draw_all
from benchmarks.tables import BLOCKS
from gistnet.config import load_config
from gistnet.errors import ConfigError, DataError
from gistnet.metrics_log import read_metrics

CONFIGS = Path(__file__).parent.parent.parent / "configs"
ROWS_BESIDE = ("last_token", "recent_tokens", "shuffled")
RATE = "train.optimiser.learning_rate"
GROUPS = {
    "rate": {"question": "How fast?", "arms": {"slow": [f"{RATE}=0.01"], "fast": [f"{RATE}=0.1"], "old": "retired"}},
    "input": {
        "question": "Where?",
        "arms": {"context": ["gistnet.architecture=teacher_lora", "gistnet.reads=context"]},
    },
}


@pytest.fixture
def common(tmp_path: Path, tiny_config: dict[str, Any]) -> list[str]:
    """Options of a comparison with the tiny teacher and `GROUPS`, an arm of which is the default once more."""
    tiny_config["objective"]["horizon_tokens"] = 32
    tiny_config["train"] |= {"accumulation_steps": 1, "checkpoint_every_steps": 1000}
    tiny_config["train"]["validation"] |= {"every_steps": 20, "documents": 2}
    (tmp_path / "ablations.yaml").write_text(yaml.safe_dump(tiny_config), encoding="utf-8")
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(GROUPS, sort_keys=False), encoding="utf-8")
    paths = {"config": "ablations.yaml", "arms": "arms.yaml", "folder": "runs", "results": "results.json"}
    return [word for name, file in paths.items() for word in (f"--{name}", str(tmp_path / file))]


def steps_of(run_folder: Path) -> list[int]:
    try:
        return [record["step"] for record in read_metrics(run_folder / "metrics.jsonl") if "loss" in record]
    except DataError:
        return []


def stop_after_steps(folder: Path, steps: int) -> threading.Thread:
    """Ask this process to stop once a run below `folder` has made so many steps; returns the thread that waits."""

    def wait() -> None:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            if any(len(steps_of(path.parent)) >= steps for path in folder.glob("*/default-*-seed0/metrics.jsonl")):
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_arms_are_trained_judged_resumed_and_skipped(
    common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed in the middle of the default, the program goes on from its checkpoint; the second arm is `fast`."""
    results, command = tmp_path / "results.json", [*common, "--group", "rate", "--contexts", "180"]

    stopper = stop_after_steps(tmp_path / "runs", steps=5)
    assert ablations.main(command) == 130
    stopper.join()
    assert not results.exists()
    (run,) = (tmp_path / "runs").glob("*/default-*-seed0")
    assert 5 <= len(steps_of(run)) < 30

    assert ablations.main(command) == 0
    assert steps_of(run) == list(range(1, 31))  # 180 spans, 6 a step: no step twice, and none left out

    (found,) = load(results)["comparisons"].values()
    assert found["same_as"] == {"slow": "default"}
    assert found["arms"].keys() == {"default", "fast"}
    fast = found["arms"]["fast"]["0"]
    assert fast["settings"] == ["train.optimiser.learning_rate=0.1"]
    assert (fast["steps"], fast["spans_seen"]) == (30, 180)
    assert fast["kl_by_document"]["drop"] == found["arms"]["default"]["0"]["kl_by_document"]["drop"]
    assert fast["kl_by_document"]["gist"] != found["arms"]["default"]["0"]["kl_by_document"]["gist"]
    assert [point["spans_seen"] for point in fast["curve"]][:3] == [0, 120, 180]
    assert str(tmp_path) not in results.read_text()

    before = results.read_bytes()
    capsys.readouterr()
    assert ablations.main(command) == 0
    assert capsys.readouterr().out.count("has its result") == 2
    assert results.read_bytes() == before


def test_an_arm_that_reads_its_context_is_judged_on_the_same_spans(common: list[str], tmp_path: Path) -> None:
    assert ablations.main([*common, "--group", "input", "--contexts", "12"]) == 0
    (found,) = load(tmp_path / "results.json")["comparisons"].values()
    default, context = (found["arms"][name]["0"] for name in ("default", "context"))
    assert context["kl_by_document"]["drop"] == default["kl_by_document"]["drop"]
    assert context["kl_by_document"]["gist"] != default["kl_by_document"]["gist"]
    assert context["minutes"] > 0


def test_arms_are_judged_by_rows_where_the_default_says_so(common: list[str], tmp_path: Path) -> None:
    rows = "evaluation: {rows: {documents: 2, lengths: [2], tails: [0, 4], scored_tokens: 8}, minimal_pairs: 4}"
    default = yaml.safe_load((tmp_path / "ablations.yaml").read_text())
    default["evaluation"] = default.get("evaluation", {}) | yaml.safe_load(rows)["evaluation"]
    (tmp_path / "ablations.yaml").write_text(yaml.safe_dump(default), encoding="utf-8")
    assert ablations.main([*common, "--arm", "fast", "--contexts", "12"]) == 0
    (found,) = load(tmp_path / "results.json")["comparisons"].values()
    one, other = (found["arms"][name]["0"]["row_kl_by_passage"] for name in ("default", "fast"))
    assert one.keys() == {"2+0", "2+4"}
    assert {len(kl) for kl in one["2+4"].values()} == {2}
    assert one["2+4"]["drop"] == other["2+4"]["drop"] and one["2+4"]["gist/end"] != other["2+4"]["gist/end"]
    assert {"gist/compact", "recent_tokens/compact", "last_token/end"} < one["2+0"].keys()
    assert 0 <= found["arms"]["fast"]["0"]["pair_accuracy"]["value"] <= 1


def test_the_speed_is_that_of_the_steps_after_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of the clock a step, whatever the start took, of which the processor worked a quarter."""

    def train(trainer: Trainer, run_folder: Path, settings: list[str]) -> float:
        run_folder.mkdir()
        steps = [{"step": n, "loss": 1.0, "spans_seen": n, "spans_per_second": n / (10 + n / 2)} for n in range(1, 6)]
        (run_folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        return 5.0

    clock: Iterator[float] = iter([100.0, 120.0])
    monkeypatch.setattr(Trainer, "train", train)
    monkeypatch.setattr(ablations.time, "monotonic", lambda: next(clock))
    trainer = Trainer(Path("unused"), [], threads=1, on_gpu=False)
    assert trainer.seconds_per_step(tmp_path / "probe", []) == pytest.approx(0.125)
    assert not (tmp_path / "probe").exists()


COSTS: dict[str, Any] = {
    "spans_seen": 64,
    "minutes": 1.5,
    "trained_parameters": 820_000,
    "share_of_teacher": 0.125,
    "horizon_tokens": 32,
    "settings": [],
    "machine": {"gpu": "none", "cores": 2, "processor": "a processor"},
}
"""Parts of a record that tables only show."""


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


def test_between_validations_a_curve_is_a_line_over_the_logarithm() -> None:
    points = [{"spans_seen": spans, "recovered_kl": share} for spans, share in ((0, 0.0), (16, 0.2), (64, 0.4))]
    assert at_spans(points, 32) == pytest.approx(0.3)


def test_what_there_is_not_is_a_sentence(common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = read_groups(tmp_path / "arms.yaml")
    for name in ("x", "old"):  # `old` has results only
        with pytest.raises(ConfigError, match=f"'{name}'"):
            chosen_arms(groups, [], [name])
    assert list(chosen_arms(groups, ["rate"], [])) == ["default", "slow", "fast"]
    assert list(chosen_arms(groups, [], ["fast"])) == ["default", "fast"]
    assert ablations.main([*common, "--group", "colour"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "colour" in line and "rate" in line


def test_every_real_arm_is_a_configuration() -> None:
    for group in read_groups().values():
        for name, settings in group.runnable.items():
            load_config(CONFIGS / (group.config or "ablations.yaml"), [*settings, *ablations.TO_THE_END])
            assert name == name.lower() and " " not in name


def test_arms_of_another_default_are_not_there(
    common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They may be no configuration with this one."""
    other = {"other": {"config": "rows.yaml", "question": "Which?", "arms": {"impossible": ["no.such.key=1"]}}}
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump(GROUPS | other, sort_keys=False), encoding="utf-8")
    assert ablations.main([*common, "--group", "other", "--contexts", "12"]) == 1
    assert "Got the group 'other', expected one of rate, input." in capsys.readouterr().err


def test_no_two_arms_have_one_name() -> None:
    names = [name for group in read_groups().values() for name in group.arms]
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
    save(tmp_path / "ablations-cuda.json", {"comparisons": {"a": content}})
    first, again = (draw_all(tmp_path, tmp_path / name, tmp_path) for name in ("first", "again"))
    assert [path.name.partition("-1-minutes")[0] for path in first] == ["span", "rate-quality"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_results_become_tables(tmp_path: Path) -> None:
    filled = BLOCKS["depth-cuda"](tmp_path)
    assert "TO MEASURE: `python benchmarks/ablations.py --group depth --device cuda`" in filled
    curve = [{"spans_seen": spans, "recovered_kl": spans / 160} for spans in (0, 16, 32, 64)]
    common = COSTS | {"curve": curve}
    arms = {
        "default": {"0": record([0.5, 1.2], **common)},
        "2-blocks": {"0": record([0.4, 0.4], **common), "1": record([0.6, 0.4], seed=1, **common)},
        "3-blocks": {"0": {"failed": "It did not fit."}},
    }
    content = {"budget": {"contexts": 64}, "default": {}, "data": "", "same_as": {"1-block": "default"}, "arms": arms}
    save(tmp_path / "benchmarks" / "results" / "ablations-cpu.json", {"comparisons": {"a": content}})
    filled = BLOCKS["depth-cpu"](tmp_path)
    assert "**64 contexts each**, 2 cores of a processor; judged on 4 spans of 2 held-out documents." in filled
    assert "| default | 1.0250 | **41.4%** [40.0, 50.0] | 41.4% | 41.4% |  |  |" in filled
    assert "| 1-block (= default) | 1.0250 |" in filled
    # The mean of 0.4 · 4 and 0.6 + 0.4 · 3, of 7; the pair is of seed 0 alone.
    assert "| 2-blocks | 0.4250 | **75.7%** [50.0, 80.0], 2 seeds 74.3–77.1 |" in filled
    assert "| +35.7 [+10.0, +40.0] | +35.7 [+10.0, +40.0] |" in filled
    assert "| `last_token` | 0.8750 | 50.0% | 50.0% | 50.0% |  |  |" in filled
    assert "| default | 0.82M | 12.5% | 64 | 1.5 | 40.0% |" in filled
    assert "Failed: 3-blocks, seed 0. It did not fit." in filled


def test_rows_become_a_table_beside_their_baselines(tmp_path: Path) -> None:
    """Two passages of 1 and 3 nats without the row; only what the arm loses at `compact` differs."""

    def of_row(end: list[float], compact: list[float]) -> dict[str, list[float]]:
        beside = {f"{name}/{policy}": [0.8, 2.4] for name in ROWS_BESIDE for policy in ("end", "compact")}
        return beside | {"drop": [1.0, 3.0], "gist/end": end, "gist/compact": compact}

    def judged(end: list[float], compact: list[float], seed: int = 0) -> dict[str, Any]:
        rows = {"8+0": of_row(end, compact), "30+64": of_row(end, compact)}
        pairs = {"value": 0.5 + seed / 10, "interval": [0.4, 0.7], "baselines": {"full": 0.9}}
        curve = [{"spans_seen": spans, "recovered_kl": spans / 160} for spans in (0, 64)]
        own = {"row_kl_by_passage": rows, "pair_accuracy": pairs, "curve": curve, "diversity": 0.4}
        return record([0.5, 1.2], seed=seed, **COSTS, **own)

    arms = {
        "default": {"0": judged([0.6, 2.2], [0.6, 2.2])},
        "single": {"0": judged([0.6, 2.2], [0.3, 1.1]), "1": judged([0.6, 2.2], [0.5, 2.5], seed=1)},
    }
    content = {"budget": {"minutes": 8}, "default": {}, "data": "", "same_as": {}, "arms": arms}
    save(tmp_path / "benchmarks" / "results" / "ablations-cpu.json", {"comparisons": {"a": content}})
    filled = BLOCKS["layout-cpu"](tmp_path)
    assert "Rows of 30 gists and raw tokens behind them (`30+tokens`): share of KL recovered, 2 held-out" in filled
    assert "| default | 30.0% | 30.0% | **30.0%** |  | 50.0% | 0.40 |" in filled
    # With seed 0 `compact` gains 0.3 of 1 and 1.1 of 3; the mean of both seeds has 0.4 and 1.8 left of them.
    assert "| single | 30.0% | 45.0% | **37.5%**, 2 seeds 27.5–47.5 | +17.5 [+15.0, +18.3] | 55.0% | 0.40 |" in filled
    assert "| `recent_tokens` | 20.0% | 20.0% | 20.0% |  |  |  |" in filled


def test_the_default_under_another_name_is_no_comparison(tmp_path: Path) -> None:
    arms = {"default": {"0": record([0.5, 1.2])}}
    content = {"budget": {"contexts": 64}, "default": {}, "data": "", "same_as": {"1-block": "default"}, "arms": arms}
    save(tmp_path / "benchmarks" / "results" / "ablations-cpu.json", {"comparisons": {"a": content}})
    assert BLOCKS["depth-cpu"](tmp_path) == "TO MEASURE: `python benchmarks/ablations.py --group depth`"
