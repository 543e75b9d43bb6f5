"""Rate and quality without any training: one vector for 8, 16, 32 or 64 tokens.

    python benchmarks/untrained_lengths.py --corpus corpora/narrative/*.jsonl.zst

For each length of span a GistNet as it is before training (the default's layers and scale), beside drop and last token
on the same spans. Spans of another length are other spans, from the same held-out documents. Costs five minutes of two
cores. Results: benchmarks/results/untrained-lengths.json.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.ablations import corpus_sources
from benchmarks.machine import describe_machine
from benchmarks.untrained import HORIZON, RESAMPLES, ROOT, figures, gist_stand_ins_of, untrained
from gistnet.config import load_config
from gistnet.data.sampling import SpanLayout, validation_windows
from gistnet.evaluation import baselines
from gistnet.evaluation.held_out import HeldOut
from gistnet.evaluation.resampling import DocumentDraws
from gistnet.session import load_teacher, prepare_data

RESULT = ROOT / "benchmarks" / "results" / "untrained-lengths.json"
LENGTHS = (8, 16, 32, 64)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all lengths, write them down and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", default=[], help="JSON lines files; else the configuration's sources")
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of a span")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args(arguments)
    config = load_config(ROOT / "configs" / "ablations.yaml", [*corpus_sources(asked.corpus, 60), "run_folder=unused"])
    dataset, teacher = prepare_data(config, print), load_teacher(config, torch.device("cpu"))
    rows = []
    for length in asked.lengths:
        gistnet = untrained(teacher, span_tokens=length)
        layout = SpanLayout(length, HORIZON)
        samples = validation_windows(dataset, layout, documents=asked.documents, spans_per_document=4, seed=0)
        held_out = HeldOut(teacher, dataset, samples, layout, cache_gigabytes=4)
        measured = held_out.measure(
            {
                "drop": lambda window, read: baselines.drop(teacher, window.stretches),
                "last_token": lambda window, read: baselines.last_token(teacher, window.stretches, "end"),
                "gist": partial(gist_stand_ins_of, gistnet, teacher),
            }
        )
        draws = DocumentDraws(held_out.documents, RESAMPLES, seed=0)
        compute = gistnet.parameter_budget().share_of_teacher(gistnet.teacher_flops_per_span)
        row = {"length": length, "spans": len(held_out), "documents": draws.documents, "compute": compute} | {
            name: figures(these, measured["drop"], measured["last_token"], draws) for name, these in measured.items()
        }
        rows.append(row)
        print(
            f"{length:2d} tokens  "
            + "  ".join(
                f"{name} KL {row[name]['kl']:.4f}, recovered {row[name]['recovered_1_32']:.3f}" for name in measured
            )
        )
    content = {"machine": describe_machine(), "rows": rows}
    asked.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
