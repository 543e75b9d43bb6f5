"""Configuration: what overrides what, what is refused, and that nothing is lost between file and memory."""

from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from pydantic import ValidationError

from gistnet.config import config_reference, load_config, save_config, setting_groups
from gistnet.errors import ConfigError
from gistnet.run_folder import CONFIG_FILE
from gistnet.settings import Target


def refusal(path: Path, *settings: str) -> str:
    """The one line that says why the configuration is refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_setting_overrides_the_file_and_the_file_overrides_the_default(config_file):
    """`train.steps` is 10,000 by default and 6 in the file; `level` is 0 by default and not in the file."""
    assert load_config(config_file).stages[0].train.steps == 6
    changed = load_config(config_file, ("train.steps=100", "train.steps=7"))
    (stage,) = changed.stages
    assert (stage.train.steps, stage.train.level) == (7, 0)


def test_a_setting_changes_its_key_and_no_other(config_file):
    before = load_config(config_file).model_dump(mode="json")
    after = load_config(config_file, ("train.optimiser.learning_rate=0.5",)).model_dump(mode="json")
    assert before["stages"][0]["train"]["optimiser"].pop("learning_rate") == 0.01
    assert after["stages"][0]["train"]["optimiser"].pop("learning_rate") == 0.5
    assert before == after


def test_the_value_of_a_setting_is_yaml(config_file):
    """Numbers, lists, mappings and null; only the first '=' parts key and value."""
    settings = (
        "evaluation.horizons=[8, 12]", "train.probabilities={narrative: 0.25, code: 0.75}", "teacher.revision=null",
        "run_folder=a=b", "objective.positions=end",
    )  # fmt: skip
    config = load_config(config_file, settings)
    assert config.evaluation.horizons == (8, 12)
    assert config.stages[0].train.probabilities == {"narrative": 0.25, "code": 0.75}
    assert config.teacher.revision is None
    assert config.run_folder == Path("a=b")
    assert config.stages[0].objective.positions == "end"


def test_numbers_and_texts_are_those_of_yaml_1_2(config_file):
    """In YAML 1.1 they would be 8, a text, a date and true."""
    settings = ("train.steps=010", "train.optimiser.learning_rate=1e-4", "run_folder=2024-01-01", "teacher.revision=no")
    config = load_config(config_file, settings)
    assert config.stages[0].train.steps == 10
    assert config.stages[0].train.optimiser.learning_rate == 0.0001
    assert config.run_folder == Path("2024-01-01")
    assert config.teacher.revision == "no"


def test_a_tilde_is_the_home_folder_in_every_path(config_file, monkeypatch):
    monkeypatch.setenv("HOME", "/home/reader")
    settings = (
        "run_folder=~/run", "data.folder=~/prepared", "start_from=~/saved", "teacher.name=~/model",
        "evaluation.oracle_vectors=~/vectors", "evaluation.contexts.questions=~/questions",
    )  # fmt: skip
    config = load_config(config_file, settings)
    assert config.run_folder == Path("/home/reader/run")
    assert config.data.folder == Path("/home/reader/prepared")
    assert config.start_from == Path("/home/reader/saved")
    assert config.teacher.name == "/home/reader/model"
    assert config.evaluation.oracle_vectors == Path("/home/reader/vectors")
    assert config.evaluation.contexts.questions == Path("/home/reader/questions")


def test_a_group_that_the_file_leaves_out_can_be_set(tmp_path, tiny_config):
    del tiny_config["evaluation"]
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(tiny_config), encoding="utf-8")
    assert load_config(path, ("evaluation.seed=5",)).evaluation.seed == 5


def test_a_saved_configuration_loads_back_as_the_same(tmp_path, config_file):
    folder = tmp_path / "ein Läufer"
    runs = "train.segments.lengths={1: 0.5, 4: 0.5}"  # whose keys are numbers in YAML, texts in JSON
    config = load_config(config_file, (f"run_folder={folder}", "train.optimiser.learning_rate=1e-05", runs))
    save_config(config)
    assert load_config(folder / CONFIG_FILE) == config
    assert config.stages[0].train.optimiser.learning_rate == 1e-05


def test_a_configuration_is_immutable(config_file):
    config = load_config(config_file)
    with pytest.raises(ValidationError, match="frozen"):
        config.stages[0].train.steps = 3
    assert config.stages[0].train.steps == 6


@pytest.mark.parametrize(
    ("settings", "gists"),
    [
        ((), 1),
        (("train.segments.lengths={1: 0.5, 3: 0.5}",), 3),
        (("train.segments={whole_prefix: 0.1}", "data.window_tokens=60"), 7),
        (("train.level=1", "levels=[2, 2]"), 0),
    ],
)
def test_the_longest_row_is_the_most_gists_that_training_can_read_in_a_row(config_file, settings, gists):
    assert load_config(config_file, settings).longest_row == gists


def test_a_window_of_exactly_the_tokens_needed_is_enough(config_file):
    """4 first tokens, k spans of 8 and a horizon of 12: 24 tokens for one gist, 40 where three in a row are asked for.

    Whole prefixes are as long as there is room for.
    """
    assert load_config(config_file, ("data.window_tokens=24",)).data.window_tokens == 24
    message = refusal(config_file, "data.window_tokens=23")
    assert "window_tokens is 23, expected at least 24: 4 first tokens, 8 replaced and 12 predicted" in message
    three = ("train.segments.lengths={1: 0.5, 3: 0.5}", "train.segments.whole_prefix=0.5")
    (stage,) = load_config(config_file, ("data.window_tokens=40", *three)).stages
    assert stage.train.segments.lengths == {1: 0.5, 3: 0.5}
    assert "expected at least 40" in refusal(config_file, "data.window_tokens=39", *three)
    validated = "train.validation.spans_per_segment=3"
    assert load_config(config_file, ("data.window_tokens=40", validated)).stages[0].train.segments.lengths == {1: 1.0}
    assert "expected at least 40" in refusal(config_file, "data.window_tokens=39", validated)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("step=3", ["unknown key 'step'"]),
        ("train.step=3", ["unknown key 'train.step'"]),
        ("train.optimiser.rate=3", ["unknown key 'train.optimiser.rate'"]),
        ("train.steps=many", ["train.steps", "integer", "'many'"]),
        ("train.steps=2.5", ["train.steps", "integer", "2.5"]),
        ("train.steps=0", ["train.steps", "greater than or equal to 1", "got 0"]),
        ("train.steps=null", ["train.steps", "integer", "None"]),
        ("teacher.precision=float16", ["teacher.precision", "'bfloat16'", "'float16'"]),
        ("train=7", ["train", "got 7"]),
        ("data=null", ["data", "None"]),
        ("data.sources=[]", ["data.sources", "at least 1 item"]),
        ("data.sources=[{kind: scroll}]", ["data.sources.0", "'scroll'", "'files'"]),
        ("evaluation.horizons=[]", ["evaluation.horizons", "at least 1 item"]),
        ("evaluation.horizons=[12, 0]", ["evaluation.horizons.1", "greater than 0"]),
        ("levels=[]", ["levels", "at least 1 item"]),
        ("levels=[8, 1]", ["levels.1", "greater than or equal to 2", "got 1"]),
        ("levels=[65]", ["levels.0", "less than or equal to 64", "got 65"]),
        ("levels=2", ["levels", "got 2"]),
        ("levels=[8, true]", ["levels", "expected a number"]),
        ("train.level=1", ["trains level 1", "expected one below 1"]),
        ("gistnet.heads=3", ["3 heads do not fit a width of 16"]),
        ("gistnet.reads=context", ["reads is context", "expected the architecture teacher_lora"]),
        ("train.segments.lengths={1: 0.5}", ["train.segments", "lengths must be at least 0 and sum to 1", "{1: 0.5}"]),
        ("train.segments.lengths={0: 1.0}", ["train.segments", "at least 1, got 0"]),
        ("train.segments.longest=0", ["train.segments.longest", "greater than or equal to 1", "got 0"]),
        ("train.steps", ["'train.steps'", "expected key=value"]),
        ("=3", ["'=3'", "expected key=value"]),
        ("train.steps.more=3", ["'train.steps.more=3'", "'steps' is not a group"]),
        ("train.steps=[3", ["'train.steps=[3'", "not valid YAML"]),
        ("train={steps: 3, dropout: 0, steps: 4}", ["'steps' stands twice"]),
        ("train.steps=1:30", ["train.steps", "integer", "'1:30'"]),
        ("train.steps=true", ["train", "steps is true", "number"]),
        ("train.dropout=false", ["train", "dropout is false", "number"]),
        ("evaluation.horizons=[12, true]", ["evaluation", "horizons", "number"]),
        ("train.optimiser.learning_rate=.inf", ["train.optimiser.learning_rate", "finite"]),
        ("train.optimiser.learning_rate=nan", ["train.optimiser.learning_rate", "finite"]),
        (f"seed={10**26}", ["seed", str(10**26)]),
        (f"evaluation.seed={2**63}", ["evaluation.seed"]),
        ("run_folder=''", ["run_folder", "''"]),
        ('run_folder="a\\0b"', ["run_folder", "'a\\x00b'"]),
        ("data.folder=~nosuchuser/x", ["data.folder", "~nosuchuser"]),
        ("start_from=''", ["start_from", "''"]),
        ("teacher.name=''", ["teacher.name", "''"]),
        ("device=''", ["device", "''"]),
        ("evaluation.domains=['']", ["evaluation.domains.0", "''"]),
        ("data.sources=[{kind: files, name: '', domain: code, paths: [a]}]", ["name", "''"]),
        ("data.sources=[{kind: files, name: a, domain: code, paths: ['']}]", ["paths.0", "''"]),
        ("data.sources=[{kind: hub, name: a, domain: code, path: ''}]", ["path", "''"]),
        ("stages=[{name: ''}]", ["name", "''"]),
        ("train.steps=" + "[" * 2000 + "]" * 2000, ["deeply"]),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(config_file, setting, words):
    message = refusal(config_file, setting)
    assert [word for word in words if word not in message] == []


def test_several_mistakes_are_counted_and_the_first_is_named(config_file):
    assert refusal(config_file, "train.step=3", "seeds=4").endswith("(and 1 more).")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["is empty", "expected keys"]),
        (b"- a\n- b\n", ["list", "expected keys"]),
        (b"train: {steps: 3", ["not valid YAML"]),
        (b"train:\n\tsteps: 3\n", ["not valid YAML"]),
        (b"run_folder: caf\xe9\n", ["UTF-8", "position 15"]),
        (b"run_folder: a\x00b\n", ["not valid YAML"]),
        (b"run_folder: run\n", ["data", "required"]),
        (b"train: {steps: 3}\nseed: 1\ntrain: {dropout: 0.1}\n", ["'train' stands twice", "line 3"]),
        (b"train:\n  steps: 3\n  dropout: 0.1\n  steps: 4\n", ["'steps' stands twice", "line 4"]),
        (b"a: " + b"[" * 2000 + b"]" * 2000, ["deeply"]),
        (b"train: &train {a: *train}\nstages: [{name: a, train: *train}]\n", ["deeply"]),
        (b"1: 2\nrun_folder: run\n", ["data", "required", "and 1 more"]),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, content, words):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    message = refusal(path)
    assert [word for word in [*words, str(path)] if word not in message] == []


def test_a_run_folder_of_a_newer_version_is_named_before_its_unknown_keys(config_file):
    text = config_file.read_text(encoding="utf-8")
    config_file.write_text(f"format_version: 99\nholography: true\n{text}", encoding="utf-8")
    assert "format 99" in refusal(config_file)


def test_a_file_that_cannot_be_read(tmp_path):
    assert refusal(tmp_path / "none.yaml").endswith("none.yaml: No such file or directory.")
    assert refusal(tmp_path).endswith("Is a directory.")


DEFAULTS = {
    # Spec, Architecture and Training Objectives.
    "levels": (32,),
    "objective.loss": "kl",
    "objective.horizon_tokens": 32,
    "objective.contrastive_weight": 0.0,
    "objective.contrastive_margin": 0.2,
    # Spec, Curriculum Progression and Validation Protocol.
    "train.validation.every_steps": 1000,
    "train.validation.documents": 100,
    "train.stop.watch": "delta_nll",
    "train.stop.average_checks": 10,
    "train.stop.min_improvement": 0.05,
    "train.stop.over_steps": 1000,
    "train.stop.rises": 3,
    # What recovered most in docs/ablations.md, or as much with less.
    "objective.positions": "end",
    "gistnet.architecture": "teacher_lora",
    "gistnet.lora_rank": 8,
    "train.optimiser.learning_rate": 2e-3,
}
"""What decides what is learned, when it ends and how it is judged: a change of one is a change of all that follows."""


def test_defaults_are_those_of_the_spec_or_of_the_ablation_that_chose_them(tmp_path, tiny_config):
    """Of a configuration that names nothing but its data."""
    path = tmp_path / "bare.yaml"
    path.write_text(yaml.safe_dump({"run_folder": "run", "data": tiny_config["data"]}), encoding="utf-8")
    config = load_config(path)
    (stage,) = config.stages
    sections = {"gistnet": config.gistnet, "levels": config.levels, "objective": stage.objective, "train": stage.train}
    assert {key: attrgetter(key)(SimpleNamespace(**sections)) for key in DEFAULTS} == DEFAULTS


def test_every_setting_and_group_states_what_it_is():
    groups = setting_groups()
    assert [group.key for group in groups if not group.description] == []
    assert [setting.key for group in groups for setting in group.settings if not setting.description] == []
    assert [name for name, field in Target.model_fields.items() if not field.description] == []


def test_the_reference_names_settings_as_a_user_types_them():
    settings = {setting.key: setting for group in setting_groups() for setting in group.settings}
    rate = settings["train.optimiser.learning_rate"]
    assert (rate.type, rate.default) == ("number > 0", "0.002")
    assert settings["run_folder"][1:3] == ("path", "required")
    assert settings["objective.positions"][1:3] == ("center | end | compact", "end")
    assert settings["train.stop.rises"][1:3] == ("integer ≥ 1 or null", "3")
    assert settings["stages"][1:3] == ("list of groups", "[]")
    assert settings["levels"][1:3] == ("list of integer ≥ 2 ≤ 64", "[32]")
    assert settings["evaluation.weights"][1:3] == ("mapping of text to number > 0", "{}")
    assert settings["stages.NAME.targets"].type.endswith("to {above, below}")
    assert {key for key in settings if key.startswith("data.sources.NAME.")} >= {
        f"data.sources.NAME.{name}" for name in ("kind", "paths", "data_files", "seed")
    }
    page = config_reference()
    assert page.count("## train.optimiser\n") == page.count("## data.sources.NAME of kind hub\n") == 1
    assert "| `kind` | adamw \\| muon | `adamw` |" in page


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("train.optimizer.learning_rate=1", "train.optimiser"),
        ("train.stepz=3", "train.steps"),
        ("data.min_token=64", "data.min_tokens"),
        ("evaluation.position=end", "evaluation.positions"),
        ("learning_rate=1", "train.optimiser.learning_rate"),
        ("lr=1", "train.optimiser.learning_rate"),
        ("train.learning_rate=1", "train.optimiser.learning_rate"),
        ("output_dir=runs", "run_folder"),
        ("horizon_tokens=8", "objective.horizon_tokens"),
        ("holography=true", "`gistnet config`"),
        ("--steps", "train.steps="),
        ("--learning-rate=1", "train.optimiser.learning_rate="),
        ("--holography", "--help"),
    ],
)
def test_an_unknown_key_is_answered_with_the_one_that_may_have_been_meant(config_file, setting, meant):
    assert meant in refusal(config_file, setting)
