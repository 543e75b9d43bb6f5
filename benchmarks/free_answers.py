"""Short questions about real documents, and the grading of free answers to them.

`data/free_answers.jsonl` has one question a line: the file and the id of its document, the accepted answers, and a
quote of the document that holds one of them. The documents themselves stay in the corpora that docs and configurations
name: a folder with `narrative/*.jsonl.zst`, each line an object with the fields `id` and `text`.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from gistnet.data.sources import MatchedFile, read_rows
from gistnet.errors import DataError

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


def is_right(answer: str, accepted: Collection[str]) -> bool:
    """True if an accepted answer stands in the answer as whole words, whatever the case and the white space."""
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
