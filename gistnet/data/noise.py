"""Damage to text as typists, scanners and careless converters do it: typos, OCR errors, lost spaces, mixed case."""

import random
import re
from collections.abc import Callable

OCR_CONFUSIONS = (
    *(("rn", "m"), ("m", "rn"), ("l", "1"), ("o", "0"), ("cl", "d"), ("e", "c"), ("i", "l"), ("S", "5"), ("h", "b")),
    *(("vv", "w"), ("w", "vv"), ("B", "8"), ("fi", "f1"), ("n", "ri"), ("t", "f")),
)
KEYBOARD_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def add_noise(text: str, rate: float, draw: random.Random) -> str:
    """Damage about `rate` (0 to 1) of the words, each in one way; a tenth of them lose the space after them.

    A word that the chosen damage cannot befall, such as a number that a slip on the keyboard misses, stays as it is.
    """
    damages = (_swap_letters, _drop_letter, _double_letter, _slip_key, _misread, _misread, _hyphenate, _change_case)
    pieces = re.split(r"(\s+)", text)  # words and the whitespace between them, by turns
    for place in range(0, len(pieces), 2):
        if draw.random() >= rate:
            continue
        if draw.random() < 0.1 and place + 1 < len(pieces):
            pieces[place + 1] = ""
        else:
            pieces[place] = draw.choice(damages)(pieces[place], draw)
    return "".join(pieces)


def _at_random_place(edit: Callable[[str, int], str], word: str, draw: random.Random, last: int) -> str:
    return edit(word, draw.randrange(last)) if last > 0 else word


def _swap_letters(word: str, draw: random.Random) -> str:
    return _at_random_place(lambda w, i: w[:i] + w[i + 1] + w[i] + w[i + 2 :], word, draw, len(word) - 1)


def _drop_letter(word: str, draw: random.Random) -> str:
    return _at_random_place(lambda w, i: w[:i] + w[i + 1 :], word, draw, len(word) if len(word) > 1 else 0)


def _double_letter(word: str, draw: random.Random) -> str:
    return _at_random_place(lambda w, i: w[:i] + w[i] + w[i:], word, draw, len(word))


def _slip_key(word: str, draw: random.Random) -> str:
    places = [place for place, letter in enumerate(word) if any(letter in row for row in KEYBOARD_ROWS)]
    if not places:
        return word
    place = draw.choice(places)
    row = next(row for row in KEYBOARD_ROWS if word[place] in row)
    column = row.index(word[place])
    return (
        word[:place] + draw.choice(row[max(0, column - 1) : column] + row[column + 1 : column + 2]) + word[place + 1 :]
    )


def _misread(word: str, draw: random.Random) -> str:
    possible = [(seen, read) for seen, read in OCR_CONFUSIONS if seen in word]
    return word.replace(*draw.choice(possible), 1) if possible else word


def _hyphenate(word: str, draw: random.Random) -> str:
    """Break a word over two lines."""
    return _at_random_place(lambda w, i: f"{w[: i + 2]}-\n{w[i + 2 :]}", word, draw, len(word) - 3)


def _change_case(word: str, draw: random.Random) -> str:
    return draw.choice((str.upper, str.lower, str.swapcase, str.title))(word)
