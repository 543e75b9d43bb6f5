"""The configuration of a release says nothing of the machine of its run."""

from pathlib import Path
from typing import Any

import pytest

from gistnet.config import RunConfig
from gistnet.data.sources import FilesSource, HubSource, ParquetSource
from gistnet.release.neutral import neutral_config, neutral_source


def test_files_are_names_and_what_is_on_the_hub_stays() -> None:
    files = FilesSource(name="notes", domain="narrative", paths=("~/notes/**/*.md", "/home/me/a.txt"))
    assert neutral_source(files).paths == ("*.md", "a.txt")  # type: ignore[union-attr]
    parquet = ParquetSource(name="rows", domain="code", paths=("../corpora/rows.parquet",))
    assert neutral_source(parquet).paths == ("rows.parquet",)  # type: ignore[union-attr]
    hub = HubSource(name="set", domain="code", path="someone/set", data_files="hf://datasets/a/b.parquet")
    assert neutral_source(hub) == hub
    local = HubSource(name="set", domain="code", path="parquet", data_files=("/data/one.parquet", "two.parquet"))
    assert neutral_source(local).data_files == ("one.parquet", "two.parquet")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("start_from", "expected"),
    [
        ("/home/me/runs/first/checkpoints/step-00000100/gistnet", "first/checkpoints/step-00000100/gistnet"),
        ("/home/me/saved", "saved"),
        (None, None),
    ],
)
def test_the_rest_is_as_it_was_trained(
    tiny_config: dict[str, Any], start_from: str | None, expected: str | None
) -> None:
    values = tiny_config | {"start_from": start_from, "device": "cpu", "seed": 7}
    values["teacher"] |= {"compile": True}
    values["evaluation"] |= {"reconstruction": True, "contexts": {"long_context": {}, "questions": "/home/me/q.jsonl"}}
    config = RunConfig.model_validate(values)
    neutral = neutral_config(config, "name")
    assert neutral.start_from == (None if expected is None else Path(expected))
    assert neutral.device == "auto"
    assert neutral.teacher.compile is False
    assert neutral.teacher.name == config.teacher.name
    assert not neutral.evaluation.reconstruction
    assert neutral.evaluation.contexts.long_context is None
    assert neutral.evaluation.contexts.questions is None
    assert (neutral.stages, neutral.gistnet, neutral.seed) == (config.stages, config.gistnet, 7)
    assert neutral.evaluation.documents == config.evaluation.documents
