"""Continuations after rows of gists, and how often they repeat themselves, beside continuations after text.

    python benchmarks/writing.py [--gistnet smollm2-135m-gist32]

Held-out passages of the GistNet's corpus, each of a sink, a row of spans and a raw tail, are continued greedily from
the whole text, from gists of the row in either position policy, from as many recent tokens, and from the tail alone. A
text repeats itself as far as its runs of four tokens have occurred in it before.

Results: benchmarks/results/writing.json.
"""

import argparse
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import RELEASE, results_file
from gistnet.context.generate import generate
from gistnet.context.plan import Gists, Plan, Raw
from gistnet.data.config import SINK_TOKENS
from gistnet.errors import GistNetError
from gistnet.evaluation.resampling import bootstrap_over_documents
from gistnet.files import write_json
from gistnet.machine import describe_machine
from gistnet.objective.branches import Positions
from gistnet.session import open_trained
from gistnet.tree.document import compress
from gistnet.tree.gist_encoder import GistEncoder

SPANS, PASSAGES = 30, 40
TAIL, NEW_TOKENS, RUN = 64, 64, 4
BASELINE = "recent"
"""The context that the others are compared with, passage by passage."""


def main() -> int:
    """Continue every passage in every context, and keep the texts and what they repeat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gistnet", type=Path, default=RELEASE)
    parser.add_argument("--domain", default="narrative")
    parser.add_argument("--passages", type=int, default=PASSAGES)
    parser.add_argument(
        "--out", type=Path, help="results/writing.json by default, writing-NAME.json of another GistNet"
    )
    asked = parser.parse_args()
    trained = open_trained(asked.gistnet)
    teacher, encoder, dataset = trained.teacher, GistEncoder(trained.teacher, trained.gistnet), trained.dataset()
    assert teacher.tokenizer is not None
    found: list[dict[str, Any]] = []
    needed = SINK_TOKENS + SPANS * encoder.info.branchings[0] + TAIL
    passages = dataset.whole_documents("held_out", asked.domain, min_tokens=needed)
    for name, tokens in islice(passages, asked.passages):
        document = compress(tokens[: needed - TAIL], encoder, levels=1)
        tail = tokens[needed - TAIL : needed].tolist()
        written: dict[str, dict[str, Any]] = {}
        for context, (plan, positions) in contexts(document.n_tokens, document.branchings).items():
            made = generate(
                document,
                "the tail",  # is given as tokens, and not as a prompt
                teacher=teacher,
                plan=plan,
                positions=positions,
                surroundings=([], tail),
                max_new_tokens=NEW_TOKENS,
            )
            written[context] = {"text": made.text, "repeated": repeated(made.tokens)}
        found.append({"document": name, "ends": teacher.tokenizer.decode(tail), **written})
        print(name, {context: round(of["repeated"], 2) for context, of in written.items()}, flush=True)
    head = {"machine": describe_machine(), "gistnet": str(asked.gistnet), "domain": asked.domain, "spans": SPANS}
    shares = shares_of(found)
    write_json(asked.out or results_file("writing", asked.gistnet), {**head, "shares": shares, "passages": found})
    print(shares)
    return 0


def contexts(n_tokens: int, branchings: tuple[int, ...]) -> dict[str, tuple[Plan, Positions]]:
    """The plans of a passage by name, and their positions; the tail comes behind each."""
    row = Plan([Gists(0, 0, SPANS)], branchings, SINK_TOKENS)
    return {
        "full": (Plan([Raw(0, n_tokens)], branchings), "compact"),
        "gists, end": (row, "end"),
        "gists, compact": (row, "compact"),
        "recent": (Plan([Raw(n_tokens - SPANS, n_tokens)], branchings, SINK_TOKENS), "compact"),
        "tail": (Plan([], branchings, SINK_TOKENS), "compact"),
    }


def repeated(tokens: list[int]) -> float:
    """Share of the runs of `RUN` tokens that occurred before in the same text; 0 where there are none."""
    runs = [tuple(tokens[start : start + RUN]) for start in range(len(tokens) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def shares_of(passages: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each context the mean share that is repeated, and how much more than after recent text, paired."""
    names = [name for name, of in passages[0].items() if isinstance(of, dict)]
    columns = {name: np.array([of[name]["repeated"] for of in passages]) for name in names}
    documents = [of["document"] for of in passages]
    return {
        name: {
            "repeated": float(column.mean()),
            "above_recent": float((column - columns[BASELINE]).mean()),
            "interval": bootstrap_over_documents(column - columns[BASELINE], documents),
        }
        for name, column in columns.items()
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GistNetError as error:
        sys.exit(f"writing: {error}")
