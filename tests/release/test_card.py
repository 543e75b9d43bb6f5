"""The card and the results table: every figure in them is the one in the files beside."""

import json
import re
import shutil
from pathlib import Path

import pyarrow
import pytest
import torch
import yaml
from pyarrow import parquet

from gistnet.evaluation.records import MetricRecord
from gistnet.metrics_log import read_metrics
from gistnet.model.config import GistNetConfig
from gistnet.model.fingerprint import TeacherFingerprint
from gistnet.model.saved_gistnet import SavedGistNet
from gistnet.release.card import _documents, base_model, card, results_tables, summary, targets_table
from gistnet.release.contents import Release, compare_results
from gistnet.settings import Target
from gistnet.training.checkpoint import best_checkpoint
from tests.release.conftest import NOTES


def record(name: str, value: float, **more: object) -> MetricRecord:
    place = {"domain": "narrative", "horizon": 32, "offsets": (1, 32), "positions": "end"}
    return MetricRecord(name=name, value=value, n_spans=256, n_documents=64, **place | more)


def network(positions: str = "end", teacher: str = "smollm2-135m") -> SavedGistNet:
    return SavedGistNet(
        format_version=2,
        gistnet_version="0",
        config=GistNetConfig(),
        branchings=(32,),
        dim=576,
        positions=positions,
        longest_row=1,
        teacher=TeacherFingerprint(
            name=teacher, revision=None, precision="bfloat16", config_hash="1", weights_hash="2"
        ),
        trained_on=("corpus",),
        trained_parameters=1,
        frozen_parameters=0,
        flops_per_span=1,
        share_of_teacher=0.1,
        weights_sha256="3",
    )


KL = record("kl", 0.31249, interval=(0.28, 0.35), baselines={"drop": 0.7, "last_token": 0.41})
RATE = record(
    "substitutability_rate", 0.95, target=Target(above=0.9), baselines={"drop": 0.9, "last_token": 0.92, "mean": 0.99}
)


def test_a_table_has_figures_intervals_baselines_and_targets() -> None:
    expected = """narrative, H = 32, positions end, level 0: 256 spans of 64 documents

| metric | offsets | **gist** | 95 % interval | drop | last token | mean | target |
|---|---:|---:|---:|---:|---:|---:|---:|
| kl | 1–32 | **0.312** | 0.280 … 0.350 | 0.700 | 0.410 |  |  |
| substitutability_rate | 1–32 | **0.950** |  | 0.900 | 0.920 | 0.990 | > 0.9: met, also by last token |
| recovered_kl | 9–32 | **0.400** |  |  |  |  |  |"""
    shown = [KL, record("kl", 0.2, offsets=(1, 8)), RATE, record("recovered_kl", 0.4, offsets=(9, 32))]
    shown += [record("delta_nll_by_offset", 0.1, offsets=(3, 3)), record("kl_by_kind", 0.2, kind="names")]
    assert results_tables(shown) == expected


def test_levels_and_texts_have_tables_of_their_own() -> None:
    above, code = record("kl", 1.1, level=1), record("kl", 0.5, domain="code")
    headings = [line for line in results_tables([KL, above, code]).splitlines() if line.endswith("documents")]
    assert [heading.partition(":")[0] for heading in headings] == [
        "narrative, H = 32, positions end, level 0",
        "narrative, H = 32, positions end, level 1",
        "code, H = 32, positions end, level 0",
    ]


def test_the_card_says_where_validated_documents_may_be_among_the_figures(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gistnet.release.card.is_for_validation", lambda key: True)
    assert "4 of each kind of text, drawn with seed 0" in card(release)


def test_the_summary_is_of_the_first_text_at_its_shortest_horizon() -> None:
    others = [record("kl", 0.888, horizon=64, offsets=(1, 64)), record("kl", 0.999, domain="code")]
    short = summary([KL, RATE, *others])
    assert "0.312" in short
    assert "0.888" not in short and "0.999" not in short
    assert short.count("0.950") == 1  # among the results; its last token meets its target, so that it is only counted
    assert "Of 1 targets: 0 met by the gist alone; 0 not met; 1 met" in short
    failed = record("contrastive_gap", 0.051, horizon=None, offsets=None, target=Target(above=0.1))
    assert "0.051" in summary([KL, RATE, failed])


@pytest.mark.parametrize(("positions", "expected"), [("end", [0.31249]), ("center 0.5, end 0.5", [0.777, 0.31249])])
def test_figures_are_shown_under_the_policies_that_it_was_trained_for(positions: str, expected: list[float]) -> None:
    row = record("row_recovered_kl", 0.222, positions="compact")
    records = [record("kl", 0.777, positions="center"), KL, row]
    release = Release(network(positions), records, provenance=None, config=None)  # type: ignore[arg-type]
    assert [r.value for r in release.shown] == [*expected, 0.222]


def test_targets_that_cost_nothing_to_meet_are_marked_and_counted() -> None:
    diversity = record(
        "gist_diversity", 0.4, horizon=None, offsets=None, target=Target(above=0.5), baselines={"last_token": 0.9}
    )
    loss = record("delta_nll", 0.2, target=Target(below=0.5), baselines={"drop": 0.4, "last_token": 0.3})
    entropy = record("attention_entropy", 3, horizon=None, offsets=None, target=Target(above=2, below=4))
    count, _, _, _, *rows = targets_table([KL, RATE, diversity, loss, entropy]).splitlines()
    assert [cell.split(" | ")[-1].rstrip(" |") for cell in rows] == [
        "> 0.9: met, also by last token",
        "> 0.5: not met",
        "< 0.5: met, also by drop and last token",
        "> 2.0 and < 4.0: met",
    ]
    assert rows[0].startswith("| substitutability_rate | narrative, H = 32, level 0 | **0.950** |  | 0.900 | 0.920 |")
    assert count.startswith("Of 4 targets: 1 met by the gist alone; 1 not met; 2 met by dropping")
    assert "target" in targets_table([KL])


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("/home/me/teacher", None),
    ],
)
def test_the_base_model_is_named_as_on_the_hub(teacher: str, expected: str | None) -> None:
    assert base_model(network(teacher=teacher)) == expected


def test_the_card_is_made_of_the_folder(finished_run: Path, release: Path, tmp_path: Path) -> None:
    text = (release / "README.md").read_text(encoding="utf-8")
    assert card(release) == text
    _, front, body = text.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["license"] == "apache-2.0"
    assert metadata["library_name"] == "gistnet"
    saved = json.loads((release / "config.json").read_bytes())
    assert f"Trained parameters: {saved['trained_parameters']:,};" in body
    best = best_checkpoint(finished_run)
    assert best is not None
    step = int(best.name.removeprefix("step-"))
    spans = next(line["spans_seen"] for line in read_metrics(release / "metrics.jsonl") if line["step"] == step)
    assert f"Spans seen: {spans}, in {step} optimiser steps." in body
    assert "Hardware: an abacus." in body
    assert "Command: `gistnet train --config tiny.yaml`." in body
    assert NOTES in body
    assert "stories (narrative): `story-" in body
    assert "validations while it was trained took other documents." in body
    assert f") with OMP_NUM_THREADS={torch.get_num_threads()}" in body
    figures = json.loads((release / "results.json").read_bytes())
    whole = next(f for f in figures if f["name"] == "kl" and f["positions"] == saved["positions"])
    assert f"| kl | 1–12 | **{whole['value']:.3f}** |" in body

    changed = shutil.copytree(release, tmp_path / "other")
    (changed / "limits.md").write_text("It is **tiny**.\n", encoding="utf-8")
    assert "## Limits\n\nIt is **tiny**.\n" in card(changed)


def test_names_of_documents_are_shown_and_do_nothing(tmp_path: Path) -> None:
    """Control characters, a line break and a backtick of a name would otherwise act in the page."""
    rows = [{"source": "books", "domain": "narrative", "id": name} for name in ("a\n# b", "c`d\x1b[2J")]
    (tmp_path / "held-out").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "held-out" / "documents.parquet")
    assert "\n- books (narrative): `a\\n# b`, `c'd\\x1b[2J`\n" in _documents(tmp_path)


def test_figures_measured_again_are_compared_with_those_of_the_same_spans() -> None:
    released = [record("kl", 0.5), record("delta_nll", 0.4), record("kl", 0.9, level=1), record("gist_norm", 2.0)]
    measured = [
        record("kl", 0.5, interval=(0.1, 0.9)),
        record("delta_nll", 0.375),
        record("kl", 0.8875, level=1),
        record("gist_norm", 2.5, positions="center"),
    ]
    sentence = compare_results(measured, released)
    assert re.findall(r"[\d.]*\d", sentence) == ["1", "3", "0.025", "1"]  # equal, compared, largest difference, others
    assert "delta_nll, narrative" in sentence
    assert re.findall(r"\d+", compare_results(released, released)) == ["4", "4"]
