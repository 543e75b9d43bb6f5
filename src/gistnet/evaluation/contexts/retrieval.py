"""Questions whose answer stands far back: a fact stated once, a row of a list, a passage that comes again, and others.

In `fact`, `list` and `passage` the question repeats the words before its answer. In `paraphrase` it repeats none of
them, and in `name` a person's name has another form. In `hops` it leads to one sentence, and that one to another. In
`last` a value changes, and the latest counts.

The filler is real text, the rest is made from a seed. What decides stands in the first half of the context, where every
truncated context has a gap; the wrong answers stand there too, so that it is not enough to know which words occurred.
The teacher is right where the mean NLL of the right answer is the lowest of four. With the whole text it nearly always
is in the kinds that repeat words; a truncated context has lost what decides, and chance is one in four. SmolLM2-135M
is right, with the whole text of 1,024 or 1,536 tokens, in 12 of 12 names, 9 of 12 hops and 24 of 34 paraphrases. In
`last` it is right in 3 of 12, no more than chance: that kind is for larger teachers.
"""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gistnet.context.assembly import assemble
from gistnet.context.plan import Plan
from gistnet.context.selectors import Hit, by_words, fused
from gistnet.context.states import ByStates
from gistnet.data.synthetic import templates
from gistnet.errors import DataError, TeacherError
from gistnet.evaluation.baselines import other_documents
from gistnet.evaluation.config import DEFAULT_CASE_KINDS, CaseKind, EvaluationConfig
from gistnet.evaluation.contexts.equal_budget import (
    Evidence,
    budget_record,
    compare,
    highest_level,
    mean_nll,
    opened_plans,
    opens,
    share_right,
)
from gistnet.evaluation.metrics import Floats
from gistnet.evaluation.records import MetricRecord
from gistnet.model.teacher import Teacher
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.objective.branches import Positions
from gistnet.tree.document import InMemoryDocument, compress
from gistnet.tree.encoder import Encoder

logger = logging.getLogger(__name__)

DOMAIN = "synthetic"
ANSWERS = 4
RECALLED = (1, 4, 16)
"""Numbers of passages whose recall is told."""

LIST_ROWS = 10
LIST_HEADS = (
    "Goods counted at the {place} in {town}:",
    "The {trade} of {town} wrote down what lay in the {place}:",
    "Delivered to the {place} in {town} for {person} {surname}:",
)
PASSAGE_TOKENS, PASSAGE_ANSWER_TOKENS = 48, 16


class _Fact(NamedTuple):
    """A sentence that ends in a value, and where its values come from: a list of words, or None for numbers."""

    text: str
    values: str | None


# The name stands right before the value: so a small model can look it up where it has the full text.
FACTS = (
    _Fact("The {object} of the {trade} was last seen in {town}, and the home town of {person} {surname} is", "town"),
    _Fact("Whoever wants to enter the {place} needs the password of {person} {surname}, which is", None),
    _Fact("The {trade} lives in the {place}, and the best friend of {person} {surname} is", "person"),
    _Fact("Near the {place} in {town}, the favourite animal of {person} {surname} is the", "animal"),
)
MENTION = "There was also talk of {}, of {} and of {}, but nobody could say why."


class _Paraphrase(NamedTuple):
    """A sentence, and a question that shares no content word with it and ends right before the value."""

    said: str
    question: str


# By the list of words that values come from; None for numbers. Only lists and sentences of which SmolLM2-135M answers
# most questions in a text of 400 tokens: of towns, colours and people it names the one that is likely anyway.
PARAPHRASES: dict[str | None, tuple[_Paraphrase, ...]] = {
    "animal": (
        _Paraphrase(
            "The old lighthouse keeper bought the {}.",
            "Which creature did the man who tends the beacon acquire? He acquired the",
        ),
        _Paraphrase(
            "The widow next door is afraid of the {}.",
            "Which beast scares the lady whose husband died? She is scared of the",
        ),
        _Paraphrase(
            "The groom was given the {} at his wedding.",
            "Which present did the new husband get on the day he married? He got the",
        ),
        _Paraphrase(
            "The priest found the {} asleep in the crypt.",
            "What did the clergyman discover below the church? He discovered the",
        ),
        _Paraphrase(
            "The burglars were chased away by the {}.",
            "Who made the thieves flee? They fled from the",
        ),
    ),
    None: (
        _Paraphrase(
            "The summit of the mountain is {} feet above the sea.",
            "What altitude does the peak have? Its altitude is",
        ),
        _Paraphrase(
            "The novelist wrote {} pages.",
            "How long is the author's book, in sheets of paper? Its length is",
        ),
        _Paraphrase(
            "The rebels killed {} soldiers.",
            "How many troops died in the uprising? The number of dead troops is",
        ),
        _Paraphrase(
            "The ticket to the opera cost {} francs.",
            "What did they pay to hear the singers on stage? The price was",
        ),
        _Paraphrase(
            "The widow inherited {} dollars.",
            "How much money did the lady get when her husband died? She got",
        ),
        _Paraphrase(
            "The farmer sold {} eggs.",
            "How many things laid by hens found a buyer? The number is",
        ),
        _Paraphrase(
            "The expedition walked {} miles.",
            "Which distance did the explorers cover on foot? The distance is",
        ),
    ),
    "weekday": (
        _Paraphrase(
            "The package from their aunt arrived on {}.",
            "When was the relative's parcel delivered? It was delivered on",
        ),
        _Paraphrase(
            "The trial of the poacher begins on {}.",
            "When does the court start hearing the case against the illegal hunter? It starts on",
        ),
        _Paraphrase(
            "The baby was born on {}.",
            "When did the mother give birth? She gave birth on",
        ),
    ),
}

SHORT_NAMES = {
    "Abigail": "Abby", "Andrew": "Andy", "Benjamin": "Ben", "Charles": "Chuck", "Deborah": "Debbie", "Edward": "Ned",
    "Frances": "Fanny", "Gerald": "Jerry", "Harold": "Hal", "Isabella": "Bella", "James": "Jim", "Katherine": "Kate",
    "Lawrence": "Larry", "Margaret": "Maggie", "Nicholas": "Nick", "Patricia": "Patty", "Robert": "Bob",
    "Susan": "Sue", "Theodore": "Ted", "Victoria": "Vicky", "William": "Bill",
}  # fmt: skip
TITLES = ("Dr.", "Professor", "Captain", "Judge")
NAME_FORMS = ("{short} {surname}", "{surname}, {initial}.", "{initial}. {surname}")
NAME_FACTS = ("The room number of {} is", "The password of {} is", "The salary of {} is")

RESIDENCE, PASSWORD = "{} lives in the {}.", "The password of the {} is {}."
HOPS_MENTION = "There was also talk of {} and of {}, but nobody could say why."
HOPS_QUESTION = "Question: What is the password of the place where {0} lives?\nAnswer: {0} lives in the"

LATEST_FIRST = ("Finally,", "After that,", "Later,", "At first,")
LATEST_ASKED = "In the end,"
CHANGES = (
    _Fact("the {} was moved to", "town"),
    _Fact("the {} was painted", "colour"),
)


@dataclass(frozen=True)
class RetrievalCase:
    """One case as token ids: after `context` and `question` comes the first of `answers`, and none of the others.

    `evidence` are the ranges of the context, start and end, that tell which answer is right.
    """

    kind: CaseKind
    context: list[int]
    question: list[int]
    answers: tuple[list[int], ...]
    evidence: tuple[tuple[int, int], ...]


def retrieval(
    teacher: Teacher, encoder: Encoder, filler: Sequence[NDArray[np.int64]], config: EvaluationConfig
) -> list[MetricRecord]:
    """Ask for what stands far back in passages of the filler, token ids of documents.

    Returns:
        `retrieval_accuracy` and `retrieval_nll` (of the right answer) for each policy and budget, of all cases and of
        each kind; with all contexts of `equal_budget`, and `chance`. `retrieval_gain_with_gists` and
        `retrieval_gain_by_meaning`, the share of right answers that they have above `retrieved`, paired. And
        `retrieval_recall`, the share of the evidence in the first passages by words, `index` of them; its baseline
        `by_meaning` ranks by both.

    Raises:
        TeacherError: the teacher has no tokenizer.
        DataError: the filler is too short.
        ConfigError: a context is longer than the teacher's positions, or a budget leaves nothing beside the sink.
    """
    if teacher.tokenizer is None:
        raise TeacherError(f"{teacher.name} has no tokenizer, expected one to make cases for retrieval.")
    contexts, budgets = config.contexts, config.contexts.question_tokens_per_vector
    cases = retrieval_cases(
        teacher.tokenizer,
        filler,
        count=contexts.retrieval_cases,
        context_tokens=contexts.retrieval_tokens,
        seed=config.seed,
        kinds=contexts.retrieval_kinds,
    )
    documents = [compress(case.context, encoder) for case in cases]
    borrowed = other_documents(torch.arange(len(cases)), config.seed).tolist()
    by_meaning = fused(by_words, ByStates(teacher))
    asked, recalled = [], []
    for number, (case, compressed) in enumerate(zip(cases, documents, strict=True)):
        logger.info("Asking for a %s, case %d of %d.", case.kind, number + 1, len(cases))

        def answered(of: InMemoryDocument, plan: Plan, policy: Positions, case: RetrievalCase = case) -> Floats:
            context = assemble(of, plan, teacher, positions=policy, after=case.question)
            return mean_nll(teacher, context, case.answers)

        question, other = teacher.tokenizer.decode(case.question), documents[borrowed[number]]
        opened = partial(
            opened_plans,
            teacher.tokenizer,
            compressed,
            question,
            sink_tokens=config.sink_tokens,
            by_meaning=by_meaning,
            oracle=opens(case.evidence),
        )
        asked.append(compare(teacher, compressed, other, config, budgets, answered, opened))
        ranked = [search(compressed, question, teacher.tokenizer) for search in (by_words, by_meaning)]
        recalled.append([[recall(hits[:most], case.evidence) for hits in ranked] for most in RECALLED])

    kinds = np.array([case.kind for case in cases])
    groups = {"": np.arange(len(cases))} | {kind: np.flatnonzero(kinds == kind) for kind in contexts.retrieval_kinds}
    records = []
    for (policy, budget), (kind, rows) in product(product(config.positions, budgets), groups.items()):
        if not len(rows):
            continue
        nll = {name: np.stack([asked[row][budget, policy][name] for row in rows]) for name in asked[0][budget, policy]}
        right = {name: np.array([share_right(of_case, 0) for of_case in answers]) for name, answers in nll.items()}
        right["chance"] = np.full(len(rows), 1 / ANSWERS)
        cost = {name: answers[:, 0].copy() for name, answers in nll.items()}
        level = highest_level(documents, budget, config.sink_tokens)
        fields = {"domain": DOMAIN, "kind": kind, "tokens_per_vector": budget, "positions": policy, "level": level}
        for name, columns in (("retrieval_accuracy", right), ("retrieval_nll", cost)):
            gist = columns.pop("gist")
            records.append(budget_record(name, gist, rows, fields, config, baselines=columns))
        for name in ("with_gists", "by_meaning"):
            gain = f"retrieval_gain_{name}", right[name], rows, fields, config
            records.append(budget_record(*gain, statistic=np.subtract, given=(right["retrieved"],)))
    for (kind, rows), (column, most) in product(groups.items(), enumerate(RECALLED)):
        if len(rows):
            words, meaning = np.array([recalled[row][column] for row in rows]).T
            fields = {"domain": DOMAIN, "kind": kind, "index": most, "positions": config.positions[0]}
            others = {"by_meaning": meaning}
            records.append(budget_record("retrieval_recall", words, rows, fields, config, baselines=others))
    return records


def recall(hits: Sequence[Hit], evidence: Evidence) -> float:
    """Share of the evidence, range by range, of which a hit holds some."""
    found = [any(hit.passage.start < stop and start < hit.passage.stop for hit in hits) for start, stop in evidence]
    return sum(found) / len(found)


def retrieval_cases(
    tokenizer: TeacherTokenizer,
    filler: Sequence[NDArray[np.int64]],
    *,
    count: int,
    context_tokens: int,
    seed: int,
    kinds: Sequence[CaseKind] = DEFAULT_CASE_KINDS,
) -> list[RetrievalCase]:
    """`count` cases, of the kinds in turn, each in a passage of the next filler. More cases begin with fewer.

    Raises:
        DataError: a document of the filler is shorter than `context_tokens`, there is none, or the tokenizer makes too
            many tokens of what a case inserts.
    """
    if not filler or (shortest := min(map(len, filler))) < context_tokens:
        got = f"one of {shortest} tokens" if filler else "none"
        raise DataError(f"Retrieval cases need filler documents of {context_tokens} tokens at least; got {got}.")
    cases = []
    for number in range(count):
        draw = random.Random(f"{seed}:retrieval:{number}")
        document = filler[number % len(filler)]
        start = draw.randint(0, len(document) - context_tokens)
        text = document[start : start + context_tokens].tolist()
        cases.append(_MAKE[kinds[number % len(kinds)]](draw, tokenizer, text))
    return cases


def _fact(draw: random.Random, tokenizer: TeacherTokenizer, text: list[int]) -> RetrievalCase:
    """A fact is stated once and asked for; the wrong values are mentioned elsewhere, of nobody."""
    fact = draw.choice(FACTS)
    value, *others = _values(draw, fact.values)
    said = fact.text.format_map({key: draw.choice(words) for key, words in templates().words.items()})
    decisive = f"{said} {value}."
    sentences = [decisive, MENTION.format(*others)]
    draw.shuffle(sentences)
    return _stated("fact", draw, tokenizer, text, sentences, [decisive], said, [value, *others])


def _list(draw: random.Random, tokenizer: TeacherTokenizer, text: list[int]) -> RetrievalCase:
    """A list of numbers by name; one is looked up, and the numbers of other rows are wrong."""
    words = {key: draw.choice(templates().words[key]) for key in ("place", "town", "trade", "person", "surname")}
    head = draw.choice(LIST_HEADS).format_map(words)
    labels = draw.sample(templates().words["goods"], LIST_ROWS)
    numbers = draw.sample(range(100, 1000), LIST_ROWS)
    rows = [f"- {label}: {number}" for label, number in zip(labels, numbers, strict=True)]
    asked, *others = draw.sample(range(LIST_ROWS), ANSWERS)
    (inserted,) = tokenizer.encode_batch(["\n".join(["\n", head, *rows, "\n"])], continued=True)
    question, answers = tokenizer.encode_alternatives(
        f"\n\n{head}\n- {labels[asked]}:", [f" {numbers[row]}" for row in (asked, *others)], continued=True
    )
    context, ((offset, _),) = _with(draw, text, [inserted])
    start, end = _tokens_of(rows[asked], inserted, tokenizer)
    return RetrievalCase("list", context, question, tuple(answers), ((offset + start, offset + end),))


def _passage(draw: random.Random, tokenizer: TeacherTokenizer, text: list[int]) -> RetrievalCase:
    """A passage of the text comes again and goes on as before; wrong is what followed later in the same text."""
    (again,) = tokenizer.encode_batch(["\n\n"], continued=True)
    spacing = PASSAGE_TOKENS + PASSAGE_ANSWER_TOKENS
    start = draw.randint(len(text) // 20, max(len(text) // 20, len(text) // 2 - ANSWERS * spacing))
    ends = [start + PASSAGE_TOKENS + n * spacing for n in range(ANSWERS)]
    answers = tuple(text[end : end + PASSAGE_ANSWER_TOKENS] for end in ends)
    question = [*again, *text[start : start + PASSAGE_TOKENS]]
    return RetrievalCase("passage", text, question, answers, ((start, start + spacing),))


def _paraphrase(draw: random.Random, tokenizer: TeacherTokenizer, text: list[int]) -> RetrievalCase:
    """A sentence is asked for in other words; the wrong values are mentioned elsewhere, of nobody."""
    values = draw.choice(tuple(PARAPHRASES))
    pair = draw.choice(PARAPHRASES[values])
    value, *others = _values(draw, values)
    decisive = pair.said.format(value)
    sentences = [decisive, MENTION.format(*others)]
    draw.shuffle(sentences)
    return _stated("paraphrase", draw, tokenizer, text, sentences, [decisive], pair.question, [value, *others])


def _hops(draw: random.Random, tokenizer: TeacherTokenizer, text: list[int]) -> RetrievalCase:
    """A person's place is said at one end and that place's password at the other, between those of another person.

    Every answer begins with the right place, which the question does not name. Wrong are the other place's password and
    two that are mentioned, of nowhere.
    """
    words = templates().words
    people = [f"{draw.choice(words['person'])} {surname}" for surname in draw.sample(words["surname"], 2)]
    places, numbers = draw.sample(words["place"], 2), _values(draw, None)
    homes = [RESIDENCE.format(person, place) for person, place in zip(people, places, strict=True)]
    passwords = [PASSWORD.format(place, number) for place, number in zip(places, numbers[:2], strict=True)]
    ends, between = [homes[0], passwords[0]], [homes[1], passwords[1], HOPS_MENTION.format(*numbers[2:])]
    draw.shuffle(ends)
    draw.shuffle(between)
    answers = [f"{places[0]}. {PASSWORD.format(places[0], number)}" for number in numbers]
    question = HOPS_QUESTION.format(people[0])
    return _stated("hops", draw, tokenizer, text, [ends[0], *between, ends[1]], ends, question, answers)


def _last(draw: random.Random, tokenizer: TeacherTokenizer, text: list[int]) -> RetrievalCase:
    """A value changes three times, and the latest is asked for; the earlier ones are wrong."""
    changing = draw.choice(CHANGES)
    subject = draw.choice(templates().words["object"])
    answers = _values(draw, changing.values)
    sentences = [
        f"{when} {changing.text.format(subject)} {value}." for when, value in zip(LATEST_FIRST, answers, strict=True)
    ]
    question = f"{LATEST_ASKED} {changing.text.format(subject)}"
    return _stated("last", draw, tokenizer, text, sentences, sentences[:1], question, answers)


def _name(draw: random.Random, tokenizer: TeacherTokenizer, text: list[int]) -> RetrievalCase:
    """A person is asked for by another form of the name; the wrong values are mentioned elsewhere, of nobody."""
    fact, title, first = draw.choice(NAME_FACTS), draw.choice(TITLES), draw.choice(sorted(SHORT_NAMES))
    surname = draw.choice(templates().words["surname"])
    value, *others = _values(draw, None)
    decisive = f"{fact.format(f'{title} {first} {surname}')} {value}."
    sentences = [decisive, MENTION.format(*others)]
    draw.shuffle(sentences)
    form = draw.choice(NAME_FORMS).format(short=SHORT_NAMES[first], initial=first[0], surname=surname)
    return _stated("name", draw, tokenizer, text, sentences, [decisive], fact.format(form), [value, *others])


def _values(draw: random.Random, words: str | None) -> list[str]:
    """Four values of a list of words; of None, numbers of four digits."""
    if words is None:
        return [str(number) for number in draw.sample(range(1000, 10000), ANSWERS)]
    return draw.sample(templates().words[words], ANSWERS)


def _stated(
    kind: CaseKind,
    draw: random.Random,
    tokenizer: TeacherTokenizer,
    text: list[int],
    sentences: list[str],
    decisive: Sequence[str],
    question: str,
    answers: Sequence[str],
) -> RetrievalCase:
    """A case with sentences as paragraphs of their own in its text, from the last to the first."""
    inserted = tokenizer.encode_batch([f"\n\n{sentence}\n\n" for sentence in sentences], continued=True)
    asked, alternatives = tokenizer.encode_alternatives(
        f"\n\n{question}", [f" {answer}" for answer in answers], continued=True
    )
    context, ranges = _with(draw, text, inserted)
    evidence = sorted(ranges[sentences.index(sentence)] for sentence in decisive)
    return RetrievalCase(kind, context, asked, tuple(alternatives), tuple(evidence))


def _with(
    draw: random.Random, text: list[int], inserted: Sequence[list[int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The text with something inserted in its first half, after the first 5 %, and cut at its end to its length.

    The first of the inserted comes last in the text. Where each stands, start and end, is in the order of `inserted`.

    Raises:
        DataError: they do not fit.
    """
    length = len(text)
    last = length // 2 - sum(map(len, inserted))
    if last - length // 20 < len(inserted):
        raise DataError(f"Retrieval cases need contexts longer than {length} tokens for {length // 2 - last} inserted.")
    offsets = sorted(draw.sample(range(length // 20, last), len(inserted)), reverse=True)
    ranges: list[tuple[int, int]] = []
    before = sum(map(len, inserted))
    for offset, tokens in zip(offsets, inserted, strict=True):
        text = [*text[:offset], *tokens, *text[offset:]]
        before -= len(tokens)
        ranges.append((offset + before, offset + before + len(tokens)))
    return text[:length], ranges


def _tokens_of(part: str, tokens: list[int], tokenizer: TeacherTokenizer) -> tuple[int, int]:
    """First token of a part of the tokens' text, and one after the last."""
    texts = tokenizer.texts(tokens)
    ends = np.cumsum([len(text) for text in texts])
    start = "".join(texts).index(part)
    return int(np.searchsorted(ends, start, "right")), int(np.searchsorted(ends, start + len(part))) + 1


_MAKE: dict[CaseKind, Callable[[random.Random, TeacherTokenizer, list[int]], RetrievalCase]] = {
    "fact": _fact,
    "list": _list,
    "passage": _passage,
    "paraphrase": _paraphrase,
    "hops": _hops,
    "last": _last,
    "name": _name,
}
