"""Is it capacity or data that rows of gists lack: the same steps on few passages, over and over, or on many.

    python benchmarks/fit_rows.py CORPORA [--passages 23 184] [--ranks 8 64] [--contexts 184]

A new GistNet is trained on rows alone: 30 gists at the end of their spans, and 192 tokens behind them that the teacher
predicts. Every arm sees as many such contexts, two a step, of a number of passages that it comes back to. It is judged
on the first sixteen that it was trained on, and on sixteen others, by the share of KL recovered beside a tail of 64.
Weights that recover much of few passages and little of others have the capacity, and lack passages; weights that
recover as little of their own lack capacity.

The passages are from documents of `narrative/squality_stories.jsonl.zst` and `narrative/wikipedia_articles.jsonl.zst`
in the folder of corpora, half of each. An arm costs seven minutes of a core. Results: benchmarks/results/fit-rows.json.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import RESULTS
from benchmarks.oracle_rows import FILES, SPAN, SPANS, TAIL, read_passages
from gistnet.data.config import SINK_TOKENS
from gistnet.errors import DataError, GistNetError
from gistnet.evaluation import baselines
from gistnet.files import write_json
from gistnet.machine import describe_machine
from gistnet.model.config import GistNetConfig
from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import PrefillOutput, Teacher
from gistnet.objective.branches import Replacements, SegmentBatch, gist_replacements, replaced_hidden
from gistnet.objective.losses import token_losses
from gistnet.positions import Positions
from gistnet.session import open_gistnet
from gistnet.training.config import OptimiserConfig
from gistnet.training.optimiser import build_optimiser, learning_rate
from gistnet.training.trainer import GRADIENT_CLIP

SCORED, JUDGED, CONTEXTS_PER_STEP = 128, 16, 2
NEEDED = SINK_TOKENS + SPANS * SPAN + TAIL + SCORED
OPTIMISER = OptimiserConfig(kind="muon", learning_rate=2e-3)


def main() -> int:
    """Train and judge the arms, and print and keep what they recover."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path, help="folder of the documents")
    parser.add_argument("--passages", type=int, nargs="+", default=[23, 184], help="that an arm is trained on")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64], help="of the adapters")
    parser.add_argument("--contexts", type=int, default=184, help="that every arm sees, two a step")
    parser.add_argument("--out", type=Path, default=RESULTS / "fit-rows.json")
    asked = parser.parse_args()
    teacher, _ = open_gistnet(Path("smollm2-135m-gist32"))
    rows = [Row(teacher, passage) for passage in in_turn(teacher, asked.corpora, JUDGED + max(asked.passages))]
    others, trained = rows[:JUDGED], rows[JUDGED:]
    head = {"machine": describe_machine(), "contexts": asked.contexts, "others": JUDGED, "tail": TAIL, "scored": SCORED}
    arms: list[dict[str, Any]] = []
    for count, rank in product(asked.passages, asked.ranks):
        encoder = SpanEncoder(teacher, GistNet.build(GistNetConfig(lora_rank=rank, lora_alpha=2 * rank), teacher, SPAN))
        train(encoder, trained[:count], asked.contexts)
        shares = {"own": recovered(encoder, trained[:JUDGED]), "others": recovered(encoder, others)}
        arms.append({"passages": count, "rank": rank, **shares})
        print(arms[-1], flush=True)
        last_token = {"own": of_last_token(trained[:JUDGED]), "others": of_last_token(others)}
        write_json(asked.out, {**head, "last_token": last_token, "arms": arms})
    return 0


def in_turn(teacher: Teacher, corpora: Path, count: int) -> list[Tensor]:
    """Token ids `[NEEDED]` of so many passages, of each file in turn."""
    each = -(-count // len(FILES))
    of_files = ([ids for _, ids in read_passages(teacher, corpora / name, NEEDED, each)] for name in FILES)
    passages = [passage for together in zip(*of_files, strict=False) for passage in together][:count]
    if len(passages) < count:
        raise DataError(f"Got {len(passages)} passages of {NEEDED} tokens in {corpora}, expected {count}.")
    return passages


class Row:
    """A text with a row of spans, and what the teacher predicts behind it.

    Args:
        tokens: `[n]`, the row from `start` on, and the rest behind it.
        start: first token of the row.
        unscored: tokens behind the row that are not judged.
        positions: where gists and baselines stand.

    Attributes:
        drop, last_token, recent_tokens: mean KL over the scored tokens, nats, without the spans, after their last
            tokens, and after as many recent ones.
    """

    @torch.no_grad()
    def __init__(
        self,
        teacher: Teacher,
        tokens: Tensor,
        *,
        start: int = SINK_TOKENS,
        unscored: int = TAIL,
        positions: Positions = "end",
    ) -> None:
        self.teacher, self.tokens, self.unscored, self.positions = teacher, tokens[None].long(), unscored, positions
        starts = torch.full((1,), start, device=teacher.device)
        horizon = len(tokens) - start - SPANS * SPAN
        self.segments = SegmentBatch(self.tokens, torch.zeros_like(starts), starts, SPAN, SPANS, horizon)
        read = teacher.prefill(self.tokens)
        self.wanted = self.segments.original_hidden(read).clone()
        # The tokens before it are all that a row reads of the original: the rest need not stay in memory.
        self.before: PrefillOutput = teacher.prefill(self.tokens[:, :start])
        self.drop, self.last_token, self.recent_tokens = (
            float(self.kl(replaced_hidden(teacher, read, self.segments, self._made(baseline, read)), unscored))
            for baseline in (baselines.drop, baselines.last_token, baselines.recent_tokens)
        )

    def kl(self, hidden: Tensor, first: int) -> Tensor:
        """Mean KL over the tokens behind the row from `first` on, nats."""
        return token_losses(self.teacher, self.wanted, hidden, self.segments.targets).kl[:, first:].mean()

    def hidden_after_gists(self, encoder: SpanEncoder) -> Tensor:
        """Hidden states after an encoder's gists that predict what is behind the row, `[1, n, dim]`, with gradient."""
        start = int(self.segments.starts[0])
        gists = encoder.encode(self.tokens[:, start : start + SPANS * SPAN])
        replacements = gist_replacements(self.segments, gists, self.positions)
        return replaced_hidden(self.teacher, self.before, self.segments, replacements)

    def kl_of_gists(self, encoder: SpanEncoder, first: int | None = None) -> Tensor:
        """Mean KL after the gists of an encoder over the scored tokens, or all from `first` on, nats."""
        return self.kl(self.hidden_after_gists(encoder), self.unscored if first is None else first)

    def _made(self, baseline: baselines.Baseline, read: PrefillOutput) -> Replacements:
        return baseline(self.teacher, self.segments, read, self.positions)


def train(
    encoder: SpanEncoder, rows: Sequence[Row], contexts: int, optimiser_config: OptimiserConfig = OPTIMISER
) -> None:
    """Train on `contexts` of the rows, which come again in the same order, by the loss of all tokens behind them."""
    optimiser = build_optimiser(encoder.gistnet.named_parameters(), optimiser_config)
    parameters = [parameter for parameter in encoder.gistnet.parameters() if parameter.requires_grad]
    drawn, steps = cycle(rows), contexts // CONTEXTS_PER_STEP
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, optimiser_config)
        optimiser.zero_grad()
        for row in islice(drawn, CONTEXTS_PER_STEP):
            (row.kl_of_gists(encoder, first=0) / CONTEXTS_PER_STEP).backward()
        torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
        optimiser.step()


@torch.no_grad()
def recovered(encoder: SpanEncoder, rows: Sequence[Row]) -> float:
    """Share of KL that the gists of an encoder recover, all rows together."""
    return 1 - float(sum(row.kl_of_gists(encoder) for row in rows)) / sum(row.drop for row in rows)


def of_last_token(rows: Sequence[Row]) -> float:
    """Share of KL that the spans' last tokens recover."""
    return 1 - sum(row.last_token for row in rows) / sum(row.drop for row in rows)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GistNetError as error:
        sys.exit(f"fit_rows: {error}")
