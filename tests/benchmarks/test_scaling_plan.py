"""The plans past one machine: what follows from what, and what its basis is."""

import json
from pathlib import Path

import pytest

from benchmarks.scaling_plan import ASSUMED, RESULTS, Rate, Rates, compression_plan, plan, training_plan, worst
from benchmarks.workload import SMOLLM3_SHAPE, build_teacher
from gistnet.model.gistnet import GistNet, GistNetConfig
from gistnet.model.teacher import Teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return build_teacher(SMOLLM3_SHAPE, "bfloat16", "meta")


@pytest.fixture(scope="module")
def gistnet(teacher: Teacher) -> GistNet:
    return GistNet.build(GistNetConfig(architecture="bottleneck", width=128), teacher)


def rates_of(**changed: Rate) -> Rates:
    given = {
        "ceiling": Rate(1e15, "measured"),
        "utilisation": Rate(0.5, "measured"),
        "compression": Rate(1e6, "measured"),
        "token_bytes": Rate(2.0, "measured"),
        "row_overhead": Rate(4.0, "measured"),
        "writer": Rate(50e6, "measured"),
    }
    return Rates(**(given | changed))


def test_a_conclusion_is_as_good_as_the_worst_of_its_grounds() -> None:
    assert worst("counted", "measured") == "measured"
    assert worst("assumed", "counted", "extrapolated") == "assumed"


def test_training_hours_by_hand(teacher: Teacher, gistnet: GistNet) -> None:
    """10B tokens are 2,441,406 windows; at 5e14 operations a second on each of 8 and of 64 GPUs."""
    rows = {name: (values, basis) for name, values, basis in training_plan(teacher, gistnet, rates_of(), 126)}
    # 2.81B weights: 4,096 tokens of the document, and 126 branches of 32 vectors forward and backward, at the least.
    weights = sum(m.weight.numel() for m in teacher.model.model.layers.modules() if hasattr(m, "in_features"))
    least = 2 * weights * (4096 + 126 * 32 * 2)
    hours = [float(value.strip("*")) for value in rows["**hours in all**"][0]]
    assert hours[0] == pytest.approx(8 * hours[1], abs=0.5)
    assert least * 2_441_406 / (5e14 * 8) / 3600 < hours[0] < 1.4 * least * 2_441_406 / (5e14 * 8) / 3600
    assert rows["**hours in all**"][1] == "extrapolated"
    assert rows["spans supervised"][0] == ["308M", "308M"]
    trained = sum(p.numel() for p in gistnet.parameters())
    assert rows["gradient of GistNet, a step"][0] == [f"{4 * trained / 1e6:.1f} MB"] * 2
    assert rows["sent by a GPU, a step"][0][0] == f"{8 * trained * 7 / 8 / 1e6:.1f} MB"


def test_storage_by_hand(teacher: Teacher) -> None:
    """A gist of the 3B teacher is 2,048 numbers of two bytes, and 4 bytes beside it here."""
    rows = {name: (values, basis) for name, values, basis in compression_plan(teacher, rates_of())}
    assert rows["storage: tokens"][0][0] == "2.00 TB"
    assert rows["storage: level 0, one for 32 tokens"][0][0] == f"{1e12 / 32 * 4100 / 1e12:.2f} TB" == "128.12 TB"
    assert rows["storage: level 1, one for 1,024"][0][0] == "4.00 TB"
    hours = float(rows["**hours of the GPUs**"][0][0].strip("*"))
    assert hours == pytest.approx(1e12 * (33 / 32) / 8e6 / 3600, abs=0.05)
    assert float(rows["writers, each of its own tree"][0][0]) == pytest.approx(134.13e12 / (hours * 3600) / 50e6, abs=1)


def test_measured_rates_take_the_place_of_assumptions(tmp_path: Path, teacher: Teacher) -> None:
    assumed = Rates.read(RESULTS / "nowhere", teacher=teacher, **ASSUMED)
    assert (assumed.utilisation.basis, assumed.compression.basis) == ("assumed", "assumed")
    case = {"window": 4096, "horizon": 32, "model_flop_utilisation": 0.33}
    engine = {"matmul_flops_per_second": 8e14, "teachers": {SMOLLM3_SHAPE: {"cases": [case]}}}
    (tmp_path / "engine-cuda.json").write_text(json.dumps(engine))
    row = {"architecture": "bottleneck", "tokens_per_second": 4e6}
    (tmp_path / "compression-cuda.json").write_text(json.dumps({"teacher": "smollm2-135m", "gistnet": [row]}))
    measured = Rates.read(tmp_path, teacher=teacher, **ASSUMED)
    assert measured.ceiling == Rate(8e14, "measured")
    assert measured.utilisation == Rate(0.33, "measured")
    assert measured.compression == Rate(4e6 * 576 / 2048, "extrapolated")


def test_every_figure_names_its_basis() -> None:
    for text in plan(None, RESULTS / "nowhere", **ASSUMED).values():
        for line in text.splitlines()[2:]:
            assert line.split("|")[-2].strip() in ("counted", "measured", "extrapolated", "assumed")
