import json
import random
from collections import Counter

import numpy as np
import pytest

from gistnet.data.dataset import PreparedDataset
from gistnet.data.prepare import DataConfig, prepare
from gistnet.data.sampling import (
    SpanLayout,
    check_sampling,
    eligible_phases,
    eligible_starts,
    sample_batch,
    sample_window,
    training_pool,
    validation_windows,
)
from gistnet.errors import ConfigError, DataError
from tests.data.byte_tokenizer import ByteTokenizer

LAYOUT = SpanLayout(span_tokens=8, horizon_tokens=10, spans_per_window=3)
PROBABILITIES = {"narrative": 0.6, "code": 0.3, "structured": 0.1}
SOURCES = {"tales": "narrative", "essays": "narrative", "programs": "code", "tables": "structured"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Four sources of 40 documents of 70 to 382 bytes, in windows of 64 to 100 tokens."""
    folder = tmp_path_factory.mktemp("corpus")
    letters = random.Random(0)
    sources = []
    for name, domain in SOURCES.items():
        lines = [
            json.dumps({"id": f"{name}-{place}", "text": "".join(letters.choices("abcdefgh ", k=70 + 8 * place))})
            for place in range(40)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
        sources.append({"kind": "jsonl", "name": name, "domain": domain, "paths": [str(folder / f"{name}.jsonl")]})
    config = DataConfig(sources=sources, folder=folder, window_tokens=100, min_tokens=64, held_out_fraction=0.25)
    return prepare(config, ByteTokenizer())


@pytest.mark.parametrize("sink", [1, 4, 8, 20])
@pytest.mark.parametrize("length", [10, 29, 30, 31, 37, 38, 64, 100])
@pytest.mark.parametrize("gists", [1, 3])
def test_eligible_starts_and_phases_equal_a_search_of_all_places(length: int, sink: int, gists: int) -> None:
    layout = SpanLayout(span_tokens=8, horizon_tokens=10, gists_in_a_row=gists, sink_tokens=sink)
    by_phase = {
        phase: [s for s in range(sink, length) if s % 8 == phase and s + 8 * gists + 10 <= length] for phase in range(8)
    }
    for phase, starts in by_phase.items():
        assert eligible_starts(length, phase, layout).tolist() == starts
    phases = [phase for phase in range(8) if by_phase[phase]]
    if phases:
        assert eligible_phases(length, layout).tolist() == phases
    else:
        assert length < layout.minimum_length
        with pytest.raises(DataError, match=f"need {layout.minimum_length} tokens, but a window has {length}"):
            eligible_phases(length, layout)


def test_window_too_short_names_every_number() -> None:
    layout = SpanLayout(span_tokens=32, horizon_tokens=128, gists_in_a_row=2, sink_tokens=4)
    message = (
        "Spans longer than the document: 2 spans of 32 tokens, a horizon of 128 and 4 sink tokens need 196 tokens, "
        "but a window has 195."
    )
    with pytest.raises(DataError, match=message):
        eligible_phases(195, layout)
    assert eligible_phases(196, layout).tolist() == [4]


@pytest.mark.parametrize(
    "field", ["span_tokens", "horizon_tokens", "spans_per_window", "gists_in_a_row", "sink_tokens"]
)
def test_layout_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be at least 1, got 0"):
        SpanLayout(**{field: 0})


def test_sample_is_in_the_training_split_and_its_starts_are_distinct_eligible_and_ascending(
    dataset: PreparedDataset,
) -> None:
    pool = training_pool(dataset)
    for sample in sample_batch(pool, LAYOUT, PROBABILITIES, seed=1, step=0, items=range(300)):
        info = dataset.describe(sample.window)
        assert info.split == "train"
        starts = sample.starts.tolist()
        allowed = set(eligible_starts(info.length, sample.phase, LAYOUT).tolist())
        assert starts == sorted(set(starts))
        assert set(starts) <= allowed
        assert len(starts) == min(3, len(allowed))
        assert sample.starts.dtype == np.int64


def as_tuples(samples: list) -> list[tuple]:
    return [(sample.item, sample.window, sample.phase, tuple(sample.starts.tolist())) for sample in samples]


def test_slices_of_ranks_join_to_the_batch_of_a_single_process(dataset: PreparedDataset) -> None:
    pool = training_pool(dataset)
    whole = as_tuples(sample_batch(pool, LAYOUT, PROBABILITIES, seed=7, step=11, items=range(24)))
    for ranks in (2, 3, 8):
        share = 24 // ranks
        joined: dict[int, tuple] = {}
        for rank in reversed(range(ranks)):  # each with a pool of its own, in another order than the items
            items = range(rank * share, (rank + 1) * share)
            own = sample_batch(training_pool(dataset), LAYOUT, PROBABILITIES, seed=7, step=11, items=items)
            joined |= {drawn[0]: drawn for drawn in as_tuples(own)}
        assert [joined[item] for item in range(24)] == whole


def test_seed_step_and_item_each_change_the_draw(dataset: PreparedDataset) -> None:
    pool = training_pool(dataset)

    def draw(seed: int, step: int, item: int) -> tuple:
        return as_tuples([sample_window(pool, LAYOUT, PROBABILITIES, seed=seed, step=step, item=item)])[0][1:]

    for field in ("seed", "step", "item"):
        draws = [draw(**{"seed": 1, "step": 5, "item": 3, field: value}) for value in range(50)]
        assert len(set(draws)) > 40
    # Neighbours do not share their random numbers: item 5 of step 3 is not item 3 of step 5.
    assert draw(1, 3, 5) != draw(1, 5, 3)


def test_domains_sources_windows_and_phases_are_drawn_in_their_proportions(dataset: PreparedDataset) -> None:
    pool = training_pool(dataset, weights={"tales": 3.0})
    n = 6000
    samples = sample_batch(pool, LAYOUT, PROBABILITIES, seed=0, step=0, items=range(n))
    sources = Counter(dataset.describe(sample.window).source for sample in samples)
    expected = {"tales": 0.45, "essays": 0.15, "programs": 0.3, "tables": 0.1}
    for name, share in expected.items():
        assert sources[name] == pytest.approx(n * share, abs=5 * (n * share * (1 - share)) ** 0.5), name
    windows = Counter(sample.window for sample in samples)
    programs = dataset.window_indices("train", source="programs")
    each = n * 0.3 / len(programs)
    assert {window: windows[window] for window in programs} == pytest.approx(
        dict.fromkeys(programs, each), abs=5 * each**0.5
    )
    phases = Counter(sample.phase for sample in samples)  # a window of 64 tokens has room on all eight grids
    assert sorted(phases) == list(range(8))
    assert all(count == pytest.approx(n / 8, abs=5 * (n / 8) ** 0.5) for count in phases.values())


def test_domain_of_probability_zero_is_never_drawn_and_may_be_empty(dataset: PreparedDataset) -> None:
    pool = training_pool(dataset)
    probabilities = {"code": 1.0, "narrative": 0.0, "poetry": 0.0}
    check_sampling(pool, LAYOUT, probabilities)
    samples = sample_batch(pool, LAYOUT, probabilities, seed=0, step=0, items=range(50))
    assert {dataset.describe(sample.window).domain for sample in samples} == {"code"}


@pytest.mark.parametrize(
    ("probabilities", "kind", "message"),
    [
        ({"code": 0.9}, ConfigError, "sum to 1"),
        ({"code": 1.5, "narrative": -0.5}, ConfigError, "at least 0"),
        ({"code": float("nan")}, ConfigError, "sum to 1"),
        ({}, ConfigError, "sum to 1"),
        ({"code": 0.5, "poetry": 0.5}, DataError, "'poetry' has probability 0.5 but no training windows"),
    ],
)
def test_impossible_probabilities_are_refused(
    dataset: PreparedDataset, probabilities: dict[str, float], kind: type[Exception], message: str
) -> None:
    pool = training_pool(dataset)
    with pytest.raises(kind, match=message):
        check_sampling(pool, LAYOUT, probabilities)
    with pytest.raises(kind, match=message):
        sample_window(pool, LAYOUT, probabilities, seed=0, step=0, item=0)


def test_layout_that_does_not_fit_the_shortest_window_is_refused_before_drawing(dataset: PreparedDataset) -> None:
    pool = training_pool(dataset)
    shortest = int(dataset.lengths[dataset.window_indices("train", "code")].min())
    fits = SpanLayout(span_tokens=8, horizon_tokens=shortest - 12)
    check_sampling(pool, fits, {"code": 1.0})
    with pytest.raises(DataError, match=f"but a window has {shortest}"):
        check_sampling(pool, SpanLayout(span_tokens=8, horizon_tokens=shortest - 11), {"code": 1.0})


def test_weights_must_belong_to_sources_and_be_positive(dataset: PreparedDataset) -> None:
    with pytest.raises(ConfigError, match="'novels' has a weight"):
        training_pool(dataset, {"novels": 1.0})
    with pytest.raises(ConfigError, match="must be above 0"):
        training_pool(dataset, {"tales": 0.0})


def test_validation_takes_one_window_a_held_out_document_of_each_domain(dataset: PreparedDataset) -> None:
    chosen = validation_windows(dataset, LAYOUT, documents=5, spans_per_document=4, seed=3)
    infos = [dataset.describe(sample.window) for sample in chosen]
    assert Counter(info.domain for info in infos) == {"narrative": 5, "code": 5, "structured": 5}
    assert {info.split for info in infos} == {"held_out"}
    assert len({info.document for info in infos}) == 15
    assert [sample.item for sample in chosen] == list(range(15))
    for sample, info in zip(chosen, infos, strict=True):
        eligible = eligible_starts(info.length, sample.phase, LAYOUT).tolist()
        starts = sample.starts.tolist()
        assert len(starts) == min(4, len(eligible))
        assert (starts[0], starts[-1]) == (eligible[0], eligible[-1])
        steps = np.diff([eligible.index(start) for start in starts])
        assert steps.max() - steps.min() <= 1, "evenly spread over the grid"


def test_validation_choice_is_fixed_by_the_seed_and_grows_by_extension(dataset: PreparedDataset) -> None:
    def windows(documents: int, seed: int = 3, spans: int = 2) -> list[int]:
        chosen = validation_windows(
            dataset, LAYOUT, documents=documents, spans_per_document=spans, seed=seed, domains=["code"]
        )
        return [sample.window for sample in chosen]

    assert windows(3) == windows(6)[:3] == windows(6, spans=1)[:3]
    assert windows(3) != windows(3, seed=4)
    held_out = dataset.window_indices("held_out", "code")
    assert len(windows(10**6)) == len({dataset.describe(window).document for window in held_out})
    # Windows late in a document are chosen too, not only the first.
    offsets = [dataset.describe(window).offset for seed in range(5) for window in windows(10**6, seed)]
    assert min(offsets) == 0 < max(offsets)


def test_validation_without_usable_windows_says_why(dataset: PreparedDataset) -> None:
    with pytest.raises(DataError, match="'poetry' has no held_out windows"):
        validation_windows(dataset, LAYOUT, documents=1, spans_per_document=1, seed=0, domains=["poetry"])
    long = SpanLayout(span_tokens=32, horizon_tokens=128)
    with pytest.raises(DataError, match="need 164 tokens, but a window has 100"):
        validation_windows(dataset, long, documents=1, spans_per_document=1, seed=0)


def test_window_indices_partition_the_corpus_by_split_domain_and_source(dataset: PreparedDataset) -> None:
    infos = [dataset.describe(window) for window in range(len(dataset))]
    for split in ("train", "held_out"):
        for domain in (None, *set(SOURCES.values())):
            for source in (None, *SOURCES):
                expected = [
                    window
                    for window, info in enumerate(infos)
                    if info.split == split and domain in (None, info.domain) and source in (None, info.source)
                ]
                assert dataset.window_indices(split, domain, source).tolist() == expected
    assert dataset.domains("train") == dataset.domains("held_out") == ["code", "narrative", "structured"]
    assert dataset.sources == SOURCES
    assert sum(entry.windows for entry in dataset.statistics.splits) == len(dataset)
