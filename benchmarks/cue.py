"""Do a few learned vectors beside a row of gists help the frozen model to read it?

    python benchmarks/cue.py CORPORA [--arms 4+gists gists+4 4+nothing 4+recent]

Nothing is trained but a cue: vectors before a row of 30 gists of a release, or behind it, which begin as the embeddings
of a sentence (Lester et al., 2021: 2104.08691). Gists stand at the ends of their spans; a cue before them stands within
the first span, one behind them moves on what follows. An arm is what the cue goes with, and how many vectors it has on
which side. Without gists (`nothing`), or with as many recent tokens (`recent`), the gain says what a cue does for any
shortened text.

Judged by the share of KL recovered beside a tail of 64, on 24 passages that no cue was trained on; the gain is above
the same without a cue, with a 95 % interval over passages. The release may have been trained on all of them. Passages
are those of benchmarks/fit_rows.py. An arm costs five minutes of a core. Results: benchmarks/results/cue.json.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.fit_rows import CONTEXTS_PER_STEP, Row, in_turn
from benchmarks.machine import RELEASE, RESULTS
from gistnet.errors import ConfigError, GistNetError
from gistnet.evaluation import baselines
from gistnet.evaluation.resampling import DocumentDraws, percentile_interval
from gistnet.files import write_json
from gistnet.machine import describe_machine
from gistnet.model.encoder import SpanEncoder
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Replacements, gist_replacements, no_replacements, replaced_hidden
from gistnet.session import open_gistnet

JUDGED, RATE, WARM_UP = 24, 1e-2, 10
BEGINS_AS = "Here is a summary of the text so far, in a few words, and then the end of it:\n\n"
CONTENTS = ("gists", "recent", "nothing")
Context = Callable[[Tensor], Replacements]
"""Makes a shortened context with a cue, `[vectors, dim]`; it may have none."""


class Arm(NamedTuple):
    """A cue's number of vectors, what it goes with, and on which side of this it stands."""

    contents: str
    vectors: int
    behind: bool


def main() -> int:
    """Train a cue for each arm, judge it, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path, help="folder of the documents")
    parser.add_argument("--gistnet", type=Path, default=RELEASE, help="whose gists are read")
    names = ["4+gists", "gists+4", "4+nothing", "4+recent"]
    parser.add_argument("--arms", nargs="+", default=names, help="what is before what: 4+gists, gists+4")
    parser.add_argument("--passages", type=int, default=80, help="that a cue is trained on")
    parser.add_argument("--contexts", type=int, default=160, help="that an arm sees, two a step")
    parser.add_argument("--out", type=Path, default=RESULTS / "cue.json")
    asked = parser.parse_args()
    arms = {name: parse(name) for name in asked.arms}
    teacher, gistnet = open_gistnet(asked.gistnet)
    encoder = SpanEncoder(teacher, gistnet.levels[0])
    rows = [Row(teacher, passage) for passage in in_turn(teacher, asked.corpora, JUDGED + asked.passages)]
    head = {name: getattr(asked, name) for name in ("passages", "contexts")} | {"gistnet": str(asked.gistnet)}
    found: list[dict[str, Any]] = []
    for name, arm in arms.items():
        contexts = [context_of(row, contents_of(row, encoder, arm.contents), behind=arm.behind) for row in rows]
        cue = train(teacher, rows[JUDGED:], contexts[JUDGED:], arm.vectors, asked.contexts)
        found.append({"arm": name, **judge(rows[:JUDGED], contexts[:JUDGED], cue)})
        print(found[-1], flush=True)
        write_json(asked.out, {"machine": describe_machine(), "judged": JUDGED, **head, "arms": found})
    return 0


def parse(name: str) -> Arm:
    """The arm of a name.

    Raises:
        ConfigError: it is written otherwise than `4+gists` or `gists+4`.
    """
    for contents in CONTENTS:
        for vectors in (name.removesuffix(f"+{contents}"), name.removeprefix(f"{contents}+")):
            if vectors != name and vectors.isdigit():
                return Arm(contents, int(vectors), behind=name.startswith(contents))
    raise ConfigError(f"Got the arm '{name}', expected one as 4+gists or gists+4, of {', '.join(CONTENTS)}.")


@torch.no_grad()
def contents_of(row: Row, encoder: SpanEncoder, what: str) -> Replacements:
    """Gists, recent tokens or nothing (`CONTENTS`), between a text's first tokens and its tail, without a cue."""
    if what == "gists":
        return gist_replacements(row.segments, encoder.encode(row.segments.replaced).float(), "end")
    if what == "recent":
        return baselines.recent_tokens(row.teacher, row.segments, row.before, "end")
    return no_replacements(row.teacher, row.segments)


def context_of(row: Row, made: Replacements, *, behind: bool) -> Context:
    """Maker of a context: a cue within the row's first span, or behind its contents, where it moves on what follows."""

    def context(cue: Tensor) -> Replacements:
        first = made.continuation if behind else row.segments.starts
        own = (cue[None], first[:, None] + torch.arange(len(cue))[None])
        given = (made.vectors.to(cue.dtype), made.positions)
        vectors, positions = zip(*((given, own) if behind else (own, given)), strict=True)
        continuation = made.continuation + (len(cue) if behind else 0)
        return Replacements(torch.cat(vectors, dim=1), torch.cat(positions, dim=1), continuation)

    return context


def kl(row: Row, context: Context, cue: Tensor, first: int) -> Tensor:
    """Mean KL over the tokens behind a row from `first` on, nats, in its context with a cue."""
    return row.kl(replaced_hidden(row.teacher, row.before, row.segments, context(cue)), first)


def train(teacher: Teacher, rows: Sequence[Row], contexts: Sequence[Context], count: int, seen: int) -> Tensor:
    """A cue `[count, dim]`, trained by the loss of all tokens behind `seen` of the rows, in a drawn order.

    Raises:
        ConfigError: the cue is longer than the sentence that it begins as.
    """
    assert teacher.tokenizer is not None
    tokens = torch.from_numpy(teacher.tokenizer.encode(BEGINS_AS)).long()[:count]
    if len(tokens) < count:
        raise ConfigError(f"Got a cue of {count} vectors, expected at most the {len(tokens)} tokens that it begins as.")
    cue = nn.Parameter(teacher.embed(tokens[None])[0].detach().float().clone())
    optimiser = torch.optim.Adam([cue])
    generator, steps = torch.Generator().manual_seed(0), seen // CONTEXTS_PER_STEP
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(-(-seen // len(rows)))])
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * min((step + 1) / WARM_UP, 1 - step / steps)
        optimiser.zero_grad()
        for i in order[step * CONTEXTS_PER_STEP :][:CONTEXTS_PER_STEP].tolist():
            (kl(rows[i], contexts[i], cue, first=0) / CONTEXTS_PER_STEP).backward()
        optimiser.step()
    return cue.detach()


@torch.no_grad()
def judge(rows: Sequence[Row], contexts: Sequence[Context], cue: Tensor) -> dict[str, float]:
    """Shares of KL recovered without the cue and with it, and the points between, in percent."""
    judged = list(zip(rows, contexts, strict=True))
    drop = np.array([row.drop for row in rows])
    bare, cued = (
        np.array([float(kl(row, context, of, row.unscored)) for row, context in judged]) for of in (cue[:0], cue)
    )
    draws = DocumentDraws(np.arange(len(rows)), 2000, seed=0)
    low, high = percentile_interval(100 * draws.sums(bare - cued) / draws.sums(drop))
    before, after = (float(100 * (1 - of.sum() / drop.sum())) for of in (bare, cued))
    return {"without": before, "with": after, "points": after - before, "low": low, "high": high}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GistNetError as error:
        sys.exit(f"cue: {error}")
