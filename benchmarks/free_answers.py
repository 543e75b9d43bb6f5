"""Short questions about real documents, answered freely from contexts of as many vectors, and graded.

    python benchmarks/free_answers.py CORPORA [--budget 256] [--documents 12] [--each 5]

The contexts are those of `gistnet.evaluation.contexts.equal_budget`: the whole document, where the teacher has the
positions for it; recent text; gists of all that is old; passages that the question needs, without and with gists beside
them, found by words, or by words and states; the evidence. An answer is right where it holds an accepted form. The
teacher writes greedily, in its chat template.

`data/free_answers.jsonl` has one question a line: the file and the id of its document, the accepted answers, and a
quote of the document that holds one of them. The documents themselves stay in the corpora that docs and configurations
name: a folder with `narrative/*.jsonl.zst`, each line an object with the fields `id` and `text`.
"""

import argparse
import json
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import RELEASE, results_file
from gistnet.context.generate import generate
from gistnet.context.plan import Plan, Raw, default_plan
from gistnet.context.select import select
from gistnet.context.selectors import Selector, by_words, fused
from gistnet.context.states import ByStates, by_words_and_meaning
from gistnet.data.sources import MatchedFile, read_rows
from gistnet.errors import DataError, GistNetError
from gistnet.evaluation.contexts.equal_budget import Evidence, opens
from gistnet.evaluation.contexts.retrieval import RECALLED, recall
from gistnet.evaluation.resampling import bootstrap_over_documents
from gistnet.files import write_json
from gistnet.machine import describe_machine
from gistnet.model.teacher import Teacher
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.session import open_gistnet
from gistnet.tree.document import InMemoryDocument, compress
from gistnet.tree.gist_encoder import GistEncoder

CONTEXTS = ("full", "recent", "gists", "retrieved", "with_gists", "reranked", "by_meaning", "oracle")
BASELINE = "retrieved"
"""The context that the others are compared with, question by question."""
NEW_TOKENS = 32
NOT_OF_THE_DOCUMENT = 256
"""Positions that are kept free for template, question and answer."""
AROUND = 16
"""Tokens on either side of a quote that the oracle opens, too."""
QUESTIONS = Path(__file__).parent / "data" / "free_answers.jsonl"


@dataclass(frozen=True)
class FreeQuestion:
    """A question, the answers that are right, and where its document says so.

    `evidence` is the range of characters of `document`, start and end, where the quote stands.
    """

    file: str
    id: str
    question: str
    answers: tuple[str, ...]
    document: str
    evidence: tuple[int, int]


def load_free_questions(corpora: Path, questions: Path = QUESTIONS) -> list[FreeQuestion]:
    """Every question of a file, with its document from the folder of corpora; in the file's order.

    Raises:
        DataError: a corpus or a document is missing, or a document does not hold its quote exactly once.
    """
    listed = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    documents: dict[tuple[str, str], str] = {}
    for file in dict.fromkeys(asked["file"] for asked in listed):
        ids = {asked["id"] for asked in listed if asked["file"] == file}
        documents |= {(file, name): text for name, text in _documents(corpora / file, ids).items()}
    loaded = []
    for asked in listed:
        file, name, text = asked["file"], asked["id"], documents[asked["file"], asked["id"]]
        found = [match.span() for match in re.finditer(_spaced(asked["quote"]), text)]
        if len(found) != 1:
            raise DataError(f"{name} of {corpora / file} holds {asked['quote']!r} {len(found)} times, expected once.")
        loaded.append(FreeQuestion(file, name, asked["question"], tuple(asked["answers"]), text, found[0]))
    return loaded


def evidence_of(question: FreeQuestion, tokenizer: TeacherTokenizer) -> Evidence:
    """The tokens of the quote that holds the answer."""
    start, stop = (len(tokenizer.encode(question.document[:end])) for end in question.evidence)
    return [(start, stop)]


def is_right(answer: str, accepted: Collection[str]) -> bool:
    """True if an accepted answer stands in the answer as whole words, in any case and with any white space."""
    return any(re.search(rf"(?<!\w){_spaced(form)}(?!\w)", answer, re.IGNORECASE) for form in accepted)


def _documents(path: Path, ids: Collection[str]) -> dict[str, str]:
    """The documents of a corpus that have these ids.

    Raises:
        DataError: there is no such corpus, or it has not all of them.
    """
    if not path.is_file():
        raise DataError(f"There is no file {path}, expected the corpus of {len(ids)} documents with questions.")
    rows = read_rows(MatchedFile(path, path.name), "text", "id")
    found = {name: text for name, text in rows if name in ids}
    if missing := sorted(set(ids) - found.keys()):
        raise DataError(f"{path} has no document {missing[0]!r}, expected it for its questions.")
    return found


def _spaced(text: str) -> str:
    """Pattern of a text with any white space between its words."""
    return r"\s+".join(map(re.escape, text.split()))


# Answers --------------------------------------------------------------------------------------------------------------


def main() -> int:
    """Ask every question in every context, and keep the answers and the shares of right ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path, help="folder of the documents")
    parser.add_argument("--gistnet", type=Path, default=RELEASE)
    parser.add_argument("--budget", type=int, default=256, help="the most vectors of the document, beside the question")
    parser.add_argument("--documents", type=int, default=12, help="the first so many")
    parser.add_argument("--each", type=int, default=5, help="the first so many questions of each document")
    parser.add_argument("--contexts", nargs="+", default=CONTEXTS, choices=CONTEXTS)
    parser.add_argument("--recall-only", action="store_true", help="rank passages, and answer nothing")
    parser.add_argument(
        "--out", type=Path, help="results/free-answers.json by default, free-answers-NAME.json of another GistNet"
    )
    asked = parser.parse_args()
    teacher, gistnet = open_gistnet(asked.gistnet)
    encoder, tokenizer = GistEncoder(teacher, gistnet), teacher.tokenizer
    assert tokenizer is not None
    questions = load_free_questions(asked.corpora)
    names = list(dict.fromkeys(question.id for question in questions))[: asked.documents]
    states = ByStates(teacher)
    selectors: dict[str, Selector] = {"words": by_words, "states": states, "words and states": fused(by_words, states)}
    selectors["words, ranked again"] = by_words_and_meaning(teacher)
    rows: list[dict[str, Any]] = []
    recalled: list[dict[str, list[float]]] = []
    for name in names:
        of_document = [question for question in questions if question.id == name][: asked.each]
        if asked.recall_only:
            tokens = tokenizer.encode(of_document[0].document)
            document = InMemoryDocument(tokens, (), gistnet.branchings, gistnet.positions, teacher.fingerprint)
        else:
            document = compress(of_document[0].document, encoder)
        for question in of_document:
            found = {
                selector: [recall(hits[:most], evidence_of(question, tokenizer)) for most in RECALLED]
                for selector, search in selectors.items()
                for hits in [search(document, question.question, tokenizer)]
            }
            recalled.append(found)
            if asked.recall_only:
                continue
            plans = plans_for(teacher, document, question, asked.budget, selectors)
            answers = {
                context: generate(
                    document,
                    question.question,
                    teacher=teacher,
                    plan=plans[context],
                    positions="compact",
                    max_new_tokens=NEW_TOKENS,
                ).text
                for context in asked.contexts
                if plans[context].vectors + NOT_OF_THE_DOCUMENT < teacher.max_positions
            }
            right = {context: is_right(answer, question.answers) for context, answer in answers.items()}
            rows.append({"document": name, "question": question.question, "answers": answers, "right": right})
            print(name, question.question, right, flush=True)
    contexts = list(dict.fromkeys(context for row in rows for context in row["right"]))
    columns = {context: [row["right"][context] for row in rows if context in row["right"]] for context in contexts}
    shares = {context: {"right": sum(column), "asked": len(column)} for context, column in columns.items()}
    gains = {context: _gain(context, rows) for context in contexts if BASELINE in columns}
    head = {"machine": describe_machine(), "gistnet": str(asked.gistnet), "budget": asked.budget}
    means = {name: np.mean([of[name] for of in recalled], axis=0).tolist() for name in selectors}
    figures = {"recall": {"passages": RECALLED, **means}, "shares": shares, f"gains over {BASELINE}": gains}
    write_json(asked.out or results_file("free-answers", asked.gistnet), {**head, **figures, "questions": rows})
    print(json.dumps(figures, indent=1))
    return 0


def _gain(context: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The share of right answers that a context has above `BASELINE` on the same questions, interval over documents."""
    both = [row for row in rows if context in row["right"]]
    gains = np.array([float(row["right"][context]) - float(row["right"][BASELINE]) for row in both])
    interval = bootstrap_over_documents(gains, [row["document"] for row in both])
    return {"asked": len(both), "gain": float(gains.mean()), "interval": interval}


def plans_for(
    teacher: Teacher, document: InMemoryDocument, question: FreeQuestion, budget: int, selectors: dict[str, Selector]
) -> dict[str, Plan]:
    """The plan of each of `CONTEXTS`."""
    tokenizer, n, branchings = teacher.tokenizer, document.n_tokens, document.branchings
    assert tokenizer is not None
    choose = partial(select, document, question.question, budget, tokenizer=tokenizer, row_share=0)
    ((start, stop),) = evidence_of(question, tokenizer)
    evidence = opens([(max(0, start - AROUND), min(n, stop + AROUND))])
    return {
        "full": Plan([Raw(0, n)], branchings),
        "recent": choose(selector=lambda *_: []).plan,
        "gists": default_plan(n, branchings, budget),
        "retrieved": choose().plan,
        "with_gists": choose(gists_beside=1).plan,
        "reranked": choose(selector=selectors["words, ranked again"]).plan,
        "by_meaning": choose(selector=selectors["words and states"]).plan,
        "oracle": choose(selector=evidence).plan,
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GistNetError as error:
        sys.exit(f"free_answers: {error}")
