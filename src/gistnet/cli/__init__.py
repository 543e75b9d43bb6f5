"""The command line: each command reads its arguments, calls the library, and prints.

gistnet prepare   tokenise a configuration's documents into windows
gistnet train     train a GistNet (`torchrun … -m gistnet.cli train …` for several processes)
gistnet evaluate  measure a trained GistNet on held-out documents, beside its baselines
gistnet report    show a run, or several side by side, on a page that opens offline
gistnet show      show what the model predicts after a text, its gists, and nothing
gistnet compress  compress documents into a tree of gists on disk
gistnet generate  let the frozen model answer from a document in a tree
gistnet chat      talk with the model in a conversation that is kept on disk
gistnet tree      look into a tree and keep it: list, search, export, info, verify, remove, index
gistnet config    explain the settings of a configuration
gistnet doctor    show what this machine and installation have
gistnet release   make a folder of a finished run that anyone can load and evaluate
gistnet publish   upload such a folder to the Hugging Face Hub

Bad input, and a GPU whose memory runs out, end in one sentence on the standard error and exit status 1; an interrupted
training run in status 130.
"""

import io
import logging
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gistnet import terminal
from gistnet.cli import doctor, releases, trees
from gistnet.errors import ConfigError, GistNetError
from gistnet.paths import local_path
from gistnet.terminal import PATH
from gistnet.version import __version__

if TYPE_CHECKING:
    from gistnet.config import RunConfig
    from gistnet.evaluation.config import EvaluationConfig

logger = logging.getLogger(__name__)

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Compress contexts into gists."
)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="A run's configuration, YAML.", show_default=False, **PATH)
]
Settings = Annotated[list[str] | None, typer.Argument(help="Changes to it, as key.sub=value.", show_default=False)]
WITH_SETTINGS = {"ignore_unknown_options": True}
"""Options of a `typer` command whose unknown options become settings, which they may have been meant for."""


def main() -> None:
    """The entry point: runs a command and turns errors of the input into one sentence."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a table or an answer must not be lost for want of one character
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with terminal.showing_messages():
            app()
    except GistNetError as error:
        # A library's words, quoted in it, may span lines.
        terminal.err.print("gistnet: " + re.sub(r"\s*\n\s*", " ", str(error)))
        sys.exit(1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # PyTorch's, which is not imported for every command
            raise
        tried_and_free = "; ".join(str(error).split(". ")[1:3])
        terminal.err.print(f"gistnet: The device's memory ran out ({tried_and_free}); expected room for it.")
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _common(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        terminal.out.print(__version__)
        raise typer.Exit


def _loaded(config: Path | None, settings: list[str]) -> "RunConfig":
    """The configuration that a command was given."""
    from gistnet.config import load_config

    if config is None:
        given = next((word for word in settings if word.endswith((".yaml", ".yml"))), "FILE")
        raise ConfigError(f"Got no configuration, expected --config {given}.")
    return load_config(config, settings)


@app.command(context_settings=WITH_SETTINGS)
def prepare(config: ConfigOption = None, settings: Settings = None) -> None:
    """Tokenise documents into memory-mapped windows, split into training and held-out documents."""
    terminal.start_loading()
    from gistnet.preparation import prepare_data
    from gistnet.report.tables import dataset_table

    run_config = _loaded(config, settings or [])
    with terminal.interruptible("Nothing was kept."):
        dataset = prepare_data(run_config)
    terminal.out.print(dataset_table(dataset.statistics))
    terminal.out.print(f"{len(dataset)} windows in {dataset.folder}")


@app.command(context_settings=WITH_SETTINGS)
def train(
    config: ConfigOption = None,
    settings: Settings = None,
    resume: Annotated[bool, typer.Option(help="Continue from the newest checkpoint of the run folder.")] = False,
    restart: Annotated[bool, typer.Option(help="Delete what an earlier run left in the run folder.")] = False,
    report: Annotated[bool, typer.Option(help="Write the report page anew after each validation.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Make a step of each stage, and say how long all of them would take.")
    ] = False,
    gpu_memory: Annotated[
        bool, typer.Option("--gpu-memory", help="With --dry-run: also what fits on GPUs of several sizes.")
    ] = False,
    show_config: Annotated[
        bool, typer.Option("--show-config", help="With --dry-run: also the resolved configuration.")
    ] = False,
) -> None:
    """Train a GistNet."""
    terminal.start_loading()
    from gistnet import session
    from gistnet.metrics_log import read_metrics
    from gistnet.report.summary import training_summary
    from gistnet.run_folder import METRICS_FILE

    run_config = _loaded(config, settings or [])
    if dry_run:
        for line in session.dry_run(run_config, gpu_memory=gpu_memory, show_config=show_config):
            terminal.out.print(line)
        return
    if resume and restart:
        raise ConfigError("Got both --resume and --restart, expected one of them.")
    start: session.Start = "resume" if resume else "restart" if restart else "new"
    began = time.monotonic()
    if not session.train(run_config, start=start, report=report):
        raise typer.Exit(130)
    if terminal.is_showing():  # of several processes the main one
        folder = run_config.run_folder
        for line in training_summary(read_metrics(folder / METRICS_FILE), time.monotonic() - began):
            terminal.out.print(line)
        terminal.next_command("evaluate", folder)


@app.command()
def evaluate(
    path: Annotated[
        Path, typer.Argument(help="A run folder, one of its checkpoints, a release, its name, or USER/NAME.", **PATH)
    ],
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the figures go, with spans.json beside them; results.json in the run. Those of a release are "
            "printed and compared with the ones it came with, which stay; they are written only where this says.",
            **PATH,
        ),
    ] = None,
    reconstruction: Annotated[
        bool, typer.Option("--reconstruction", help="Also train probes that read the tokens from gists.")
    ] = False,
    oracle: Annotated[
        int, typer.Option(min=0, help="Also optimise a vector for each of so many spans, to see what one can hold.")
    ] = 0,
    long_context: Annotated[
        bool, typer.Option("--long-context", help="Also predict and answer from long documents, most of them gists.")
    ] = False,
    mcq: Annotated[
        Path | None,
        typer.Option(help="Also answer a file of questions: {article, question, options, gold} a line.", **PATH),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Print every table in place of a summary.")] = False,
) -> None:
    """Measure a trained GistNet on held-out documents, beside its baselines."""
    terminal.start_loading()
    from gistnet.evaluation.evaluator import evaluate as measure
    from gistnet.evaluation.records import read_records
    from gistnet.files import require_writable
    from gistnet.release.contents import compare_results
    from gistnet.report.summary import evaluation_summary, in_columns
    from gistnet.report.tables import results_tables
    from gistnet.run_folder import RESULTS_FILE
    from gistnet.session import open_trained

    trained = open_trained(path, settings or ())
    config = _with_probes(trained.config.evaluation, reconstruction, oracle, long_context, mcq)
    target = out if out is not None or trained.is_released else trained.run_folder / RESULTS_FILE
    if target is not None:
        require_writable(target)
    with terminal.interruptible("Nothing was written."):
        evaluation = measure(trained.teacher, trained.gistnet, trained.dataset(), config)
    span_tokens = trained.gistnet.levels[0].tokens_per_gist
    # Before anything is written, which may fail.
    for part in results_tables(evaluation.records) if full else evaluation_summary(evaluation.records, span_tokens):
        terminal.out.print(part)
    if trained.is_released:
        released = read_records(trained.run_folder / RESULTS_FILE)
        for line in in_columns(compare_results(evaluation.records, released)):
            terminal.out.print(line)
    tables = "" if full else "; --full prints every table"
    if target is None:
        terminal.out.print(f"Nothing was written: --out keeps every figure{tables}.")
    else:
        terminal.out.print(f"Every figure of {path}: {' and '.join(map(str, evaluation.write(target)))}{tables}.")
    run = path if path.is_dir() and trained.run_folder == path.resolve() else trained.run_folder
    terminal.next_command("show", path, "TEXT") if trained.is_released else terminal.next_command("report", run)


def _with_probes(
    config: "EvaluationConfig", reconstruction: bool, oracle: int, long_context: bool, questions: Path | None
) -> "EvaluationConfig":
    """The configuration with the probes that options ask for."""
    contexts, probes = config.contexts, config
    if long_context:
        contexts = contexts.model_copy(update={"long_context": True})
    if questions is not None:
        contexts = contexts.model_copy(update={"questions": questions})
    if reconstruction:
        probes = probes.model_copy(update={"reconstruction": True})
    if oracle:
        probes = probes.model_copy(update={"oracle_spans": oracle})
    return probes.model_copy(update={"contexts": contexts})


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, or names of releases.", parser=local_path, metavar="RUN…")
    ],
    compare: Annotated[bool, typer.Option("--compare", help="Put the runs side by side, on one page.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the page goes; report.html in the run folder, ./NAME.html of a release, or ./comparison.html.",
            **PATH,
        ),
    ] = None,
) -> None:
    """Show a run on one HTML page: curves, figures beside their baselines, and held-out text span by span."""
    from gistnet.release_folder import find_folder, is_release
    from gistnet.report.report import COMPARISON_FILE, write_comparison, write_report

    runs = [find_folder(run) for run in runs]
    if compare:
        terminal.out.print(f"The comparison is in {write_comparison(runs, out or Path(COMPARISON_FILE))}.")
    elif len(runs) == 1:
        if out is None and is_release(runs[0]):
            out = Path(f"{runs[0].name}.html")  # a release stays as it is
        terminal.out.print(f"The report is in {write_report(runs[0], out)}.")
    else:
        raise ConfigError(f"Got {len(runs)} runs, expected one, or --compare to put them side by side.")


@app.command(name="config")
def show_config(
    key: Annotated[str | None, typer.Argument(help="A setting or a group, such as train.optimiser.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the whole reference as Markdown.")] = False,
) -> None:
    """Explain the settings of a configuration: type, default, and what each is for."""
    from gistnet.config import config_reference, setting_groups
    from gistnet.settings_reference import described, matching, similar_keys

    if markdown:
        for line in config_reference().splitlines():
            terminal.out.print(line)
        return
    groups = setting_groups()
    found = groups if key is None else matching(groups, key)
    if not found:
        meant = " or ".join(similar_keys(groups, key or "")) or "one of `gistnet config`"
        raise ConfigError(f"Got the setting '{key}', which there is not; expected {meant}.")
    for line in described(found):
        terminal.out.print(line)


for command in (
    *(doctor.doctor, trees.compress, trees.generate, trees.chat, trees.show),
    *(releases.average, releases.release, releases.publish),
):
    app.command()(command)
app.add_typer(trees.tree_app, name="tree")
