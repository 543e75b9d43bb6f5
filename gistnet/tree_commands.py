"""The commands about trees: `gistnet compress`, `gistnet generate` and `gistnet tree info|verify|search|export`.

Each reads its arguments, calls the library, and prints. What needs no model does not load PyTorch: `info`, `export`,
and `verify` without a checkpoint.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from gistnet import terminal
from gistnet.paths import required_name
from gistnet.positions import Positions
from gistnet.terminal import NAME, PATH

tree_app = typer.Typer(no_args_is_help=True, help="Look into a tree of gists.")

CHECKPOINT = "A run folder, one of its checkpoints, a saved GistNet, or the name of a release."
TreeArgument = Annotated[str, typer.Argument(help="A folder, or a URI such as s3://bucket/tree.", metavar="TREE")]


def compress(
    checkpoint: Annotated[Path, typer.Argument(help=CHECKPOINT, **PATH)],
    files: Annotated[
        list[str],
        typer.Argument(
            help="Text in UTF-8, .jsonl, .jsonl.gz, .jsonl.zst or .parquet; patterns.",
            parser=required_name,
            metavar="FILES…",
        ),
    ],
    tree: Annotated[str, typer.Option(help="A folder, or a URI such as s3://bucket/tree; made if it is not there.")],
    text_field: Annotated[str, typer.Option(help="JSONL: the key of a document's text.", **NAME)] = "text",
    id_field: Annotated[str, typer.Option(help="JSONL: the key of a document's name.", **NAME)] = "id",
    quality: Annotated[bool, typer.Option("--quality", help="Also measure what each gist costs its reader.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Make gists in so many processes, with Ray.")] = 0,
    gpus_per_worker: Annotated[float, typer.Option(min=0, help="GPUs, or a share of one, for each of them.")] = 0,
) -> None:
    """Compress documents into a tree; what is there already is passed over, what was interrupted is continued."""
    from gistnet.tree.progress import CompressionDisplay
    from gistnet.tree.texts import TextFiles
    from gistnet.tree_session import compress_into, measure_tree

    terminal.quieten()
    texts = TextFiles(paths=tuple(files), text_field=text_field, id_field=id_field)
    with CompressionDisplay() as display:
        done = compress_into(
            tree, checkpoint, texts, workers=workers, gpus_per_worker=gpus_per_worker, progress=display.update
        )
    empty = f"; {done.empty} without text are not" if done.empty else ""
    terminal.out.print(
        f"{done.documents - done.empty} of {done.total.documents} documents are in {tree}{empty}: "
        f"{done.appended_tokens:,} tokens appended, {done.found_tokens:,} found there."
    )
    if quality:
        with terminal.err.status("measuring") as status:
            measured = measure_tree(
                tree,
                checkpoint,
                progress=lambda name, level, part: status.update(
                    Text(terminal.escaped(f"measuring {name}, level {level}, gist {part.first}"))
                ),
            )
        terminal.out.print(f"Measured {measured:,} gists.")


def generate(
    prompt: Annotated[str, typer.Argument(help="A question about the document, or a text to continue it with.")],
    tree: Annotated[str, typer.Option(help="A folder, or a URI such as s3://bucket/tree.")],
    document: Annotated[str | None, typer.Option(help="Its name; needed where there are several.")] = None,
    budget: Annotated[int, typer.Option(min=1, help="The most vectors the model reads, prompt included.")] = 1024,
    positions: Annotated[
        Positions | None, typer.Option(help="Where gists stand; as they were trained, where the document fits.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens to write.")] = 256,
    chat: Annotated[bool, typer.Option(help="Use the model's chat template, where it has one.")] = True,
) -> None:
    """Let the frozen model answer from a document in a tree, most of which it reads as gists."""
    from gistnet.tree_session import answer

    terminal.quieten()
    told = answer(
        tree,
        prompt,
        document=document,
        budget=budget,
        positions=positions,
        chat=None if chat else False,
        max_new_tokens=max_new_tokens,
    )
    terminal.err.print(
        f"Read {told.context.plan.tokens_covered:,} tokens as {len(told.context):,} vectors, prompt included, "
        f"positions {told.context.positions}."
    )
    terminal.write(told.text)


@tree_app.command()
def info(tree: TreeArgument) -> None:
    """Say what a tree holds: documents, tokens, gists and bytes by level, and the models it belongs to."""
    from gistnet.tree.tree import GistTree

    with GistTree.open(tree) as opened:
        told = opened.info()
    table = Table("", "count", "bytes")
    table.add_row("tokens", f"{told.tokens:,}", f"{told.token_bytes:,}")
    for level, row in enumerate(told.levels):
        table.add_row(f"gists of level {level}", f"{row.gists:,}", f"{row.bytes:,}")
    terminal.out.print(table)
    terminal.out.print(f"documents     {told.documents:,}")
    terminal.out.print(f"teacher       {told.teacher.describe()}")
    terminal.out.print(f"gist version  {told.gist_version}, {told.span_tokens} to one, {told.dim} dimensions")
    if told.pending_version is not None:
        terminal.out.print(f"incomplete    gists of {told.pending_version}")
    terminal.out.print(f"generation    {told.version}")


@tree_app.command()
def verify(
    tree: TreeArgument,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Also make every gist again and compare. " + CHECKPOINT, **PATH)
    ] = None,
) -> None:
    """Read everything in a tree and check it; exit with 1 where something is wrong."""
    from gistnet.tree.tree import GistTree

    encoder = None
    if checkpoint is not None:
        from gistnet.tree_session import LoadEncoder

        terminal.quieten()
        encoder = LoadEncoder(checkpoint)()
    with GistTree.open(tree, encoder) as opened:
        report = opened.verify()
    gists = ", ".join(f"{count:,} gists of level {level}" for level, count in enumerate(report.gists))
    terminal.out.print(f"Read {report.documents:,} documents, {report.tokens:,} tokens, {gists}.")
    if report.recomputed is not None:
        terminal.out.print(f"Made {report.recomputed:,} gists again.")
    if report.missing:
        terminal.out.print(f"{report.missing:,} gists are still to be made; opening the tree to write makes them.")
    for problem in report.problems:
        terminal.err.print(problem)
    if not report.ok:
        raise typer.Exit(1)
    terminal.out.print("Nothing is damaged.")


@tree_app.command()
def search(
    tree: TreeArgument,
    query: Annotated[str, typer.Argument(help="A text; gists near to its own are found.")],
    checkpoint: Annotated[Path, typer.Option(help="Whose gists the tree holds. " + CHECKPOINT, **PATH)],
    level: Annotated[int, typer.Option(help="Of the gists to find.")] = 0,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many to find.")] = 10,
    document: Annotated[str | None, typer.Option(help="Search this document only.")] = None,
) -> None:
    """Find the gists that are nearest to a text, with the beginning of what they stand for."""
    from gistnet.tree_session import search_text

    terminal.quieten()
    table = Table("cosine", "document", "gist", "tokens", "text")
    for hit, text in search_text(tree, checkpoint, query, level=level, k=k, document=document):
        excerpt = " ".join(text.split())[:60]
        table.add_row(f"{hit.score:.3f}", hit.document, str(hit.index), f"{hit.start}-{hit.stop}", excerpt)
    terminal.out.print(table)


@tree_app.command()
def export(
    tree: TreeArgument,
    out: Annotated[Path, typer.Argument(help="A file that ends in .npy or .safetensors.", **PATH)],
    document: Annotated[str | None, typer.Option(help="Its name; needed where there are several.")] = None,
    level: Annotated[int | None, typer.Option(help="Of gists; tokens without it.", show_default=False)] = None,
    start: Annotated[int, typer.Option(min=0, help="The first token or gist.")] = 0,
    stop: Annotated[int | None, typer.Option(help="One more than the last; the end.", show_default=False)] = None,
) -> None:
    """Write tokens, or gists of a level, to a file for other programs."""
    from gistnet.tree.arrays import export_array
    from gistnet.tree.tree import GistTree, only_document

    with GistTree.open(tree) as opened:
        shape = export_array(opened, out, document=only_document(opened, document), level=level, start=start, stop=stop)
    terminal.out.print(f"Wrote {'tokens' if level is None else 'gists'} of shape {list(shape)} to {out}.")
