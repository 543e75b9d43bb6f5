"""The ready configurations load, and their Hub sources read files of the form that the Hub has."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import SmolLM3Config

from gistnet.config import load_config
from gistnet.data.config import HubSource
from gistnet.data.sources import read_documents

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
SMOLLM3 = next(path for path in CONFIGS if path.stem == "smollm3-3b")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_ready_configuration_is_valid_and_headed_by_its_command_and_cost(path):
    config = load_config(path)
    assert str(config.run_folder) == f"runs/{path.stem}"
    head = path.read_text(encoding="utf-8").split("run_folder")[0]
    assert f"configs/{path.stem}.yaml" in head
    assert any(word in head for word in ("Costs", "costs", "minutes", "Needs"))


def test_the_curriculum_of_smollm3_is_planned_without_weights(tmp_path, gistnet):
    """The family's default configuration is that of the 3B model; its 3.08 billion weights exist on `meta` only."""
    SmolLM3Config(architectures=["SmolLM3ForCausalLM"]).save_pretrained(tmp_path)
    settings = ("device=meta", f"teacher.name={tmp_path}")
    outcome = gistnet("train", "--config", SMOLLM3, "--dry-run", *settings)
    assert outcome.status == 0, outcome.err
    rows = [re.split(r"\s{2,}", line.strip()) for line in outcome.out.splitlines() if line.count(" GB") == 3]
    assert [row[0] for row in rows[1:]] == ["narrative", "structured", "mixed"]
    rows = rows[1:]
    # 6.2 GB of weights: a step fits on every one of these GPUs, in larger micro-batches the larger they are.
    assert all("not fit" not in cell for row in rows for cell in row)
    windows = [[int(cell.split(" window")[0]) for cell in row[1:]] for row in rows]
    assert all(1 <= small < medium <= large <= 32 for small, medium, large in windows)
    assert not Path("runs/smollm3-3b").exists()
    refused = gistnet("train", "--config", SMOLLM3, *settings)
    assert (refused.status, refused.out) == (1, "")
    assert "device is 'meta', which holds no weights; expected it in a dry run only." in refused.err


def test_the_smollm3_curriculum_has_the_numbers_of_the_spec():
    """Spec, Curriculum Strategies."""
    stages = load_config(SMOLLM3).stages
    assert [stage.objective.horizon_tokens for stage in stages] == [32, 64, 128]
    assert [stage.objective.contrastive_weight for stage in stages] == [0.0, 0.05, 0.08]
    assert [stage.train.dropout for stage in stages] == [0.0, 0.1, 0.0]
    assert {stage.train.windows_per_batch * stage.train.accumulation_steps for stage in stages} == {32}
    assert [stage.targets["delta_nll"].below for stage in stages] == [0.5, 1.0, 0.8]
    mix = stages[2].train.probabilities
    natural = {domain: share / (1 - mix["adversarial"]) for domain, share in mix.items() if domain != "adversarial"}
    assert natural == pytest.approx({"narrative": 0.6, "code": 0.3, "structured": 0.1})
    assert all(stage.train.stop.over_steps == 1000 and stage.train.stop.rises == 3 for stage in stages)


# The columns that the data sets' cards state; a fixture with just these stands for the Hub.
COLUMNS = {
    "wikipedia": {"id": "12", "url": "u", "title": "Anarchism", "text": "Anarchism is a political philosophy."},
    "github-code": {"content": "print(1)\n", "repo_name": "a/b", "path": "a.py", "language": "Python"},
    "json-files": {"hexsha": "ab12", "size": 7, "ext": "json", "content": '{"a":1}'},
}


@pytest.mark.parametrize("name", COLUMNS)
def test_hub_sources_find_text_and_id_in_files_of_the_hubs_form(name, tmp_path):
    config = load_config(next(path for path in CONFIGS if path.stem == "hub-sources"))
    source = next(source for source in config.data.sources if source.name == name)
    assert isinstance(source, HubSource)
    pq.write_table(pa.Table.from_pylist([COLUMNS[name]]), tmp_path / "part.parquet")
    local = source.model_copy(
        update={"path": "parquet", "config_name": None, "data_files": str(tmp_path / "part.parquet")}
    )
    (document,) = read_documents(local)
    row = COLUMNS[name]
    assert document.text == (row.get("text") or row.get("content"))
    assert document.id == (row.get("id") or row.get("path") or row.get("hexsha"))
