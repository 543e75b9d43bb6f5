"""The program that times GistNet by itself: every architecture, beside the teacher's prefill."""

import pytest
import torch

from benchmarks import compression as benchmark
from benchmarks.workload import SPAN, build_gistnet, build_teacher, read_text
from gistnet.objective.objective import encode


def test_all_architectures_are_held_against_the_prefill() -> None:
    teacher = build_teacher("tiny-shape", "bfloat16", "cpu")
    *_, (line, content) = benchmark.compression(teacher, "smoke")
    rows = content["gistnet"]
    assert [(row["architecture"], row["spans"]) for row in rows] == [
        (architecture, spans) for architecture in ("bottleneck", "full", "teacher_lora") for spans in (4, 8)
    ]
    for row in rows:
        assert row["times_prefill"] == pytest.approx(row["tokens_per_second"] / content["prefill_tokens_per_second"])
    assert line.endswith(f"{rows[-1]['times_prefill']:.1f} times the prefill")
    # 30,720 weights in the four layers, 64 tokens, four layers of attention 32 wide over 1 + … + 64 pairs.
    assert content["prefill_flops_per_token"] == 2 * 30720 + 4 * 4 * 32 * 65 / 2


def test_what_is_timed_makes_the_gists_of_training() -> None:
    teacher = build_teacher("tiny-shape", "bfloat16", "cpu")
    gistnet, text = build_gistnet(teacher), read_text(teacher, 8, SPAN)
    gists = benchmark.encoding(teacher, gistnet, text)()
    assert torch.equal(gists, encode(gistnet, teacher, text)[:, 0].detach())
    assert not gists.requires_grad
