"""Adversarial pairs: nearly identical spans that must give different gists (spec, Stage 3: Mixed & Adversarial).

The two spans of a pair differ in one number, one name or one negation; what follows depends on it. A gist that only
holds the topic of its span cannot tell the two apart.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gistnet.data.templates import PAIR_KINDS, Family, PairKind, templates

# More than 32 tokens, the default span, of any tokenizer: none has fewer tokens than words and sentence ends.
MIN_SPAN_WORDS = 32


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
