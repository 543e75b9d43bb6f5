"""Two levels in one run: each stage trains its own, the other stays as it is, and resuming works as for one."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gistnet.config import RunConfig, load_config
from gistnet.data.sampling import sample_batch
from gistnet.errors import CheckpointError, ConfigError, DataError
from gistnet.evaluation.config import EvaluationConfig
from gistnet.evaluation.evaluator import evaluate
from gistnet.evaluation.records import read_records
from gistnet.model.gistnet import GistNet
from gistnet.run_folder import RESULTS_FILE
from gistnet.session import open_run
from gistnet.training import trainer
from gistnet.training.checkpoint import checkpoint_folder, latest_checkpoint
from gistnet.training.run import Run
from gistnet.training.trainer import fit
from gistnet.tree.tree import GistTree
from tests.conftest import Command, tiny_values

EVALUATION = EvaluationConfig(
    documents=4,
    segments_per_window=2,
    horizons=(12,),
    positions=("end", "center", "compact"),
    resamples=100,
    map_documents=0,
    minimal_pairs=0,
)


def two_levels(values: dict[str, Any]) -> dict[str, Any]:
    """Level 0 for three steps, then level 1, of 64 tokens, for four; windows of 96 tokens."""
    values["data"]["min_tokens"] = 96
    # The ΔNLL of a stage's last step is its best.
    values["train"] |= {"optimiser": {"learning_rate": 0.003}, "stop": {"watch": "delta_nll"}}
    stages = [
        {"name": "spans", "train": {"steps": 3}},
        {"name": "above", "train": {"steps": 4, "level": 1}, "objective": {"horizon_tokens": 12}},
    ]
    return values | {"levels": [8, 8], "stages": stages}


@pytest.fixture
def config_file(tmp_path: Path, tiny_config: dict[str, Any]) -> Path:
    path = tmp_path / "levels.yaml"
    path.write_text(yaml.safe_dump(two_levels(tiny_config)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, corpus_file: Path) -> Run:
    """The finished run that nothing stopped."""
    values = tiny_values(tmp_path_factory.mktemp("whole"), teacher_folder, corpus_file)
    run = open_run(RunConfig.model_validate(two_levels(values)))
    fit(run)
    return run


def level_states(gistnet) -> list[dict[str, torch.Tensor]]:
    return [
        {name: p.detach().clone() for name, p in level.trained_parameters(with_below=False).items()}
        for level in gistnet.levels
    ]


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(before[name], after[name]) for name in before)


def snapshots(run: Run) -> tuple[list[dict[str, torch.Tensor]], ...]:
    """The state of each level at the end of the first stage of a finished run, and at its end."""
    folder = checkpoint_folder(run.folder, 3) / "gistnet"
    return level_states(GistNet.from_pretrained(folder, run.teacher)), level_states(run.gistnet)


def test_each_stage_trains_its_own_level(config_file: Path, whole: Run) -> None:
    begin = level_states(open_run(load_config(config_file)).gistnet)
    middle, end = snapshots(whole)
    assert changed(begin[0], middle[0])
    assert not changed(begin[1], middle[1])
    assert not changed(middle[0], end[0])
    assert changed(middle[1], end[1])


def test_both_levels_are_trained_where_asked_for(config_file: Path) -> None:
    run = open_run(load_config(config_file, ("stages.above.train.train_below=true",)))
    fit(run)
    middle, end = snapshots(run)
    assert changed(middle[0], end[0])
    assert changed(middle[1], end[1])


def test_spans_of_level_1_begin_on_the_grid_of_level_0(config_file: Path) -> None:
    run = open_run(load_config(config_file))
    stage = run.stages[1]
    assert stage.layout.tokens_per_gist == 64
    starts = set()
    for step in range(20):
        for sample in sample_batch(
            run.pool, stage.layout, stage.train.segments, {"narrative": 1.0}, seed=0, step=step, items=range(4)
        ):
            assert ((sample.starts - sample.phase) % 8 == 0).all()
            assert (sample.starts >= 4).all()
            assert (sample.starts + 64 + 12 <= 96).all()
            starts |= set(sample.starts.tolist())
    assert starts == set(range(4, 21))


def test_a_run_killed_in_the_upper_level_resumes_to_the_same_bits(
    config_file: Path, whole: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = open_run(load_config(config_file))

    class KilledError(Exception):
        pass

    add_up = trainer.add_up_gradient

    def until_six(run, stage, state, optimiser):
        if state.step == 6:
            raise KilledError
        return add_up(run, stage, state, optimiser)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(trainer, "add_up_gradient", until_six)
        fit(broken)
    resumed = open_run(load_config(config_file))
    fit(resumed, resume=True)
    for ours, theirs in zip(level_states(whole.gistnet), level_states(resumed.gistnet), strict=True):
        assert not changed(ours, theirs)


def test_the_evaluation_holds_each_level_beside_its_baselines(whole: Run) -> None:
    records = evaluate(whole.teacher, whole.gistnet, whole.dataset, EVALUATION).records
    above = {r.positions: r for r in records if (r.level, r.name, r.offsets) == (1, "delta_nll", (1, 12))}
    assert above.keys() == {"center", "end", "compact"}
    assert above["center"].target is not None
    assert above["center"].target.below == 2.0
    assert above["center"].baselines.keys() == {
        "drop", "last_token", "recent_tokens", "surprisal_token", "mean", "shuffled", "gists_below",
    }  # fmt: skip
    of_single_spans = [r.baselines for r in records if r.level == 0]
    assert not any({"gists_below", "recent_tokens"} & baselines.keys() for baselines in of_single_spans)
    # The level below, measured as runs of eight gists on the same spans, is that baseline.
    row = EVALUATION.model_copy(update={"spans_per_segment": 8, "highest_level": 0})
    runs = evaluate(whole.teacher, whole.gistnet, whole.dataset, row).records
    below = {r.positions: r for r in runs if (r.name, r.offsets) == ("delta_nll", (1, 12))}
    for policy, record in above.items():
        assert record.baselines["gists_below"] == pytest.approx(below[policy].value, abs=1e-5)
        as_many = below[policy].baselines["recent_tokens"]
        assert record.baselines["recent_tokens"] == pytest.approx(as_many, abs=1e-6)
        assert as_many != pytest.approx(below[policy].baselines["last_token"], abs=1e-6)
        assert record.baselines["drop"] == pytest.approx(below[policy].baselines["drop"], abs=1e-6)


def test_an_untrained_level_gives_the_last_gist_below_it(config_file: Path) -> None:
    run = open_run(load_config(config_file))
    spans = torch.randn(3, 8, 32)
    assert torch.equal(run.gistnet(spans), spans[:, -1])


def test_a_level_without_room_is_left_out_and_logged_or_refused_where_asked_for(
    config_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run(load_config(config_file))
    caplog.set_level("INFO")
    long = EVALUATION.model_copy(update={"horizons": (40,)})
    records = evaluate(run.teacher, run.gistnet, run.dataset, long).records
    assert {r.level for r in records} == {0}
    assert any(line.startswith("Level 1 is left out.") for line in caplog.messages)
    with pytest.raises(DataError, match="1 spans of 64 tokens"):
        evaluate(run.teacher, run.gistnet, run.dataset, long.model_copy(update={"highest_level": 1}))


def test_a_run_begins_with_the_levels_of_another(config_file: Path, tmp_path: Path) -> None:
    one = ("levels=[8]", "stages=[{name: only, train: {steps: 2}}]", f"run_folder={tmp_path / 'first'}")
    first = open_run(load_config(config_file, one))
    fit(first)
    saved = latest_checkpoint(first.folder)
    assert saved is not None
    run = open_run(load_config(config_file, (f"start_from={saved / 'gistnet'}",)))
    assert run.gistnet.levels[0].fingerprint == first.gistnet.fingerprint
    assert run.gistnet.level == 1
    with pytest.raises(ConfigError, match="start_from has the position policy center, expected that of the run, end"):
        open_run(load_config(config_file, (f"start_from={saved / 'gistnet'}", "objective.positions=end")))
    with pytest.raises(ConfigError, match="start_from has the shape"):
        open_run(load_config(config_file, (f"start_from={saved / 'gistnet'}", "gistnet.width=32")))
    shutil.rmtree(saved / "gistnet")
    with pytest.raises(CheckpointError, match="not a saved GistNet"):
        open_run(load_config(config_file, (f"start_from={saved / 'gistnet'}",)))


def test_three_levels_of_unequal_branchings_are_trained_evaluated_and_read_as_a_tree(
    gistnet: Command, tiny_config: dict[str, Any], tmp_path: Path
) -> None:
    """From the command line: gists of 8, 32 and 128 tokens."""
    values = two_levels(tiny_config)
    values["data"] |= {"window_tokens": 160, "min_tokens": 160}
    stages = [*values["stages"], {"name": "top", "train": {"steps": 2, "level": 2}}]
    path = tmp_path / "three.yaml"
    path.write_text(yaml.safe_dump(values | {"levels": [8, 4, 4], "stages": stages}), encoding="utf-8")
    assert gistnet("train", "--config", path).status == 0
    run = tmp_path / "run"
    assert gistnet("evaluate", run).status == 0
    assert {record.level for record in read_records(run / RESULTS_FILE)} == {0, 1, 2}
    (tmp_path / "text.txt").write_text("the quiet river " * 20, encoding="utf-8")  # 320 bytes, each a token
    assert gistnet("compress", run, tmp_path / "text.txt", "--tree", tmp_path / "tree").status == 0
    with GistTree.open(tmp_path / "tree") as tree:
        assert [level.gists for level in tree.info().levels] == [40, 10, 2]
        assert tree.document("text.txt").nodes(1, [5])[0].children == range(20, 24)
        assert tree.document("text.txt").nodes(1, [5])[0].parent == 1
    assert gistnet("tree", "verify", tmp_path / "tree", "--checkpoint", run).status == 0
    started = ("stages=[{name: training}]", f"start_from={latest_checkpoint(run) / 'gistnet'}")
    with pytest.raises(ConfigError, match=r"levels \[8, 4, 4\], expected"):
        open_run(load_config(path, (*started, "levels=[8, 4]", f"run_folder={tmp_path / 'other'}")))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("levels=[8]", "stage 'above' trains level 1, expected one below 1"),
        ("data.window_tokens=79", "window_tokens is 79, expected at least 80: 4 first tokens, 64 replaced and 12"),
        ("stages.above.objective.contrastive_weight=0.1", "expected at least the 64 tokens of a span"),
    ],
)
def test_levels_that_cannot_be_trained_are_refused(config_file: Path, setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(config_file, (setting,))
