"""Replacements of a span that need no training: hidden states of the teacher, given to it as input embeddings.

    python benchmarks/untrained.py --corpus corpora/narrative/*.jsonl.zst

A hidden state of the teacher is put where the gist would stand, at the end of the span. Three tables: states of the
original context behind each layer; GistNets without training, whose copied layers see the span alone, with more or
fewer layers for all tokens and for the last one; and the same at several lengths. Beside each, drop and last token, on
the same spans of 32 held-out documents. Costs ten minutes of two cores. Results: benchmarks/results/untrained.json.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.ablations import corpus_sources, held_out_spans
from benchmarks.machine import RESULTS, ROOT, in_short
from gistnet.config import load_config
from gistnet.errors import GistNetError
from gistnet.evaluation import baselines, metrics
from gistnet.evaluation.baselines import Baseline
from gistnet.evaluation.held_out import HeldOut, Measured
from gistnet.evaluation.resampling import DocumentDraws, percentile_interval
from gistnet.files import write_json
from gistnet.machine import describe_machine
from gistnet.model.config import GistNetConfig
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import PrefillOutput, Teacher
from gistnet.objective.branches import Positions, Replacements, SegmentBatch, gist_replacements
from gistnet.preparation import prepare_data
from gistnet.session import load_teacher

SPAN, RESAMPLES = 32, 2000
STATES = (1, 2, 4, 8, 12, 16, 18, 20, 22, 25, 29)
LAYERS = ((2, 2), (4, 4), (5, 5), (8, 8), (12, 12), (20, 20), (2, 12), (2, 16), (4, 8), (4, 12), (4, 16), (4, 20))
"""Layers that all tokens pass, and layers that the last token passes."""
SCALED = (4, 16)
SCALES = (1, 10, 30, 100, 300)


def state_replacements(
    layers: int, teacher: Teacher, segments: SegmentBatch, prefill: PrefillOutput, positions: Positions
) -> Replacements:
    """Hidden states, behind so many layers, of the spans' last tokens in the original context, at their own length."""
    states = teacher.prefill(segments.tokens, hidden_state_layer=layers).states
    assert states is not None
    vectors = states[segments.windows, segments.starts + SPAN - 1].float()
    return gist_replacements(segments, vectors[:, None], positions)


def untrained(teacher: Teacher, token_layers: int, layers: int, scale: float) -> GistNet:
    """GistNet as it is before training, its expansion closed: the copied layers see nothing but the span."""
    config = GistNetConfig(
        architecture="teacher_lora",
        teacher_layers=layers,
        token_layers=token_layers,
        anchor="state",
        gist_scale=scale,
    )
    gistnet = GistNet.build(config, teacher, SPAN)
    torch.nn.init.zeros_(gistnet.expansion.gate)
    return gistnet


def figures(measured: Measured, drop: Measured, last_token: Measured, draws: DocumentDraws) -> dict[str, Any]:
    """KL, shares recovered, and their difference from the last token's with its 95 % interval over documents."""
    found: dict[str, Any] = {"kl": float(measured.kl.mean())}
    for name, offsets in (("1_32", (1, 32)), ("1_8", (1, 8)), ("9_32", (9, 32))):
        ours, all_of_it, token = (metrics.mean_over_offsets(m.kl, offsets) for m in (measured, drop, last_token))
        found[f"recovered_{name}"] = metrics.recovered_share(float(ours.mean()), float(all_of_it.mean()))
        more = percentile_interval(draws.sums(token - ours) / draws.sums(all_of_it))
        found[f"more_than_last_token_{name}"] = [float((token - ours).sum() / all_of_it.sum()), *more]
    return found


def measure(teacher: Teacher, held_out: HeldOut) -> list[dict[str, Any]]:
    """A row for each replacement."""
    make: dict[str, Baseline | torch.Tensor] = {"drop": baselines.drop, "last token": baselines.last_token}
    rows: list[dict[str, Any]] = [{"kind": "baseline", "name": name} for name in make]
    for layers in STATES:
        make[f"state {layers}"] = partial(state_replacements, layers)
        rows.append({"kind": "state", "name": f"state {layers}", "layers": layers})
    shapes = [(*shape, 100) for shape in LAYERS] + [(*SCALED, scale) for scale in SCALES if scale != 100]
    for token_layers, layers, scale in shapes:
        gistnet, name = untrained(teacher, token_layers, layers, scale), f"{token_layers}, {layers}, {scale}"
        compute = gistnet.parameter_budget().share_of_teacher(gistnet.teacher_flops_per_span)
        make[name] = held_out.encode(gistnet)[0]
        shape = {"token_layers": token_layers, "layers": layers, "scale": scale, "compute": compute}
        rows.append({"kind": "gistnet", "name": name} | shape)
    measured = held_out.measure({name: (kind, "end") for name, kind in make.items()})
    draws = DocumentDraws(held_out.documents, RESAMPLES, seed=0)
    return [row | figures(measured[row["name"]], measured["drop"], measured["last token"], draws) for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all of it, write it down and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", default=[], help="JSON lines files; else the configuration's sources")
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--out", type=Path, default=RESULTS / "untrained.json")
    asked = parser.parse_args(arguments)
    settings = [*corpus_sources(asked.corpus), f"evaluation.documents={asked.documents}", "run_folder=unused"]
    config = load_config(ROOT / "configs" / "ablations.yaml", settings)
    dataset, teacher = prepare_data(config), load_teacher(config, torch.device("cpu"))
    held_out = held_out_spans(teacher, dataset, config, (SPAN,))
    rows = measure(teacher, held_out)
    content = {"machine": describe_machine(), "documents": asked.documents, "spans": len(held_out), "rows": rows}
    write_json(asked.out, content)
    for row in rows:
        print(in_short(row))


if __name__ == "__main__":
    try:
        main()
    except GistNetError as error:
        sys.exit(f"untrained: {error}")
