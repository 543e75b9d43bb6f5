import csv
import hashlib
import io
import json
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from gistnet.data import synthetic
from gistnet.data.config import DataConfig, SourceConfig
from gistnet.data.duplicates import NearDuplicates
from gistnet.data.prepare import dataset_fingerprint, prepare
from gistnet.data.sources import read_documents
from gistnet.data.synthetic import (
    RECIPES,
    AdversarialPair,
    Table,
    add_noise,
    adversarial_pairs,
    as_aligned,
    as_csv,
    as_json,
    as_markdown,
    code_passages,
    make_table,
    prose_passages,
    read_synthetic,
    synthetic_document,
    templates,
)
from gistnet.errors import DataError
from gistnet.model.tokenizer import TeacherTokenizer
from tests.data.byte_tokenizer import ByteTokenizer

HAND_MADE = Table("sales", ("Item", "May", "June", "Total"), (("Hats", (3, 40, 43)), ("Pans", (10, 2, 12))), (0, 1, 2))


def source(**fields: Any) -> SourceConfig:
    return TypeAdapter(SourceConfig).validate_python(
        {"kind": "synthetic", "name": "made", "domain": "narrative", "max_documents": 10, **fields}
    )


def edit_distance(first: str, second: str) -> int:
    """Levenshtein's distance, row by row (Wagner and Fischer, 1974)."""
    row = list(range(len(second) + 1))
    for place, letter in enumerate(first, start=1):
        diagonal, row[0] = row[0], place
        for column, other in enumerate(second, start=1):
            substituted = diagonal + (letter != other)
            diagonal = row[column]
            row[column] = min(substituted, row[column] + 1, row[column - 1] + 1)
    return row[-1]


def test_recipes_take_turns_and_names_give_recipe_number_and_seed() -> None:
    few, many = (list(read_documents(source(max_documents=n, seed=3))) for n in (6, 12))
    assert many[:6] == few
    assert [document.id for document in few] == [
        *(f"synthetic:{recipe}:0000:seed3" for recipe in RECIPES),
        "synthetic:pairs:0001:seed3",
    ]
    assert {(document.source, document.domain) for document in few} == {("made", "narrative")}


def test_documents_differ_by_seed_and_number() -> None:
    texts = [synthetic_document(seed, recipe, number) for seed in (0, 1) for recipe in RECIPES for number in range(3)]
    assert len(set(texts)) == len(texts)


def test_documents_do_not_depend_on_the_process() -> None:
    script = "from gistnet.data.synthetic import *; print(list(read_synthetic(2, 10)))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def test_documents_without_text_of_the_installation_are_those_of_version_1() -> None:
    """Other recipes or sentences make other documents: raise the version, then renew the hash."""
    texts = [synthetic_document(0, recipe, number) for recipe in ("pairs", "tables") for number in range(20)]
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()
    assert (synthetic.RECIPE_VERSION, digest[:16]) == (1, "d93eca5a7396a264")


def test_no_document_is_dropped_as_a_near_duplicate() -> None:
    duplicates = NearDuplicates()
    assert all(duplicates.keep(text) for _, text in read_synthetic(0, 300))


def test_fingerprint_changes_with_seed_count_version_of_recipes_and_the_installation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fingerprint(**fields: Any) -> str:
        return dataset_fingerprint(DataConfig(sources=(source(**fields),)), ByteTokenizer())

    first = fingerprint()
    assert fingerprint(weight=2.0) == first
    others = {fingerprint(seed=1), fingerprint(max_documents=11)}
    monkeypatch.setattr(synthetic, "RECIPE_VERSION", 1000)
    others.add(fingerprint())
    monkeypatch.setattr(synthetic, "installation_identity", lambda: ["another Python"])
    others.add(fingerprint())
    assert len(others | {first}) == 5


def test_a_python_without_manual_or_source_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "read_installation", lambda domain: iter([]))
    with pytest.raises(DataError, match="manual"):
        prose_passages.__wrapped__()
    with pytest.raises(DataError, match="source code"):
        code_passages.__wrapped__()


def test_repeated_passages_come_again_verbatim_and_changed_and_lists_have_recurring_entries() -> None:
    for number in range(10):
        blocks = synthetic_document(0, "repeated", number).strip().split("\n\n")
        again = [block for block, count in Counter(blocks).items() if count >= 2 and len(block.split()) >= 40]
        assert again
        for passage in again:
            words = passage.split()
            same_length = [block.split() for block in blocks if block != passage and len(block.split()) == len(words)]
            changes = [sum(a != b for a, b in zip(words, other, strict=True)) for other in same_length]
            assert any(1 <= change <= 3 for change in changes)
        lists = [block.split("\n") for block in blocks if block.startswith("- ")]
        assert lists and all(
            max(Counter(line.split(" ", 3)[3] for line in lines).values()) >= 2 for lines in lists if len(lines) >= 8
        )


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.25, 1.0])
def test_noise_damages_that_share_of_words_by_at_most_two_edits_each_but_for_case(rate: float) -> None:
    draw = random.Random(3)
    n_words = damaged = edits = characters = 0
    for passage in prose_passages()[:12]:
        noisy = add_noise(passage, rate, draw)
        words = len(passage.split())
        same = sum((Counter(passage.split()) & Counter(noisy.split())).values())
        distance = edit_distance(passage.lower(), noisy.lower())
        assert distance <= 2 * words
        n_words, damaged, edits = n_words + words, damaged + words - same, edits + distance
        characters += len(passage)
    if rate == 0:
        assert (damaged, edits) == (0, 0)
    else:
        # Some damage cannot befall some words; a lost space takes two words at once. 6 characters a word or so.
        assert 0.6 * rate < damaged / n_words < 1.25 * rate
        assert rate / 12 < edits / characters < rate / 3


def test_noise_of_every_kind_is_found() -> None:
    draw = random.Random(0)
    results = {add_noise("learning", 1.0, draw) for _ in range(3000)}
    by_hand = {"elarning", "earning", "llearning", "kearning", "1earning", "leaming", "LEARNING", "lear-\nning"}
    assert by_hand <= results
    assert any(add_noise("one two", 1.0, draw).startswith("onet") for _ in range(300))


def test_noisy_documents_are_damaged_prose_with_a_rate_for_each_paragraph() -> None:
    shares = []
    known = {word for passage in prose_passages() for word in passage.split()}
    for paragraph in synthetic_document(0, "noisy", 0).strip().split("\n\n"):
        words = paragraph.split()
        shares.append(sum(word not in known for word in words) / len(words))
    assert max(shares) < 0.4 and max(shares) - min(shares) > 0.1 and 0.03 < sum(shares) / len(shares) < 0.25


def test_formats_of_a_table_by_hand() -> None:
    assert as_markdown(HAND_MADE) == (
        "| Item | May | June | Total |\n| --- | ---: | ---: | ---: |\n"
        "| Hats | 3 | 40 | 43 |\n| Pans | 10 | 2 | 12 |\n| Total | 13 | 42 | 55 |"
    )
    assert as_csv(HAND_MADE) == "Item,May,June,Total\nHats,3,40,43\nPans,10,2,12\nTotal,13,42,55"
    assert as_aligned(HAND_MADE) == (
        "Item   May  June  Total\nHats     3    40     43\nPans    10     2     12\nTotal   13    42     55"
    )
    assert json.loads(as_json(HAND_MADE)) == {
        "title": "sales",
        "rows": [
            {"item": "Hats", "may": 3, "june": 40, "total": 43},
            {"item": "Pans", "may": 10, "june": 2, "total": 12},
        ],
        "totals": {"may": 13, "june": 42, "total": 55},
    }


def test_totals_read_back_from_every_format_add_up() -> None:
    for seed in range(100):
        table = make_table(random.Random(seed))
        header, *rows, last = csv.reader(io.StringIO(as_csv(table)))
        markdown = [[cell.strip() for cell in line.strip("|").split("|")] for line in as_markdown(table).split("\n")]
        assert [markdown[0], *markdown[2:]] == [header, *rows, last]
        assert [line.split() for line in as_aligned(table).split("\n")[1:-1]] == rows
        record = json.loads(as_json(table))
        assert [list(map(str, row.values())) for row in record["rows"]] == rows
        for column, total in list(enumerate(last))[1:]:
            summed = sum(int(row[column]) for row in rows)
            assert total == str(summed) if total else header[column] == "Unit price"
        for row in rows:
            numbers = list(map(int, row[1:]))
            expected = numbers[0] * numbers[1] if header[-1] == "Amount" else sum(numbers[:-1])
            assert numbers[-1] == expected


def test_documents_of_tables_have_every_format_and_true_conclusions() -> None:
    text = "".join(synthetic_document(0, "tables", number) for number in range(5))
    blocks = text.split("\n\n")
    assert all(any(block.startswith(start) for block in blocks) for start in ("| Item |", "Item,", "Item  ", "{\n"))
    checked = 0
    for table, conclusion in pairwise(blocks):
        found = re.fullmatch(r"The column (.+) adds up to (\d+)\.", conclusion)
        if found and table.startswith("Item,"):
            rows = list(csv.DictReader(io.StringIO(table)))
            assert sum(int(row[found[1]]) for row in rows[:-1]) == int(found[2])
            checked += 1
    assert checked >= 2


def test_interleaved_documents_have_prose_code_and_tables() -> None:
    for number in range(10):
        text = synthetic_document(0, "interleaved", number)
        blocks = set(text.strip().split("\n\n"))
        code = re.findall(r"```python\n(.+?)\n```", text, flags=re.DOTALL)
        assert len(blocks & set(prose_passages())) >= 2
        assert len(code) >= 1 and set(code) <= set(code_passages())
        assert any("Total" in block or '"totals"' in block for block in blocks)
        for function in code:
            compile(function, "function", "exec")


def test_documents_fill_a_window_of_the_embedded_teacher(embedded_tokenizer: TeacherTokenizer) -> None:
    assert min(map(len, embedded_tokenizer.encode_batch([text for _, text in read_synthetic(0, 50)]))) >= 1100


def test_synthetic_documents_are_prepared_like_any_others(tmp_path: Path) -> None:
    config = DataConfig(sources=(source(max_documents=20),), folder=tmp_path, held_out_fraction=0.3)
    dataset = prepare(config, ByteTokenizer())
    assert sum(entry.kept for entry in dataset.statistics) == 20
    assert {dataset.describe(window).split for window in range(len(dataset))} == {"train", "held_out"}


# Adversarial pairs ----------------------------------------------------------------------------------------------------

PAIRS = list(adversarial_pairs(seed=5, count=600))


def changed_words(pair: AdversarialPair) -> tuple[list[str], list[str]]:
    """The words that only one of the spans has: from `span_a`, from `span_b`."""
    first, second = pair.span_a.split(), pair.span_b.split()
    while first and second and first[0] == second[0]:
        del first[0], second[0]
    while first and second and first[-1] == second[-1]:
        del first[-1], second[-1]
    return first, second


def bare(word: str) -> str:
    return word.strip(".,")


def test_more_pairs_continue_fewer_and_another_seed_gives_others() -> None:
    assert list(adversarial_pairs(5, 20)) == PAIRS[:20]
    assert not set(adversarial_pairs(6, 600)) & set(PAIRS)


def test_spans_of_a_pair_differ_in_one_number_name_or_negation() -> None:
    assert Counter(pair.kind for pair in PAIRS) == {"number": 200, "name": 200, "negation": 200}
    for pair in PAIRS:
        first, second = (list(map(bare, words)) for words in changed_words(pair))
        match pair.kind:
            case "number":
                assert len(first) == len(second) == 1
                assert first[0].isdigit() and second[0].isdigit() and len(first[0]) == len(second[0])
            case "name":
                assert len(first) == len(second) == 1
                assert first[0].istitle() and second[0].istitle() and abs(len(first[0]) - len(second[0])) <= 1
            case "negation":
                assert (first, second) in [(["not"], []), (["never"], [])]


def test_continuations_restate_what_differs_and_nothing_else_gives_it_away() -> None:
    for pair in PAIRS:
        first, second = (" ".join(map(bare, words)) for words in changed_words(pair))
        words_a, words_b = (list(map(bare, text.split())) for text in (pair.continuation_a, pair.continuation_b))
        assert first in words_a and first not in words_b and pair.continuation_a != pair.continuation_b
        assert abs(len(words_a) - len(words_b)) <= 2
        assert first not in map(bare, pair.prefix.split())
        if pair.kind != "negation":
            assert words_b == [second if word == first else word for word in words_a]
            assert second not in map(bare, pair.prefix.split())
            assert Counter(map(bare, pair.span_a.split()))[first] == 1


def test_spans_are_long_enough_and_the_word_that_differs_has_no_fixed_index() -> None:
    indices = []
    for pair in PAIRS:
        first, second = pair.span_a.split(), pair.span_b.split()
        assert min(len(first), len(second)) >= 32
        indices.append(next(i for i, word in enumerate(first) if i >= len(second) or word != second[i]))
    assert max(Counter(indices).values()) <= 90
    assert min(indices) < 5 and max(indices) > 35
    assert all(part.startswith(" ") for pair in PAIRS for part in (pair.span_a, pair.continuation_a, pair.span_b))
    assert not re.search(r"[{}]| {2}", "".join(pair.prefix + pair.span_a + pair.continuation_a for pair in PAIRS))


def test_there_are_many_families_and_hardly_two_pairs_alike() -> None:
    assert min(map(len, templates().families.values())) >= 10
    keys = [family.key for families in templates().families.values() for family in families]
    assert len(set(keys)) == len(keys) == 33
    assert len({pair.continuation_a for pair in PAIRS}) > 550
    assert len({pair.span_a for pair in PAIRS} | {pair.span_b for pair in PAIRS}) == 2 * len(PAIRS)


def test_a_document_of_pairs_holds_texts_that_differ_from_another_by_a_few_words() -> None:
    paragraphs = synthetic_document(0, "pairs", 0).split("\n\n")[:-1]
    texts = paragraphs[::2]
    assert len(texts) >= 10
    for text in texts:
        words = text.split()
        others = (other.split() for other in texts if other != text)
        # Prefix and most of the span come again; so an alignment of the two keeps at least 60 words of the beginning.
        assert any(sum((Counter(words) & Counter(other)).values()) >= len(words) - 6 for other in others)


def test_spans_fill_a_gist_of_the_embedded_teacher_and_parts_are_tokenised_apart_as_together(
    embedded_tokenizer: TeacherTokenizer,
) -> None:
    spans = embedded_tokenizer.encode_batch([span for pair in PAIRS for span in (pair.span_a, pair.span_b)])
    assert min(map(len, spans)) >= 32
    assert max(map(len, spans)) <= 80
    for pair in PAIRS[:30]:
        parts = embedded_tokenizer.encode_batch([pair.prefix, pair.span_a, pair.continuation_a])
        assert embedded_tokenizer.encode_batch([pair.texts[0]]) == [[token for part in parts for token in part]]
