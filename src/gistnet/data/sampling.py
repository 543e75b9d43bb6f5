"""Choice of the windows and spans of a training step: pure functions of (seed, step, item).

No state is kept between steps, so a resumed run continues exactly, and a rank's share of a batch is a slice of the
global one: the number of processes does not change what is trained on (spec, Sampling).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from gistnet.data.config import SINK_TOKENS, SegmentLengths
from gistnet.data.dataset import PreparedDataset, Split, is_for_validation
from gistnet.errors import ConfigError, DataError

Probabilities = Mapping[str, float]
_SINGLE = SegmentLengths()


@dataclass(frozen=True)
class SpanLayout:
    """Geometry of spans in a window. All counts are in tokens, unless the name says otherwise."""

    branchings: tuple[int, ...] = (32,)
    """Branching of each level, from level 0 to that of the gists."""
    horizon_tokens: int = 32
    """Tokens after the segment that are predicted (H)."""
    segments_per_window: int = 8
    """Branches drawn from one window, at most."""
    sink_tokens: int = SINK_TOKENS
    """First tokens of a window, never replaced: attention rests on them."""
    window_tokens: int | None = None
    """Tokens of a window that are used, from its first on; None uses all."""

    def __post_init__(self) -> None:
        for name, value in (vars(self) | {"branchings": min(self.branchings, default=0)}).items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")

    @property
    def span_tokens(self) -> int:
        """Tokens of a span of level 0 (K), and the step of the grid on which gists of every level begin."""
        return self.branchings[0]

    @property
    def tokens_per_gist(self) -> int:
        """Tokens that one gist replaces, the product of the branchings."""
        return prod(self.branchings)

    def used(self, length: int) -> int:
        """Tokens that are used of a window of `length`."""
        return length if self.window_tokens is None else min(length, self.window_tokens)

    def minimum_length(self, n_spans: int = 1) -> int:
        """Tokens of the shortest window that has room for one branch: the sink, k spans and the horizon."""
        return self.sink_tokens + n_spans * self.tokens_per_gist + self.horizon_tokens


@dataclass(frozen=True)
class WindowSample:
    """One item of a batch: a window, and what is replaced in it.

    `starts` and `n_spans` are int64 [branches], branches <= segments_per_window, in the order of their horizons: the
    first token replaced, and how many consecutive spans are replaced from there (k). `compact`, bool [branches], says
    whose positions have no gaps; the others follow `ObjectiveConfig.positions`. All starts are `phase` plus a multiple
    of K, so that the spans of a segment and their neighbours share one grid, and spans of a higher level the gists
    below them.
    """

    item: int
    window: int
    phase: int
    starts: NDArray[np.int64]
    n_spans: NDArray[np.int64]
    compact: NDArray[np.bool_]


@dataclass(frozen=True)
class SourcePool:
    """The training windows of one source: their numbers and lengths in tokens, both [windows]."""

    name: str
    weight: float
    windows: NDArray[np.int64]
    lengths: NDArray[np.int64]


TrainingPool = Mapping[str, tuple[SourcePool, ...]]
"""The training windows to draw from: the sources of each domain. Built by `training_pool`."""


def training_pool(dataset: PreparedDataset, weights: Mapping[str, float] | None = None) -> TrainingPool:
    """Collect the training windows by domain and source; build it once and pass it to every draw.

    Args:
        weights: relative weight of each source within its domain; 1 where it is not given.
    """
    weights = weights or {}
    pool: dict[str, tuple[SourcePool, ...]] = {}
    for name, domain in dataset.sources.items():
        windows = dataset.window_indices("train", source=name)
        if len(windows):
            source = SourcePool(name, weights.get(name, 1.0), windows, dataset.lengths[windows])
            pool[domain] = (*pool.get(domain, ()), source)
    return pool


def check_sampling(
    pool: TrainingPool,
    layout: SpanLayout,
    probabilities: Probabilities,
    segments: SegmentLengths = _SINGLE,
) -> None:
    """Refuse what `sample_window` could not draw from, and segments of no window; worth calling before a long run.

    Raises:
        ConfigError: a probability is negative, or they do not sum to 1 (within 1e-6).
        DataError: a domain of positive probability has no training windows, one that is too short for a branch, or none
            that is long enough for the longest segments.
    """
    _check_probabilities(pool, probabilities)
    longest_segment = max(count for count, share in segments.lengths.items() if share > 0)
    for domain, probability in probabilities.items():
        if probability > 0:
            shortest = layout.used(min(int(source.lengths.min()) for source in pool[domain]))
            _require_room(shortest, layout)
            longest = layout.used(max(int(source.lengths.max()) for source in pool[domain]))
            _require_room(longest, layout, longest_segment)


def eligible_starts(length: int, phase: int, layout: SpanLayout, n_spans: int = 1) -> NDArray[np.int64]:
    """Every start `phase + i·K` behind the sink with room for k spans and the horizon: ascending int64."""
    first = phase + layout.span_tokens * max(0, -((phase - layout.sink_tokens) // layout.span_tokens))  # rounded up
    last = length - n_spans * layout.tokens_per_gist - layout.horizon_tokens
    return np.arange(first, last + 1, layout.span_tokens, dtype=np.int64)


def eligible_phases(length: int, layout: SpanLayout, n_spans: int = 1) -> NDArray[np.int64]:
    """The phases of 0…K-1 that have an eligible start in a window of `length` tokens: ascending int64.

    Raises:
        DataError: no phase has one; spans and horizon are longer than the window.
    """
    _require_room(length, layout, n_spans)
    n_starts = length - layout.minimum_length(n_spans) + 1  # starts from the sink on, on any grid
    starts = layout.sink_tokens + np.arange(min(n_starts, layout.span_tokens), dtype=np.int64)
    return np.sort(starts % layout.span_tokens)


def sample_window(
    pool: TrainingPool,
    layout: SpanLayout,
    segments: SegmentLengths,
    probabilities: Probabilities,
    *,
    seed: int,
    step: int,
    item: int,
) -> WindowSample:
    """Draw item number `item` of the global batch of a step.

    The domain is drawn by its probability, the source by its weight, the window uniformly, a phase uniformly among
    those with an eligible start, and `segments_per_window` of its eligible starts (or all) without replacement. Each
    span drawn is the last of a segment, and how many before it are replaced as well is drawn behind that; a segment
    that would reach into the sink ends with another span, drawn anew. Which of the segments are compact comes last.

    Raises:
        ConfigError, DataError: as `check_sampling`, for the window that is drawn.
    """
    _check_probabilities(pool, probabilities)
    # Philox is a function of key and counter: steps and items never share random numbers (Salmon et al., 2011).
    random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, item, step]))
    domain = sorted(probabilities)[_draw(random, [probabilities[name] for name in sorted(probabilities)])]
    sources = pool[domain]
    source = sources[_draw(random, [source.weight for source in sources])]
    index = int(random.integers(len(source.windows)))
    length = layout.used(int(source.lengths[index]))
    phase = int(random.choice(eligible_phases(length, layout)))
    starts = eligible_starts(length, phase, layout)
    first, n_spans = _draw_segments(random, starts, layout, segments)
    compact = random.random(len(first)) < segments.compact
    return WindowSample(item, int(source.windows[index]), phase, first, n_spans, compact)


def sample_batch(
    pool: TrainingPool,
    layout: SpanLayout,
    segments: SegmentLengths,
    probabilities: Probabilities,
    *,
    seed: int,
    step: int,
    items: range,
) -> list[WindowSample]:
    """Draw the given items of a step's global batch: all of them, or one rank's slice."""
    return [sample_window(pool, layout, segments, probabilities, seed=seed, step=step, item=item) for item in items]


def share_of(items: range, rank: int, count: int) -> range:
    """The slice of the items that is process `rank`'s, of `count`: in order, and their sizes differ by one at most."""
    each, more = divmod(len(items), count)
    first = rank * each + min(rank, more)
    return items[first : first + each + (rank < more)]


def fixed_windows(
    dataset: PreparedDataset,
    layout: SpanLayout,
    *,
    documents: int,
    segments_per_window: int,
    seed: int,
    n_spans: int = 1,
    domains: Sequence[str] | None = None,
    split: Split = "held_out",
    for_validation: bool = False,
) -> list[WindowSample]:
    """Choose one window of each of `documents` held-out documents per domain, with evenly spread segments.

    The choice depends on `seed` and the documents alone, never on training: a document is chosen by a hash of its key,
    so that a larger number extends the choice of a smaller one. Windows too short for a branch are passed over.

    What checkpoints are chosen by is not what is reported: a hash halves the documents, and validation takes those of
    one half first, all else those of the other. Only where a half has too few are some taken by both. A corpus that
    nothing is trained on, as a release has, is not halved.

    Args:
        n_spans: the consecutive spans that each segment replaces (k).
        domains: the domains to choose from; by default every one that has held-out windows.
        for_validation: which half comes first.

    Raises:
        ConfigError: `n_spans` is below 1.
        DataError: a domain has no held-out window that is long enough.
    """
    if n_spans < 1:
        raise ConfigError(f"n_spans must be at least 1, got {n_spans}.")
    chosen: list[WindowSample] = []
    halved = bool(dataset.domains("train"))
    if domains is None and not (domains := dataset.domains(split)):
        raise _without_windows(dataset, split, None)
    for domain in domains:
        windows = dataset.window_indices(split, domain)
        if not len(windows):
            raise _without_windows(dataset, split, domain)
        longest = layout.used(int(dataset.lengths[windows].max()))
        _require_room(longest, layout, n_spans)
        windows = windows[dataset.lengths[windows] >= layout.minimum_length(n_spans)]
        _, first, counts = np.unique(dataset.documents[windows], return_index=True, return_counts=True)
        keys = [dataset.describe(int(windows[index])).key for index in first]
        ranked = sorted(
            (halved and is_for_validation(key) != for_validation, _hash(seed, key), int(index), int(count))
            for key, index, count in zip(keys, first, counts, strict=True)
        )
        for _, draw, index, count in sorted(ranked[:documents], key=itemgetter(1)):
            window = int(windows[index + draw % count])
            length = layout.used(int(dataset.lengths[window]))
            phases = eligible_phases(length, layout, n_spans)
            phase = int(phases[draw // count % len(phases)])
            starts = _evenly_spread(eligible_starts(length, phase, layout, n_spans), segments_per_window)
            n_replaced, compact = np.full_like(starts, n_spans), np.zeros(len(starts), dtype=bool)
            chosen.append(WindowSample(len(chosen), window, phase, starts, n_replaced, compact))
    return chosen


def _without_windows(dataset: PreparedDataset, split: Split, domain: str | None) -> DataError:
    """The error that a split has no windows, and a remedy."""
    kept = sum(entry.kept for entry in dataset.statistics if domain in (None, entry.domain))
    of_domain = "" if domain is None else f" of the domain {domain!r}"
    if not kept:
        there = ", ".join(sorted({entry.domain for entry in dataset.statistics if entry.kept}))
        return DataError(f"Got no documents{of_domain}, expected some; the corpus has those of {there}.")
    fraction = dataset.description.config["held_out_fraction"]
    enough = min(0.5, max(2 * fraction, round(3 / kept, 1)))
    return DataError(
        f"Got no {split.replace('_', '-')} document among the {kept}{of_domain}, expected one at least: each is held "
        f"out or not by its text (data.held_out_fraction={fraction}); add documents, or set "
        f"data.held_out_fraction={enough if split == 'held_out' else fraction / 2}."
    )


def _check_probabilities(pool: TrainingPool, probabilities: Probabilities) -> None:
    values = probabilities.values()
    if not (all(value >= 0 for value in values) and abs(sum(values) - 1) <= 1e-6):
        raise ConfigError(f"Domain probabilities must be at least 0 and sum to 1, got {dict(probabilities)}.")
    for domain, probability in probabilities.items():
        if probability > 0 and domain not in pool:
            raise DataError(
                f"Domain {domain!r} has probability {probability} but no training windows; "
                f"there are some for {sorted(pool)}."
            )


def _require_room(length: int, layout: SpanLayout, n_spans: int = 1) -> None:
    if length < (needed := layout.minimum_length(n_spans)):
        raise DataError(
            f"Spans longer than the document: {n_spans} spans of {layout.tokens_per_gist} tokens, a horizon "
            f"of {layout.horizon_tokens} and {layout.sink_tokens} sink tokens need {needed} tokens, "
            f"but a window has {length}."
        )


def _draw_segments(
    random: np.random.Generator, starts: NDArray[np.int64], layout: SpanLayout, segments: SegmentLengths
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first token and the k of some segments, both int64 [branches], in the order of their horizons.

    Single spans are as they would be without longer segments. What is longer than the window up to its last span ends
    with another one; where those that are far enough in are taken, it is cut.
    """
    ends = random.choice(len(starts), size=min(layout.segments_per_window, len(starts)), replace=False)
    ends.sort()  # indices of the last spans' starts
    longest = (starts - starts[0]) // layout.tokens_per_gist + 1  # of the segments that end with each span
    wanted, whole = _draw_counts(random, segments, len(ends))
    wanted = np.minimum(wanted, longest[-1])
    for branch in np.argsort(-wanted, kind="stable"):  # the longest have the fewest to choose from
        if not whole[branch] and longest[ends[branch]] < wanted[branch]:
            free = np.setdiff1d(np.flatnonzero(longest >= wanted[branch]), ends)
            ends[branch] = random.choice(free) if len(free) else ends[branch]
    n_spans = np.minimum(wanted, longest[ends])
    order = np.argsort(ends)
    return (starts[ends] - (n_spans - 1) * layout.tokens_per_gist)[order], n_spans[order]


def _draw_counts(
    random: np.random.Generator, segments: SegmentLengths, branches: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The k of some branches, int64, and which replace their whole prefix, bool: both [branches].

    The k of these is the most that they may replace.
    """
    counts = sorted(segments.lengths)
    shares = [segments.lengths[k] for k in counts]
    drawn = np.array([counts[_draw(random, shares)] for _ in range(branches)], dtype=np.int64)
    whole = random.random(branches) < segments.whole_prefix
    return np.where(whole, segments.longest, drawn), whole


def _draw(random: np.random.Generator, weights: Sequence[float]) -> int:
    """An index, drawn in proportion to the weights."""
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative / cumulative[-1], random.random(), side="right"))


def _hash(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big")


def _evenly_spread(starts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of the starts, the first and the last among them where count > 1."""
    if len(starts) <= count:
        return starts
    if count == 1:
        return starts[len(starts) // 2 : len(starts) // 2 + 1]
    return starts[np.linspace(0, len(starts) - 1, count).round().astype(np.int64)]
