"""The full evaluation of a GistNet on held-out documents: every figure with its baselines and its interval."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, WindowSample, fixed_windows
from gistnet.errors import DataError, TeacherError
from gistnet.evaluation import metrics
from gistnet.evaluation.baselines import every_replacement, of_policy
from gistnet.evaluation.config import EvaluationConfig
from gistnet.evaluation.contexts.long_context import choose_passages, context_records
from gistnet.evaluation.held_out import HeldOut, Measured
from gistnet.evaluation.probes.geometry import (
    Geometry,
    domain_geometry,
    draw_spans,
    encode_spans,
    geometry_records,
    mixed_geometry,
)
from gistnet.evaluation.probes.mapping import map_documents, rounded
from gistnet.evaluation.probes.minimal_pairs import minimal_pairs
from gistnet.evaluation.probes.oracle import oracle_records
from gistnet.evaluation.probes.reconstruction import choose_windows, reconstruction
from gistnet.evaluation.probes.span_map import SpanMap
from gistnet.evaluation.records import MetricRecord
from gistnet.evaluation.resampling import MIXED, Population, populations
from gistnet.evaluation.rows import HeldOutRows, row_records
from gistnet.evaluation.substitution import Substitution, target_kinds
from gistnet.files import is_special, require_writable, write_json
from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.positions import policies_of
from gistnet.run_folder import SPAN_MAP_FILE

CACHE_GIGABYTES = 2.0
"""Memory for prefills, so that windows are read once, to encode their spans and to measure replacements."""
logger = logging.getLogger(__name__)


class Evaluation(NamedTuple):
    """Records and span map of an evaluation."""

    records: list[MetricRecord]
    span_map: SpanMap

    def write(self, path: Path) -> list[Path]:
        """Write the records to `path`, and the span map beside them; a pipe or a device has nothing beside it.

        Returns:
            What was written.

        Raises:
            StorageError: they cannot be written.
        """
        beside = [] if is_special(path) else [path.with_name(SPAN_MAP_FILE)]
        for span_map in beside:
            self.span_map.write(span_map)
        write_json(path, [record.model_dump(mode="json") for record in self.records])
        return [path, *beside]


def evaluate(teacher: Teacher, gistnet: GistNet, dataset: PreparedDataset, config: EvaluationConfig) -> Evaluation:
    """Measure a GistNet on held-out documents (spec, Evaluation Metrics).

    Args:
        teacher: the model that reads gists and tokens.
        gistnet: of the highest level.
        dataset: prepared documents, as `open_trained(path).dataset()` has them; its held-out ones are measured.
        config: what to measure; `open_trained(path).config.evaluation` is that of the run or release.

    Returns:
        Records of each domain, and of their weighted mean where weights are given: KL, ΔNLL, substitutability rate,
        perplexity ratio and the shares recovered for each position policy, horizon and range of offsets, and ΔNLL by
        offset and by kind of token, each with `drop`, `last_token`, `surprisal_token`, `mean` and `shuffled`, and where
        several vectors, or gists of gists, replace a segment, with as many `recent_tokens`; then the geometry of gists,
        the entropy of attention and minimal pairs; where asked for, reconstruction, what gists are worth in long
        contexts, and oracle vectors.
        And the span map, under the first policy and horizon.

    Raises:
        DataError: a domain has no held-out document that is long enough, only one document is left, or a domain that
            has a weight has none.
        TeacherError: the teacher has no tokenizer.
        StorageError: oracle vectors are to be kept in a file that cannot be written.
    """
    config = config.model_copy(update={"positions": config.positions or policies_of(gistnet.positions)})
    tokenizer = _tokenizer(teacher)
    _require_weighted(dataset, config.weights)
    if config.oracle_vectors is not None:
        require_writable(config.oracle_vectors)
    if config.reconstruction:
        choose_windows(dataset, gistnet.levels[0], config.seed)  # for its errors, before all that takes long
    passages = choose_passages(dataset, gistnet.branchings, config.domains or dataset.domains("held_out"), config)
    parts = _Parts(gistnet, config)
    level_0 = _measure(teacher, gistnet.levels[0], dataset, config, parts)
    levels = [level_0, *_measure_above(teacher, gistnet, dataset, config, parts)]
    records = [record for level in levels for record in _substitution_records(level, config)]

    domains = sorted(set(level_0.held_out.domains.tolist()))
    parts.begin("Comparing up to %d gists of %s.", config.geometry_spans, ", ".join(domains))
    for level in levels:
        statistics = _geometry(teacher, level.gistnet, dataset, domains, config)
        records += geometry_records(statistics, positions=config.positions[0], level=level.gistnet.level)
    records += _probes(teacher, level_0, dataset, config, parts)
    records += _rows(teacher, level_0.gistnet, dataset, domains, config, parts)
    if config.contexts.long_context or config.contexts.questions is not None:
        parts.begin("Reading long contexts, most of them gists.")
    records += context_records(teacher, gistnet, passages, config)
    records += _oracle(teacher, level_0, dataset, config, parts)

    if config.map_documents:
        parts.begin("Measuring every span of %d windows of each domain, for the span map.", config.map_documents)
    span_map = SpanMap(
        positions=config.positions[0],
        horizon=config.horizons[0],
        span_tokens=level_0.gistnet.tokens_per_gist,
        documents=map_documents(
            teacher,
            tokenizer,
            level_0.gistnet,
            dataset,
            domains=domains,
            documents=config.map_documents,
            horizon=config.horizons[0],
            positions=config.positions[0],
            sink_tokens=config.sink_tokens,
            seed=config.seed,
        ),
        distribution=_distribution(level_0, config),
    )
    return Evaluation(records, span_map)


class _Parts:
    """Announces each part of an evaluation, as the second of five."""

    def __init__(self, gistnet: GistNet, config: EvaluationConfig) -> None:
        levels = gistnet.levels[: None if config.highest_level is None else config.highest_level + 1]
        contexts = config.contexts.long_context or config.contexts.questions is not None
        some = (config.minimal_pairs, config.reconstruction, config.rows.documents, contexts, config.oracle_spans)
        self._begun, self._total = 0, len(levels) + 1 + sum(map(bool, (*some, config.map_documents)))

    def leave_out(self, count: int) -> None:
        """Count on fewer parts."""
        self._total -= count

    def begin(self, message: str, *values: object) -> None:
        """Log that the next part begins, and what it does."""
        self._begun += 1
        logger.info("%d/%d  %s", self._begun, self._total, message % values)


class _MeasuredLevel(NamedTuple):
    """Held-out spans of one level, and the losses after each replacement."""

    gistnet: GistNet
    layout: SpanLayout
    samples: list[WindowSample]
    held_out: HeldOut
    measured: Mapping[str, Measured]
    kinds: NDArray[np.int64]
    """Kinds of the predicted tokens, see `target_kinds`."""
    populations: list[Population]


def _measure(
    teacher: Teacher, gistnet: GistNet, dataset: PreparedDataset, config: EvaluationConfig, parts: _Parts
) -> _MeasuredLevel:
    """Measure the gists of GistNet's own level, and every baseline."""
    layout = SpanLayout(
        gistnet.branchings,
        horizon_tokens=max(config.horizons),
        segments_per_window=config.segments_per_window,
        sink_tokens=config.sink_tokens,
    )
    samples = fixed_windows(
        dataset,
        layout,
        documents=config.documents,
        segments_per_window=config.segments_per_window,
        seed=config.seed,
        n_spans=config.spans_per_segment,
        domains=config.domains or None,
    )
    held_out = HeldOut(
        teacher,
        dataset,
        samples,
        layout,
        cache_gigabytes=0 if gistnet.hidden_state_layer is None else CACHE_GIGABYTES,
        hidden_state_layer=gistnet.hidden_state_layer,
    )
    documents = torch.from_numpy(held_out.documents)
    if len(documents.unique()) < 2:
        raise DataError("The held-out data is a single document; expected two at least, for the shuffled baseline.")
    gists, _ = held_out.encode(gistnet)
    below = None if gistnet.below is None else held_out.encode(gistnet.below)[0]
    replacements = every_replacement(gists, documents, config.positions, config.seed, below)
    parts.begin(
        "Reading %d held-out windows: %d spans of level %d with %d replacements each.",
        len(samples),
        len(held_out),
        gistnet.level,
        len(replacements),
    )
    return _MeasuredLevel(
        gistnet,
        layout,
        samples,
        held_out,
        held_out.measure(replacements),
        target_kinds(held_out, _tokenizer(teacher), len(dataset.description.window_prefix)),
        populations(held_out.domains, held_out.documents, config.weights, resamples=config.resamples, seed=config.seed),
    )


def _measure_above(
    teacher: Teacher, gistnet: GistNet, dataset: PreparedDataset, config: EvaluationConfig, parts: _Parts
) -> Iterator[_MeasuredLevel]:
    """The levels above 0 (spec, Hierarchical Consistency); where not asked for by number, those that have room."""
    for above in gistnet.levels[1:]:
        if config.highest_level is not None and above.level > config.highest_level:
            return
        try:
            yield _measure(teacher, above, dataset, config, parts)
        except DataError as error:
            if config.highest_level is not None:
                raise
            logger.info("Level %d is left out. %s", above.level, error)
            parts.leave_out(gistnet.level + 1 - above.level)
            return


def _probes(
    teacher: Teacher, level_0: _MeasuredLevel, dataset: PreparedDataset, config: EvaluationConfig, parts: _Parts
) -> Iterator[MetricRecord]:
    """Records of the minimal pairs and of reconstruction."""
    gistnet = level_0.gistnet
    chance: dict[str, Any] = {"seed": config.seed, "resamples": config.resamples}
    if config.minimal_pairs:
        parts.begin("Telling %d adversarial pairs apart.", config.minimal_pairs)
        yield from minimal_pairs(
            teacher,
            gistnet,
            config.minimal_pairs,
            sink_tokens=config.sink_tokens,
            positions=config.positions,
            **chance,
        )
    if config.reconstruction:
        parts.begin("Training probes to read the tokens from gists, and from baselines.")
        yield from reconstruction(teacher, gistnet, dataset, **chance)


def _rows(
    teacher: Teacher,
    gistnet: GistNet,
    dataset: PreparedDataset,
    domains: Sequence[str],
    config: EvaluationConfig,
    parts: _Parts,
) -> Iterator[MetricRecord]:
    """Records of rows of gists beside raw tails, where they are asked for."""
    if not config.rows.documents:
        return
    held_out = HeldOutRows(
        dataset,
        domains,
        config.rows,
        tokens_per_gist=gistnet.tokens_per_gist,
        sink_tokens=config.sink_tokens,
    )
    parts.begin("Reading rows of gists beside raw tails, on %d passages.", len(held_out.passages))
    losses = held_out.measure(SpanEncoder(teacher, gistnet), config.positions)
    yield from row_records(losses, held_out, config, gistnet.level)


def _oracle(
    teacher: Teacher, level_0: _MeasuredLevel, dataset: PreparedDataset, config: EvaluationConfig, parts: _Parts
) -> Iterator[MetricRecord]:
    """Records of oracle vectors, where they are asked for."""
    if not config.oracle_spans:
        return
    parts.begin("Optimising a vector for each of %d spans.", config.oracle_spans)
    yield from oracle_records(
        teacher,
        level_0.gistnet,
        dataset,
        level_0.samples,
        replace(level_0.layout, horizon_tokens=config.horizons[0]),
        spans=config.oracle_spans,
        vectors=config.oracle_vectors,
        positions=config.positions[0],
        seed=config.seed,
        resamples=config.resamples,
    )


def _tokenizer(teacher: Teacher) -> TeacherTokenizer:
    if teacher.tokenizer is None:
        raise TeacherError(f"{teacher.name} has no tokenizer, expected one: tokens are judged by their text.")
    return teacher.tokenizer


def _require_weighted(dataset: PreparedDataset, weights: Mapping[str, float]) -> None:
    held_out = dataset.domains("held_out")
    if missing := sorted(weights.keys() - set(held_out)):
        raise DataError(
            f"evaluation.weights gives {missing[0]!r} a share, but it has no held-out documents; there are some for "
            f"{held_out}."
        )


def _substitution_records(level: _MeasuredLevel, config: EvaluationConfig) -> Iterator[MetricRecord]:
    for policy in config.positions:
        labels = {"positions": policy, "level": level.gistnet.level, "spans_per_segment": config.spans_per_segment}
        for population in level.populations:
            substitution = Substitution(population, of_policy(level.measured, policy), labels)
            for horizon in config.horizons:
                yield from substitution.records(horizon)
            yield from substitution.by_offset()
            yield from substitution.by_kind(level.kinds)


def _geometry(
    teacher: Teacher, gistnet: GistNet, dataset: PreparedDataset, domains: Sequence[str], config: EvaluationConfig
) -> dict[str, Geometry]:
    """The geometry of each domain's gists, and of the mix where weights are given."""
    statistics = {}
    for number, domain in enumerate(domains):
        spans = draw_spans(
            dataset,
            domain,
            span_tokens=gistnet.tokens_per_gist,
            sink_tokens=config.sink_tokens,
            count=config.geometry_spans,
            seed=config.seed,
        )
        encoded = encode_spans(teacher, gistnet, spans, dataset)
        statistics[domain] = domain_geometry(spans, encoded, resamples=config.resamples, seed=(config.seed, number))
    if config.weights:
        statistics[MIXED] = mixed_geometry(statistics, config.weights)
    return statistics


def _distribution(level: _MeasuredLevel, config: EvaluationConfig) -> dict[str, dict[str, list[float]]]:
    """ΔNLL of every span measured, by domain and replacement, under the first policy and horizon."""
    first = of_policy(level.measured, config.positions[0])
    delta_nll = {
        name: metrics.mean_over_offsets(first[name].delta_nll, (1, config.horizons[0]))
        for name in ("gist", "drop", "last_token")
    }
    return {
        population.name: {name: rounded(values[population.rows]) for name, values in delta_nll.items()}
        for population in level.populations
        if population.name != MIXED
    }
