"""What gists are worth, and what they save, in contexts as they occur: most of a long history compressed.

    python benchmarks/long_context.py                       an untrained GistNet, documents of the installation
    python benchmarks/long_context.py CHECKPOINT            a trained one, the held-out documents of its own run
    python benchmarks/long_context.py [CHECKPOINT] --corpus FILES…     documents of JSON lines files

Three parts, each of which can be left out by asking for none (`--documents 0`, `--cases 0`, `--no-cost`):

    curve       16 documents of 4k to 8k tokens, the last 512 scored after full, truncated, gist, shuffled-gist and
                mean-embedding contexts of the same number of vectors, for budgets of 1/2 to 1/32
    retrieval   facts, rows and passages from far back, one right answer of four
    cost        what compression buys: bytes of keys and values, time to the first token, tokens/s

Of the files, documents are taken that a run on them would hold out, in turns from each file (the releases of version
0.1.0 held out others, by their names: `--corpus` is not for them); of the
installation, the docstrings and descriptions of a package are one document. An untrained GistNet gives the last token
of each span. With SmolLM2-135M on one thread of a busy machine, 6 documents of 4.4k tokens (`--documents 6 --max-tokens
4608 --cases 12`) took 19 minutes and 2.5 GB; time grows with the tokens of all documents, memory with the longest.
Results: benchmarks/results/long-context-<name>.json, records as in a run's metrics.json among them.
"""

import argparse
import itertools
import json
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import describe_machine
from gistnet.context.assembly import assemble
from gistnet.context.cost import measure_cost
from gistnet.context.in_memory import compress
from gistnet.context.plan import Plan, Raw
from gistnet.data.installation import read_installation
from gistnet.data.prepare import split_of
from gistnet.data.sources import JsonlSource, read_documents
from gistnet.evaluation.equal_budget import gist_plan
from gistnet.evaluation.long_context import LongContextConfig, long_context
from gistnet.evaluation.long_documents import LongDocument, long_passages
from gistnet.evaluation.records import Baseline, MetricRecord
from gistnet.evaluation.retrieval import RetrievalConfig, retrieval
from gistnet.memory import keep_freed_memory
from gistnet.model.gistnet import GistNet, GistNetConfig
from gistnet.model.teacher import Teacher
from gistnet.session import open_trained
from gistnet.tree.gist_encoder import GistEncoder

RESULTS = Path(__file__).parent / "results"
HELD_OUT_FRACTION = 0.1  # the default of `gistnet prepare`
FEWEST_CHARACTERS_PER_TOKEN = 2.5  # of what is tokenised at all, so that short documents cost nothing


def build(checkpoint: Path | None) -> tuple[Teacher, GistEncoder]:
    """The teacher and the encoder of a checkpoint, or an untrained GistNet where there is none."""
    keep_freed_memory()
    if checkpoint is not None:
        trained = open_trained(checkpoint)
        return trained.teacher, GistEncoder(trained.teacher, trained.gistnet)
    teacher = Teacher.from_pretrained("smollm2-135m")
    return teacher, GistEncoder(teacher, GistNet.build(GistNetConfig(), teacher))


def named_tokens(
    teacher: Teacher, checkpoint: Path | None, corpus: Sequence[str], min_tokens: int
) -> Iterator[tuple[str, Sequence[int] | NDArray[np.int64]]]:
    """Names and tokens of documents that the GistNet has not seen, or of the installation."""
    if checkpoint is not None and not corpus:
        yield from open_trained(checkpoint).dataset().whole_documents("held_out", min_tokens=min_tokens)
        return
    assert teacher.tokenizer is not None
    for name, text in texts_of_files(corpus) if corpus else texts_of_installation():
        if len(text) > FEWEST_CHARACTERS_PER_TOKEN * min_tokens:
            yield name, teacher.tokenizer.encode_batch([text])[0]


def texts_of_files(corpus: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Held-out documents of JSON lines files, in turns from each file, in an order of the seed."""
    files = []
    for path in corpus:
        documents = read_documents(JsonlSource(name=Path(path).name, domain="narrative", paths=(path,)))
        held_out = [(d.id, d.text) for d in documents if split_of(d.key, HELD_OUT_FRACTION) == "held_out"]
        random.Random(Path(path).name).shuffle(held_out)
        files.append(held_out)
    turns = itertools.zip_longest(*files)
    yield from (document for turn in turns for document in turn if document is not None)


def texts_of_installation() -> Iterator[tuple[str, str]]:
    """Prose that every installation has, the docstrings and descriptions of each package joined."""
    packages: dict[str, list[str]] = {}
    for name, text in read_installation("narrative"):
        kind, _, place = name.partition(":")
        packages.setdefault(kind if kind == "pydoc" else f"{kind}:{place.partition('/')[0]}", []).append(text)
    yield from ((name, "\n\n\n".join(texts)) for name, texts in packages.items())


def costs(teacher: Teacher, encoder: GistEncoder, document: LongDocument, positions: Any) -> list[dict[str, Any]]:
    """What reading a document and writing after it cost, in full and for each budget."""
    tokens = document.tokens[: teacher.max_positions - 64]
    began = time.perf_counter()
    history = compress(tokens, encoder)
    compressing = time.perf_counter() - began
    plans: dict[str, Plan] = {"full": Plan([Raw(0, len(tokens))], encoder.span_tokens)}
    for budget in LongContextConfig().tokens_per_vector:
        plans[f"1/{budget}"] = gist_plan(len(tokens), encoder.span_tokens, encoder.levels, budget, 4)
    found = []
    for name, plan in plans.items():
        cost = measure_cost(teacher, assemble(history, plan, teacher, positions=positions), new_tokens=32)
        found.append({"budget": name, "tokens": len(tokens), **asdict(cost)})
        print(
            f"{name:>5}: {cost.vectors:5} vectors, {cost.kv_bytes / 1e6:7.1f} MB of keys and values, first token after "
            f"{cost.first_token_seconds:6.2f} s, then {cost.tokens_per_second:6.1f} tokens/s",
            flush=True,
        )
    print(f"Gists of {len(tokens):,} tokens took {compressing:.1f} s, {len(tokens) / compressing:.0f} tokens/s.")
    return [*found, {"budget": "compressing", "tokens": len(tokens), "seconds": compressing}]


def table(records: Sequence[MetricRecord], name: str, columns: Sequence[Baseline], positions: str) -> str:
    """A Markdown table of one figure: a row for each part, the gist's interval, and its baselines."""
    lines = [
        f"| {name}, {positions} | gist | 95 % | " + " | ".join(columns) + " |",
        "|---|---:|---:|" + "---:|" * len(columns),
    ]
    for record in records:
        if (record.name, record.positions) == (name, positions):
            interval = "–" if record.interval is None else "{:.4f} … {:.4f}".format(*record.interval)
            cells = [record.part, f"{record.value:.4f}", interval]
            cells += [f"{record.baselines[column]:.4f}" for column in columns]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if len(lines) > 2 else f"No {name}: there was nothing known to be lost."


def show(records: Sequence[MetricRecord], positions: Sequence[str]) -> None:
    """Print the figures, a table for each."""
    contexts: list[Baseline] = ["full", "truncated", "shuffled", "mean"]
    shown: dict[str, list[Baseline]] = {
        "long_context_nll": contexts,
        "long_context_recovered": ["shuffled", "mean"],
        "long_context_truncation_cost": [],
        "long_context_below_truncated": [],
        "long_context_below_shuffled": [],
        "long_context_covered": ["truncated"],
        "retrieval_accuracy": [*contexts, "chance"],
        "retrieval_nll": contexts,
    }
    for policy in positions:
        for name, columns in shown.items():
            if any(record.name.split("_")[0] == name.split("_")[0] for record in records):
                print(f"\n{table(records, name, columns, policy)}")


def main() -> None:
    """Read the documents, compare the contexts, ask, measure the cost; print and write all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, help="a run folder, or one of its checkpoints")
    parser.add_argument("--corpus", nargs="+", default=[], help="JSON lines files, compressed or not")
    parser.add_argument("--positions", nargs="+", default=["center"], choices=["center", "end", "compact"])
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=8192)
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--no-cost", action="store_true")
    parser.add_argument("--name", help="of the result; otherwise trained or untrained")
    arguments = parser.parse_args()
    began = time.perf_counter()
    teacher, encoder = build(arguments.checkpoint)
    shared = {"positions": tuple(arguments.positions)}
    config = LongContextConfig(documents=max(2, arguments.documents), max_tokens=arguments.max_tokens, **shared)
    named = named_tokens(teacher, arguments.checkpoint, arguments.corpus, config.min_tokens)
    sizes = {"min_tokens": config.min_tokens, "max_tokens": config.max_tokens, "seed": config.seed}
    documents = list(islice(long_passages(named, **sizes), config.documents))
    for document in documents:
        print(f"{len(document.tokens):6} tokens  {document.name}")
    records: list[MetricRecord] = []
    seconds: dict[str, float] = {}
    if arguments.documents:
        start = time.perf_counter()
        records += long_context(teacher, encoder, documents, config, domain="narrative", say=print)
        seconds["curve"] = time.perf_counter() - start
    if arguments.cases:
        start = time.perf_counter()
        records += retrieval(teacher, encoder, documents, RetrievalConfig(cases=arguments.cases, **shared), print)
        seconds["retrieval"] = time.perf_counter() - start
    show(records, arguments.positions)
    cost = [] if arguments.no_cost else costs(teacher, encoder, documents[0], arguments.positions[0])
    seconds["all"] = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"Took {seconds['all']:.0f} s, peak {peak:.0f} MB.")
    RESULTS.mkdir(exist_ok=True)
    name = arguments.name or ("trained" if arguments.checkpoint else "untrained")
    content = {
        "machine": describe_machine() | {"threads": torch.get_num_threads()},
        "teacher": teacher.name,
        "levels": encoder.levels,
        "trained": bool(arguments.checkpoint),
        "documents": [{"name": d.name, "tokens": len(d.tokens)} for d in documents],
        "config": config.model_dump(mode="json"),
        "records": [record.model_dump(mode="json") for record in records],
        "cost": cost,
        "seconds": seconds,
        "peak_memory_megabytes": peak,
    }
    (RESULTS / f"long-context-{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
