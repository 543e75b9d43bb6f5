import json
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from gistnet.data.config import DataConfig, SegmentLengths
from gistnet.data.dataset import PreparedDataset, is_for_validation
from gistnet.data.prepare import prepare
from gistnet.data.sampling import (
    SpanLayout,
    WindowSample,
    check_sampling,
    eligible_phases,
    eligible_starts,
    fixed_windows,
    sample_batch,
    sample_window,
    training_pool,
)
from gistnet.errors import ConfigError, DataError
from tests.data.byte_tokenizer import ByteTokenizer

LAYOUT = SpanLayout((8,), horizon_tokens=10, segments_per_window=3)
RUNS = SegmentLengths()
MIXED = SegmentLengths(lengths={1: 0.5, 2: 0.2, 5: 0.3}, whole_prefix=0.25, longest=7)
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
        sources.append({"kind": "files", "name": name, "domain": domain, "paths": [str(folder / f"{name}.jsonl")]})
    config = DataConfig(sources=sources, folder=folder, window_tokens=100, min_tokens=64, held_out_fraction=0.25)
    return prepare(config, ByteTokenizer())


@pytest.mark.parametrize("sink", [1, 4, 8, 20])
@pytest.mark.parametrize("length", [10, 29, 30, 31, 37, 38, 64, 100])
@pytest.mark.parametrize("gists", [1, 3])
def test_eligible_starts_and_phases_equal_a_search_of_all_places(length: int, sink: int, gists: int) -> None:
    layout = SpanLayout((8,), horizon_tokens=10, sink_tokens=sink)
    by_phase = {
        phase: [s for s in range(sink, length) if s % 8 == phase and s + 8 * gists + 10 <= length] for phase in range(8)
    }
    for phase, starts in by_phase.items():
        assert eligible_starts(length, phase, layout, gists).tolist() == starts
    phases = [phase for phase in range(8) if by_phase[phase]]
    if phases:
        assert eligible_phases(length, layout, gists).tolist() == phases
    else:
        needed = sink + 8 * gists + 10
        assert length < needed == layout.minimum_length(gists)
        with pytest.raises(DataError, match=f" {needed} .* {length}"):
            eligible_phases(length, layout, gists)


def test_a_stage_that_uses_less_of_its_windows_draws_spans_and_horizons_from_their_beginnings(dataset) -> None:
    layout = replace(LAYOUT, window_tokens=LAYOUT.minimum_length() + 9)
    drawn = sample_batch(training_pool(dataset), layout, RUNS, PROBABILITIES, seed=1, step=0, items=range(100))
    ends = {int(start) + 8 + 10 for sample in drawn for start in sample.starts}
    assert max(ends) == layout.window_tokens
    held_out = fixed_windows(dataset, layout, documents=9, segments_per_window=9, seed=0)
    assert max(int(sample.starts.max()) + 8 + 10 for sample in held_out) <= layout.window_tokens
    with pytest.raises(DataError, match=r" 22 .* 21"):
        check_sampling(training_pool(dataset), replace(LAYOUT, window_tokens=21), PROBABILITIES)


@pytest.mark.parametrize("field", ["horizon_tokens", "segments_per_window", "sink_tokens"])
def test_layout_of_nothing_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        SpanLayout(**{field: 0})
    for branchings in ((), (8, 0)):
        with pytest.raises(ConfigError, match="branchings"):
            SpanLayout(branchings)


def test_sample_is_in_the_training_split_and_its_starts_are_distinct_eligible_and_ascending(
    dataset: PreparedDataset,
) -> None:
    pool = training_pool(dataset)
    for sample in sample_batch(pool, LAYOUT, RUNS, PROBABILITIES, seed=1, step=0, items=range(300)):
        info = dataset.describe(sample.window)
        assert info.split == "train"
        starts = sample.starts.tolist()
        allowed = set(eligible_starts(info.length, sample.phase, LAYOUT).tolist())
        assert starts == sorted(set(starts))
        assert set(starts) <= allowed
        assert len(starts) == min(3, len(allowed))
        assert sample.starts.dtype == np.int64


def as_tuples(samples: list[WindowSample]) -> list[tuple]:
    """Item, window, phase, starts and lengths of each."""
    return [
        (sample.item, sample.window, sample.phase, tuple(sample.starts.tolist()), tuple(sample.n_spans.tolist()))
        for sample in samples
    ]


def horizons(sample: WindowSample) -> list[int]:
    return (sample.starts + 8 * sample.n_spans).tolist()


def test_single_spans_are_drawn_as_they_were_before_there_were_runs(dataset: PreparedDataset) -> None:
    """Phase and starts as version 0.1.0 drew them for this seed and step; its windows were in another order."""
    drawn = sample_batch(training_pool(dataset), LAYOUT, RUNS, PROBABILITIES, seed=7, step=11, items=range(6))
    assert as_tuples(drawn) == [
        (0, 154, 6, (14, 46, 54), (1, 1, 1)),
        (1, 61, 0, (8, 24, 48), (1, 1, 1)),
        (2, 283, 1, (9, 17, 33), (1, 1, 1)),
        (3, 90, 6, (6, 30, 46), (1, 1, 1)),
        (4, 188, 4, (12, 20, 44), (1, 1, 1)),
        (5, 43, 2, (10, 34, 42), (1, 1, 1)),
    ]


def test_segments_that_have_room_keep_their_horizons_and_all_begin_behind_the_sink(dataset: PreparedDataset) -> None:
    pool = training_pool(dataset)
    single, mixed = (
        sample_batch(pool, LAYOUT, runs, PROBABILITIES, seed=1, step=2, items=range(500)) for runs in (RUNS, MIXED)
    )
    moved = 0
    for one, run in zip(single, mixed, strict=True):
        assert (one.window, one.phase) == (run.window, run.phase)
        assert horizons(run) == sorted(set(horizons(run)))
        assert run.n_spans.dtype == run.starts.dtype == np.int64
        assert run.starts.min() >= LAYOUT.sink_tokens
        assert set(run.starts % 8) == {run.phase}
        length = dataset.describe(run.window).length
        assert max(horizons(run)) + LAYOUT.horizon_tokens <= length
        # Only what replaces its whole prefix is of no length on offer.
        unusual = ~np.isin(run.n_spans, [1, 2, 5, 7])
        assert (run.starts[unusual] - 8 < LAYOUT.sink_tokens).all()
        moved += horizons(one) != horizons(run)
    assert 50 < moved < 250  # of 500 windows


@pytest.mark.parametrize("lengths", [{1: 0.5, 2: 0.2, 5: 0.3}, {1: 0.2, 6: 0.8}, {40: 1.0}])
def test_segments_are_as_long_as_they_were_asked_to_be_where_a_window_has_room(dataset, lengths) -> None:
    """Clipped to what precedes the horizons that were drawn, four in ten of {1: 0.2, 6: 0.8} would be shorter."""
    runs, counts = SegmentLengths(lengths=lengths), Counter[int]()
    one_each = replace(LAYOUT, segments_per_window=1)
    for sample in sample_batch(
        training_pool(dataset), one_each, runs, PROBABILITIES, seed=0, step=0, items=range(6000)
    ):
        length = dataset.describe(sample.window).length
        most = len(eligible_starts(length, sample.phase, LAYOUT))
        counts.update((k, most >= max(lengths)) for k in sample.n_spans.tolist())
        assert most >= max(lengths) or sample.n_spans.max() <= most
    roomy = Counter({k: count for (k, enough), count in counts.items() if enough})
    n = roomy.total()
    if max(lengths) == 40:
        assert n == 0
        return
    assert n > 3000
    for length, share in lengths.items():
        assert roomy[length] == pytest.approx(n * share, abs=5 * (n * share * (1 - share)) ** 0.5)
    assert set(roomy) == set(lengths)


def test_the_share_of_whole_prefixes_is_as_asked(dataset: PreparedDataset) -> None:
    """Counted where what precedes a horizon is of no length on offer: a quarter of those reach to the sink."""
    runs = SegmentLengths(lengths={1: 1.0}, whole_prefix=0.25, longest=7)
    reach, n = 0, 0
    for sample in sample_batch(training_pool(dataset), LAYOUT, runs, PROBABILITIES, seed=0, step=0, items=range(2000)):
        room = (np.array(horizons(sample)) - LAYOUT.sink_tokens) // 8
        reach, n = reach + int((sample.n_spans[room > 1] > 1).sum()), n + int((room > 1).sum())
    assert reach == pytest.approx(n * 0.25, abs=5 * (n * 0.25 * 0.75) ** 0.5)


def test_the_whole_prefix_is_everything_between_the_sink_and_the_horizon(dataset: PreparedDataset) -> None:
    runs = SegmentLengths(whole_prefix=1.0)
    for sample in sample_batch(training_pool(dataset), LAYOUT, runs, PROBABILITIES, seed=4, step=0, items=range(200)):
        assert set(sample.starts.tolist()) == {min(s for s in range(4, 12) if s % 8 == sample.phase)}
        assert len(set(horizons(sample))) == len(sample.n_spans)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lengths": {1: 0.5, 2: 0.4}}, "sum to 1"),
        ({"lengths": {1: 1.5, 2: -0.5}}, "at least 0"),
        ({"lengths": {}}, "sum to 1"),
        ({"lengths": {1: float("nan")}}, "finite"),
        ({"lengths": {0: 0.5, 1: 0.5}}, "at least 1, got 0"),
        ({"whole_prefix": 1.5}, "less than or equal to 1"),
        ({"longest": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_runs_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SegmentLengths(**settings)


def test_the_most_gists_of_a_run_are_those_that_can_be_drawn() -> None:
    assert SegmentLengths().most == 1
    assert SegmentLengths(lengths={1: 0.5, 4: 0.5, 9: 0.0}).most == 4
    assert SegmentLengths(lengths={1: 0.5, 80: 0.5}, whole_prefix=0.1).most == 80
    assert SegmentLengths(whole_prefix=0.1).most == 64


def test_slices_of_ranks_join_to_the_batch_of_a_single_process(dataset: PreparedDataset) -> None:
    pool = training_pool(dataset)
    whole = as_tuples(sample_batch(pool, LAYOUT, MIXED, PROBABILITIES, seed=7, step=11, items=range(24)))
    for ranks in (2, 3, 8):
        share = 24 // ranks
        joined: dict[int, tuple] = {}
        for rank in reversed(range(ranks)):  # each with a pool of its own, in another order than the items
            items = range(rank * share, (rank + 1) * share)
            own = sample_batch(training_pool(dataset), LAYOUT, MIXED, PROBABILITIES, seed=7, step=11, items=items)
            joined |= {drawn[0]: drawn for drawn in as_tuples(own)}
        assert [joined[item] for item in range(24)] == whole


def test_seed_step_and_item_each_change_the_draw(dataset: PreparedDataset) -> None:
    pool = training_pool(dataset)

    def draw(seed: int, step: int, item: int) -> tuple:
        sample = sample_window(pool, LAYOUT, MIXED, PROBABILITIES, seed=seed, step=step, item=item)
        return as_tuples([sample])[0][1:]

    for field in ("seed", "step", "item"):
        draws = [draw(**{"seed": 1, "step": 5, "item": 3, field: value}) for value in range(50)]
        assert len(set(draws)) > 40
    # Neighbours do not share their random numbers: item 5 of step 3 is not item 3 of step 5.
    assert draw(1, 3, 5) != draw(1, 5, 3)


def test_domains_sources_windows_and_phases_are_drawn_in_their_proportions(dataset: PreparedDataset) -> None:
    pool = training_pool(dataset, weights={"tales": 3.0})
    n = 6000
    samples = sample_batch(pool, LAYOUT, RUNS, PROBABILITIES, seed=0, step=0, items=range(n))
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
    samples = sample_batch(pool, LAYOUT, RUNS, probabilities, seed=0, step=0, items=range(50))
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
        sample_window(pool, LAYOUT, RUNS, probabilities, seed=0, step=0, item=0)


def test_layout_that_does_not_fit_the_shortest_window_is_refused_before_drawing(dataset: PreparedDataset) -> None:
    pool = training_pool(dataset)
    shortest = int(dataset.lengths[dataset.window_indices("train", "code")].min())
    fits = SpanLayout((8,), horizon_tokens=shortest - 12)
    check_sampling(pool, fits, {"code": 1.0})
    with pytest.raises(DataError, match=f"{shortest}"):
        check_sampling(pool, SpanLayout((8,), horizon_tokens=shortest - 11), {"code": 1.0})


def test_segments_that_no_window_of_a_domain_has_room_for_are_refused_before_drawing(dataset: PreparedDataset) -> None:
    pool = training_pool(dataset)
    longest = int(dataset.lengths[dataset.window_indices("train", "code")].max())
    fits = (longest - LAYOUT.sink_tokens - LAYOUT.horizon_tokens) // 8
    check_sampling(pool, LAYOUT, {"code": 1.0}, segments=SegmentLengths(lengths={1: 0.5, fits: 0.5}))
    check_sampling(pool, LAYOUT, {"code": 1.0}, segments=SegmentLengths(lengths={1: 1.0, fits + 1: 0.0}))
    with pytest.raises(DataError, match=rf"{fits + 1} spans of 8 tokens.* a window has {longest}"):
        check_sampling(pool, LAYOUT, {"code": 1.0}, segments=SegmentLengths(lengths={1: 0.5, fits + 1: 0.5}))


# Compact segments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_segments_is_compact(dataset, share) -> None:
    segments = MIXED.model_copy(update={"compact": share})
    samples = sample_batch(training_pool(dataset), LAYOUT, segments, PROBABILITIES, seed=3, step=1, items=range(500))
    compact = np.concatenate([sample.compact for sample in samples])
    n = len(compact)
    assert n > 500
    assert compact.sum() == pytest.approx(n * share, abs=5 * (n * share * (1 - share)) ** 0.5)


def test_which_segments_are_compact_leaves_everything_else_as_it_was(dataset) -> None:
    pool = training_pool(dataset)
    without, half = (
        sample_batch(pool, LAYOUT, segments, PROBABILITIES, seed=1, step=2, items=range(50))
        for segments in (MIXED, MIXED.model_copy(update={"compact": 0.5}))
    )
    assert as_tuples(half) == as_tuples(without)
    assert any(sample.compact.any() for sample in half)


# Validation -----------------------------------------------------------------------------------------------------------


def test_one_window_a_held_out_document_of_each_domain(dataset: PreparedDataset) -> None:
    chosen = fixed_windows(dataset, LAYOUT, documents=5, segments_per_window=4, seed=3)
    infos = [dataset.describe(sample.window) for sample in chosen]
    assert Counter(info.domain for info in infos) == {"narrative": 5, "code": 5, "structured": 5}
    assert {info.split for info in infos} == {"held_out"}
    assert len({info.document for info in infos}) == 15
    assert [sample.item for sample in chosen] == list(range(15))
    for sample, info in zip(chosen, infos, strict=True):
        assert sample.n_spans.tolist() == [1] * len(sample.starts)
        eligible = eligible_starts(info.length, sample.phase, LAYOUT).tolist()
        starts = sample.starts.tolist()
        assert len(starts) == min(4, len(eligible))
        assert (starts[0], starts[-1]) == (eligible[0], eligible[-1])
        steps = np.diff([eligible.index(start) for start in starts])
        assert steps.max() - steps.min() <= 1, "evenly spread over the grid"


def test_segments_have_exactly_the_gists_asked_for(dataset: PreparedDataset) -> None:
    """Windows, phases and starts, by a hash of the seed and the documents' texts."""
    expected = {
        1: [(322, 2, [10, 26, 34, 50]), (328, 6, [6, 30, 54, 78]), (313, 5, [5, 29, 53, 77])],
        2: [(322, 2, [10, 18, 34, 42]), (328, 6, [6, 30, 46, 70]), (313, 5, [5, 29, 45, 69])],
    }
    for gists, first in expected.items():
        chosen = fixed_windows(dataset, LAYOUT, documents=2, segments_per_window=4, seed=3, n_spans=gists)
        assert [(sample.window, sample.phase, sample.starts.tolist()) for sample in chosen[:3]] == first
        assert {k for sample in chosen for k in sample.n_spans.tolist()} == {gists}
    with pytest.raises(ConfigError, match="n_spans"):
        fixed_windows(dataset, LAYOUT, documents=2, segments_per_window=4, seed=3, n_spans=0)
    with pytest.raises(DataError, match=r"12 spans .* 110 .* 100"):
        fixed_windows(dataset, LAYOUT, documents=2, segments_per_window=4, seed=3, n_spans=12)


def test_the_choice_is_fixed_by_the_seed_and_grows_by_extension(dataset: PreparedDataset) -> None:
    def windows(documents: int, seed: int = 3, spans: int = 2) -> list[int]:
        chosen = fixed_windows(
            dataset, LAYOUT, documents=documents, segments_per_window=spans, seed=seed, domains=["code"]
        )
        return [sample.window for sample in chosen]

    assert set(windows(3)) < set(windows(6))
    assert windows(6) == windows(6, spans=1)
    assert windows(3) != windows(3, seed=4)
    held_out = dataset.window_indices("held_out", "code")
    assert len(windows(10**6)) == len({dataset.describe(window).document for window in held_out})
    # Windows late in a document are chosen too, not only the first.
    offsets = [dataset.describe(window).offset for seed in range(5) for window in windows(10**6, seed)]
    assert min(offsets) == 0 < max(offsets)


def test_what_is_reported_was_not_validated_on(dataset: PreparedDataset) -> None:
    def keys(documents: int, *, for_validation: bool) -> list[str]:
        chosen = fixed_windows(
            dataset,
            LAYOUT,
            documents=documents,
            segments_per_window=1,
            seed=3,
            domains=["code"],
            for_validation=for_validation,
        )
        return [dataset.describe(sample.window).key for sample in chosen]

    validated, reported = (keys(10**6, for_validation=for_validation) for for_validation in (True, False))
    assert validated == reported, "a corpus that is too small for both is measured whole by both"
    own = sum(is_for_validation(key) for key in validated)
    assert 0 < own < len(validated)
    assert {*keys(own, for_validation=True)}.isdisjoint(keys(len(validated) - own, for_validation=False))
    assert len({*keys(own + 1, for_validation=True)} - {*keys(own, for_validation=True)}) == 1


def test_validation_without_usable_windows_says_why(dataset: PreparedDataset) -> None:
    with pytest.raises(DataError, match="poetry"):
        fixed_windows(dataset, LAYOUT, documents=1, segments_per_window=1, seed=0, domains=["poetry"])
    long = SpanLayout((32,), horizon_tokens=128)
    with pytest.raises(DataError, match=r" 164 .* 100"):
        fixed_windows(dataset, long, documents=1, segments_per_window=1, seed=0)


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
    assert sum(entry.windows for entry in dataset.statistics) == len(dataset)
