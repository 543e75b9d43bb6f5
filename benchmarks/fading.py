"""Which rate at which budget: gists of 32 tokens, of 8, and plans that fade from one to the other, in prose.

    python benchmarks/fading.py [--documents 24] [--skip 20]

What the last tokens of held-out documents of the corpus of configs/release.yaml cost, after contexts of equally many
vectors, numbered without gaps as `generate` reads them. Either an eighth of the vectors are gists of the text just
before recent text, as in `gistnet.context.select`, in a row no longer than training had: of 32 tokens, of 8, of 32 and
then 8 in equal parts, or two of 1,024 tokens before these. Or all that is old is gists of one rate, as in `gist_plan`.
The control has the 32-and-8 row of another document. The first 20 documents are those on which the eighth was chosen.

Results: benchmarks/results/fading.json.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import RESULTS, ROOT
from gistnet.config import load_config
from gistnet.context.assembly import Context, assemble
from gistnet.context.plan import Gists, Plan, Raw
from gistnet.data.config import SINK_TOKENS
from gistnet.errors import GistNetError
from gistnet.evaluation.contexts.equal_budget import gist_plan, with_gists_of
from gistnet.evaluation.contexts.long_context import LongDocument, context_nll, long_passages
from gistnet.evaluation.resampling import bootstrap_over_documents
from gistnet.files import write_json
from gistnet.machine import describe_machine
from gistnet.model.teacher import Teacher
from gistnet.preparation import prepare_data
from gistnet.session import open_gistnet
from gistnet.tree.document import InMemoryDocument, compress
from gistnet.tree.gist_encoder import GistEncoder

COARSE, FINE = "smollm2-135m-gist32", "smollm2-135m-gist8"
BUDGETS = (4, 8, 16, 32)
"""Tokens of the document for each vector."""
MIN_TOKENS, MAX_TOKENS, SCORED = 4096, 4608, 256
HIGHEST = 2
"""Gists of 1,024 tokens in a row that has some."""
BASELINE, CONTROL = "recent", "another document's 32, 8"
Row = Sequence[tuple[InMemoryDocument, int, int]]
"""Documents, a level of each, and how many of its gists; from the nearest to recent text on."""


def main() -> int:
    """Measure every context of every document, and print and keep the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--skip", type=int, default=20, help="documents before them that are left out")
    parser.add_argument("--out", type=Path, default=RESULTS / "fading.json")
    asked = parser.parse_args()
    teacher, coarse = open_gistnet(Path(COARSE))
    encoders = GistEncoder(teacher, coarse), GistEncoder(teacher, open_gistnet(Path(FINE))[1])
    dataset = prepare_data(load_config(ROOT / "configs" / "release.yaml"))
    whole = dataset.whole_documents("held_out", "narrative", min_tokens=MIN_TOKENS)
    passages = long_passages(whole, min_tokens=MIN_TOKENS, max_tokens=MAX_TOKENS, seed=0)
    chosen = list(islice(passages, asked.skip, asked.skip + asked.documents))
    made = [tuple(compress(of.tokens[:-SCORED], encoder) for encoder in encoders) for of in chosen]
    nll: dict[tuple[int, str], list[float]] = {}
    for number, passage in enumerate(chosen):
        for budget, name, context in contexts(teacher, passage, *made[number], *made[number - 1]):
            of_token = context_nll(teacher, context, passage.tokens[-SCORED:])
            nll.setdefault((budget, name), []).append(float(of_token.mean()))
        print(f"{number + 1} of {len(chosen)}: {passage.name}", flush=True)
    found = [record(budget, name, values, nll[budget, BASELINE]) for (budget, name), values in nll.items()]
    for of in found:
        print(of)
    head = {"machine": describe_machine(), "coarse": COARSE, "fine": FINE, "skipped": asked.skip}
    write_json(asked.out, {**head, "documents": len(chosen), "scored": SCORED, "contexts": found})
    return 0


def contexts(
    teacher: Teacher,
    passage: LongDocument,
    coarse: InMemoryDocument,
    fine: InMemoryDocument,
    others_coarse: InMemoryDocument,
    others_fine: InMemoryDocument,
) -> Iterator[tuple[int, str, Context]]:
    """The contexts of a document: budget, name, and what is read."""
    after = passage.tokens[-SCORED:-1].tolist()
    for budget in BUDGETS:
        vectors = coarse.n_tokens // budget - SINK_TOKENS
        eighth = min(vectors // 8, coarse.longest_row, fine.longest_row)
        half = eighth // 2
        rows: dict[str, Row] = {
            BASELINE: [],
            "32": [(coarse, 0, eighth)],
            "8": [(fine, 0, eighth)],
            "32, 8": [(fine, 0, half), (coarse, 0, eighth - half)],
            "1,024, 32, 8": [(fine, 0, half), (coarse, 0, eighth - half - HIGHEST), (coarse, 1, HIGHEST)],
        }
        for name, row in rows.items():
            yield budget, name, faded(teacher, coarse, row, vectors, after)
        for name, document in (("all of 32", coarse), ("all of 8", fine)):
            plan = gist_plan(document.n_tokens, document.branchings, budget, SINK_TOKENS)
            yield budget, name, assemble(document, plan, teacher, positions="compact", after=after)
        borrowed = with_gists_of(fine, others_fine), with_gists_of(coarse, others_coarse)
        row = [(borrowed[0], 0, half), (borrowed[1], 0, eighth - half)]
        yield budget, CONTROL, faded(teacher, coarse, row, vectors, after)


def faded(teacher: Teacher, document: InMemoryDocument, row: Row, vectors: int, after: Sequence[int]) -> Context:
    """A context of the sink, a row of gists of several documents of the same text, recent text, and what follows.

    A row that would reach before the document's beginning has fewer gists, and recent text more tokens.
    """
    parts: list[Context] = []
    end = document.n_tokens - vectors + sum(count for _, _, count in row)
    for source, level, count in row:
        size = int(np.prod(source.branchings[: level + 1]))
        stop = min(end // size, source.n_gists[level])
        start = max(0, stop - count)
        if stop > start:
            parts.append(assemble(source, Plan([Gists(level, start, stop)], source.branchings), teacher, before=()))
            end = start * size
    recent = vectors - sum(len(part) for part in parts)
    text = Plan([Raw(document.n_tokens - recent, document.n_tokens)], document.branchings)
    sink = assemble(document, Plan([Raw(0, SINK_TOKENS)], document.branchings), teacher)
    last = assemble(document, text, teacher, positions="compact", before=(), after=after)
    vectors_read = torch.cat([part.inputs_embeds for part in (sink, *parts[::-1], last)], dim=1)
    count = vectors_read.shape[1]
    return replace(
        last,
        inputs_embeds=vectors_read,
        position_ids=torch.arange(count, device=teacher.device)[None],
        attention_mask=torch.ones(1, count, dtype=torch.long, device=teacher.device),
        positions="compact",
    )


def record(budget: int, name: str, values: list[float], recent: list[float]) -> dict[str, Any]:
    """Mean of a context over documents, and how far it is below that of recent text, paired."""
    below = np.array(recent) - np.array(values)
    interval = bootstrap_over_documents(below, np.arange(len(values)))
    return {
        "tokens_per_vector": budget,
        "row": name,
        "nll": float(np.mean(values)),
        "below_recent": float(below.mean()),
        "interval": interval,
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GistNetError as error:
        sys.exit(f"fading: {error}")
