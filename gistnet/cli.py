"""The command line: each command reads its arguments, calls the library, and prints.

gistnet prepare   tokenise a configuration's documents into windows
gistnet train     train a GistNet (`accelerate launch -m gistnet.cli train …` for several processes)
gistnet evaluate  measure a trained GistNet on held-out documents, beside its baselines

Bad input ends in one sentence on the standard error and exit status 1; an interrupted training run in status 130.
"""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gistnet.errors import ConfigError, GistNetError
from gistnet.version import __version__

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Compress contexts into gists."
)
_out = Console(highlight=False, soft_wrap=True)
_err = Console(stderr=True, highlight=False, soft_wrap=True)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="A run's configuration, YAML.")]
Settings = Annotated[list[str] | None, typer.Argument(help="Changes to it, as key.sub=value.", show_default=False)]


def main() -> None:
    """The entry point: runs a command and turns errors of the input into one sentence."""
    try:
        app()
    except GistNetError as error:
        _err.print(f"gistnet: {error}", markup=False)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _common(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        _out.print(__version__)
        raise typer.Exit


@app.command()
def prepare(config: ConfigOption, settings: Settings = None) -> None:
    """Tokenise documents into memory-mapped windows, split into training and held-out documents."""
    from gistnet.config import load_config
    from gistnet.evaluation.tables import dataset_table
    from gistnet.session import prepare_data

    _quieten()
    dataset = prepare_data(load_config(config, settings or ()), _say)
    _out.print(dataset_table(dataset.statistics))
    _out.print(f"{len(dataset)} windows in {dataset.folder}")


@app.command()
def train(
    config: ConfigOption,
    settings: Settings = None,
    resume: Annotated[bool, typer.Option(help="Continue from the newest checkpoint of the run folder.")] = False,
    restart: Annotated[bool, typer.Option(help="Delete what an earlier run left in the run folder.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Show configuration, sizes and memory, make one step, stop.")] = False,
) -> None:
    """Train a GistNet."""
    from gistnet.config import load_config, save_config
    from gistnet.session import open_run
    from gistnet.train.memory import describe_run
    from gistnet.train.trainer import fit

    _quieten()
    run_config = load_config(config, settings or ())
    if dry_run:
        run = open_run(run_config, _say)
        for line in describe_run(run, run_config):
            _out.print(line, markup=False)
        return
    if not resume:
        _require_fresh(run_config.run_folder, restart)
    run = open_run(run_config, _say)
    budget = run.gistnet.parameter_budget()
    if run.processes.is_main:
        save_config(run_config)
        _say(
            f"GistNet ({run.gistnet.config.architecture}): {budget.trained:,} trained parameters; compute per span "
            f"{budget.share_of_teacher(run.gistnet.teacher_flops_per_span):.1%} of the teacher's."
        )
    progress = fit(run, resume=resume)
    if progress.step < run_config.train.steps:
        _say(f"Stopped after step {progress.step} of {run_config.train.steps}; --resume continues from there.")
        raise typer.Exit(130)
    if run.processes.is_main:
        _say(f"Trained on {progress.spans_seen} spans; the run is in {run_config.run_folder}.")


@app.command()
def evaluate(
    path: Annotated[Path, typer.Argument(help="A run folder, or one of its checkpoints.")],
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Where the figures go; metrics.json in the run folder.")] = None,
) -> None:
    """Measure a trained GistNet on held-out documents, beside its baselines."""
    from gistnet.evaluation.evaluator import evaluate as measure
    from gistnet.evaluation.tables import results_table
    from gistnet.files import write_json
    from gistnet.session import open_trained, prepare_data

    _quieten()
    trained = open_trained(path, tuple(settings or ()))
    dataset = prepare_data(trained.config, _say)
    records = measure(trained.teacher, trained.gistnet, dataset, trained.config.evaluation)
    target = out or trained.config.run_folder / "metrics.json"
    write_json(target, [record.model_dump(mode="json") for record in records])
    for table in results_table(records):
        _out.print(table)
    _out.print(f"Evaluated {trained.folder}; every figure is in {target}.", markup=False)


def _require_fresh(run_folder: Path, restart: bool) -> None:
    """Never write a new run over an old one unasked."""
    left = [run_folder / name for name in ("checkpoints", "metrics.jsonl", "metrics.json")]
    if not any(path.exists() for path in left):
        return
    if not restart:
        raise ConfigError(f"{run_folder} holds a run already; use --resume, --restart, or another run_folder.")
    for path in left:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _say(message: str) -> None:
    _err.print(message, markup=False)


def _quieten() -> None:
    """No progress bars and warnings of libraries between our own lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    main()
