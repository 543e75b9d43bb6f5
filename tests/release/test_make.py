"""A release holds all that is needed to load it and to measure it again, and nothing that names a machine."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from gistnet.config import RunConfig, load_config
from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, fixed_windows
from gistnet.errors import CheckpointError, ConfigError, DataError
from gistnet.evaluation.records import read_records
from gistnet.model.config import GistNetConfig
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.release.contents import released_records
from gistnet.release.make import make_release, portable_config, require_small
from gistnet.release_folder import ALWAYS_THERE
from gistnet.session import open_gistnet, open_trained
from gistnet.training.checkpoint import best_checkpoint
from tests.conftest import Command
from tests.release.conftest import NOTES, TRAINING
from tests.teachers import tiny_teacher


def test_the_weights_are_those_of_the_best_checkpoint_in_half_the_bytes(finished_run: Path, release: Path) -> None:
    best = best_checkpoint(finished_run)
    assert best is not None
    for level in ("", "below"):
        expected = load_file(best / "gistnet" / level / "model.safetensors")
        got = load_file(release / level / "model.safetensors")
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], tensor.half()) for name, tensor in expected.items())
    assert [name for name in ALWAYS_THERE if not (release / name).exists()] == []
    log = "metrics.jsonl"
    assert (release / log).read_bytes() == (finished_run / log).read_bytes()


def test_nothing_in_it_names_a_folder_of_this_machine(finished_run: Path, release: Path) -> None:
    """But the teacher: that of the tests is a folder, and whoever has the release must have it too."""
    config = yaml.safe_load((release / "config.yaml").read_text(encoding="utf-8"))
    teacher = config["teacher"]["name"]
    for path in release.rglob("*"):
        if path.is_file():
            text = path.read_bytes().decode("utf-8", errors="ignore").replace(teacher, "")
            assert str(finished_run.parent) not in text, path
            assert str(release.parent) not in text, path
            assert ".partial-" not in text, path
            assert "/tmp" not in text, path
    assert config["run_folder"] == "runs/tiny-32"
    assert config["device"] == "auto"
    assert config["data"]["folder"] == "prepared"
    assert config["data"]["sources"][0]["paths"] == ["stories.jsonl"]
    assert load_config(release / "config.yaml").levels == (8, 8)


def test_it_is_measured_as_whoever_has_it_measures_it(
    finished_run: Path, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiled teacher, as the run may have had, gives other last digits."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    config = run / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("compile: false", "compile: true"), encoding="utf-8")
    assert load_config(config).teacher.compile
    monkeypatch.setattr(Teacher, "compile_layers", lambda self: pytest.fail("compiled"))
    make_release(run, tmp_path / "tiny-32", **TRAINING)
    assert (tmp_path / "tiny-32" / "results.json").read_bytes() == (release / "results.json").read_bytes()


def test_its_documents_are_those_that_the_evaluation_takes_of_the_whole_corpus(
    finished_run: Path, release: Path
) -> None:
    whole = open_trained(finished_run).dataset()
    own = PreparedDataset.open(release / "held-out")
    layout = SpanLayout((8,), horizon_tokens=12)
    samples = fixed_windows(whole, layout, documents=4, segments_per_window=2, seed=0)
    expected = {whole.describe(sample.window).document_id for sample in samples}
    assert {own.describe(window).document_id for window in range(len(own))} == expected
    assert len(own) == 4
    assert own.domains("held_out") == ["narrative"]
    for window in range(len(own)):
        info = own.describe(window)
        assert info.split == "held_out"
        assert info.source == "stories"
        # 64 bytes of a gist of gists, 12 predicted and 4 never replaced fit into every window.
        assert info.length >= 80
        of_document = [n for n in range(len(whole)) if whole.describe(n).document_id == info.document_id]
        assert any(np.array_equal(own.read(window), whole.read(n)) for n in of_document)


def test_evaluating_it_gives_its_figures_to_the_digit_and_writes_nothing(
    gistnet: Command, finished_run: Path, release: Path, tmp_path: Path
) -> None:
    """Without the run, its data, or the sources; from another place."""
    copy = shutil.copytree(release, tmp_path / "elsewhere")
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    outcome = gistnet("evaluate", copy, "--out", tmp_path / "again.json")
    assert outcome.status == 0, outcome.err
    again, kept = read_records(tmp_path / "again.json"), read_records(release / "results.json")
    assert released_records(again) == kept
    assert {record.index for record in again} > {None} == {record.index for record in kept}  # no single heads
    count = len(kept)
    assert f"{count} of {count} figures are those of the release to the digit." in outcome.out
    assert {record.level for record in read_records(release / "results.json")} == {0, 1}

    outcome = gistnet("evaluate", copy, "evaluation.documents=2", "evaluation.positions=[end]")
    assert outcome.status == 0, outcome.err
    assert "Nothing was written" in outcome.out
    assert "are of other spans than the release's" in outcome.out
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_it_is_opened_like_a_run(finished_run: Path, release: Path) -> None:
    trained = open_trained(release)
    assert trained.folder == release.resolve()
    teacher, gistnet = open_gistnet(release)
    rounded = open_trained(finished_run).gistnet
    rounded.round_weights(torch.float16)
    assert gistnet.fingerprint == rounded.fingerprint == trained.gistnet.fingerprint
    assert teacher.fingerprint == trained.teacher.fingerprint


def test_what_cannot_be_released_is_refused(finished_run: Path, release: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="already"):
        make_release(finished_run, release, **TRAINING)
    with pytest.raises(ConfigError, match=r"train\.steps"):
        make_release(finished_run, tmp_path / "out", ["train.steps=3"], **TRAINING)
    with pytest.raises(ConfigError, match="release already"):
        make_release(release, tmp_path / "out", **TRAINING)
    large = GistNet.build(GistNetConfig(architecture="bottleneck", width=768), tiny_teacher("llama"))
    megabytes = large.parameter_budget().trained * 2 / 1e6
    assert megabytes > 10
    with pytest.raises(CheckpointError, match=f"{megabytes:.1f} MB"):
        require_small(large)
    assert list(tmp_path.iterdir()) == []


def test_a_release_that_cannot_be_finished_leaves_nothing(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise DataError("There is nothing to measure.")

    monkeypatch.setattr("gistnet.release.make.evaluate", refuse)
    with pytest.raises(DataError, match="nothing to measure"):
        make_release(finished_run, tmp_path / "out", **TRAINING)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("start_from", "expected"),
    [
        ("/home/me/runs/first/checkpoints/step-00000100/gistnet", "first/checkpoints/step-00000100/gistnet"),
        ("/home/me/saved", "saved"),
        (None, None),
    ],
)
def test_its_configuration_names_no_folder_and_is_else_as_it_was_trained(
    tiny_config: dict[str, Any], start_from: str | None, expected: str | None
) -> None:
    values = tiny_config | {"start_from": start_from, "device": "cpu", "seed": 7}
    values["teacher"] |= {"compile": True}
    hub = {"kind": "hub", "name": "set", "domain": "code", "path": "someone/set", "data_files": "hf://a/b.parquet"}
    values["data"]["sources"][0]["paths"] = ["~/notes/**/*.jsonl", "/home/me/a.jsonl"]
    values["data"]["sources"].append(hub)
    values["evaluation"] |= {
        "reconstruction": True,
        "contexts": {"long_context": True, "questions": "/home/me/q.jsonl"},
    }
    config = RunConfig.model_validate(values)
    portable = portable_config(config, "name")
    assert portable.start_from == (None if expected is None else Path(expected))
    assert portable.data.sources[0].paths == ("*.jsonl", "a.jsonl")  # type: ignore[union-attr]
    assert portable.data.sources[1] == config.data.sources[1]
    assert portable.device == "auto"
    assert portable.teacher.compile is False
    assert portable.teacher.name == config.teacher.name
    assert portable.evaluation.reconstruction is False
    assert portable.evaluation.contexts.long_context is False
    assert portable.evaluation.contexts.questions is None
    assert (portable.stages, portable.gistnet, portable.seed) == (config.stages, config.gistnet, 7)
    assert portable.evaluation.documents == config.evaluation.documents


def test_release_is_a_command(gistnet: Command, finished_run: Path, tmp_path: Path) -> None:
    (tmp_path / "data.md").write_text(NOTES, encoding="utf-8")
    out = tmp_path / "released" / "mine"
    told = ["--hardware", "an abacus", "--command", "gistnet train", "--data-notes", tmp_path / "data.md"]
    more = ["--also", "evaluation.horizons=[4,12]"]
    outcome = gistnet("release", finished_run, "--out", out, *told, *more, "evaluation.documents=3")
    assert outcome.status == 0, outcome.err
    assert f"The release is in {out}" in outcome.out
    assert NOTES in (out / "README.md").read_text(encoding="utf-8")
    assert len(PreparedDataset.open(out / "held-out")) == 3
    kl = [r for r in read_records(out / "results.json") if (r.name, r.level, r.positions) == ("kl", 0, "center")]
    assert sorted((r.horizon, r.offsets) for r in kl if r.offsets[0] == 1) == [(4, (1, 4)), (12, (1, 8)), (12, (1, 12))]
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "`gistnet evaluate mine 'evaluation.horizons=[4,12]'` those that it leaves out" in card
    again = gistnet("evaluate", out, "evaluation.horizons=[4, 12]")
    assert "figures are those of the release to the digit" in again.out
    assert "- Hardware: an abacus." in card
    missing = gistnet("release", finished_run, "--out", tmp_path / "no", "--limits", tmp_path / "none.md")
    assert missing.status == 1
    assert str(tmp_path / "none.md") in missing.err
