"""Recall of what stands far back in a text, from every kind of context of as many vectors, for README.md.

    python benchmarks/recall.py CORPORA [--gistnet smollm2-135m-gist32] [--cases 36]
    python benchmarks/recall.py CORPORA --cases 72 --alone smollm2-135m-gist32 runs/ablations/…/rows-…-seed0

The cases are those of `gistnet.evaluation.contexts.retrieval` in stories and Wikipedia articles, which only surround
what is asked for. The kind `last` is left out: the default teacher is at chance there with the whole text.
--alone compares several GistNets on the same cases by gists of all of the text, with nothing opened: each at one
vector for as many tokens as its gists stand for, beside another case's gists and as many recent tokens. It takes two
minutes each.
"""

import argparse
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import RELEASE, RESULTS, results_file
from gistnet.context.assembly import assemble
from gistnet.data.sources import MatchedFile, read_rows
from gistnet.errors import GistNetError
from gistnet.evaluation.config import CASE_KINDS, ContextsConfig, EvaluationConfig
from gistnet.evaluation.contexts.equal_budget import (
    budget_record,
    gist_plan,
    mean_nll,
    share_right,
    truncated_plan,
    with_gists_of,
)
from gistnet.evaluation.contexts.retrieval import ANSWERS, DOMAIN, retrieval, retrieval_cases
from gistnet.evaluation.records import MetricRecord
from gistnet.files import write_json
from gistnet.machine import describe_machine
from gistnet.model.teacher import Teacher
from gistnet.session import open_gistnet
from gistnet.tree.document import compress
from gistnet.tree.gist_encoder import GistEncoder

FILLERS = ("narrative/squality_stories.jsonl.zst", "narrative/wikipedia_articles.jsonl.zst")
EACH = 6
"""Documents of each file, of those that are long enough."""
CONTEXTS = ("full", "truncated", "retrieved", "with_gists", "by_meaning", "oracle", "chance")


def main() -> int:
    """Measure, keep the records, and print the shares of right answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path, help="folder of the documents")
    parser.add_argument("--gistnet", type=Path, default=RELEASE)
    parser.add_argument("--cases", type=int, default=36)
    parser.add_argument("--tokens", type=int, default=2048, help="length of the text before each question")
    parser.add_argument("--budgets", type=int, nargs="+", default=[16, 32], help="tokens a vector, at least a gist's")
    parser.add_argument(
        "--alone", type=Path, nargs="+", metavar="GISTNET", help="compare the gists of these by themselves"
    )
    parser.add_argument("--out", type=Path, help="results/recall.json by default, recall-NAME.json of another GistNet")
    asked = parser.parse_args()
    contexts = ContextsConfig(
        retrieval_cases=asked.cases,
        retrieval_kinds=tuple(kind for kind in CASE_KINDS if kind != "last"),
        retrieval_tokens=asked.tokens,
        question_tokens_per_vector=tuple(asked.budgets),
    )
    config = EvaluationConfig(positions=("compact",), contexts=contexts)
    if asked.alone:
        kept = {name_of(path): alone(path, asked.corpora, config) for path in asked.alone}
        write_json(asked.out or RESULTS / "recall-alone.json", {"machine": describe_machine(), "records": kept})
        return 0
    teacher, gistnet = open_gistnet(asked.gistnet)
    filler = fillers(teacher, asked.corpora, asked.tokens)
    records = retrieval(teacher, GistEncoder(teacher, gistnet), filler, config)
    write_json(
        asked.out or results_file("recall", asked.gistnet),
        {"machine": describe_machine(), "gistnet": str(asked.gistnet), "records": as_json(records)},
    )
    for record in records:
        if record.name == "retrieval_accuracy":
            shares = {name: round(record.baselines[name], 2) for name in CONTEXTS}  # type: ignore[index]
            print(f"1/{record.tokens_per_vector}", record.kind or "all", {"gists": round(record.value, 2)} | shares)
        elif record.name.startswith("retrieval_gain"):
            print(f"1/{record.tokens_per_vector}", record.kind or "all", record.name, record.value, record.interval)
        elif record.name == "retrieval_recall":
            print("evidence in the first", record.index, record.kind or "all", record.value, record.baselines)
    return 0


def fillers(teacher: Teacher, corpora: Path, least: int) -> list[NDArray[np.int64]]:
    """Token ids of the documents that surround what is asked for."""
    assert teacher.tokenizer is not None
    found: list[NDArray[np.int64]] = []
    for name in FILLERS:
        rows = read_rows(MatchedFile(corpora / name, name), "text", "id")
        tokens = (teacher.tokenizer.encode(text) for _, text in rows)
        found += islice((ids for ids in tokens if len(ids) >= least), EACH)
    return found


def alone(path: Path, corpora: Path, config: EvaluationConfig) -> list[dict[str, Any]]:
    """Records of right answers, and of what the right one costs, from gists of all of a text, printed as they come."""
    teacher, gistnet = open_gistnet(path)
    assert teacher.tokenizer is not None
    level_0, contexts = gistnet.levels[0], config.contexts
    encoder, budget = GistEncoder(teacher, level_0), level_0.tokens_per_gist
    cases = retrieval_cases(
        teacher.tokenizer,
        fillers(teacher, corpora, contexts.retrieval_tokens),
        count=contexts.retrieval_cases,
        context_tokens=contexts.retrieval_tokens,
        seed=config.seed,
        kinds=contexts.retrieval_kinds,
    )
    documents = [compress(case.context, encoder) for case in cases]
    columns: dict[str, list[NDArray[np.float64]]] = {"gist": [], "shuffled": [], "truncated": []}
    for number, (case, document) in enumerate(zip(cases, documents, strict=True)):
        of = document.n_tokens, document.branchings, budget, config.sink_tokens
        made = {
            "gist": (document, gist_plan(*of)),
            "shuffled": (with_gists_of(document, documents[number - 1]), gist_plan(*of)),
            "truncated": (document, truncated_plan(*of)),
        }
        for name, (read, plan) in made.items():
            context = assemble(read, plan, teacher, positions="compact", after=case.question)
            columns[name].append(mean_nll(teacher, context, case.answers))
    rows = np.arange(len(cases))
    measured = {
        "retrieval_accuracy": {name: np.array([share_right(nll, 0) for nll in of]) for name, of in columns.items()},
        "retrieval_nll": {name: np.array(of)[:, 0] for name, of in columns.items()},
    }
    measured["retrieval_accuracy"]["chance"] = np.full(len(rows), 1 / ANSWERS)
    fields = {"domain": DOMAIN, "tokens_per_vector": budget, "positions": "compact"}
    records = [
        budget_record(name, of["gist"], rows, fields, config, baselines={key: of[key] for key in of if key != "gist"})
        for name, of in measured.items()
    ]
    for record in records:
        print(name_of(path), f"1/{budget}", record.name, round(record.value, 3), record.interval, record.baselines)
    return as_json(records)


def name_of(path: Path) -> str:
    """Name of a release or run; of a checkpoint's GistNet that of its run."""
    return path.parents[2].name if path.name == "gistnet" else path.name


def as_json(records: Iterable[MetricRecord]) -> list[dict[str, Any]]:
    """Records as they are kept."""
    return [record.model_dump(mode="json", exclude_none=True) for record in records]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GistNetError as error:
        sys.exit(f"recall: {error}")
