"""Recall of what stands far back in a text, from every kind of context of as many vectors, for README.md.

    python benchmarks/recall.py CORPORA [--gistnet smollm2-135m-gist32] [--cases 36]

The cases are those of `gistnet.evaluation.contexts.retrieval` in stories and Wikipedia articles, which only surround
what is asked for. The kind `last` is left out: the default teacher is at chance there with the whole text.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import RELEASE, results_file
from gistnet.data.sources import MatchedFile, read_rows
from gistnet.errors import GistNetError
from gistnet.evaluation.config import CASE_KINDS, ContextsConfig, EvaluationConfig
from gistnet.evaluation.contexts.retrieval import retrieval
from gistnet.files import write_json
from gistnet.machine import describe_machine
from gistnet.session import open_gistnet
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
    parser.add_argument("--out", type=Path, help="results/recall.json by default, recall-NAME.json of another GistNet")
    asked = parser.parse_args()
    teacher, gistnet = open_gistnet(asked.gistnet)
    assert teacher.tokenizer is not None
    filler: list[NDArray[np.int64]] = []
    for name in FILLERS:
        rows = read_rows(MatchedFile(asked.corpora / name, name), "text", "id")
        tokens = (teacher.tokenizer.encode(text) for _, text in rows)
        filler += islice((ids for ids in tokens if len(ids) >= asked.tokens), EACH)
    contexts = ContextsConfig(
        retrieval_cases=asked.cases,
        retrieval_kinds=tuple(kind for kind in CASE_KINDS if kind != "last"),
        retrieval_tokens=asked.tokens,
        question_tokens_per_vector=tuple(asked.budgets),
    )
    config = EvaluationConfig(positions=("compact",), contexts=contexts)
    records = retrieval(teacher, GistEncoder(teacher, gistnet), filler, config)
    kept = [record.model_dump(mode="json", exclude_none=True) for record in records]
    write_json(
        asked.out or results_file("recall", asked.gistnet),
        {"machine": describe_machine(), "gistnet": str(asked.gistnet), "records": kept},
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


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GistNetError as error:
        sys.exit(f"recall: {error}")
