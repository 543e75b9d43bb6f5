"""Ask a book from a tree on disk: what the whole text, recent text, and opened passages give, side by side.

    gistnet compress smollm2-135m-gist32 examples/mad-house.txt --tree runs/book.tree
    python examples/ask_a_book.py runs/book.tree

The book is Nellie Bly, Ten Days in a Mad-House (1887), in the public domain: 36,733 tokens, four times what the default
model can read. The questions were written before any was asked, and all of them are shown.
"""

import argparse
import re
from pathlib import Path

from rich.console import Console
from rich.table import Table

import gistnet
from gistnet.context.plan import Plan, Raw
from gistnet.context.states import by_words_and_meaning

QUESTIONS = {
    "How many patients were in Hall 6?": "forty-five|45",
    "How many prunes were in the small saucer?": "five|5",
    "On which day did the World ask Nellie?": "22d?|22nd",
    "What did she find in her slice of bread?": "spider",
    "What were the patients given at 10 o'clock?": "beef tea",
    "How many combs were there for the women?": "six|6",
    "How much more money did the City of New York appropriate?": r"\$?1,000,000",
    "What color was the stuff that the patients called tea?": "pink(ish)?",
}
"""Questions, and a pattern of the right answers."""


def main() -> None:
    """Print a table of answers, and how many of each column are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tree", type=Path, help="a tree with one document")
    parser.add_argument("--gistnet", default="smollm2-135m-gist32", help="what the tree was compressed with")
    parser.add_argument("--budget", type=int, default=256, help="the most vectors of the document that are read")
    asked = parser.parse_args()

    model = gistnet.load(asked.gistnet)
    tokenizer = model.teacher.tokenizer
    assert tokenizer is not None
    with gistnet.GistTree.open(asked.tree) as tree:
        document = tree.only_document(None)
        recent = gistnet.select(document, None, asked.budget, tokenizer=tokenizer, row_share=0).plan
        columns = {f"the last {recent.tokens_covered:,} tokens": lambda question: recent}
        columns["passages opened"] = lambda question: (
            gistnet.select(
                document, question, asked.budget, tokenizer=tokenizer, selector=by_words_and_meaning(model.teacher)
            ).plan
        )
        if document.n_tokens + 256 < model.teacher.max_positions:
            columns["the whole text"] = lambda question: Plan([Raw(0, document.n_tokens)], document.branchings)
        else:
            print(f"The whole text, {document.n_tokens:,} tokens, is more than the model can read.")
        table = Table("question", *columns, title=f"Answers from {asked.budget} vectors", title_justify="left")
        right = dict.fromkeys(columns, 0)
        for question, pattern in QUESTIONS.items():
            answers = []
            for name, plan in columns.items():
                answer = gistnet.generate(
                    document,
                    question,
                    teacher=model.teacher,
                    plan=plan(question),
                    positions="compact",
                    max_new_tokens=32,
                ).text.strip()
                found = re.search(rf"(?<!\w)({pattern})(?!\w)", answer, re.IGNORECASE) is not None
                right[name] += found
                answers.append(("✓ " if found else "✗ ") + answer.split("\n")[0])
            table.add_row(question, *answers)
        table.add_section()
        table.add_row("right", *(f"{count} of {len(QUESTIONS)}" for count in right.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
