"""The ready configurations load, and their Hub sources read files of the form that the Hub has."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gistnet.config import load_config
from gistnet.data.sources import HubSource, read_documents

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_ready_configuration_is_valid_and_headed_by_its_command_and_cost(path):
    config = load_config(path)
    assert str(config.run_folder) == f"runs/{path.stem}"
    head = path.read_text(encoding="utf-8").split("run_folder")[0]
    assert f"configs/{path.stem}.yaml" in head
    assert any(word in head for word in ("Costs", "costs", "minutes", "Needs"))


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
