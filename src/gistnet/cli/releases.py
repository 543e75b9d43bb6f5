"""The commands about releases: `gistnet average`, `gistnet release` and `gistnet publish`.

Each reads its arguments, calls the library, and prints.
"""

import logging
import shlex
from pathlib import Path
from typing import Annotated

import typer

from gistnet import terminal
from gistnet.paths import local_path, required_name
from gistnet.terminal import NAME, PATH

logger = logging.getLogger(__name__)


def average(
    run: Annotated[
        Path, typer.Argument(help="A run folder or one of its checkpoints, whose configuration is kept.", **PATH)
    ],
    others: Annotated[
        list[Path],
        typer.Argument(help="Other runs, checkpoints, saved GistNets, releases.", parser=local_path, metavar="OTHER…"),
    ],
    out: Annotated[Path, typer.Option(help="The new run folder.", **PATH)],
) -> None:
    """Make a run whose GistNet has the mean weights of several, as of a run, its half and what it began with."""
    terminal.start_loading()
    from gistnet.averaging import average as write_average

    for folder in write_average(run, others, out):
        terminal.out.print(f"Read {folder}")
    terminal.out.print(f"The mean of {1 + len(others)} GistNets is in {out}.")
    terminal.next_command("evaluate", out)


def release(
    run: Annotated[Path, typer.Argument(help="A finished run's folder, or one of its checkpoints.", **PATH)],
    out: Annotated[Path, typer.Option(help="The new folder, as src/gistnet/released/NAME.", **PATH)],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to its evaluation, as evaluation.documents=64.", show_default=False),
    ] = None,
    data_notes: Annotated[
        Path | None, typer.Option(help="Markdown about the documents and their licences, for the model card.", **PATH)
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Evaluate it once more with these changes, as in 'evaluation.horizons=[64]'."),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="What it was trained on, for the model card; this machine by default.", **NAME)
    ] = None,
    command: Annotated[
        str | None, typer.Option(help="What trained it, for the model card; a command by default.", **NAME)
    ] = None,
    limits: Annotated[
        Path | None, typer.Option(help="Markdown about what it cannot do, for the model card.", **PATH)
    ] = None,
) -> None:
    """Make a folder that anyone can load, evaluate and publish: network, figures, held-out documents, model card.

    It is evaluated on the held-out documents that the folder brings, evaluation.documents (64) of each kind of text.
    """
    terminal.start_loading()
    from gistnet.config import load_config
    from gistnet.machine import describe_machine, device_name
    from gistnet.release.make import make_release
    from gistnet.report.summary import evaluation_summary
    from gistnet.run_folder import CONFIG_FILE

    with terminal.interruptible("Nothing was kept."):
        records = make_release(
            run,
            out,
            settings or (),
            command=command or f"gistnet train --config {CONFIG_FILE}",
            hardware=hardware or device_name(describe_machine()),
            data_notes=data_notes,
            limits=limits,
            also=[shlex.split(changes) for changes in also or ()],
        )
    for line in evaluation_summary(records, load_config(out / CONFIG_FILE).levels[0]):
        terminal.out.print(line)
    terminal.out.print(f"The release is in {out}; its card, README.md there, has every figure.")


def publish(
    folder: Annotated[
        Path, typer.Argument(help="A release's folder, or the name of one that comes with gistnet.", **PATH)
    ],
    to: Annotated[str, typer.Option(help="The repository on the Hub.", parser=required_name, metavar="USER/NAME")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository for yourself only.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the folder and say what would be done.")] = False,
) -> None:
    """Upload a release to the Hugging Face Hub, in one commit; needs a token, from `hf auth login` or $HF_TOKEN."""
    from rich.table import Table

    from gistnet.release.publish import plan_upload, upload

    plan = plan_upload(folder, to, private=private)
    if dry_run:
        table = Table("file", "bytes")
        for name, size in plan.files.items():
            table.add_row(name, f"{size:,}")
        terminal.out.print(table)
        terminal.out.print(
            f"Would make the {'private' if private else 'public'} repository {to} where there is none, and upload "
            f"{len(plan.files)} files ({plan.megabytes:.1f} MB) in one commit. Nothing was sent."
        )
        return
    terminal.out.print(f"Published {len(plan.files)} files ({plan.megabytes:.1f} MB): {upload(plan)}")
