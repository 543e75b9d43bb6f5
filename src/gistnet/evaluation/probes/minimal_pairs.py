"""Minimal pairs: does the teacher, reading gists, still tell two nearly identical spans apart?

Each adversarial pair gives two trials. In a trial the teacher has read one text of the pair up to the end of its span,
with gists in place of the last tokens, and is right when it finds the text's own continuation likelier than that of the
other text. The texts differ in one word, which a gist that only says what its span is about does not hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gistnet.data.synthetic import PAIR_KINDS, PairKind, adversarial_pairs
from gistnet.errors import DataError, TeacherError
from gistnet.evaluation import baselines
from gistnet.evaluation.records import MetricRecord
from gistnet.evaluation.resampling import Measure, Population
from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import PrefillOutput, Teacher
from gistnet.model.tokenizer import TeacherTokenizer, shared_beginning
from gistnet.objective.branches import Positions, Replacements, SegmentBatch, gist_replacements, replaced_hidden
from gistnet.objective.losses import token_nll
from gistnet.progress import track

DOMAIN = "adversarial"
PAIRS_PER_PASS = 8
"""Pairs that the teacher reads at once; only memory and speed depend on it."""


@dataclass(frozen=True)
class TokenPair:
    """An adversarial pair as token ids.

    `contexts` are what precedes the continuations, the beginning of a window included; `differing` counts the tokens
    from the first that differs to the end of the longer context. `continuations` are, after each context, its own and
    that of the other text.
    """

    kind: PairKind
    contexts: tuple[list[int], list[int]]
    continuations: tuple[tuple[list[int], list[int]], tuple[list[int], list[int]]]
    differing: int

    def fits(self, replaced_tokens: int, sink_tokens: int) -> bool:
        """True if a segment at the end of either context hides all that differs, and leaves a beginning."""
        return 0 < self.differing <= replaced_tokens <= min(map(len, self.contexts)) - sink_tokens


def minimal_pairs(
    teacher: Teacher,
    gistnet: GistNet,
    count: int,
    *,
    sink_tokens: int,
    positions: Sequence[Positions],
    seed: int = 0,
    resamples: int = 1000,
) -> list[MetricRecord]:
    """Measure how often the teacher prefers the continuation that fits the gists it reads; chance is one half.

    In every trial the last k · K tokens before the continuation are replaced. k is one number for all pairs, the one
    that fits most (`spans_per_segment`); the other pairs are left out, and the records count those that are not. Where
    the texts of a pair differ in length, the segment of the shorter takes in that much more of their common beginning.
    Likelier is what has the lower mean negative log-likelihood per token; a tie counts one half.

    Returns:
        `pair_accuracy` for each position policy, of all kinds of pairs and of each, with `full` (nothing replaced),
        `drop`, `last_token`, `mean` and `shuffled` (gists of another pair).

    Raises:
        TeacherError: the teacher has no tokenizer.
        DataError: fewer than two pairs fit.
    """
    if teacher.tokenizer is None:
        raise TeacherError(f"{teacher.name} has no tokenizer, expected one for minimal pairs.")
    span = gistnet.tokens_per_gist
    candidates = token_pairs(teacher.tokenizer, count, seed)
    k = spans_per_segment(candidates, span, sink_tokens)
    pairs = [pair for pair in candidates if pair.fits(k * span, sink_tokens)]
    if len(pairs) < 2:
        raise DataError(
            f"Of {len(candidates)} adversarial pairs {len(pairs)} can be cut into spans of {span} tokens, expected two "
            "at least, for the shuffled baseline."
        )
    gists = _gists(teacher, gistnet, pairs, k * span)
    others = gists[baselines.other_documents(torch.arange(len(pairs)).repeat_interleave(2), seed)]

    records = []
    for policy in positions:
        right = _right(
            teacher,
            pairs,
            {"gist": gists, "shuffled": others},
            policy,
            span_tokens=span,
            gists=k,
        )
        records += _records(right, [pair.kind for pair in pairs], policy, gistnet.level, k, seed, resamples)
    return records


def token_pairs(tokenizer: TeacherTokenizer, count: int, seed: int) -> list[TokenPair]:
    """`count` adversarial pairs as token ids; context and continuation are tokenised as one text.

    What the two continuations end in alike is left out: it follows what tells them apart.
    """
    pairs = []
    for pair in adversarial_pairs(seed, count):
        own, other = pair.continuation_a, pair.continuation_b
        a, after_a = tokenizer.encode_alternatives(pair.prefix + pair.span_a, [own, other])
        b, after_b = tokenizer.encode_alternatives(pair.prefix + pair.span_b, [other, own])
        contexts = [*tokenizer.window_prefix, *a], [*tokenizer.window_prefix, *b]
        differing = max(map(len, contexts)) - shared_beginning(*contexts)
        pairs.append(TokenPair(pair.kind, contexts, (_told_apart(*after_a), _told_apart(*after_b)), differing))
    return pairs


def _told_apart(first: list[int], second: list[int]) -> tuple[list[int], list[int]]:
    """Two continuations without what they end in alike; of each, one token at least."""
    alike = min(shared_beginning(first[::-1], second[::-1]), len(first) - 1, len(second) - 1)
    return first[: len(first) - alike], second[: len(second) - alike]


def spans_per_segment(pairs: Sequence[TokenPair], span_tokens: int, sink_tokens: int) -> int:
    """The number k of gists for which most pairs fit: enough to hide what differs, few enough to leave a beginning."""
    longest = max(pair.differing for pair in pairs)

    def fitting(k: int) -> int:
        return sum(pair.fits(k * span_tokens, sink_tokens) for pair in pairs)

    return max(range(1, max(1, -(-longest // span_tokens)) + 1), key=fitting)


@torch.no_grad()
def _gists(teacher: Teacher, gistnet: GistNet, pairs: Sequence[TokenPair], replaced_tokens: int) -> Tensor:
    """Gists of the last tokens of every context, `[trials, k, dim]`."""
    encoder, made = SpanEncoder(teacher, gistnet), []
    for first in range(0, len(pairs), PAIRS_PER_PASS):
        contexts = [context for pair in pairs[first : first + PAIRS_PER_PASS] for context in pair.contexts]
        replaced = torch.tensor([context[-replaced_tokens:] for context in contexts], device=teacher.device)
        starts = torch.tensor([len(context) - replaced_tokens for context in contexts], device=teacher.device)
        each = torch.arange(len(contexts), device=teacher.device)
        made.append(encoder.encode(replaced, encoder.context(_padded(contexts, teacher.device), starts, each)))
    return torch.cat(made)


@torch.no_grad()
def _right(
    teacher: Teacher,
    pairs: Sequence[TokenPair],
    vectors: Mapping[str, Tensor],
    policy: Positions,
    *,
    span_tokens: int,
    gists: int,
) -> dict[str, NDArray[np.float64]]:
    """1 for each trial whose own continuation is the likelier, ½ for a tie: `[pairs, 2]` by what stood in.

    `vectors` `[trials, k, dim]`, by name, are placed as gists; beside them stand the baselines.
    """
    columns: dict[str, list[Tensor]] = {}
    passes = range(0, len(pairs), PAIRS_PER_PASS)
    for first in track(passes, len(passes), "passes over pairs"):
        batch = pairs[first : first + PAIRS_PER_PASS]
        contexts = [context for pair in batch for context in pair.contexts]
        # A trial's own continuation, then that of the other text.
        following = [tokens for pair in batch for both in pair.continuations for tokens in both]
        windows = torch.arange(len(contexts), device=teacher.device).repeat_interleave(2)
        ends = torch.tensor([len(context) for context in contexts], device=teacher.device)[windows]
        cut = partial(
            SegmentBatch, _padded(contexts, teacher.device, more=1), windows, span_tokens=span_tokens, horizon=1
        )
        nothing, segments = cut(starts=ends, n_spans=0), cut(starts=ends - gists * span_tokens, n_spans=gists)
        prefill = teacher.prefill(segments.tokens)

        rows = slice(2 * first, 2 * (first + len(batch)))
        kinds = {"drop": baselines.drop, "last_token": baselines.last_token, "mean": baselines.mean}
        views = {
            name: (segments, gist_replacements(segments, of_trials[rows].repeat_interleave(2, dim=0), policy))
            for name, of_trials in vectors.items()
        }
        views |= {"full": (nothing, baselines.drop(teacher, nothing, prefill, policy))}
        views |= {name: (segments, make(teacher, segments, prefill, policy)) for name, make in kinds.items()}
        for name, (replaced, by) in views.items():
            own, other = _mean_nll(teacher, prefill, replaced, by, following).view(-1, 2, 2).unbind(dim=2)
            columns.setdefault(name, []).append((own < other) + (own == other) / 2)
    return {name: torch.cat(parts).double().cpu().numpy() for name, parts in columns.items()}


def _mean_nll(
    teacher: Teacher,
    prefill: PrefillOutput,
    segments: SegmentBatch,
    replacements: Replacements,
    following: Sequence[Sequence[int]],
) -> Tensor:
    """Mean negative log-likelihood of what follows each branch, `[branches]`, nats per token."""
    tokens = _padded(following, teacher.device)
    nll = token_nll(teacher, replaced_hidden(teacher, prefill, segments, replacements, tokens=tokens), tokens)
    lengths = torch.tensor([len(row) for row in following], device=teacher.device)[:, None]
    counted = torch.arange(tokens.shape[1], device=teacher.device) < lengths
    return (nll * counted).sum(dim=1) / lengths[:, 0]


def _padded(rows: Sequence[Sequence[int]], device: torch.device, more: int = 0) -> Tensor:
    """Rows of token ids, `[rows, longest + more]`, with token 0 after their ends, where nothing sees it."""
    longest = max(map(len, rows)) + more
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)


def _records(
    right: Mapping[str, NDArray[np.float64]],
    kinds: Sequence[PairKind],
    policy: Positions,
    level: int,
    k: int,
    seed: int,
    resamples: int,
) -> list[MetricRecord]:
    groups = {"": np.ones(len(kinds), dtype=bool)} | {kind: np.array(kinds) == kind for kind in PAIR_KINDS}
    records = []
    for kind, rows in groups.items():
        if not rows.any():
            continue
        measure = Measure({name: trials[rows].ravel() for name, trials in right.items()})
        pairs = np.repeat(np.flatnonzero(rows), 2)
        population = Population.of_domain(DOMAIN, pairs, resamples=resamples, seed=seed)
        records.append(
            population.record("pair_accuracy", measure, kind=kind, positions=policy, level=level, spans_per_segment=k)
        )
    return records
