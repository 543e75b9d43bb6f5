"""Documents made from a seed, for the last stage of the curriculum (spec, Stage 3: Mixed & Adversarial).

Each recipe makes one kind of document that is hard to compress into gists. A document is a pure function of seed,
recipe and number, for one version of Python: `repeated`, `noisy` and `interleaved` take their prose and code from the
installation's manual and standard library, so that nothing is downloaded. Words and sentences are in `templates.yaml`
beside this module.

The recipe `pairs` is of adversarial pairs, which are evaluated by themselves too: two nearly identical spans that must
give different gists. They differ in one number, one name or one negation, and what follows depends on it. A gist that
only holds the topic of its span cannot tell the two apart.
"""

import ast
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

from gistnet.data.installation import installation_identity, read_installation
from gistnet.errors import DataError
from gistnet.yaml_format import read_yaml

Recipe = Literal["pairs", "repeated", "noisy", "tables", "interleaved"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)

RECIPE_VERSION = 1
"""Raised whenever a recipe would make other documents, so that prepared corpora are made again."""

PairKind = Literal["number", "name", "negation"]
PAIR_KINDS: tuple[PairKind, ...] = get_args(PairKind)

# More than 32 tokens, the default span, of any tokenizer: none has fewer tokens than words and sentence ends.
MIN_SPAN_WORDS = 32

# English has about 4.5 characters a token, tables fewer: 1300 tokens or more, which fill a window of 1024.
MIN_CHARACTERS = 6000
HIGHEST_NOISE = 0.25

MIN_PASSAGES = 50
PASSAGE_WORDS = range(40, 200)
FUNCTION_LINES = range(6, 36)
MODULES = (
    *("argparse", "bisect", "calendar", "configparser", "csv", "difflib", "fractions", "ftplib", "gettext", "heapq"),
    *("inspect", "mailbox", "pprint", "shutil", "statistics", "string", "tarfile", "textwrap", "tokenize", "zipfile"),
)

OCR_CONFUSIONS = (
    *(("rn", "m"), ("m", "rn"), ("l", "1"), ("o", "0"), ("cl", "d"), ("e", "c"), ("i", "l"), ("S", "5"), ("h", "b")),
    *(("vv", "w"), ("w", "vv"), ("B", "8"), ("fi", "f1"), ("n", "ri"), ("t", "f")),
)
NEIGHBOURING_KEYS = {
    letter: row[max(0, column - 1) : column] + row[column + 1 : column + 2]
    for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm")
    for column, letter in enumerate(row)
}


def read_synthetic(seed: int, documents: int) -> Iterator[tuple[str, str]]:
    """Yield `(name, text)` of so many documents, the recipes in turn. A larger number continues a smaller one.

    A name, such as `synthetic:pairs:0007:seed0`, gives the recipe, the number among its documents, and the seed.
    """
    for index in range(documents):
        recipe, number = RECIPES[index % len(RECIPES)], index // len(RECIPES)
        yield f"synthetic:{recipe}:{number:04}:seed{seed}", synthetic_document(seed, recipe, number)


def synthetic_document(seed: int, recipe: Recipe, number: int) -> str:
    """One document of at least `MIN_CHARACTERS` characters: groups of paragraphs, blank lines between paragraphs."""
    draw = random.Random(f"{seed}:{recipe}:{number}")
    # Pairs and tables count the blank lines and end in one; the others end in a newline.
    blank = "\n\n" if recipe in ("pairs", "tables") else ""
    paragraphs: list[str] = []
    while sum(len(paragraph) + len(blank) for paragraph in paragraphs) < MIN_CHARACTERS:
        paragraphs += _GROUPS[recipe](draw)
    return "\n\n".join(paragraphs) + (blank or "\n")


def synthetic_identity() -> dict[str, Any]:
    """Version of the recipes and identity of the installation's text, which decide the documents beside the seed."""
    return {"recipe_version": RECIPE_VERSION, "installation": installation_identity()}


@dataclass(frozen=True)
class Family:
    """A situation of an adversarial pair: `setting`, then `key`, whose value `{x}` decides `continuation`.

    `values` is what `{x}` may be: numbers from the first to before the second, of equally many digits; the name of a
    list of words; or the word that negates the key sentence. A negation has two outcomes, `{y}`: of the negated
    sentence, and of the other one.
    """

    setting: str
    key: str
    values: Sequence[int] | str
    continuation: str
    outcomes: Sequence[str] = ("", "")


@dataclass(frozen=True)
class Templates:
    """Lists of words by name, and sentences with the names of such lists in braces."""

    words: dict[str, list[str]]
    fillers: list[str]
    connectors: list[str]
    openers: list[str]
    families: dict[PairKind, list[Family]]
    captions: list[str]
    conclusions: list[str]

    def draw_words(self, draw: random.Random) -> dict[str, str]:
        """One word of every list, by the name of the list."""
        return {name: draw.choice(choices) for name, choices in self.words.items()}


@cache
def templates() -> Templates:
    """Content of `templates.yaml`, read at the first call."""
    content = read_yaml(files("gistnet.data").joinpath("templates.yaml").read_text(encoding="utf-8"))
    families = {kind: [Family(**family) for family in listed] for kind, listed in content.pop("families").items()}
    return Templates(families=families, **content)


@dataclass(frozen=True)
class AdversarialPair:
    """Two texts with the same beginning: `prefix + span_a + continuation_a` and `prefix + span_b + continuation_b`.

    Spans and continuations begin with a space, so that the parts are joined as they are, and have the same tokens apart
    and together where a tokenizer attaches a space to the word after it. A span has at least `MIN_SPAN_WORDS` words.
    The spans differ in one word, which is missing from `span_b` in a negation.
    """

    prefix: str
    span_a: str
    span_b: str
    continuation_a: str
    continuation_b: str
    kind: PairKind

    @property
    def texts(self) -> tuple[str, str]:
        """Both whole texts."""
        return self.prefix + self.span_a + self.continuation_a, self.prefix + self.span_b + self.continuation_b


def adversarial_pairs(seed: int, count: int) -> Iterator[AdversarialPair]:
    """Yield `count` pairs, of the three kinds in turn. A larger count continues a smaller one."""
    for number in range(count):
        yield _pair(random.Random(f"{seed}:pair:{number}"), PAIR_KINDS[number % len(PAIR_KINDS)])


def shuffled_pairs(draw: random.Random) -> list[str]:
    """Both texts of one to three pairs in random order, each followed by a sentence that leads to the next text."""
    pairs = [_pair(draw, draw.choice(PAIR_KINDS)) for _ in range(draw.randint(1, 3))]
    texts = [text for pair in pairs for text in pair.texts]
    draw.shuffle(texts)
    return [paragraph for text in texts for paragraph in (text, _sentence(draw, templates().connectors))]


def _pair(draw: random.Random, kind: PairKind) -> AdversarialPair:
    family = draw.choice(templates().families[kind])
    words = templates().draw_words(draw) | {"opener": draw.choice(templates().openers)}
    value_a, value_b = _values(draw, kind, family)
    before, after = _fillers(draw, len(family.key.split()))

    def span(value: str) -> str:
        return "".join(f" {sentence}" for sentence in (*before, _filled(family.key, words, value), *after))

    def continuation(value: str, outcome: str) -> str:
        return " " + _filled(family.continuation, words | {"y": outcome}, value)

    return AdversarialPair(
        prefix=f"{_sentence(draw, templates().fillers)} {family.setting.format_map(words)}",
        span_a=span(value_a),
        span_b=span(value_b),
        continuation_a=continuation(value_a, family.outcomes[0]),
        continuation_b=continuation(value_b, family.outcomes[1]),
        kind=kind,
    )


def _values(draw: random.Random, kind: PairKind, family: Family) -> tuple[str, str]:
    """Words that differ between the spans; in a negation, the second is empty."""
    if not isinstance(family.values, str):
        first, second = draw.sample(range(*family.values), 2)
        return str(first), str(second)
    if kind == "negation":
        return family.values, ""
    names = templates().words[family.values]
    name = draw.choice(names)
    # Of nearly the same length, so that neither continuation is more likely for being shorter.
    return name, draw.choice([other for other in names if other != name and abs(len(other) - len(name)) <= 1])


def _fillers(draw: random.Random, key_words: int) -> tuple[list[str], list[str]]:
    """Sentences before and after the key sentence, so that its position in the span varies."""
    before: list[str] = []
    after: list[str] = []
    n_words = key_words - 1  # the negation is missing from one of the spans
    while n_words < MIN_SPAN_WORDS:
        sentence = _sentence(draw, templates().fillers)
        draw.choice((before, after)).append(sentence)
        n_words += len(sentence.split())
    return before, after


def _sentence(draw: random.Random, sentences: Sequence[str]) -> str:
    return draw.choice(sentences).format_map(templates().draw_words(draw))


def _filled(sentence: str, words: dict[str, str], value: str) -> str:
    if not value:
        sentence = sentence.replace("{x} ", "")
    return sentence.format_map(words | {"x": value})


def _repeated(draw: random.Random) -> list[str]:
    """A passage twice and once with a few words changed, around a passage that is not repeated and a list."""
    passage, fresh = draw.sample(prose_passages(), 2)
    group = [passage, passage, fresh, _slightly_changed(draw, passage), _recurring_list(draw)]
    draw.shuffle(group)
    return group


def _slightly_changed(draw: random.Random, passage: str) -> str:
    """The passage with one to three words replaced."""
    words = passage.split(" ")
    for index in draw.sample(range(len(words)), draw.randint(1, 3)):
        words[index] = draw.choice(templates().words[draw.choice(("object", "trade", "colour", "town"))])
    return " ".join(words)


def _recurring_list(draw: random.Random) -> str:
    """A list whose few entries recur with other weekdays and numbers."""
    words = templates().words
    entries = [f"{goods}, {draw.choice(words['colour'])}" for goods in draw.sample(words["goods"], draw.randint(3, 5))]
    days = draw.choices(words["weekday"], k=draw.randint(8, 14))
    return "\n".join(f"- {day}: {draw.randint(1, 4)} {draw.choice(entries)}" for day in days)


def _noisy(draw: random.Random) -> list[str]:
    """A passage of prose, damaged at its own rate."""
    return [add_noise(draw.choice(prose_passages()), draw.uniform(0, HIGHEST_NOISE), draw)]


def _tables(draw: random.Random) -> list[str]:
    """A caption, a table in one of four formats, and a sentence that can be computed from it."""
    table = make_table(draw)
    words = {name: draw.choice(templates().words[name]) for name in ("trade", "place")}
    caption = draw.choice(templates().captions).format(title=table.title, **words)
    text = draw.choice((as_markdown, as_csv, as_aligned, as_json))(table)
    column = draw.choice(table.total_columns)
    label, numbers = max(table.rows, key=lambda row: row[1][column])
    name = table.header[column + 1]
    conclusion = draw.choice(templates().conclusions).format(
        column=name, total=table.totals[name], largest=numbers[column], label=label.lower(), rows=len(table.rows)
    )
    return [caption, text, conclusion]


def _interleaved(draw: random.Random) -> list[str]:
    """Two passages of prose, one of code, and a table with its sentences, in random order."""
    code = f"```python\n{draw.choice(code_passages())}\n```"
    group = [*draw.sample(prose_passages(), 2), code, "\n\n".join(_tables(draw))]
    draw.shuffle(group)
    return group


_GROUPS: dict[Recipe, Callable[[random.Random], list[str]]] = {
    "pairs": shuffled_pairs,
    "repeated": _repeated,
    "noisy": _noisy,
    "tables": _tables,
    "interleaved": _interleaved,
}


@cache
def prose_passages() -> tuple[str, ...]:
    """Paragraphs of Python's manual, each on one line, in the manual's order.

    Raises:
        DataError: this Python was installed without its manual.
    """
    passages: dict[str, None] = {}
    for name, text in read_installation("narrative"):
        if not name.startswith("pydoc:"):
            break  # the manual comes first
        for block in text.split("\n\n"):
            paragraph = " ".join(block.split())
            if len(paragraph.split()) in PASSAGE_WORDS and _is_prose(paragraph):
                passages[paragraph] = None
    return _enough(passages, "paragraphs in its manual (pydoc_data)")


@cache
def code_passages() -> tuple[str, ...]:
    """Top-level functions of well-known modules of the standard library.

    Raises:
        DataError: this Python was installed without the source code of its library.
    """
    wanted = {f"stdlib:{module}.py" for module in MODULES}
    passages: dict[str, None] = {}
    for name, source in read_installation("code"):
        if name in wanted:
            lines = source.splitlines()
            for node in ast.parse(source).body:
                if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 in FUNCTION_LINES:
                    passages["\n".join(lines[node.lineno - 1 : node.end_lineno])] = None
    return _enough(passages, "functions in the source code of its standard library")


def _is_prose(paragraph: str) -> bool:
    """Tell a full sentence or more, nearly all letters, from grammar and code."""
    letters = sum(character.isalpha() or character.isspace() for character in paragraph)
    return paragraph[0].isupper() and paragraph.endswith((".", "!", "?")) and letters > 0.9 * len(paragraph)


def _enough(passages: dict[str, None], what: str) -> tuple[str, ...]:
    if len(passages) < MIN_PASSAGES:
        raise DataError(f"Synthetic documents need at least {MIN_PASSAGES} {what}; this Python has {len(passages)}.")
    return tuple(passages)


def add_noise(text: str, rate: float, draw: random.Random) -> str:
    """Typos, OCR errors, hyphenation and mixed case in about `rate` (0 to 1) of the words.

    A tenth of the damaged words lose the space after them instead.
    """
    pieces = re.split(r"(\s+)", text)  # words and the whitespace between them, by turns
    for index in range(0, len(pieces), 2):
        if draw.random() >= rate:
            continue
        if draw.random() < 0.1 and index + 1 < len(pieces):
            pieces[index + 1] = ""
        else:
            pieces[index] = _damaged(pieces[index], draw)
    return "".join(pieces)


def _damaged(word: str, draw: random.Random) -> str:
    """The word with one random damage; unchanged where it is too short or has no letter that the damage needs."""
    damage = draw.choice(("swap", "drop", "double", "mistype", "misread", "misread", "hyphenate", "change case"))
    match damage:
        case "swap" if len(word) > 1:
            i = draw.randrange(len(word) - 1)
            return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        case "drop" if len(word) > 1:
            i = draw.randrange(len(word))
            return word[:i] + word[i + 1 :]
        case "double" if word:
            i = draw.randrange(len(word))
            return word[:i] + word[i] + word[i:]
        case "mistype" if typed := [i for i, letter in enumerate(word) if letter in NEIGHBOURING_KEYS]:
            i = draw.choice(typed)
            return word[:i] + draw.choice(NEIGHBOURING_KEYS[word[i]]) + word[i + 1 :]
        case "misread" if possible := [(seen, read) for seen, read in OCR_CONFUSIONS if seen in word]:
            return word.replace(*draw.choice(possible), 1)
        case "hyphenate" if len(word) > 3:
            i = draw.randrange(len(word) - 3) + 2
            return f"{word[:i]}-\n{word[i:]}"
        case "change case":
            return draw.choice((str.upper, str.lower, str.swapcase, str.title))(word)
    return word


@dataclass(frozen=True)
class Table:
    """A label and integers for each row; the last row is the total of `total_columns`, counted among the integers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    total_columns: tuple[int, ...]

    @property
    def totals(self) -> dict[str, int]:
        """Sum of each of `total_columns`, by its name."""
        return {self.header[column + 1]: sum(row[column] for _, row in self.rows) for column in self.total_columns}

    @property
    def cells(self) -> list[list[str]]:
        """Header, rows and totals as text; a column that is not summed has an empty total."""
        body = [[label, *map(str, numbers)] for label, numbers in self.rows]
        last = ["Total", *(str(self.totals.get(name, "")) for name in self.header[1:])]
        return [list(self.header), *body, last]


def make_table(draw: random.Random) -> Table:
    """A table of amounts by month with row totals, or of quantities, prices and their products."""
    words = templates().words
    labels = [name.capitalize() for name in draw.sample(words["goods"], draw.randint(4, 9))]
    place, town = draw.choice(words["place"]), draw.choice(words["town"])
    year = draw.randint(1880, 2020)
    if draw.random() < 0.5:
        first, columns = draw.randrange(12), draw.randint(2, 5)
        months = [words["month"][(first + offset) % 12] for offset in range(columns)]
        top = draw.choice((90, 900, 9000))
        amounts = [tuple(draw.randint(1, top) for _ in months) for _ in labels]
        rows = tuple((label, (*row, sum(row))) for label, row in zip(labels, amounts, strict=True))
        title = f"sales of the {place} in {town} by month, {year}"
        return Table(title, ("Item", *months, "Total"), rows, tuple(range(columns + 1)))
    orders = [(draw.randint(1, 60), draw.randint(2, 150)) for _ in labels]
    rows = tuple((label, (n, price, n * price)) for label, (n, price) in zip(labels, orders, strict=True))
    title = f"orders of the {place} in {town}, {year}"
    return Table(title, ("Item", "Quantity", "Unit price", "Amount"), rows, (0, 2))


def as_markdown(table: Table) -> str:
    """A Markdown table, numbers aligned to the right."""
    header, *rows = ["| " + " | ".join(cells) + " |" for cells in table.cells]
    return "\n".join([header, "| --- |" + " ---: |" * (len(table.header) - 1), *rows])


def as_csv(table: Table) -> str:
    """Comma-separated values with a header."""
    return "\n".join(",".join(cells) for cells in table.cells)


def as_aligned(table: Table) -> str:
    """Columns of equal width, two spaces apart, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table.cells, strict=True)]
    lines = []
    for label, *numbers in table.cells:
        cells = [label.ljust(widths[0]), *(n.rjust(width) for n, width in zip(numbers, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def as_json(table: Table) -> str:
    """An object with the title, a record for each row, and the totals."""
    names = [name.lower().replace(" ", "_") for name in table.header]
    records = [dict(zip(names, (label, *numbers), strict=True)) for label, numbers in table.rows]
    totals = {name.lower().replace(" ", "_"): total for name, total in table.totals.items()}
    return json.dumps({"title": table.title, "rows": records, "totals": totals}, indent=1)
