"""Kinds of tokens by the word they belong to: numbers, names, …, so that losses can be split by kind.

Judged by the text alone, with rules that anyone can check; made for English prose, and a sketch for anything else.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

Kind = Literal["numbers", "names", "punctuation", "common words", "other words"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# A number begins with a digit ("3.14", "1,000", "12:30", "20th"); an apostrophe joins the parts of a word ("don't").
_WORD = re.compile(r"(?P<number>\d\w*(?:[.,:]\d\w*)*)|[^\W\d_]\w*(?:['’][^\W\d_]\w*)*")
# What lies between two words, where the second begins a sentence: an end, direct speech, an empty line.
_SENTENCE_BREAK = re.compile(r"[.!?…]|[,:]\s*[\"“‘«]|\n\s*\n")
# A full stop after these ends no sentence; nor does one after an initial.
_ABBREVIATIONS = frozenset(
    {"Mr", "Mrs", "Ms", "Dr", "Prof", "St", "Capt", "Col", "Gen", "Rev", "Lt", "Sgt", "Messrs", "Hon"}
)

_FUNCTION_WORDS = """
    a an the this that these those
    i me my mine myself you your yours yourself yourselves he him his himself she her hers herself it its itself
    we us our ours ourselves they them their theirs themselves one oneself
    who whom whose which what whoever whatever whichever
    anybody anyone anything everybody everyone everything nobody none nothing somebody someone something
    all another any both each either enough every few fewer less little many more most much neither no other others
    own same several some such
    about above across after against along amid among around as at before behind below beneath beside besides between
    beyond by concerning despite down during except for from in inside into like near of off on onto opposite out
    outside over past per since than through throughout till to toward towards under underneath unlike until up upon
    via with within without
    and but or nor so yet if because although though unless whereas whether while when whenever where wherever why how
    am is are was were be been being have has had having do does did doing done
    can could may might must shall should will would ought cannot
    not never ever also too very quite rather just only even still already again once then there here now thus hence
    therefore however perhaps almost
"""
COMMON_WORDS = frozenset(_FUNCTION_WORDS.split())
"""English function words: articles, pronouns, determiners, prepositions, conjunctions, auxiliaries, plain adverbs."""


def token_kinds(tokens: Sequence[str]) -> list[Kind]:
    """The kind of each token, given the text of each; joined, they are a text.

    A token is of the kind of the word that its first visible character belongs to, so that one that continues a word is
    of that word's kind. Kinds, the first that fits:

    - numbers: words that begin with a digit (not "seven"), with the points, commas and colons between digits;
    - punctuation: what is in no word, white space included;
    - common words: `COMMON_WORDS` and their contractions, however capitalised;
    - names: capitalised words that do not begin a sentence (the text's first word does);
    - other words: the rest.

    A token without text of its own is a part of the next one's first character.
    """
    text = "".join(tokens)
    of_character: list[Kind] = ["punctuation"] * len(text)
    for start, end, kind in _words(text):
        of_character[start:end] = [kind] * (end - start)
    kinds: list[Kind] = []
    start = 0
    for token in tokens:
        blank = len(token) - len(token.lstrip())
        visible = start + (blank if blank < len(token) else 0)
        kinds.append(of_character[visible] if token else "punctuation")
        start += len(token)
    for index in reversed(range(len(tokens) - 1)):
        if not tokens[index]:
            kinds[index] = kinds[index + 1]
    return kinds


def _words(text: str) -> Iterator[tuple[int, int, Kind]]:
    """Start, end and kind of each word of a text."""
    before: re.Match[str] | None = None
    for word in _WORD.finditer(text):
        yield word.start(), word.end(), _kind(word, begins_sentence=_begins_sentence(text, before, word))
        before = word


def _kind(word: re.Match[str], *, begins_sentence: bool) -> Kind:
    if word["number"]:
        return "numbers"
    lower = word[0].lower().replace("’", "'")
    if lower in COMMON_WORDS or lower.endswith("n't") or lower.partition("'")[0] in COMMON_WORDS:
        return "common words"
    return "names" if lower[0] != word[0][0] and not begins_sentence else "other words"


def _begins_sentence(text: str, before: re.Match[str] | None, word: re.Match[str]) -> bool:
    if before is None:
        return True
    between = text[before.end() : word.start()]
    if between.startswith(".") and (before[0] in _ABBREVIATIONS or (len(before[0]) == 1 and before[0].isupper())):
        between = between[1:]
    return _SENTENCE_BREAK.search(between) is not None
