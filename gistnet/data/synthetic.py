"""Documents made from a seed, for the last stage of the curriculum (spec, Stage 3: Mixed & Adversarial).

Each recipe makes one kind of document that is hard to compress into gists. A document is a pure function of seed,
recipe and number, for one version of Python: `repeated`, `noisy` and `interleaved` take their prose and code from the
installation's manual and standard library, so that nothing is downloaded.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from gistnet.data.adversarial import pairs_document
from gistnet.data.installation import installation_identity
from gistnet.data.noise import add_noise
from gistnet.data.passages import code_passages, prose_passages
from gistnet.data.tables import table_section, tables_document
from gistnet.data.words import WORDS

Recipe = Literal["pairs", "repeated", "noisy", "tables", "interleaved"]

RECIPE_VERSION = 1
"""Raised whenever a recipe would make other documents, so that prepared corpora are made again."""

# English has about 4.5 characters a token, tables fewer: 1300 tokens or more, which fill a window of 1024.
MIN_CHARACTERS = 6000
HIGHEST_NOISE = 0.25


def read_synthetic(seed: int, documents: int, recipes: Sequence[Recipe]) -> Iterator[tuple[str, str]]:
    """Yield `(name, text)` of so many documents, the recipes in turn. A larger number continues a smaller one.

    A name, such as `synthetic:pairs:0007:seed0`, gives the recipe, the number among its documents, and the seed.
    """
    for index in range(documents):
        recipe, number = recipes[index % len(recipes)], index // len(recipes)
        yield f"synthetic:{recipe}:{number:04}:seed{seed}", synthetic_document(seed, recipe, number)


def synthetic_document(seed: int, recipe: Recipe, number: int) -> str:
    """One document of at least `MIN_CHARACTERS` characters."""
    return _MAKERS[recipe](random.Random(f"{seed}:{recipe}:{number}"), MIN_CHARACTERS)


def synthetic_identity() -> dict[str, Any]:
    """What decides the documents besides seed and number: the version of the recipes, and the installation's text."""
    return {"recipe_version": RECIPE_VERSION, "installation": installation_identity()}


def _repeated(draw: random.Random, characters: int) -> str:
    """Passages that come again, as they were or with a word changed, between others that do not; and lists."""
    parts: list[str] = []
    while sum(map(len, parts)) < characters:
        passage, fresh = draw.sample(prose_passages(), 2)
        group = [passage, passage, fresh, _slightly_changed(draw, passage), _recurring_list(draw)]
        draw.shuffle(group)
        parts += group
    return "\n\n".join(parts) + "\n"


def _slightly_changed(draw: random.Random, passage: str) -> str:
    """The passage with one to three words replaced."""
    words = passage.split(" ")
    for place in draw.sample(range(len(words)), draw.randint(1, 3)):
        words[place] = draw.choice(WORDS[draw.choice(("object", "trade", "colour", "town"))])
    return " ".join(words)


def _recurring_list(draw: random.Random) -> str:
    """A list of a few entries, most of them more than once, one of them changed now and then."""
    entries = [f"{goods}, {draw.choice(WORDS['colour'])}" for goods in draw.sample(WORDS["goods"], draw.randint(3, 5))]
    days = draw.choices(WORDS["weekday"], k=draw.randint(8, 14))
    return "\n".join(f"- {day}: {draw.randint(1, 4)} {draw.choice(entries)}" for day in days)


def _noisy(draw: random.Random, characters: int) -> str:
    """Prose, each paragraph damaged at its own rate."""
    paragraphs: list[str] = []
    while sum(map(len, paragraphs)) < characters:
        paragraphs.append(add_noise(draw.choice(prose_passages()), draw.uniform(0, HIGHEST_NOISE), draw))
    return "\n\n".join(paragraphs) + "\n"


def _interleaved(draw: random.Random, characters: int) -> str:
    """Prose, code and tables by turns, in an order that changes from group to group."""
    parts: list[str] = []
    while sum(map(len, parts)) < characters:
        code = f"```python\n{draw.choice(code_passages())}\n```"
        group = [*draw.sample(prose_passages(), 2), code, table_section(draw)]
        draw.shuffle(group)
        parts += group
    return "\n\n".join(parts) + "\n"


_MAKERS: dict[Recipe, Callable[[random.Random, int], str]] = {
    "pairs": pairs_document,
    "repeated": _repeated,
    "noisy": _noisy,
    "tables": tables_document,
    "interleaved": _interleaved,
}
