"""Oracle vectors of rows: thirty gists optimised together for one passage, and what they recover.

    python benchmarks/oracle_rows.py CORPORA [--passages 4] [--steps 60] [--positions end] [--tail known]

For each passage, 30 spans and a raw tail of 64 tokens, the 30 gists of the release are optimised together until the
teacher, reading them, predicts the continuations that it samples from the full text. They are judged on the text
itself, which the optimisation never saw. Where the tail is `unknown`, it is sampled, too, another in each
continuation: the vectors have to serve any text that follows, as a gist has. A GistNet must find its own in a pass of
each span alone; how far it is behind is what training could win, and where both are low, gists of this kind are the
limit.

The passages are from documents of `narrative/squality_stories.jsonl.zst` and `narrative/wikipedia_articles.jsonl.zst`
in the folder of corpora, on which the released GistNet was trained. Results: benchmarks/results/oracle-rows-….json.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import RELEASE, results_file
from gistnet.data.config import SINK_TOKENS
from gistnet.data.sources import MatchedFile, read_rows
from gistnet.errors import GistNetError
from gistnet.evaluation import baselines
from gistnet.evaluation.probes.oracle import sample_continuations
from gistnet.files import write_json
from gistnet.machine import describe_machine
from gistnet.model.encoder import SpanEncoder
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions, SegmentBatch, gist_replacements, replaced_hidden
from gistnet.objective.losses import token_losses
from gistnet.session import open_gistnet

FILES = ("narrative/squality_stories.jsonl.zst", "narrative/wikipedia_articles.jsonl.zst")
SPANS, SPAN, TAIL, SCORED = 30, 32, 64, 64
SAMPLES, JUDGES, EACH_STEP, JUDGE_EVERY = 24, 8, 4, 10
RATE = 0.1
"""The first learning rate of Adam, as a share of the typical entry of a gist; it falls to zero with a cosine."""


def main() -> int:
    """Optimise the rows, and print and keep what they recover."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path, help="folder of the documents")
    parser.add_argument("--gistnet", type=Path, default=RELEASE)
    parser.add_argument("--passages", type=int, default=4, help="half of them from each file")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--positions", choices=("end", "compact"), default="end")
    parser.add_argument("--tail", choices=("known", "unknown"), default="unknown", help="to the optimisation")
    parser.add_argument("--out", type=Path, help="results/oracle-rows-TAIL.json by default")
    asked = parser.parse_args()
    teacher, gistnet = open_gistnet(asked.gistnet)
    encoder = SpanEncoder(teacher, gistnet.levels[0])
    needed = SINK_TOKENS + SPANS * SPAN + TAIL + SCORED
    found: list[dict[str, Any]] = []
    for name in FILES:
        for label, passage in read_passages(teacher, asked.corpora / name, needed, asked.passages // 2):
            found.append({"document": label, **measure(encoder, passage, asked)})
            print(found[-1], flush=True)
    whole = {name: float(np.mean([of[name] for of in found])) for name in ("drop", "gists", "oracle", "last_token")}
    recovered = {name: 1 - kl / whole["drop"] for name, kl in whole.items()}
    print("recovered", recovered)
    settings = {"positions": asked.positions, "tail": asked.tail, "steps": asked.steps, "samples": SAMPLES}
    head = {"machine": describe_machine(), "gistnet": str(asked.gistnet), **settings}
    out = asked.out or results_file(f"oracle-rows-{asked.tail}", asked.gistnet)
    write_json(out, {**head, "recovered": recovered, "passages": found})
    return 0


def read_passages(teacher: Teacher, path: Path, needed: int, count: int) -> Iterator[tuple[str, Tensor]]:
    """Passages of `needed` tokens from the middles of a file's first documents of twice that: id, token ids."""
    assert teacher.tokenizer is not None
    rows = read_rows(MatchedFile(path, path.name), "text", "id")
    tokens = ((label, teacher.tokenizer.encode(text)) for label, text in rows)
    for label, ids in islice(((label, ids) for label, ids in tokens if len(ids) > 2 * needed), count):
        first = (len(ids) - needed) // 2
        yield label, torch.from_numpy(ids[first : first + needed]).to(teacher.device)


def measure(encoder: SpanEncoder, passage: Tensor, asked: argparse.Namespace) -> dict[str, float]:
    """Mean KL over the scored tokens of a passage, nats, after the gists, the optimised vectors, and baselines."""
    teacher = encoder.teacher
    positions: Positions = asked.positions
    generator = torch.Generator().manual_seed(0)
    row_end = len(passage) - TAIL - SCORED
    known = row_end + (TAIL if asked.tail == "known" else 0)
    new, states = sample_continuations(teacher, passage[:known], SAMPLES + JUDGES, len(passage) - known, generator)
    sampled = torch.cat([passage[row_end:known].expand(len(new), -1), new], dim=1)  # [samples, TAIL + SCORED]
    original = states[:, -SCORED:]
    segments = _segments(passage[None])
    read = teacher.prefill(passage[None])
    with torch.no_grad():
        gists = encoder.encode(passage[None, SINK_TOKENS : SINK_TOKENS + SPANS * SPAN])[0].float()
    truth = segments.original_hidden(read)[:, TAIL:]

    def kl(vectors: Tensor, text: Tensor, wanted: Tensor) -> Tensor:
        branches = _segments(passage[None], len(text))
        replacements = gist_replacements(branches, vectors.expand(len(text), -1, -1), positions)
        hidden = replaced_hidden(teacher, read, branches, replacements, tokens=text)[:, TAIL:]
        return token_losses(teacher, wanted, hidden, text[:, TAIL:]).kl.mean()

    vectors = optimised(gists, lambda vectors, rows: kl(vectors, sampled[rows], original[rows]), asked.steps)
    following = passage[None, row_end:]
    with torch.no_grad():
        losses = {
            "gists": float(kl(gists, following, truth)),
            "oracle": float(kl(vectors, following, truth)),
        }
        for name, made in (
            ("drop", baselines.drop(teacher, segments, read, positions)),
            ("last_token", baselines.last_token(teacher, segments, read, positions)),
        ):
            hidden = replaced_hidden(teacher, read, segments, made)[:, TAIL:]
            losses[name] = float(token_losses(teacher, truth, hidden, following[:, TAIL:]).kl.mean())
    return losses


def optimised(gists: Tensor, kl: Any, steps: int) -> Tensor:
    """The vectors `[spans, dim]` of the least KL on continuations that no step sees, on the way from the gists."""
    vectors = gists.clone().requires_grad_()
    typical = float(gists.square().mean().sqrt())
    optimiser = torch.optim.Adam([vectors], lr=RATE * typical)
    judges, order = torch.arange(SAMPLES, SAMPLES + JUDGES), torch.arange(SAMPLES).repeat(steps)
    best, least = gists, math.inf
    for step in range(steps + 1):
        if step % JUDGE_EVERY == 0 or step == steps:
            with torch.no_grad():
                cost = float(kl(vectors, judges))
            if cost < least:
                best, least = vectors.detach().clone(), cost
        if step < steps:
            optimiser.param_groups[0]["lr"] = RATE * typical * (1 + math.cos(math.pi * step / steps)) / 2
            optimiser.zero_grad()
            kl(vectors, order[step * EACH_STEP :][:EACH_STEP]).backward()
            optimiser.step()
    return best


def _segments(windows: Tensor, rows: int = 1) -> SegmentBatch:
    """The row as a segment, as often as it has continuations."""
    start = torch.full((rows,), SINK_TOKENS, device=windows.device)
    return SegmentBatch(windows, torch.zeros_like(start), start, SPAN, SPANS, TAIL + SCORED)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GistNetError as error:
        sys.exit(f"oracle_rows: {error}")
