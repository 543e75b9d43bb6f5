"""The command line: each command reads its arguments, calls the library, and prints.

gistnet prepare   tokenise a configuration's documents into windows
gistnet train     train a GistNet (`accelerate launch -m gistnet.cli train …` for several processes)
gistnet evaluate  measure a trained GistNet on held-out documents, beside its baselines

Bad input ends in one sentence on the standard error and exit status 1; an interrupted training run in status 130.
"""

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
_out = Console(highlight=False, soft_wrap=True, markup=False)
_err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="A run's configuration, YAML.")]
Settings = Annotated[list[str] | None, typer.Argument(help="Changes to it, as key.sub=value.", show_default=False)]


def main() -> None:
    """The entry point: runs a command and turns errors of the input into one sentence."""
    try:
        app()
    except GistNetError as error:
        _say("gistnet: " + " ".join(str(error).split()))  # a library's words, quoted in it, may span lines
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
    from gistnet import session
    from gistnet.config import load_config
    from gistnet.train.memory import describe_run

    _quieten()
    run_config = load_config(config, settings or ())
    if dry_run:
        run = session.open_run(run_config, _say)
        for line in describe_run(run, run_config):
            if run.processes.is_main:
                _out.print(line)
        return
    if resume and restart:
        raise ConfigError("Got both --resume and --restart, expected one of them.")
    progress = session.train(run_config, start="resume" if resume else "restart" if restart else "new", say=_say)
    if progress.step < run_config.train.steps:
        raise typer.Exit(130)


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
    target = out or trained.run_folder / "metrics.json"
    write_json(target, [record.model_dump(mode="json") for record in records])
    for table in results_table(records):
        _out.print(table)
    _out.print(f"Evaluated {trained.folder}; every figure is in {target}.")


def _say(message: str) -> None:
    _err.print(message)


def _quieten() -> None:
    """No progress bars and warnings of libraries between our own lines."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    main()
