"""Oracle vectors: how much of a span one vector could hold, if it were found for that span alone.

For each of a few held-out spans a vector is optimised until the teacher, reading it, predicts what it would have said
itself after the span: continuations that are sampled from the teacher. It is then judged on the true continuation, as
every gist is, which the optimisation never saw. A GistNet has to find such a vector in one pass, so it will hardly be
better; how far it is behind is what training can still win.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, WindowSample
from gistnet.errors import DataError
from gistnet.evaluation import baselines
from gistnet.evaluation.held_out import HeldOut, HeldOutWindow
from gistnet.evaluation.metrics import mean_over_offsets, offset_slices, recovered_share
from gistnet.evaluation.records import MetricRecord
from gistnet.evaluation.resampling import Measure, Population
from gistnet.files import storage_errors, write_bytes
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions, SegmentBatch, gist_replacements, replaced_hidden
from gistnet.objective.losses import token_losses
from gistnet.progress import track


class Search(NamedTuple):
    """Settings of the search for an oracle vector.

    A quarter of the compute (half of the steps, a third of the samples) costs two points of the share recovered.
    """

    samples: int = 96
    """Continuations sampled from the teacher to optimise each vector on."""
    samples_to_judge: int = 16
    """Further continuations, which decide which of the vectors on the way is kept."""
    samples_per_step: int = 8
    """Continuations read in a step."""
    steps: int = 120
    """Steps of Adam."""
    learning_rate: float = 0.15
    """The first, as a share of the typical entry of the vector it begins as; it falls to zero with a cosine."""
    judge_every_steps: int = 15
    """Steps between looks at the continuations that decide."""


SEARCH = Search()


def share_of_oracle(mean_loss: Any, mean_loss_of_oracle: Any, mean_loss_of_drop: Any) -> Any:
    """Share of what the oracle vector recovers, of mean losses: numbers or arrays."""
    return (mean_loss_of_drop - mean_loss) / (mean_loss_of_drop - mean_loss_of_oracle)


Statistic = Callable[[Any, Any, Any], Any]
"""Function of the mean losses of a replacement, of oracle vectors and of dropping: numbers, or arrays to bootstrap."""
MEASURES: Mapping[str, tuple[tuple[str, ...], Statistic]] = {
    "oracle_kl": (("oracle", "gist", "drop", "last_token"), lambda loss, oracle, drop: loss),
    "oracle_recovered_kl": (
        ("oracle", "gist", "drop", "last_token"),
        lambda loss, oracle, drop: recovered_share(loss, drop),
    ),
    "share_of_oracle": (("gist", "last_token"), share_of_oracle),
}
"""Name of a record → the replacement it is of, then its baselines; and the statistic of all of them."""


def oracle_records(
    teacher: Teacher,
    gistnet: GistNet,
    dataset: PreparedDataset,
    samples: Sequence[WindowSample],
    layout: SpanLayout,
    *,
    spans: int,
    vectors: Path | None = None,
    positions: Positions,
    seed: int = 0,
    resamples: int = 1000,
    search: Search = SEARCH,
) -> list[MetricRecord]:
    """Measure vectors optimised for single spans, beside the GistNet's gists of the same spans.

    Args:
        samples: held-out windows and starts, of which `spans` are used; of a single span each.
        layout: how they were cut; its horizon H is the length of the sampled continuations too.
        vectors: the file that keeps the vectors.
        positions: where vector and gist stand.

    Returns:
        For each domain and range of offsets `oracle_kl` and `oracle_recovered_kl`, with `gist`, `drop`, `last_token`,
        and `share_of_oracle`, what the gist recovers of what the vector does.

    Raises:
        DataError: there are no samples, or the file of vectors is damaged.
        StorageError: that file cannot be written.
    """
    chosen = choose_spans(dataset, samples, spans)
    held_out = HeldOut(
        teacher, dataset, chosen, layout, cache_gigabytes=0, hidden_state_layer=gistnet.hidden_state_layer
    )
    found = find_vectors(teacher, held_out.windows, layout, vectors, search, positions=positions, seed=seed)[:, None]
    gists, _ = held_out.encode(gistnet)

    measured = held_out.measure(
        {
            "oracle": (found, positions),
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
                measure = Measure({column: kl[column] for column in columns}, (kl["oracle"], kl["drop"]), statistic)
                records.append(population.record(name, measure, level=gistnet.level, **labels))
    return records


def choose_spans(dataset: PreparedDataset, samples: Sequence[WindowSample], count: int) -> list[WindowSample]:
    """At most `count` of the samples' spans, one each: domains in turn, and every window before a second span of one.

    Which span of a window comes first rotates from window to window, so that early and late ones are among them.

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
            rank = seen[domain, turn] = seen.get((domain, turn), -1) + 1
            start = sample.starts[[(rank + turn) % len(sample.starts)]]
            ranked.append(((turn, rank, domain), replace(sample, starts=start, n_spans=np.ones_like(start))))
    ranked.sort(key=lambda entry: entry[0])
    return [sample for _, sample in ranked[:count]]


def find_vectors(
    teacher: Teacher,
    windows: Sequence[HeldOutWindow],
    layout: SpanLayout,
    file: Path | None,
    search: Search,
    *,
    positions: Positions,
    seed: int = 0,
) -> Tensor:
    """The oracle vector of the only span of each window, `[windows, dim]`: kept in `file`, or found now.

    Raises:
        DataError: `file` is not a file of such vectors.
        StorageError: it cannot be written.
    """
    kept = {} if file is None else read_vectors(file, teacher.hidden_size)
    found = []
    for window in track(windows, len(windows), "spans"):
        name = _vector_name(teacher, window, layout, search, positions, seed)
        if name not in kept:
            generator = span_generator(window, seed)
            vector = optimised_vector(
                teacher, context_of(window), layout, search, positions=positions, generator=generator
            )
            kept[name] = vector.cpu()
            if file is not None:
                write_bytes(file, save(kept))
        found.append(kept[name].to(teacher.device))
    return torch.stack(found)


def read_vectors(path: Path, dim: int) -> dict[str, Tensor]:
    """The vectors that a file keeps, `[dim]` each, by the name of what they were found for; none where it is missing.

    Raises:
        DataError: it is no safetensors file, or its vectors are of another size.
        StorageError: it cannot be read.
    """
    with storage_errors("read", path):
        data = path.read_bytes() if path.exists() else save({})
    try:
        vectors = load(data)
    except SafetensorError as error:
        raise DataError(f"{path} is no file of oracle vectors ({error}); expected one in safetensors.") from error
    for vector in vectors.values():
        if vector.shape != (dim,):
            raise DataError(f"{path} holds vectors {list(vector.shape)}, expected [{dim}], as the embeddings.")
    return vectors


def _vector_name(
    teacher: Teacher, window: HeldOutWindow, layout: SpanLayout, search: Search, positions: Positions, seed: int
) -> str:
    """A digest of all that decides which vector is found."""
    decisive = [
        teacher.fingerprint.config_hash,
        teacher.fingerprint.weights_hash,
        str(teacher.dtype),
        context_of(window).tolist(),
        layout.span_tokens,
        layout.horizon_tokens,
        positions,
        _label(window, seed),
        search._asdict(),
    ]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def context_of(window: HeldOutWindow) -> Tensor:
    """The window's tokens up to the end of its only span, `[s + K]`: all that the optimisation may see."""
    segments = window.segments
    return segments.tokens[0, : int(segments.starts[0] + segments.replaced_tokens[0])]


def span_generator(window: HeldOutWindow, seed: int) -> torch.Generator:
    """Random numbers of a span's own, which do not depend on what other spans are chosen."""
    digest = hashlib.sha256(_label(window, seed).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))


def _label(window: HeldOutWindow, seed: int) -> str:
    return f"{seed}:{window.info.key}:{window.info.offset}:{int(window.segments.starts[0])}"


@torch.no_grad()
def sample_continuations(
    teacher: Teacher, context: Tensor, count: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Continuations of a context `[n]` by the teacher, drawn at temperature 1, through transformers' own cache.

    Returns:
        token ids `[count, length]`, and the hidden states that predict them, `[count, length, dim]`.
    """
    output = teacher.model.base_model(input_ids=context[None], use_cache=True)
    cache = output.past_key_values
    cache.batch_repeat_interleave(count)
    states = [output.last_hidden_state[:, -1:].expand(count, -1, -1)]
    tokens: list[Tensor] = []
    while True:
        likely = teacher.logits(states[-1][:, 0]).float().softmax(dim=-1)
        tokens.append(torch.multinomial(likely.cpu(), 1, generator=generator).to(context.device))
        if len(tokens) == length:
            return torch.cat(tokens, dim=1), torch.cat(states, dim=1)
        output = teacher.model.base_model(input_ids=tokens[-1], past_key_values=cache, use_cache=True)
        states.append(output.last_hidden_state)


def optimised_vector(
    teacher: Teacher,
    context: Tensor,
    layout: SpanLayout,
    search: Search,
    *,
    positions: Positions,
    generator: torch.Generator,
) -> Tensor:
    """The vector, `[dim]`, that best stands for the last K tokens of a context `[n]` in what the teacher says next.

    It begins as the last token's embedding, or as its state behind two thirds of the teacher's layers, whichever is
    better, and the mean KL on sampled continuations is minimised by Adam; a few more continuations, which no step sees,
    choose where to begin and among the vectors on the way.
    """
    count = search.samples + search.samples_to_judge
    tokens, original = sample_continuations(teacher, context, count, layout.horizon_tokens, generator)
    start = len(context) - layout.span_tokens
    states = teacher.prefill(context[None], hidden_state_layer=teacher.late_layers).states
    read = teacher.prefill(context[None, :start])

    def kl(vector: Tensor, rows: Tensor) -> Tensor:
        segments = SegmentBatch(
            tokens=torch.cat([context, tokens[0]])[None],
            windows=torch.zeros_like(rows),
            starts=torch.full_like(rows, start),
            span_tokens=layout.span_tokens,
            n_spans=1,
            horizon=layout.horizon_tokens,
        )
        replacements = gist_replacements(segments, vector.expand(len(rows), 1, -1), positions)
        hidden = replaced_hidden(teacher, read, segments, replacements, tokens=tokens[rows])
        return token_losses(teacher, original[rows], hidden, tokens[rows]).kl.mean()

    everything = torch.arange(count, device=context.device)
    judges, order = (
        everything[search.samples :],
        everything[: search.samples].repeat(-(-search.steps * search.samples_per_step // search.samples)),
    )

    wide = torch.promote_types(teacher.dtype, torch.float32)
    beginnings = [teacher.embed(context[-1]).to(wide), states[0, -1].to(wide)]  # type: ignore[index]
    with torch.no_grad():
        vector = min(beginnings, key=lambda vector: float(kl(vector, judges))).clone().requires_grad_()
    typical = float(vector.detach().square().mean().sqrt())
    optimiser = torch.optim.Adam([vector], lr=search.learning_rate * typical)
    best, least = vector.detach().clone(), math.inf
    for step in range(search.steps + 1):
        if step % search.judge_every_steps == 0 or step == search.steps:
            with torch.no_grad():
                cost = float(kl(vector, judges))
            if cost < least:
                best, least = vector.detach().clone(), cost
        if step < search.steps:
            decay = (1 + math.cos(math.pi * step / search.steps)) / 2
            optimiser.param_groups[0]["lr"] = search.learning_rate * typical * decay
            optimiser.zero_grad()
            kl(vector, order[step * search.samples_per_step :][: search.samples_per_step]).backward()
            optimiser.step()
    return best
