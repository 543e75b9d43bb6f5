"""The command line: what each command leaves behind, and what it says of input that it cannot use.

Commands run in this process, so that the libraries are imported once; where a process must die, it is a real one.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, LlamaConfig, LlamaForCausalLM, T5Config

from gistnet.config import RunConfig, load_config
from gistnet.evaluation.probes.span_map import SpanMap
from gistnet.evaluation.records import MetricRecord
from gistnet.extras import EXTRAS
from gistnet.metrics_log import read_metrics
from gistnet.run_folder import CONFIG_FILE, SPAN_MAP_FILE
from gistnet.session import train
from gistnet.training import trainer
from gistnet.training.checkpoint import best_checkpoint, latest_checkpoint
from gistnet.training.recording import Recorder
from gistnet.training.run import StageRun, TrainState
from gistnet.training.trainer import fit
from gistnet.version import __version__
from tests.conftest import Outcome, tiny_values
from tests.small_disk import mounted
from tests.training.runs import assert_same, newest_weights, records, run_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, teacher_folder: Path, corpus_file: Path) -> Path:
    """A folder with a run of six steps and its prepared corpus."""
    folder = tmp_path_factory.mktemp("finished")
    config = RunConfig.model_validate(tiny_values(folder, teacher_folder, corpus_file))
    assert train(config)
    return folder


@pytest.fixture
def trained(finished: Path, config_file: Path, tmp_path: Path) -> Path:
    """The folder of a run by `config_file`: a copy of `finished`."""
    for name in ("run", "prepared"):
        shutil.copytree(finished / name, tmp_path / name)
    config = tmp_path / "run" / CONFIG_FILE
    config.write_text(config.read_text(encoding="utf-8").replace(str(finished), str(tmp_path)), encoding="utf-8")
    return tmp_path / "run"


def assert_refused(outcome: Outcome, *words: str) -> None:
    """The command said one sentence, with all the words in it, and nothing else."""
    assert outcome.status == 1
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1, outcome.err
    assert outcome.err.startswith("gistnet: ")
    assert outcome.err.endswith(".\n")
    assert [word for word in words if word not in outcome.err] == [], outcome.err


def start_training(config_file: Path, *settings: str) -> subprocess.Popen[str]:
    """A `gistnet train` in a process of its own."""
    command = [sys.executable, "-m", "gistnet.cli", "train", "--config", str(config_file), *settings]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums are made in the order in which the processes of `start_training` make them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def undisturbed(config_file: Path, folder: Path, *settings: str) -> Path:
    """The folder of the same run, made in one go."""
    fit(run_of(config_file, f"run_folder={folder}", *settings))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What the commands do -------------------------------------------------------------------------------------------------


def test_prepare_tells_what_became_of_the_documents(gistnet, config_file, tmp_path):
    """All forty documents are read, each of them in one split; a second call makes no second corpus."""
    outcome = gistnet("prepare", "--config", config_file)
    assert outcome.status == 0
    rows = [line.replace("│", " ").split() for line in outcome.out.splitlines() if "stories" in line]
    assert [row[:3] for row in rows] == [["stories", "narrative", "train"], ["stories", "narrative", "held_out"]]
    assert sum(int(row[3]) for row in rows) == 40
    assert gistnet("prepare", "--config", config_file).out == outcome.out
    assert len(list((tmp_path / "prepared").iterdir())) == 1


def test_train_leaves_configuration_metrics_and_checkpoints(gistnet, config_file, tmp_path):
    trained = tmp_path / "run"
    outcome = gistnet("train", "--config", config_file)
    assert outcome.status == 0
    assert outcome.out.splitlines()[-1] == f"Next: gistnet evaluate {trained}"
    assert load_config(trained / CONFIG_FILE) == load_config(config_file)
    records = read_metrics(trained / "metrics.jsonl")
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in records if "validation" in record] == [0, 3, 6]
    # A step is two batches of two windows with three spans each.
    assert [record["spans_seen"] for record in records if "loss" in record] == [12, 24, 36, 48, 60, 72]
    checkpoints = {path.name for path in (trained / "checkpoints").glob("step-*")}
    losses = {record["step"]: record["validation"]["delta_nll"] for record in records if "validation" in record}
    best = f"step-{min(losses, key=losses.__getitem__):08d}"
    assert best_checkpoint(trained).name == best
    assert checkpoints == {best, "step-00000004", "step-00000006"}


RECORD_KEYS = {
    "name", "domain", "kind", "index", "tokens_per_vector", "horizon", "offsets", "positions", "level",
    "spans_per_segment", "value", "unit", "n_spans", "n_documents", "interval", "target", "met", "baselines",
}  # fmt: skip


def test_evaluate_writes_figures_that_agree_with_each_other(gistnet, trained):
    outcome = gistnet("evaluate", trained, "evaluation.positions=[end, center, compact]", "--full")
    assert outcome.status == 0
    figures = json.loads((trained / "results.json").read_text(encoding="utf-8"))
    assert {frozenset(figure) for figure in figures} == {frozenset(RECORD_KEYS)}
    assert [figure["offsets"] for figure in figures if figure["name"] == "kl"] == [[1, 12], [1, 8], [9, 12]] * 3
    assert {figure["positions"] for figure in figures} == {"center", "end", "compact"}
    whole = [figure for figure in figures if figure["horizon"] and not figure["kind"]]
    assert {(figure["domain"], figure["horizon"], figure["n_documents"]) for figure in whole} == {("narrative", 12, 4)}
    assert [MetricRecord.model_validate(figure).model_dump(mode="json") for figure in figures] == figures

    found = {(f["name"], f["positions"], tuple(f["offsets"])): f for f in whole if "by_offset" not in f["name"]}
    for (name, *place), figure in found.items():
        kl = found["kl", *place]
        if name == "kl":
            # Twelve offsets are the first eight and the last four.
            whole, first, last = (found["kl", place[0], o]["value"] for o in ((1, 12), (1, 8), (9, 12)))
            assert whole == pytest.approx((8 * first + 4 * last) / 12)
        if name == "recovered_kl":
            assert figure["value"] == pytest.approx(1 - kl["value"] / kl["baselines"]["drop"])
        if name == "kl_below_last_token":
            assert figure["value"] == pytest.approx(kl["baselines"]["last_token"] - kl["value"])
        if figure["target"] is None:
            assert figure["met"] is None
        elif name == "perplexity_ratio":
            assert figure["met"] == (figure["value"] < 1.5)

    kl = found["kl", "end", (1, 12)]
    row = next(line.split() for line in outcome.out.splitlines() if line.split()[:2] == ["kl", "1–12"])
    assert [row[column] for column in (2, 6, 8)] == [
        f"{value:.3f}" for value in (kl["value"], kl["baselines"]["drop"], kl["baselines"]["surprisal_token"])
    ]

    span_map = SpanMap.read(trained / SPAN_MAP_FILE)
    assert (span_map.positions, span_map.horizon, len(span_map.documents)) == ("end", 12, 2)
    delta_nll = found["delta_nll", "end", (1, 12)]
    for name, value in {"gist": delta_nll["value"], **delta_nll["baselines"]}.items():
        if name in ("gist", "drop", "last_token"):
            of_spans = span_map.distribution["narrative"][name]
            assert sum(of_spans) / len(of_spans) == pytest.approx(value, abs=1e-3)  # the map is rounded
    assert [line.split()[0] for line in outcome.err.splitlines()] == ["1/3", "2/3", "3/3"]


def test_evaluate_ends_with_a_summary_of_the_positions_trained_for_and_the_next_command(gistnet, trained):
    outcome = gistnet("evaluate", trained)
    assert outcome.status == 0
    figures = json.loads((trained / "results.json").read_text(encoding="utf-8"))
    assert {figure["positions"] for figure in figures} == {"center"}
    lines = outcome.out.splitlines()
    assert len(lines) <= 12
    assert [line for line in lines if len(line) > 80 and str(trained) not in line] == []
    assert lines[-1] == f"Next: gistnet report {trained}"
    assert f"{trained / 'results.json'}" in lines[-2]


def test_evaluate_of_a_checkpoint_measures_that_one(gistnet, trained, tmp_path):
    """The untrained network would be `last_token` exactly; two checkpoints differ, and settings apply."""
    figures = []
    for step in ("step-00000004", "step-00000006"):
        out = tmp_path / f"{step}.json"
        checkpoint = trained / "checkpoints" / step
        outcome = gistnet("evaluate", checkpoint, "evaluation.positions=[end]", "--out", out)
        assert outcome.status == 0
        assert str(checkpoint) in outcome.out
        figures.append(json.loads(out.read_text(encoding="utf-8")))
    assert {figure["positions"] for figure in figures[0]} == {"end"}
    assert figures[0][0]["value"] != figures[1][0]["value"]
    assert figures[0][0]["baselines"]["drop"] == figures[1][0]["baselines"]["drop"]
    assert (tmp_path / SPAN_MAP_FILE).is_file()
    assert not any((trained / name).exists() for name in ("results.json", SPAN_MAP_FILE))


def test_evaluate_finds_before_measuring_that_its_file_cannot_be_written(gistnet, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("gistnet.evaluation.evaluator.evaluate", lambda *_: pytest.fail("measured"))
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "figures.json", tmp_path):
        assert_refused(gistnet("evaluate", trained, "--out", out), "Could not write", str(out))
    vectors = f"evaluation.oracle_vectors={tmp_path}/file/vectors"
    monkeypatch.undo()
    outcome = gistnet("evaluate", trained, vectors)
    assert (outcome.status, outcome.out) == (1, "")
    assert "Could not write" in outcome.err


def test_evaluate_prints_what_it_measured_where_that_cannot_be_kept(gistnet, trained, tmp_path, monkeypatch):
    """The place is lost in between."""
    monkeypatch.setattr("gistnet.files.require_writable", lambda path: None)
    (tmp_path / "file").touch()
    outcome = gistnet("evaluate", trained, "evaluation.positions=[end]", "--out", tmp_path / "file" / "figures.json")
    assert outcome.status == 1
    assert "recovered" in outcome.out
    assert "Could not write" in outcome.err


def test_evaluate_writes_into_a_pipe_and_nothing_beside_it(gistnet, trained, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    reader = subprocess.Popen(["cat", folder / "pipe"], stdout=subprocess.PIPE)
    assert gistnet("evaluate", trained, "evaluation.positions=[end]", "--out", folder / "pipe").status == 0
    assert {record["positions"] for record in json.loads(reader.communicate()[0])} == {"end"}
    assert names(folder) == ["pipe"]


def test_evaluate_reads_long_contexts_and_questions_where_asked_to(gistnet, trained, tmp_path):
    """Documents of 230 bytes and more fit the teacher's 256 positions; every record names the run's policy."""
    questions = tmp_path / "questions.jsonl"
    asked = {"question": "Which way?", "options": ["over", "under"], "gold": 0}
    articles = (("the river walked over a bridge " * 5)[: 140 + n] for n in range(3))
    questions.write_text("".join(json.dumps({"article": article, **asked}) + "\n" for article in articles))
    sizes = {"min_tokens": 230, "max_tokens": 250, "scored_tokens": 30, "documents": 3, "retrieval_cases": 0}
    budgets = {"tokens_per_vector": "[4]", "question_tokens_per_vector": "[4]"}
    settings = [f"evaluation.contexts.{name}={value}" for name, value in (sizes | budgets).items()]
    outcome = gistnet(
        "evaluate", trained, "--long-context", "--mcq", questions, "evaluation.positions=[end]", *settings
    )
    assert outcome.status == 0, outcome.err
    figures = json.loads((trained / "results.json").read_text(encoding="utf-8"))
    (nll,) = (f for f in figures if f["name"] == "long_context_nll" and not f["kind"])
    assert (nll["domain"], nll["positions"], nll["n_documents"]) == ("narrative", "end", 3)
    assert nll["baselines"].keys() == {
        "full",
        "truncated",
        "row",
        "retrieved",
        "with_gists",
        "oracle",
        "shuffled",
        "mean",
    }
    (accuracy,) = (f for f in figures if f["name"] == "multiple_choice_accuracy")
    assert (accuracy["n_spans"], accuracy["baselines"]["chance"]) == (3, 0.5)
    assert "retrieval_accuracy" not in {f["name"] for f in figures}


def test_evaluate_says_what_long_contexts_lack(gistnet, trained, tmp_path):
    """Before anything else is measured."""
    few = "The corpus has 0 held-out documents of narrative with 4096 tokens or more, expected 2."
    assert_refused(gistnet("evaluate", trained, "--long-context"), few)
    (tmp_path / "bad.jsonl").write_text('{"article": "a"}\n')
    assert_refused(gistnet("evaluate", trained, "--mcq", tmp_path / "bad.jsonl"), "bad.jsonl:1 is no multiple-choice")
    assert_refused(gistnet("evaluate", trained, "--mcq", tmp_path / "none.jsonl"), "none.jsonl")
    assert not (trained / "results.json").exists()


def test_a_run_that_was_moved_is_evaluated_where_it_is(gistnet, trained, tmp_path):
    moved = trained.rename(tmp_path / "elsewhere")
    assert gistnet("evaluate", moved).status == 0
    assert (moved / "results.json").is_file()
    assert not trained.exists()


def test_a_dry_run_shows_what_would_be_trained_and_leaves_no_run(gistnet, config_file, tmp_path):
    """Parameters of the bottleneck at width 16, the loss of step 1, and the memory of what is known by hand."""
    outcome = gistnet("train", "--config", config_file, "--dry-run", "--gpu-memory", "--show-config")
    assert outcome.status == 0
    assert not (tmp_path / "run").exists()
    run = run_of(config_file)
    trained = sum(p.numel() for p in run.gistnet.parameters() if p.requires_grad)
    assert f"run_folder: {tmp_path / 'run'}\n" in outcome.out
    assert "learning_rate: 0.01\n" in outcome.out
    assert f"GistNet: {trained:,} trained and 0 frozen parameters\n" in outcome.out
    assert "24 GB (L4)" in outcome.out
    assert outcome.out.startswith("6 steps take about ")
    assert "with a micro-batch of 2 windows and 2048 vectors: loss" in outcome.out
    fit(run)
    first = next(record for record in read_metrics(run.folder / "metrics.jsonl") if record["step"] == 1)
    assert "one step of 12 spans took " in outcome.out
    assert f"loss {first['loss']:.4f}" in outcome.out


def test_the_version_is_that_of_the_package(gistnet):
    assert gistnet("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("prepare", "--config", ""), ("train", "--config", ""), ("evaluate", ""), ("report", ""),
        ("publish", "", "--to", "a/b"), ("publish", "a", "--to", ""),
        ("release", "", "--out", "a", "--hardware", "b", "--command", "c"),
        ("release", "a", "--out", "", "--hardware", "b", "--command", "c"),
        ("release", "a", "--out", "b", "--hardware", "", "--command", "c"),
        ("evaluate", "a", "--out", ""), ("evaluate", "a", "--mcq", ""), ("report", "a", "--out", ""),
        ("report", "--compare", "a", ""), ("report", "~nosuchuser/a"),
    ],
)  # fmt: skip
def test_an_empty_argument_is_not_the_current_folder(gistnet, trained, monkeypatch, arguments):
    monkeypatch.chdir(trained)
    before = contents(trained)
    assert_refused(gistnet(*arguments), "Got ", "expected")
    assert contents(trained) == before


def test_doctor_shows_the_machine_and_what_is_missing(gistnet, monkeypatch):
    """An extra that is not there is named with its command; a package that is needed is an error."""
    monkeypatch.setitem(EXTRAS, "wandb", ("no_such_module",))
    outcome = gistnet("doctor")
    assert outcome.status == 0, outcome.err
    facts = [line.split(maxsplit=1) for line in outcome.out.splitlines()]
    assert {fact[0] for fact in facts} >= {"gistnet", "torch", "processor", "memory", "GPU", "precision", "teacher"}
    assert ["extra", "wandb: no_such_module missing: pip install 'gistnet[wandb]'"] in facts
    assert len(facts) <= 24
    monkeypatch.setattr("gistnet.cli.doctor.is_installed", lambda name: name != "peft")
    outcome = gistnet("doctor")
    assert outcome.status == 1
    assert "peft" in outcome.err


# Starting again -------------------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_continued_or_started_anew_as_asked(gistnet, config_file, trained, tmp_path):
    before = contents(trained)
    assert_refused(gistnet("train", "--config", config_file), str(trained), "--resume", "--restart")
    assert_refused(gistnet("train", "--config", config_file, "--resume", "--restart"), "--resume", "--restart")
    assert contents(trained) == before

    longer = ("--config", config_file, "train.steps=8")
    assert gistnet("train", *longer, "--resume").status == 0
    assert load_config(trained / CONFIG_FILE).stages[0].train.steps == 8
    logged = [record["step"] for record in read_metrics(trained / "metrics.jsonl") if "loss" in record]
    assert logged == [1, 2, 3, 4, 5, 6, 7, 8]

    assert gistnet("train", *longer, "--restart").status == 0
    fresh = tmp_path / "fresh"
    assert gistnet("train", *longer, f"run_folder={fresh}").status == 0
    assert_same(newest_weights(trained), newest_weights(fresh))
    assert records(trained) == records(fresh)


@pytest.mark.parametrize("flag", [(), ("--restart",), ("--resume",)])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "learning_rate: 0.1\n"),
        ("checkpoints/epoch3/weights.pt", "weights"),
        ("checkpoints/step-00000004/weights.pt", "weights"),
        ("checkpoints", "a file"),
        ("trackers/notes.txt", "notes"),
        ("metrics.jsonl", '{"epoch": 1}\n'),
        ("results.json", '{"accuracy": 0.9}'),
        ("spans.json", "[]"),
        ("report.html", "<title>mine</title>"),
    ],
)
def test_files_of_another_program_are_never_deleted_nor_written_over(
    gistnet, config_file, tmp_path, flag, name, content
):
    """Neither in a folder of theirs alone, nor beside a run's."""
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    if name != "config.yaml":
        (tmp_path / "run" / "config.yaml").write_text("format_version: 3\n")
    before = contents(tmp_path / "run")
    assert_refused(gistnet("train", "--config", config_file, *flag), name.split("/")[0], "another program")
    (tmp_path / "run" / "config.yaml").unlink()
    if name != "config.yaml":
        assert_refused(gistnet("train", "--config", config_file, *flag), name.split("/")[0], "another program")
        del before["config.yaml"]
        assert contents(tmp_path / "run") == before


def test_checkpoints_may_be_a_link_to_another_disk(gistnet, config_file, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoints").symlink_to(disk)
    assert gistnet("train", "--config", config_file).status == 0
    kept = set(contents(disk))
    assert_refused(gistnet("train", "--config", config_file), "holds a run")
    (disk / "step-00000009").mkdir()  # what a kill in the middle of a deletion leaves
    assert gistnet("train", "--config", config_file, "--restart").status == 0
    assert (run / "checkpoints").is_symlink()
    assert set(contents(disk)) == kept
    assert not (disk / "step-00000009").exists()


def test_a_run_has_one_writer(gistnet, config_file, tmp_path):
    """A second is refused while the first lives, and takes over once it was killed."""
    run = tmp_path / "run"
    first = start_training(config_file, "train.steps=100000", "train.checkpoint_every_steps=1")
    wait_for(lambda: (run / "checkpoints" / "step-00000001").exists(), first)
    for flag in ("--restart", "--resume"):
        outcome = gistnet("train", "--config", config_file, flag)
        assert outcome.status == 1
        assert f"process {first.pid}" in outcome.err.splitlines()[-1]
    assert first.poll() is None
    assert load_config(run / CONFIG_FILE).stages[0].train.steps == 100000
    first.kill()
    first.communicate()
    assert gistnet("train", "--config", config_file, "--restart").status == 0
    assert load_config(run / CONFIG_FILE).stages[0].train.steps == 6


@pytest.mark.parametrize(
    ("flag", "setting", "words"),
    [
        ("--restart", "data.min_tokens=5000", ["All 40 documents are shorter"]),
        ("--restart", "train.probabilities={code: 1.0}", ["'code'", "no training windows"]),
        ("--restart", "data.held_out_fraction=0.0", ["'narrative'", "no held-out document"]),
        ("--resume", "gistnet.width=32", ["gistnet.width is 16, expected 32"]),
        ("--resume", "seed=5", ["seed is 0, expected 5"]),
    ],
)
def test_what_is_refused_changes_nothing_of_the_earlier_run(
    gistnet, config_file, trained, monkeypatch, flag, setting, words
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = contents(trained)
    assert_refused(gistnet("train", "--config", config_file, flag, setting), *words)
    assert contents(trained) == before


def test_a_run_interrupted_when_a_validation_was_due_makes_it_up(config_file, tmp_path, monkeypatch):
    """Stopped in step 3, which has the lowest KL; the resumed run makes up the validation and marks it."""
    settings = (
        "gistnet.architecture=full", "gistnet.heads=4", "train.optimiser.learning_rate=0.003", "seed=1",
        "train.windows_per_batch=4", "train.validation.documents=16", "train.validation.segments_per_window=4",
        "train.stop.watch=kl",
    )  # fmt: skip
    whole = undisturbed(config_file, tmp_path / "whole", *settings)
    kl = [record["validation"]["kl"] for record in read_metrics(whole / "metrics.jsonl") if "validation" in record]
    assert min(kl) == kl[1]
    record = Recorder.record

    def recording(self: Recorder, stage: StageRun, state: TrainState, metrics: dict, interrupted: bool) -> None:
        record(self, stage, state, metrics, interrupted)
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "record", recording)
        assert fit(run_of(config_file, *settings)).step == 3
    assert best_checkpoint(tmp_path / "run").name == "step-00000000"
    fit(run_of(config_file, *settings), resume=True)
    assert records(tmp_path / "run") == records(whole)
    assert best_checkpoint(tmp_path / "run").name == best_checkpoint(whole).name == "step-00000003"
    assert names(tmp_path / "run" / "checkpoints") == names(whole / "checkpoints")


@pytest.mark.usefixtures("one_thread")
def test_sigterm_ends_in_a_checkpoint_from_which_the_run_continues(gistnet, config_file, tmp_path):
    """A real process; resumed, it ends with the bits and the figures of a run that nothing stopped."""
    settings = ("train.steps=50", "train.checkpoint_every_steps=1000", "train.validation.every_steps=1000")
    run = tmp_path / "run"
    process = start_training(config_file, *settings)
    log = run / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.read_bytes().count(b"\n") > 2, process)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    step = newest(run)
    assert 0 < step < 50
    assert latest_checkpoint(run).name == f"step-{step:08d}"
    assert f"Stopped after step {step} of 50; --resume continues from there." in err.splitlines()

    assert gistnet("train", "--config", config_file, *settings, "--resume").status == 0
    whole = undisturbed(config_file, tmp_path / "whole", *settings)
    assert_same(newest_weights(run), newest_weights(whole))
    assert records(run) == records(whole)


@pytest.mark.usefixtures("one_thread")
def test_kill_at_any_moment_leaves_a_run_that_resumes_to_the_same_bits(gistnet, config_file, tmp_path):
    """Killed while it checkpoints after every step; nothing of the killed is left beside the checkpoints."""
    settings = ("train.steps=30", "train.checkpoint_every_steps=1", "train.validation.every_steps=5")
    run = tmp_path / "run"
    process = start_training(config_file, *settings)
    wait_for(lambda: newest(run) > 0, process)
    time.sleep(random.SystemRandom().uniform(0, 0.3))
    process.kill()
    process.communicate()
    assert latest_checkpoint(run).name == f"step-{newest(run):08d}"
    assert gistnet("train", "--config", config_file, *settings, "--resume").status == 0
    whole = undisturbed(config_file, tmp_path / "whole", *settings)
    assert_same(newest_weights(run), newest_weights(whole))
    assert records(run) == records(whole)
    assert names(run / "checkpoints") == names(whole / "checkpoints")


def newest(run: Path) -> int:
    """The step of the newest checkpoint, or 0."""
    return max((int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")), default=0)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Input that cannot be used --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("step=3", ["unknown key 'step'"]),
        ("data.window_tokens=300", ["window_tokens is 300, expected at most the 256 positions"]),
        ("data.min_tokens=5000", ["All 40 documents are shorter than min_tokens = 5000"]),
        ("device=abacus", ["device is 'abacus'"]),
    ],
)
def test_a_setting_that_cannot_be_run_is_refused_in_one_sentence(
    gistnet, config_file, tmp_path, monkeypatch, setting, words
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_refused(gistnet("train", "--config", config_file, setting), *words)
    assert not (tmp_path / "run").exists()


def test_a_configuration_without_its_option_and_an_option_that_is_a_setting_are_answered(gistnet, config_file):
    assert_refused(gistnet("train", config_file), f"--config {config_file}")
    assert_refused(gistnet("train", "--config", config_file, "--steps", "3"), "train.steps=")


def test_an_interrupted_evaluation_says_that_nothing_was_written(gistnet, trained, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("gistnet.evaluation.evaluator.evaluate", interrupted)
    outcome = gistnet("evaluate", trained)
    assert outcome.status == 130
    assert "Nothing was written" in outcome.err


def test_a_hub_that_cannot_be_reached_is_named_in_one_sentence(gistnet, config_file, monkeypatch):
    """HF_HUB_OFFLINE=1 ends up in this constant, once, when the library is imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for command in ("prepare", "train"):
        outcome = gistnet(command, "--config", config_file, "teacher.name=nobody/nothing")
        assert_refused(outcome, "Could not load 'nobody/nothing' as a teacher", "Hugging Face Hub")


@pytest.mark.parametrize("content", [None, b"train: {steps: 3", b"run_folder: caf\xe9\n", b""])
def test_a_configuration_that_cannot_be_read_is_refused_in_one_sentence(gistnet, tmp_path, content):
    path = tmp_path / "broken.yaml"
    if content is not None:
        path.write_bytes(content)
    for command in ("prepare", "train"):
        assert_refused(gistnet(command, "--config", path), str(path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["stories", "is empty"]),
        (b'{"text": "caf\xe9"}\n', ["stories.jsonl:1 is not one JSON object in UTF-8"]),
        (b'{"text": "a"}\n{"text": ', ["stories.jsonl:2"]),
        (b'{"text": "short"}\n', ["All 1 documents are shorter than min_tokens = 64", "longest has 5 tokens"]),
        (None, ["no file matches"]),
    ],
)
def test_a_corpus_that_cannot_be_used_is_refused_and_leaves_nothing(gistnet, config_file, tmp_path, content, words):
    path = tmp_path / "corpus" / "stories.jsonl"
    path.parent.mkdir()
    if content is not None:
        path.write_bytes(content)
    source = f"data.sources=[{{kind: files, name: stories, domain: narrative, paths: ['{path}']}}]"
    for command in ("prepare", "train"):
        assert_refused(gistnet(command, "--config", config_file, source), *words)
    assert not (tmp_path / "prepared").exists() or names(tmp_path / "prepared") == []
    assert not (tmp_path / "run").exists()


def test_a_text_file_that_is_not_utf8_is_named(gistnet, config_file, tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9 " * 50)
    source = f"data.sources=[{{kind: files, name: letters, domain: narrative, paths: ['{path}']}}]"
    assert_refused(gistnet("prepare", "--config", config_file, source), f"{path} is not UTF-8", "byte 3")


def teacher_without_weights(folder: Path, teacher_folder: Path) -> str:
    shutil.copytree(teacher_folder, folder)
    (folder / "model.safetensors").unlink()
    return "safetensors"


def teacher_of_pickles(folder: Path, teacher_folder: Path) -> str:
    teacher_without_weights(folder, teacher_folder)
    torch.save(load_file(teacher_folder / "model.safetensors"), folder / "pytorch_model.bin")
    return "safetensors"


def teacher_cut_short(folder: Path, teacher_folder: Path) -> str:
    shutil.copytree(teacher_folder, folder)
    os.truncate(folder / "model.safetensors", 5000)
    return "safetensors"


def encoder(folder: Path, teacher_folder: Path) -> str:
    BertConfig(architectures=["BertModel"], hidden_size=32, num_attention_heads=2).save_pretrained(folder)
    return "BertModel"


def encoder_decoder(folder: Path, teacher_folder: Path) -> str:
    T5Config(architectures=["T5ForConditionalGeneration"], d_model=32).save_pretrained(folder)
    return "causal language model"


def empty_folder(folder: Path, teacher_folder: Path) -> str:
    folder.mkdir()
    return "Could not load"


@pytest.mark.parametrize(
    "make",
    [encoder, encoder_decoder, teacher_without_weights, teacher_of_pickles, teacher_cut_short, empty_folder],
)
def test_a_folder_that_holds_no_teacher_is_refused_in_one_sentence(
    gistnet, config_file, tmp_path, teacher_folder, make
):
    folder = tmp_path / "other"
    word = make(folder, teacher_folder)
    outcome = gistnet("train", "--config", config_file, f"teacher.name={folder}")
    assert_refused(outcome, str(folder), word)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def other_teacher(tmp_path: Path, teacher_folder: Path) -> Path:
    """A teacher of the same shape with other weights."""
    folder = tmp_path / "other-teacher"
    shutil.copytree(teacher_folder, folder)
    torch.manual_seed(4)
    LlamaForCausalLM(LlamaConfig.from_pretrained(teacher_folder)).save_pretrained(folder)
    return folder


def test_a_checkpoint_is_refused_for_another_teacher(gistnet, config_file, trained, other_teacher, teacher_folder):
    before = contents(trained)
    setting = f"teacher.name={other_teacher}"
    assert_refused(gistnet("evaluate", trained, setting), str(teacher_folder), str(other_teacher))
    assert_refused(gistnet("train", "--config", config_file, "--resume", setting), "teacher.weights_hash is")
    assert contents(trained) == before


def test_a_checkpoint_is_refused_once_its_teacher_was_fine_tuned(gistnet, config_file, tmp_path, teacher_folder):
    """One matrix of one layer is another, in the same folder."""
    folder = tmp_path / "mine"
    shutil.copytree(teacher_folder, folder)
    setting = f"teacher.name={folder}"
    assert gistnet("train", "--config", config_file, setting).status == 0
    before = contents(tmp_path / "run")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.v_proj.weight"] += 0.01
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert_refused(gistnet("evaluate", tmp_path / "run"), "weights")
    assert_refused(gistnet("train", "--config", config_file, "--resume", setting), "teacher.weights_hash is")
    assert contents(tmp_path / "run") == before


def test_a_run_is_not_resumed_in_another_precision_and_can_be_evaluated_in_it(gistnet, config_file, trained):
    before = contents(trained)
    setting = "teacher.precision=bfloat16"
    assert_refused(gistnet("train", "--config", config_file, "--resume", setting), "teacher.precision", "float32")
    assert contents(trained) == before
    assert gistnet("evaluate", trained, setting).status == 0


def test_a_cut_off_checkpoint_is_refused_and_the_last_good_one_named(gistnet, config_file, trained):
    os.truncate(trained / "checkpoints" / "step-00000006" / "gistnet" / "model.safetensors", 100)
    before = contents(trained)
    assert_refused(gistnet("evaluate", trained / "checkpoints" / "step-00000006"), "model.safetensors is damaged")
    resumed = gistnet("train", "--config", config_file, "--resume")
    assert_refused(resumed, "step-00000006", "is damaged", "the last good checkpoint is", "step-00000004")
    assert contents(trained) == before


def test_what_is_no_run_cannot_be_evaluated(gistnet, trained, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "missing", trained / "checkpoints"):
        assert_refused(gistnet("evaluate", path), str(path), CONFIG_FILE)
    missing = trained / "checkpoints" / "step-00000099"
    assert_refused(gistnet("evaluate", missing), str(missing))
    shutil.rmtree(trained / "checkpoints")
    assert_refused(gistnet("evaluate", trained), str(trained), "no checkpoint yet")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("evaluation.horizons=[200]", ["horizon of 200", "a window has"]),
        ("evaluation.domains=[code]", ["documents of the domain 'code'", "narrative"]),
        ("evaluation.weights={code: 1.0}", ["evaluation.weights", "'code'", "no held-out documents", "narrative"]),
        ("evaluation.weights={narrative: 0.5}", ["evaluation", "must sum to 1"]),
        ("data.held_out_fraction=0.0", ["may have been trained on"]),
        ("evaluation.documents=1", ["evaluation.documents"]),
        ("evaluation.spans_per_segment=50", ["50 spans of 8 tokens"]),
    ],
)
def test_an_evaluation_without_spans_is_refused_in_one_sentence(gistnet, trained, setting, words):
    assert_refused(gistnet("evaluate", trained, setting), *words)
    assert not (trained / "results.json").exists()


def test_a_run_folder_that_cannot_be_written_is_named(gistnet, config_file, tmp_path):
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    below = tmp_path / "file" / "run"
    outcome = gistnet("train", "--config", config_file, f"run_folder={below}")
    assert_refused(outcome, "Could not write", str(below), "Not a directory")
    for folder in (below, tmp_path / "file"):
        outcome = gistnet("train", "--config", config_file, f"run_folder={folder}", "--dry-run")
        assert_refused(outcome, "Could not write", str(folder), "is a file, expected a folder")
    assert_refused(gistnet("prepare", "--config", config_file, f"data.folder={below}"), str(below))
    assert (tmp_path / "file").read_text(encoding="utf-8") == "precious"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a few checkpoints, where the system lets us have one."""
    with mounted(tmp_path / "disk", "250k") as disk:
        yield disk


def test_a_full_disk_stops_the_run_and_spares_the_earlier_checkpoints(
    gistnet, config_file, tmp_path, small_disk, monkeypatch
):
    """With room made, `--resume` goes on from the newest and ends like a run on a large disk."""
    run = small_disk / "run"
    settings = ("--config", config_file, f"run_folder={run}", "train.checkpoint_every_steps=1")
    settings += ("train.steps=20",)
    monkeypatch.setattr(trainer, "KEPT_CHECKPOINTS", 99)
    outcome = gistnet("train", *settings)
    assert outcome.status == 1
    last_line = outcome.err.splitlines()[-1]
    assert last_line.startswith("gistnet: Could not ")
    assert str(run) in last_line
    assert "No space left on device" in last_line
    assert "Traceback" not in outcome.err
    reached = newest(run)
    assert 0 <= reached < 20
    assert latest_checkpoint(run).name == f"step-{reached:08d}"
    assert all(name.startswith("step-") or name == "best.json" for name in names(run / "checkpoints"))

    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert gistnet("train", *settings, "--resume").status == 0
    assert gistnet("train", *settings, f"run_folder={tmp_path / 'large'}").status == 0
    assert_same(newest_weights(run), newest_weights(tmp_path / "large"))
    assert records(run) == records(tmp_path / "large")
