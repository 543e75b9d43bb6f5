"""Does training on answers in the chat form make gists better for answering: rows of prose, of chat, and half of each.

    python benchmarks/fit_answers.py CORPORA [--gistnet smollm2-135m-gist32] [--contexts 176]

A context in chat form is a document of 30 spans in the user's turn, a question behind it, and the answer that the
teacher itself wrote after the full text, greedily. A GistNet goes on from its weights with as many contexts of each
kind, two a step: rows before 192 tokens of prose, rows before question and answer, or both by turns. Every arm, and the
GistNet as it was, is judged on answers and prose of other documents: the share of KL recovered, and the share of the
answers' tokens that remain the likeliest ones (after the full text all of them are, by construction).

Positions are compact, as in a context within a budget. Documents are those of benchmarks/fit_rows.py. An arm costs
eight minutes of a core. Results: benchmarks/results/fit-answers.json.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.fit_rows import Row, in_turn, train
from benchmarks.machine import RELEASE, in_short, results_file
from benchmarks.oracle_rows import SPAN, SPANS
from gistnet.context.generate import Looping, prompt_surroundings
from gistnet.data.config import SINK_TOKENS
from gistnet.errors import GistNetError
from gistnet.evaluation.resampling import DocumentDraws, percentile_interval
from gistnet.files import write_json
from gistnet.machine import describe_machine
from gistnet.model.encoder import SpanEncoder
from gistnet.model.teacher import Teacher
from gistnet.session import open_gistnet
from gistnet.training.config import OptimiserConfig

QUESTIONS = (
    "What is this text about?",
    "Who or what does the text say most about?",
    "Summarize the text in one sentence.",
    "What happens in the text?",
    "Where does the text take place?",
    "Name three things that the text mentions.",
    "What is said at the end of the text?",
    "What is the most important point of the text?",
)
NEW_TOKENS, JUDGED, RESAMPLES = 96, 24, 2000
OPTIMISER = OptimiserConfig(kind="muon", learning_rate=1e-3)
ARMS = {"untrained": (), "prose": ("prose",), "chat": ("chat",), "half": ("prose", "chat")}


def main() -> int:
    """Train and judge the arms, and print and keep what they recover."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path, help="folder of the documents")
    parser.add_argument("--gistnet", type=Path, default=RELEASE)
    parser.add_argument("--contexts", type=int, default=176, help="that every arm sees, two a step")
    parser.add_argument(
        "--out", type=Path, help="results/fit-answers.json by default, fit-answers-NAME.json of another GistNet"
    )
    asked = parser.parse_args()
    teacher, gistnet = open_gistnet(asked.gistnet)
    made = contexts(teacher, in_turn(teacher, asked.corpora, JUDGED + asked.contexts))
    judged = {kind: rows[:JUDGED] for kind, rows in made.items()}
    trained = {kind: rows[JUDGED:] for kind, rows in made.items()}
    head = {"machine": describe_machine(), "gistnet": str(asked.gistnet), "contexts": asked.contexts, "judged": JUDGED}
    arms: dict[str, dict[str, Any]] = {}
    for name, kinds in ARMS.items():
        encoder = SpanEncoder(teacher, copy.deepcopy(gistnet.levels[0]))
        if kinds:
            turns = cycle(zip(*(trained[kind] for kind in kinds), strict=True))
            rows = [row for _ in range(asked.contexts) for row in next(turns)][: asked.contexts]
            train(encoder, rows, asked.contexts, OPTIMISER)
        arms[name] = {kind: measured(encoder, rows) for kind, rows in judged.items()}
        found = {name: figures(arms, judged, name) for name in arms}
        print(name, in_short(found[name]), flush=True)
        write_json(
            asked.out or results_file("fit-answers", asked.gistnet),
            {**head, "baselines": of_baselines(judged), "arms": found},
        )
    return 0


def contexts(teacher: Teacher, passages: Sequence[Tensor]) -> dict[str, list[Row]]:
    """Rows of each kind, by the same documents."""
    asked = zip(passages, cycle(QUESTIONS), strict=False)
    return {
        "chat": [in_chat_form(teacher, passage, question) for passage, question in asked],
        "prose": [Row(teacher, passage, positions="compact") for passage in passages],
    }


@torch.no_grad()
def in_chat_form(teacher: Teacher, passage: Tensor, question: str) -> Row:
    """A row of a document in the user's turn, its question and the teacher's answer, which alone is scored."""
    assert teacher.tokenizer is not None
    before, after = (
        torch.tensor(tokens, device=teacher.device)
        for tokens in prompt_surroundings(teacher.tokenizer, question, True, teacher.name)
    )
    document = passage[SINK_TOKENS : SINK_TOKENS + SPANS * SPAN]
    prompt = torch.cat([before, document.to(before.dtype), after])[None]
    settings = GenerationConfig(do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
    written: Any = teacher.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        generation_config=settings,
        stopping_criteria=StoppingCriteriaList([Looping()]),
    )
    return Row(teacher, written[0], start=len(before), unscored=len(after), positions="compact")


@torch.no_grad()
def measured(encoder: SpanEncoder, rows: Sequence[Row]) -> dict[str, Tensor]:
    """KL of each row after the gists of an encoder, nats, and the share of its tokens that remain the likeliest."""
    kl, kept = [], []
    for row in rows:
        hidden = row.hidden_after_gists(encoder)
        kl.append(row.kl(hidden, row.unscored))
        before, after = (encoder.teacher.logits(of[:, row.unscored :]).argmax(-1) for of in (row.wanted, hidden))
        kept.append((before == after).double().mean())
    return {"kl": torch.stack(kl).double().cpu(), "kept": torch.stack(kept).cpu()}


def figures(arms: dict[str, dict[str, Any]], judged: dict[str, list[Row]], name: str) -> dict[str, Any]:
    """Shares recovered and kept by an arm, in percent, and how many points more it recovers than the first, paired."""
    found: dict[str, Any] = {}
    first = next(iter(arms))
    for kind, rows in judged.items():
        draws, drop = DocumentDraws(range(len(rows)), RESAMPLES, seed=0), [row.drop for row in rows]
        gain = (arms[first][kind]["kl"] - arms[name][kind]["kl"]).numpy()
        low, high = percentile_interval(100 * draws.sums(gain) / draws.sums(drop))
        found[kind] = {
            "recovered": 100 * (1 - float(arms[name][kind]["kl"].sum()) / sum(drop)),
            "more": 100 * float(gain.sum()) / sum(drop),
            "low": low,
            "high": high,
            "kept": 100 * float(arms[name][kind]["kept"].mean()),
        }
    return found


def of_baselines(judged: dict[str, list[Row]]) -> dict[str, dict[str, float]]:
    """Shares of KL that last tokens and recent tokens recover, in percent."""
    names = ("last_token", "recent_tokens")
    return {
        kind: {
            name: 100 * (1 - sum(getattr(row, name) for row in rows) / sum(row.drop for row in rows)) for name in names
        }
        for kind, rows in judged.items()
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GistNetError as error:
        sys.exit(f"fit_answers: {error}")
