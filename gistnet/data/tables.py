"""Numerical tables whose totals can be computed from their rows, as Markdown, CSV, aligned text and JSON."""

import json
import random
from dataclasses import dataclass

from gistnet.data.words import WORDS

CAPTIONS = (
    "The table lists the {title}; the last row adds up the columns.",
    "These are the {title}, as they were entered by the {trade}, with totals.",
    "The {trade} of the {place} recorded the {title}. Totals are given at the end.",
    "An overview of the {title} follows, with the sums that were reported to the {trade}.",
)


@dataclass(frozen=True)
class Table:
    """A label and integers for each row; the last row is the total of `total_columns`, counted among the integers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    total_columns: tuple[int, ...]

    @property
    def totals(self) -> dict[str, int]:
        """The sum of each column that is summed."""
        return {self.header[column + 1]: sum(row[column] for _, row in self.rows) for column in self.total_columns}

    @property
    def cells(self) -> list[list[str]]:
        """Header, rows and totals as text; a column that is not summed has an empty total."""
        body = [[label, *map(str, numbers)] for label, numbers in self.rows]
        last = ["Total", *(str(self.totals.get(name, "")) for name in self.header[1:])]
        return [list(self.header), *body, last]


def make_table(draw: random.Random) -> Table:
    """A table of amounts by month with row totals, or of quantities, prices and what they amount to."""
    labels = [name.capitalize() for name in draw.sample(WORDS["goods"], draw.randint(4, 9))]
    place, town = draw.choice(WORDS["place"]), draw.choice(WORDS["town"])
    year = draw.randint(1880, 2020)
    if draw.random() < 0.5:
        first, columns = draw.randrange(12), draw.randint(2, 5)
        months = [WORDS["month"][(first + offset) % 12] for offset in range(columns)]
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
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in table.cells
    )


def as_json(table: Table) -> str:
    """An object with the title, a record for each row, and the totals."""
    names = [name.lower().replace(" ", "_") for name in table.header]
    records = [dict(zip(names, (label, *numbers), strict=True)) for label, numbers in table.rows]
    totals = {name.lower().replace(" ", "_"): total for name, total in table.totals.items()}
    return json.dumps({"title": table.title, "rows": records, "totals": totals}, indent=1)


FORMATS = (as_markdown, as_csv, as_aligned, as_json)


def table_section(draw: random.Random) -> str:
    """A caption, a table in one of the formats, and a sentence that can be computed from it."""
    table = make_table(draw)
    words = {name: draw.choice(WORDS[name]) for name in ("trade", "place")}
    caption = draw.choice(CAPTIONS).format(title=table.title, **words)
    return f"{caption}\n\n{draw.choice(FORMATS)(table)}\n\n{_conclusion(draw, table)}"


def tables_document(draw: random.Random, characters: int) -> str:
    """Sections with tables, one after another: `characters` or somewhat more."""
    document = ""
    while len(document) < characters:
        document += table_section(draw) + "\n\n"
    return document


def _conclusion(draw: random.Random, table: Table) -> str:
    column = draw.choice(table.total_columns)
    name = table.header[column + 1]
    label, largest = max(table.rows, key=lambda row: row[1][column])
    return draw.choice(
        (
            f"The column {name} adds up to {table.totals[name]}.",
            f"The largest value in the column {name} is {largest[column]}, for {label.lower()}.",
            f"Together, the {len(table.rows)} items give {table.totals[name]} in the column {name}.",
        )
    )
