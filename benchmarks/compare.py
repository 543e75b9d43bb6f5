"""GistNets compared on the same held-out text, and the means of several.

    python benchmarks/compare.py smollm2-135m-gist32 runs/a runs/b runs/a+runs/b [--config configs/release.yaml]
    python benchmarks/compare.py runs/a+runs/b --keep benchmarks/state/mean

`A+B` is the GistNet with the mean of the weights of A and B (`gistnet.averaging`); one that is named twice counts
twice. --keep saves the last one, with all levels, in float16.

Prints the share recovered by single gists, over the 32 tokens behind each span, and by rows of 30 beside a raw tail, of
the KL and of the nats of true text that leaving the spans out costs. Of a GistNet also how many points that is above
the first one, and in rows above as many recent tokens, with a 95 % interval over documents that are drawn for both at
once. The page docs/results.md is made from benchmarks/results/compare.json, where --out kept it.
"""

import argparse
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import in_short
from gistnet.averaging import mean_of
from gistnet.config import load_config
from gistnet.data.config import RowsConfig
from gistnet.data.dataset import PreparedDataset
from gistnet.data.sampling import SpanLayout, fixed_windows
from gistnet.errors import GistNetError
from gistnet.evaluation import baselines
from gistnet.evaluation.baselines import Baseline
from gistnet.evaluation.held_out import HeldOut, Measured
from gistnet.evaluation.metrics import recovered_share
from gistnet.evaluation.resampling import DocumentDraws, percentile_interval
from gistnet.evaluation.rows import HeldOutRows
from gistnet.files import write_json
from gistnet.machine import describe_machine
from gistnet.model.encoder import SpanEncoder
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.positions import Positions
from gistnet.preparation import prepare_data
from gistnet.session import open_gistnet

HORIZON, WINDOW, SEGMENTS, LENGTH = 32, 1152, 4, 30
POLICIES: tuple[Positions, ...] = ("end", "compact")
RESAMPLES = 2000


def main() -> int:
    """Compare and print, or keep the last GistNet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gistnets", nargs="+", help="releases, runs or folders; A+B is the mean of two")
    parser.add_argument("--config", type=Path, default=Path("configs/release.yaml"), help="whose corpus is used")
    parser.add_argument("--level", type=int, default=0, help="of the gists that are compared")
    parser.add_argument("--spans", type=int, default=64, help="documents of four spans each; 0: none")
    parser.add_argument("--passages", type=int, default=20, help="for rows; 0: none")
    parser.add_argument("--skip", type=int, default=0, help="leave out so many passages, which others are chosen by")
    parser.add_argument("--tails", type=int, nargs="+", default=[64], help="raw tokens behind a row")
    parser.add_argument("--keep", type=Path, help="folder for the last GistNet, in place of a comparison")
    parser.add_argument("--out", type=Path, help="file for the figures; none by default")
    asked = parser.parse_args()
    opened = {name: read(name) for name in asked.gistnets}
    nets = {name: gistnet for name, (_, gistnet) in opened.items()}
    if asked.keep is not None:
        nets[asked.gistnets[-1]].save_pretrained(asked.keep, dtype=torch.float16)  # as a release
        return 0
    dataset = prepare_data(load_config(asked.config))
    found = compared(opened[asked.gistnets[0]][0], nets, dataset, asked)
    about = {
        "gistnets": asked.gistnets,
        "spans": SEGMENTS * asked.spans,
        "passages": asked.passages,
        "skip": asked.skip,
    }
    if asked.out is not None:
        write_json(asked.out, {"machine": describe_machine(), **about, "figures": found})
    return 0


def read(name: str) -> tuple[Teacher, GistNet]:
    """The GistNet of a name, or the mean of those that "+" joins, at every level.

    Raises:
        ConfigError: their levels or networks differ.
        CheckpointError: one belongs to another teacher.
    """
    names = name.split("+")
    teachers, parts = zip(*(open_gistnet(part) for part in names), strict=True)
    return teachers[0], mean_of(parts, names)


def compared(
    teacher: Teacher, nets: Mapping[str, GistNet], dataset: PreparedDataset, asked: argparse.Namespace
) -> list[dict[str, Any]]:
    """Figures of all GistNets at the level asked for, printed as they come."""
    judged = {name: gistnet.levels[asked.level].eval() for name, gistnet in nets.items()}
    found = []
    single = single_spans(teacher, judged, dataset, asked.spans) if asked.spans else ()
    of_rows = rows(teacher, judged, dataset, asked) if asked.passages else ()
    for figures in chain(single, of_rows):  # one by one: each is printed as soon as it is known
        print(in_short(figures), flush=True)
        found.append(figures)
    return found


def single_spans(
    teacher: Teacher, nets: Mapping[str, GistNet], dataset: PreparedDataset, documents: int
) -> Iterator[dict[str, Any]]:
    """Shares that single gists recover, and last tokens, over the 32 tokens behind each span."""
    layout = SpanLayout(next(iter(nets.values())).branchings, HORIZON, SEGMENTS, window_tokens=WINDOW)
    samples = fixed_windows(
        dataset, layout, documents=documents, segments_per_window=SEGMENTS, seed=1, domains=["narrative"]
    )
    layer = next((gistnet.hidden_state_layer for gistnet in nets.values() if gistnet.reads_context), None)
    held_out = HeldOut(teacher, dataset, samples, layout, cache_gigabytes=4, hidden_state_layer=layer)
    replacements: dict[str, Baseline | Tensor] = {"drop": baselines.drop, "last_token": baselines.last_token}
    replacements |= {name: held_out.encode(gistnet)[0] for name, gistnet in nets.items()}
    measured = held_out.measure({name: (kind, "end") for name, kind in replacements.items()})
    yield from differences("single", measured, held_out.documents, nets, beside=())


def rows(
    teacher: Teacher, nets: Mapping[str, GistNet], dataset: PreparedDataset, asked: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Shares that rows of gists recover, beside another document's gists, last tokens and as many recent ones."""
    span = next(iter(nets.values())).tokens_per_gist
    config = RowsConfig(documents=asked.passages, lengths=(LENGTH,), tails=tuple(asked.tails))
    held_out = HeldOutRows(dataset, ["narrative"], config, tokens_per_gist=span, skip=asked.skip)
    measured = {name: held_out.measure(SpanEncoder(teacher, gistnet), POLICIES) for name, gistnet in nets.items()}
    for row, of_row in measured[next(iter(nets))].items():
        for policy in POLICIES:
            losses = {name: of_row[f"{name}/{policy}"] for name in ("last_token", "recent_tokens")}
            losses["drop"] = of_row["drop"]
            for name, of in measured.items():
                losses[name] = of[row][f"gist/{policy}"]
                losses[f"{name}, another document's"] = of[row][f"shuffled/{policy}"]
            passages = np.arange(len(of_row["drop"].kl))  # each is a document of its own
            yield from differences(f"{row} {policy}", losses, passages, nets, beside=("recent_tokens",))


def differences(
    what: str,
    losses: Mapping[str, Measured],
    documents: NDArray[Any],
    nets: Collection[str],
    *,
    beside: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Shares recovered by each name, in percent, and of GistNets the points above the first one and `beside`."""
    draws, first = DocumentDraws(documents, RESAMPLES, seed=0), next(iter(nets))
    for measure in ("kl", "delta_nll"):
        means = {name: getattr(of_name, measure).mean(1) for name, of_name in losses.items()}
        drop = means.pop("drop")
        for name, mean in means.items():
            share = 100 * float(recovered_share(mean.sum(), drop.sum()))
            figures: dict[str, Any] = {"what": what, "measure": measure, "name": name, "recovered": share}
            for other in (first, *beside) if name in nets else ():
                if other != name:
                    gain = means[other] - mean
                    low, high = percentile_interval(100 * draws.sums(gain) / draws.sums(drop))
                    points = {"points": 100 * float(gain.sum() / drop.sum()), "low": low, "high": high}
                    figures |= {f"above {other}": points}
            yield figures


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GistNetError as error:
        sys.exit(f"compare: {error}")
