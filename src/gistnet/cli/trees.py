"""The commands about texts and trees: `gistnet compress|generate|chat|show`, and those of `gistnet tree`.

Each reads its arguments, calls the library, and prints. What needs no model does not load PyTorch: `info`, `list`,
`search`, `export`, and `verify` without a checkpoint.
"""

import logging
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.table import Table

from gistnet import terminal
from gistnet.errors import ConfigError, DataError, GistNetError
from gistnet.paths import required_name
from gistnet.positions import Positions
from gistnet.terminal import NAME, PATH
from gistnet.yaml_format import read_yaml

logger = logging.getLogger(__name__)

tree_app = typer.Typer(no_args_is_help=True, help="Look into a tree of gists.")

CHECKPOINT = "A run folder, one of its checkpoints, a saved GistNet, a release's name, or USER/NAME on the Hub."
GISTNET = {**PATH, "metavar": "GISTNET"}
GenerationSettings = Annotated[
    list[str] | None,
    typer.Argument(help="Options of transformers' generate, as do_sample=true temperature=0.7.", show_default=False),
]
OPTIONS_OF_COMMANDS = ("budget", "positions", "max_new_tokens", "chat", "selector", "streamer", "plan", "surroundings")
"""Arguments of `generate` that no setting may name: commands have options for them, or make them themselves."""
TreeArgument = Annotated[str, typer.Argument(help="A folder, or a URI such as s3://bucket/tree.", metavar="TREE")]


def compress(
    checkpoint: Annotated[Path, typer.Argument(help=CHECKPOINT, **GISTNET)],
    files: Annotated[
        list[str],
        typer.Argument(
            help="Text in UTF-8, .jsonl, .jsonl.gz, .jsonl.zst or .parquet; patterns, folders, or - for the input "
            "(with --name).",
            parser=required_name,
            metavar="FILES…",
        ),
    ],
    tree: Annotated[str, typer.Option(help="A folder, or a URI such as s3://bucket/tree; made if it is not there.")],
    text_field: Annotated[str, typer.Option(help="JSONL: the key of a document's text.", **NAME)] = "text",
    id_field: Annotated[str, typer.Option(help="JSONL: the key of a document's name.", **NAME)] = "id",
    name: Annotated[str | None, typer.Option(help="Of the only document, in place of its own.", **NAME)] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Let a text that has changed take the place of the old one.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Make gists in so many processes, with Ray.")] = 0,
    gpus_per_worker: Annotated[float, typer.Option(min=0, help="GPUs, or a share of one, for each of them.")] = 0,
) -> None:
    """Compress documents into a tree; what is there already is passed over, what was interrupted is continued."""
    terminal.start_loading()
    from gistnet.release_folder import find_folder
    from gistnet.session import LoadEncoder, open_gistnet
    from gistnet.tree.compress import TextFiles, compress_files, survey
    from gistnet.tree.gist_encoder import GistEncoder
    from gistnet.tree.ray_compress import ReadyGists, compress_files_with_ray
    from gistnet.tree.tree import GistTree

    load = LoadEncoder(find_folder(checkpoint).resolve())
    kept = f"Documents that were committed to {tree} are kept; the same command continues."
    with terminal.interruptible(kept), _input_as_file(files, name) as paths:
        texts = TextFiles(paths=paths, text_field=text_field, id_field=id_field, name=name)
        if not GistTree.exists(tree):
            survey(texts.for_tree(None))  # what cannot be compressed shall leave no empty tree behind
        teacher, gistnet = open_gistnet(load.checkpoint)
        encoder = GistEncoder(teacher, gistnet)
        ready = ReadyGists(encoder)
        with GistTree.open_or_create(tree, ready) as opened:
            if workers:
                done = compress_files_with_ray(
                    texts, opened, ready, load, workers=workers, gpus_per_worker=gpus_per_worker, replace=replace
                )
            else:
                done = compress_files(texts, opened, ready, replace=replace)
    empty = f"; {done.empty} without text are not" if done.empty else ""
    replaced = f" {done.replaced} took the place of another text." if done.replaced else ""
    terminal.out.print(
        f"{done.documents - done.empty} of {done.documents} documents are in {tree}{empty}: "
        f"{done.appended_tokens:,} tokens appended, {done.found_tokens:,} found there.{replaced}"
    )


@contextmanager
def _input_as_file(files: list[str], name: str | None) -> Iterator[tuple[str, ...]]:
    """The files; `-`, which can be read only once, as a file of its own that holds the standard input."""
    if "-" not in files:
        yield tuple(files)
        return
    if len(files) > 1 or name is None:
        raise ConfigError("Got '-', the standard input, expected it alone, and --name to name its document.")
    with TemporaryDirectory() as folder:
        path = Path(folder, "standard-input")
        with path.open("wb") as file:
            shutil.copyfileobj(typer.get_binary_stream("stdin"), file)
        yield (str(path),)


def generate(
    prompt: Annotated[str, typer.Argument(help="A question about the document, or a text to continue it with.")],
    settings: GenerationSettings = None,
    *,
    tree: Annotated[str, typer.Option(help="A folder, or a URI such as s3://bucket/tree.")],
    document: Annotated[str | None, typer.Option(help="Its name; all documents by default.")] = None,
    budget: Annotated[int, typer.Option(min=1, help="The most vectors the model reads, prompt included.")] = 1024,
    meaning: Annotated[
        bool, typer.Option("--meaning", help="Rank passages by what they mean, too: seconds on a CPU.")
    ] = False,
    positions: Annotated[
        Positions | None,
        typer.Option(help="Where gists stand; compact by default."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens to write.")] = 256,
    chat: Annotated[bool, typer.Option(help="Use the model's chat template, where it has one.")] = True,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also show each piece that the model read, and why.")
    ] = False,
) -> None:
    """Let the frozen model answer from documents in a tree: what the prompt needs of them, opened."""
    options = _generation_options(settings)
    terminal.start_loading()
    from gistnet.tree.tree import GistTree

    with GistTree.open(tree) as opened:
        several = document is None and len(opened.documents()) > 1
        compressed = opened.all_documents() if several else opened.only_document(document)

        from transformers import TextStreamer  # takes seconds, which a mistyped tree need not wait for

        from gistnet.context.generate import generate as answer
        from gistnet.context.selectors import by_words
        from gistnet.context.states import by_words_and_meaning
        from gistnet.session import open_teacher

        teacher = open_teacher(compressed.teacher)
        terminal.stop_waiting()  # the streamer prints by itself
        generation = answer(
            compressed,
            prompt,
            teacher=teacher,
            budget=budget,
            positions=positions,
            chat=None if chat else False,
            selector=by_words_and_meaning(teacher) if meaning else by_words,
            max_new_tokens=max_new_tokens,
            **options,
            streamer=None
            if teacher.tokenizer is None
            else TextStreamer(teacher.tokenizer.inner, skip_special_tokens=True),
        )
        context, selection = generation.context, generation.selection
        if explain and selection is not None and teacher.tokenizer is not None:
            for line in selection.explain(compressed, teacher.tokenizer):
                terminal.err.print(line)
    logger.info(
        "Read %s of %s tokens as %s vectors, prompt included, positions %s; opened for the prompt: %s.",
        f"{context.plan.tokens_covered:,}",
        f"{compressed.n_tokens:,}",
        f"{len(context):,}",
        context.positions,
        selection.sources if selection is not None and selection.opened else "nothing",
    )
    if not generation.text.strip():
        logger.warning("The model's answer is empty: it ended its turn at once.")
    elif len(generation.tokens) >= max_new_tokens:
        logger.info("The answer was cut after %d tokens; --max-new-tokens allows more.", max_new_tokens)


def chat(
    name: Annotated[Path, typer.Argument(help=CHECKPOINT, **GISTNET)],
    settings: GenerationSettings = None,
    *,
    memory: Annotated[str, typer.Option(help="The conversation: a folder or URI, made if it is not there.", **NAME)],
    budget: Annotated[int, typer.Option(min=1, help="The most vectors the model reads, prompt included.")] = 1024,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The most tokens of an answer.")] = 256,
) -> None:
    """Talk with the model in a conversation that is kept on disk: a line is a prompt, Ctrl-C stops an answer."""
    options = _generation_options(settings)
    from gistnet.compressor import load

    terminal.start_loading()
    model = load(name)
    with model.memory(memory) as conversation:
        logger.info(
            "%s with gists of %s, on %s; the conversation in %s has %s tokens. Ctrl-D ends it.",
            model.teacher.name,
            name,
            model.teacher.device,
            memory,
            f"{conversation.document.n_tokens:,}",
        )
        for prompt in _prompts():
            answer = conversation.stream(prompt, budget=budget, max_new_tokens=max_new_tokens, **options)
            try:
                for piece in answer:
                    print(piece, end="", flush=True)
            except KeyboardInterrupt:
                answer.close()
                print()
            except GistNetError as error:
                if not sys.stdin.isatty():
                    raise
                terminal.err.print(str(error))
            else:
                print()


def _generation_options(settings: list[str] | None) -> dict[str, Any]:
    """Options of transformers' `generate` from words `key=value`, whose values are YAML."""
    options: dict[str, Any] = {}
    for setting in settings or ():
        key, equals, text = setting.partition("=")
        try:
            if not (equals and key.isidentifier()) or key in OPTIONS_OF_COMMANDS:
                raise ValueError
            options[key] = read_yaml(text)
        except ValueError as error:
            raise ConfigError(f"Got '{setting}', expected an option of transformers, as do_sample=true.") from error
    return options


def _prompts() -> Iterator[str]:
    """Lines of the standard input that are not blank; of a terminal, with a sign that one is expected."""
    shown = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(shown)
        except EOFError:
            return
        except KeyboardInterrupt:
            print()  # a line that is given up
            continue
        except UnicodeDecodeError as error:
            raise DataError(f"Got a line that is not {error.encoding} ({error.reason}), expected text.") from error
        if line.strip():
            yield line


def show(
    checkpoint: Annotated[Path, typer.Argument(help=CHECKPOINT, **GISTNET)],
    file: Annotated[Path, typer.Argument(help="A text in UTF-8.", **PATH)],
    count: Annotated[int, typer.Option(min=1, help="How many spans to show.")] = 5,
) -> None:
    """Show what the model predicts after some spans of a text: read in full, read as one gist, and left out."""
    terminal.start_loading()
    from gistnet.data.sources import read_text

    beginning = next(read_text(file), "")

    from gistnet.compressor import load  # takes seconds, which a mistyped file need not wait for
    from gistnet.context.show import FIRST_TOKENS, show_spans

    text = beginning[: 16 * FIRST_TOKENS]
    model = load(checkpoint)
    spans = show_spans(model.teacher, model.compress(text), count)
    table = Table("…the span's end", "next", "after all its tokens", "after one gist", "without it")
    for span in spans:
        found = [f"{token!r} {share:.2f}" for token, share in span.likeliest.values()]
        table.add_row(f"…{' '.join(span.text.split())[-28:]}", repr(span.following), *found)
    terminal.out.print(table)
    terminal.out.print(
        "The likeliest next token and its probability, for the spans without which it changes most, among the first "
        f"{FIRST_TOKENS} tokens."
    )


@tree_app.command()
def info(tree: TreeArgument) -> None:
    """Show what a tree holds: documents, tokens, gists and bytes by level, and the models it belongs to."""
    from gistnet.tree.encoder import tokens_per_gist
    from gistnet.tree.tree import GistTree

    with GistTree.open(tree) as opened:
        facts = opened.info()
    table = Table("", "count", "tokens each", "bytes")
    table.add_row("tokens", f"{facts.tokens:,}", "1", f"{facts.token_bytes:,}")
    for level, row in enumerate(facts.levels):
        tokens = tokens_per_gist(facts.branchings, level)
        table.add_row(f"gists of level {level}", f"{row.gists:,}", f"{tokens:,}", f"{row.bytes:,}")
    terminal.out.print(table)
    lacking = f", {facts.unindexed:,} tokens not yet" if facts.unindexed else ""
    terminal.out.print(f"index         {facts.index_bytes:,} bytes{lacking}")
    terminal.out.print(f"documents     {facts.documents:,}")
    terminal.out.print(f"teacher       {facts.teacher.describe()}")
    terminal.out.print(f"gist version  {facts.gist_version}, {facts.dim} dimensions")
    if facts.pending_version is not None:
        terminal.out.print(f"incomplete    gists of {facts.pending_version}")
    terminal.out.print(f"generation    {facts.version}")


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
        terminal.start_loading()
        from gistnet.session import LoadEncoder

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
    query: Annotated[str, typer.Argument(help="Words; common ones such as 'the' do not count.")],
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many to find.")] = 10,
    document: Annotated[str | None, typer.Option(help="Search this document only.")] = None,
    meaning: Annotated[
        bool, typer.Option("--meaning", help="Rank what words find by what is meant, too; loads the language model.")
    ] = False,
) -> None:
    """Find the passages that share words with a text and fit it best."""
    from rich.padding import Padding
    from rich.text import Text

    from gistnet.tree.tree import GistTree

    with GistTree.open(tree) as opened:
        if unindexed := opened.info().unindexed:
            logger.warning(
                "%s tokens are not searched: `gistnet tree index %s` adds them to the index.", f"{unindexed:,}", tree
            )
        if meaning:
            from gistnet.context.states import find_by_meaning
            from gistnet.session import open_teacher

            terminal.start_loading()
            hits = find_by_meaning(opened, query, open_teacher(opened.info().teacher), k, document)
        else:
            hits = opened.find(query, k, document)
    if not hits:
        terminal.err.print(f"No passage shares a word with {query!r}; words as common as 'the' do not count.")
        return
    table = Table("score", "document", "tokens", "text")
    for found in hits:
        text = Text(terminal.escaped(" ".join(found.text.split())))
        text.highlight_regex(_any_word(query), "bold reverse")
        score = f"{found.score:.2f}" if meaning else f"{found.score:.1f}"
        tokens = "{}-{}".format(*found.passage[:2])
        if terminal.out.is_terminal:
            terminal.out.print(Text(f"{score}  {terminal.escaped(found.document)}  {tokens}", "bold"))
            terminal.out.print(Padding(text, (0, 0, 1, 4)), soft_wrap=False)
        table.add_row(score, found.document, tokens, text)
    if not terminal.out.is_terminal:
        terminal.out.print(table)


def _any_word(query: str) -> str:
    """A regular expression of the words of a query that count, in any case."""
    from bm25s.stopwords import STOPWORDS_EN  # those that Lance leaves out, too

    words = [word for word in re.findall(r"\w+", query) if word.lower() not in STOPWORDS_EN]
    return rf"(?i)\b({'|'.join(words) or '(?!)'})\b"


@tree_app.command()
def index(
    tree: TreeArgument,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Index all text anew, where `verify` found the index damaged.")
    ] = False,
) -> None:
    """Index text that is not yet, such as what was appended without a tokenizer; needs no GistNet."""
    terminal.start_loading()
    from gistnet.session import open_tokenizer
    from gistnet.tree.tree import GistTree

    with GistTree.open(tree, writable=True) as opened:
        opened.index(open_tokenizer(opened.info().teacher), rebuild=rebuild)
    terminal.out.print(f"All text of {tree} is in its index.")


@tree_app.command(name="list")
def list_documents(tree: TreeArgument) -> None:
    """List the documents of a tree and how many tokens each has."""

    from gistnet.tree.tree import GistTree

    table = Table("document", "tokens")
    with GistTree.open(tree) as opened:
        for name in opened.documents():
            table.add_row(name, f"{opened.document(name).n_tokens:,}")
    terminal.out.print(table)


@tree_app.command()
def remove(
    tree: TreeArgument,
    documents: Annotated[
        list[str], typer.Argument(help="Names, as `list` shows them.", parser=required_name, metavar="DOCUMENT…")
    ],
) -> None:
    """Remove documents from a tree, all of them or none; programs that read the tree keep theirs until they refresh."""
    from gistnet.tree.tree import GistTree

    with GistTree.open(tree, writable=True) as opened:
        before = len(opened.documents())
        with opened.batch():
            for name in dict.fromkeys(documents):
                opened.remove(name)
        opened.compact()
        left = len(opened.documents())
    terminal.out.print(f"Removed {before - left:,} of {before:,} documents from {tree}.")


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
    from gistnet.tree.tree import GistTree

    with GistTree.open(tree) as opened:
        shape = opened.only_document(document).export(out, level, start, stop)
    terminal.out.print(f"Wrote {'tokens' if level is None else 'gists'} of shape {list(shape)} to {out}.")
