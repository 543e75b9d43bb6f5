"""The optimised-vector bound: how much of a span one vector could hold, if it were found for that span alone.

For each of a few held-out spans a vector is optimised until the teacher, reading it, predicts what it would have said
itself after the span: continuations that are sampled from the teacher. It is then judged on the true continuation, as
every gist is, which the optimisation never saw. A GistNet has to find such a vector in one pass, so it will hardly be
better; how far it is behind is what training can still win.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, WindowSample
from gistnet.errors import DataError
from gistnet.evaluation import baselines
from gistnet.evaluation.config import BoundConfig
from gistnet.evaluation.held_out import HeldOut
from gistnet.evaluation.metrics import mean_over_offsets, offset_slices, recovered_share
from gistnet.evaluation.probes.optimised_vector import find_vectors
from gistnet.evaluation.records import MetricRecord
from gistnet.evaluation.resampling import Measure, Population
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions


def share_of_bound(mean_loss: Any, mean_loss_of_bound: Any, mean_loss_of_drop: Any) -> Any:
    """What is recovered, as a share of what the optimised vector recovers, of mean losses: numbers or arrays."""
    return (mean_loss_of_drop - mean_loss) / (mean_loss_of_drop - mean_loss_of_bound)


Statistic = Callable[[Any, Any, Any], Any]
"""Of the mean losses of a replacement, of the optimised vectors, and of dropping: numbers, or arrays to bootstrap."""
MEASURES: Mapping[str, tuple[tuple[str, ...], Statistic]] = {
    "bound_kl": (("bound", "gist", "drop", "last_token"), lambda loss, bound, drop: loss),
    "bound_recovered_kl": (
        ("bound", "gist", "drop", "last_token"),
        lambda loss, bound, drop: recovered_share(loss, drop),
    ),
    "share_of_bound": (("gist", "last_token"), share_of_bound),
}
"""Name of a record → the replacement it is of, then its baselines; and the statistic of all of them."""


def optimised_bound(
    teacher: Teacher,
    gistnet: GistNet,
    dataset: PreparedDataset,
    samples: Sequence[WindowSample],
    layout: SpanLayout,
    config: BoundConfig,
    *,
    positions: Positions,
    seed: int = 0,
    resamples: int = 1000,
) -> list[MetricRecord]:
    """What vectors optimised for single spans cost and win back, beside the GistNet's gists of the same spans.

    Args:
        samples: held-out windows and starts, of which `config.spans` are used; of a single span each.
        layout: how they were cut; its horizon H is the length of the sampled continuations too.
        positions: where vector and gist stand.

    Returns:
        For each domain and range of offsets `bound_kl` and `bound_recovered_kl`, with `gist`, `drop`, `last_token`, and
        `share_of_bound`, what the gist recovers of what the vector does.

    Raises:
        DataError: there are no samples, or the file of vectors is damaged.
        StorageError: that file cannot be written.
    """
    chosen = choose_spans(dataset, samples, config.spans)
    held_out = HeldOut(
        teacher, dataset, chosen, layout, cache_gigabytes=0, hidden_state_layer=gistnet.hidden_state_layer
    )
    vectors = find_vectors(teacher, held_out.windows, layout, config, positions=positions, seed=seed)[:, None]
    gists, _ = held_out.encode(gistnet)

    measured = held_out.measure(
        {
            "bound": (vectors, positions),
            "gist": (gists, positions),
            "drop": (baselines.drop, positions),
            "last_token": (baselines.last_token, positions),
        }
    )
    records = []
    for domain in sorted(set(held_out.domains.tolist())):
        rows = held_out.domains == domain
        population = Population.of_domain(domain, held_out.documents[rows], resamples=resamples, seed=seed)
        for offsets in offset_slices(layout.horizon_tokens):
            kl = {name: mean_over_offsets(losses.kl[rows], offsets) for name, losses in measured.items()}
            labels: dict[str, Any] = {"horizon": layout.horizon_tokens, "offsets": offsets, "positions": positions}
            for name, (columns, statistic) in MEASURES.items():
                measure = Measure({column: kl[column] for column in columns}, (kl["bound"], kl["drop"]), statistic)
                records.append(population.record(name, measure, level=gistnet.level, **labels))
    return records


def choose_spans(dataset: PreparedDataset, samples: Sequence[WindowSample], count: int) -> list[WindowSample]:
    """At most `count` of the samples' spans, one each: domains in turn, and every window before a second span of one.

    The first span of each window is another for each window, so that early and late ones are among them.

    Raises:
        DataError: there are no samples.
    """
    if not samples:
        raise DataError("There are no held-out spans, expected one at least to optimise a vector for.")
    seen: dict[tuple[str, int], int] = {}
    ranked = []
    for sample in samples:
        domain = dataset.describe(sample.window).domain
        for turn in range(len(sample.starts)):
            place = seen[domain, turn] = seen.get((domain, turn), -1) + 1
            start = sample.starts[[(place + turn) % len(sample.starts)]]
            ranked.append(((turn, place, domain), replace(sample, starts=start, gists=np.ones_like(start))))
    ranked.sort(key=lambda entry: entry[0])
    return [sample for _, sample in ranked[:count]]
