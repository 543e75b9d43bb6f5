"""Words and sentences of adversarial pairs and synthetic documents, read from `templates.yaml` beside this module."""

import random
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from gistnet.yaml_format import read_yaml

PairKind = Literal["number", "name", "negation"]
PAIR_KINDS: tuple[PairKind, ...] = get_args(PairKind)


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Family(_Entry):
    """A situation of an adversarial pair: `setting`, then `key`, whose value `{x}` decides `continuation`.

    `values` is what `{x}` may be: numbers from the first to before the second, of equally many digits; the name of a
    list of words; or the word that negates the key sentence. A negation has two outcomes, `{y}`: of the negated
    sentence, and of the other one.
    """

    setting: str
    key: str
    values: tuple[int, int] | str
    continuation: str
    outcomes: tuple[str, str] = ("", "")


class Templates(_Entry):
    """Lists of words by name, and sentences with the names of such lists in braces."""

    words: dict[str, tuple[str, ...]]
    fillers: tuple[str, ...]
    connectors: tuple[str, ...]
    openers: tuple[str, ...]
    families: dict[PairKind, tuple[Family, ...]]
    captions: tuple[str, ...]
    conclusions: tuple[str, ...]

    def draw_words(self, draw: random.Random) -> dict[str, str]:
        """One word of every list, by the name of the list."""
        return {name: draw.choice(choices) for name, choices in self.words.items()}


@cache
def templates() -> Templates:
    """Content of `templates.yaml`, read at the first call."""
    text = files("gistnet.data").joinpath("templates.yaml").read_text(encoding="utf-8")
    return Templates.model_validate(read_yaml(text))
