"""The report as a file: what it holds, that its text is inert, and what is said of run folders that it cannot show."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gistnet.errors import ConfigError, DataError, GistNetError, StorageError
from gistnet.model import saved_gistnet
from gistnet.report import report
from gistnet.report.report import embedded_json, write_comparison, write_report
from gistnet.run_folder import SPAN_MAP_FILE
from gistnet.training.checkpoint import mark_best
from tests.report.runs import HOSTILE, records, write_run


class _Page(HTMLParser):
    """The elements of a page, and the text of its scripts, as a browser's parser finds them."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data


def parsed(path: Path) -> _Page:
    return _Page(path.read_text(encoding="utf-8"))


def data_of(path: Path) -> Any:
    return json.loads(parsed(path).scripts[0])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_a_report_lies_in_the_run_folder_and_holds_every_figure(run: Path) -> None:
    assert write_report(run) == run / "report.html"
    shown = data_of(run / "report.html")["run"]
    assert [figure["value"] for figure in shown["results"]] == [round(record.value, 5) for record in records(0)]
    assert shown["results"][0]["interval"] == pytest.approx([0.588, 0.648])  # center: 1.03 of 0.6, ± 0.03
    assert ["teacher", "tiny-teacher"] in shown["facts"]
    assert ["spans seen", "16,800 (narrative 5,600, structured 5,600, mixed 5,600)"] in shown[
        "facts"
    ]  # 600 steps of 28
    assert [stage["name"] for stage in shown["stages"]] == ["narrative", "structured", "mixed"]
    assert shown["stages"][1]["settings"]["H"] == 64
    assert shown["stages"][0]["targets"][0]["met"] is False
    assert [period["spans"] for period in shown["periods"]] == [[0, 5600], [5600, 11200], [11200, 16800]]
    assert [event["step"] for event in shown["events"]] == [200, 300, 320, 400, 600]
    assert len(shown["map"]["documents"]) == 4


def test_the_best_checkpoint_and_its_network_are_named(run: Path) -> None:
    checkpoint = run / "checkpoints" / "step-00000400"
    (checkpoint / "gistnet").mkdir(parents=True)
    (checkpoint / "gistnet" / "config.json").write_text('{"trained_parameters": 521090, "share_of_teacher": 0.004}')
    mark_best(run, "mixed", 400, 0.5)
    facts = data_of(write_report(run))["run"]["facts"]
    assert ["trained parameters", "521,090"] in facts
    (checkpoint / "gistnet" / "below").mkdir()
    (checkpoint / "gistnet" / "below" / "config.json").write_text('{"trained_parameters": 310000}')
    of_levels = ["trained parameters", "521,090 (level 0 0.31M, level 1 0.21M)"]
    assert of_levels in data_of(write_report(run))["run"]["facts"]
    assert ["best checkpoint", "step-00000400"] in facts


def test_without_evaluation_the_page_has_its_curves_and_names_the_command(run: Path, tmp_path: Path) -> None:
    bare = write_run(tmp_path / "it's bare", evaluated=False)
    shown = data_of(write_report(bare))["run"]
    assert shown["results"] is None
    assert shown["map"] is None
    assert len(shown["curves"]["validation"]["step"]) == 16
    assert shown["path"] == f"'{tmp_path}/it'\"'\"'s bare'"  # as a shell takes it


def test_a_long_training_log_is_averaged(run: Path) -> None:
    lines = [{"step": 0, "validation": {"kl": 1.0}}] + [{"step": n, "loss": float(n)} for n in range(1, 2001)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    training = data_of(write_report(run))["run"]["curves"]["training"]
    assert training["averaged"] == 3
    assert training["values"]["loss"][:2] == [2.0, 5.0]  # means of 1, 2, 3 and of 4, 5, 6
    assert training["step"][-1] == 2000


def test_the_page_is_one_file_whose_policy_allows_its_own_script_and_nothing_else(run: Path) -> None:
    page = parsed(write_report(run))
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert [address for address in addresses if not str(address).startswith(("#", "data:"))] == []
    (policy,) = (a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") is not None)
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    directives = dict(part.split(" ", 1) for part in str(policy).split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == f"'sha256-{digest}'"


def test_hostile_text_ends_no_script_and_arrives_unchanged(tmp_path: Path) -> None:
    run = write_run(tmp_path / "</title><script>window.hacked = 3<", documents=[list(HOSTILE * 3)])
    page = parsed(write_report(run))
    assert [tag for tag, _ in page.tags if tag in ("script", "img")] == ["script", "script"]
    tokens = json.loads(page.scripts[0])["run"]["map"]["documents"][0]["tokens"]
    assert "".join(tokens) == HOSTILE * 3


@pytest.mark.parametrize("text", ["</script>", "<!--", "&lt;", "\u2028\u2029", "\ud800", "\x00"])
def test_embedded_json_is_inert_and_exact(text: str) -> None:
    embedded = embedded_json({"text": text})
    assert re.search(r"[<>&\u2028\u2029\ud800\x00]", embedded) is None
    assert json.loads(embedded) == {"text": text}


def test_a_comparison_holds_the_runs_and_only_the_settings_that_differ(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "a" / "run"), write_run(tmp_path / "b" / "run", seed=1)]
    shown = data_of(write_comparison(folders, tmp_path / "both.html"))
    assert [run["name"] for run in shown["runs"]] == ["a/run", "b/run"]
    assert shown["differences"] == [
        {"key": "seed", "values": ["0", "1"]},
        {"key": "stages.narrative.train.optimiser.learning_rate", "values": ["0.002", "0.001"]},
    ]


def damage(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)


def newer_map(run: Path) -> None:
    content = json.loads((run / SPAN_MAP_FILE).read_text())
    damage(run, SPAN_MAP_FILE, json.dumps(content | {"format_version": 3, "layers": []}))


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (
            lambda run: damage(run, "config.yaml", "format_version: 9\nstages: 7\n"),
            ConfigError,
            ("format 9",),
        ),
        (lambda run: damage(run, "metrics.jsonl", '{"step": 1, "loss": 1}\n'), DataError, ("holds no validation",)),
        (lambda run: (run / "metrics.jsonl").unlink(), DataError, ("There are no metrics",)),
        (lambda run: (run / "config.yaml").unlink(), ConfigError, ("Could not read the configuration", "config.yaml")),
        (lambda run: damage(run, "config.yaml", "a: [1"), ConfigError, ("not valid YAML",)),
        (lambda run: damage(run, "config.yaml", "- 1"), ConfigError, ("list",)),
        (lambda run: damage(run, "results.json", "[{"), DataError, ("results.json", "newer version")),
        (
            lambda run: damage(
                run,
                "results.json",
                (run / "results.json").read_text().replace('"substitutability_rate"', '"telepathy"', 1),
            ),
            DataError,
            ("9", "telepathy"),
        ),
        (newer_map, DataError, ("format 3, expected 2", "newer version")),
        (lambda run: damage(run, SPAN_MAP_FILE, "[]"), DataError, (SPAN_MAP_FILE, "damaged")),
        (lambda run: (run / "report.html").mkdir(), StorageError, ("report.html",)),
    ],
)
def test_a_run_that_cannot_be_shown_is_refused_in_one_sentence(
    run: Path, spoil: Any, kind: type[GistNetError], words: tuple[str, ...]
) -> None:
    spoil(run)
    with pytest.raises(kind) as refused:
        write_report(run)
    assert [word for word in words if word not in str(refused.value)] == [], str(refused.value)
    assert "\n" not in str(refused.value)


def test_runs_to_compare_are_at_least_two_and_exist(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Got 1 run"):
        write_comparison([run], tmp_path / "page.html")
    with pytest.raises(DataError, match="no run folder"):
        write_comparison([run, tmp_path / "nowhere"], tmp_path / "page.html")


def test_a_network_is_looked_for_where_it_is_saved() -> None:
    assert report.NETWORK_FILE == saved_gistnet.CONFIG_FILE
    assert report.BELOW_FOLDER == saved_gistnet.BELOW


def test_writing_a_report_does_not_import_torch() -> None:
    code = "import sys, gistnet.report.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["run\x1b[2J\u202e", "caf\udce9"])
def test_the_title_is_the_name_of_the_run_without_control_characters(tmp_path: Path, name: str) -> None:
    """The second is a name in Latin-1, which is no Unicode."""
    text = write_report(write_run(tmp_path / name)).read_text(encoding="utf-8")
    assert f"<title>{ascii(name)[1:-1]} · gistnet</title>" in text
    assert not {"\x1b", "\u202e", "\udce9"} & set(text)
