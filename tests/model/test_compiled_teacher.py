"""A compiled teacher computes what an uncompiled one does, for any number and length of branches, compiled once."""

import dataclasses

import pytest
import torch
from torch._dynamo.utils import counters

from gistnet.errors import TeacherError
from gistnet.model import teacher as teacher_module
from gistnet.model.config import TeacherConfig
from gistnet.objective.branches import gist_replacements, replaced_hidden
from tests.objective.test_engine import MIXED, make_segments, random_gists
from tests.teachers import tiny_teacher


def states_and_gradient(teacher, segments):
    vectors = random_gists(segments, teacher.hidden_size).requires_grad_()
    hidden = replaced_hidden(
        teacher, teacher.prefill(segments.tokens), segments, gist_replacements(segments, vectors, "center")
    )
    hidden.square().sum().backward()
    return hidden.detach(), vectors.grad


def test_compiled_layers_are_exact_and_compiled_once():
    """Through the graphs that torch.compile makes, run without its code generator, which needs a C++ compiler.

    Gemma3 has layers with and without a sliding window.
    """
    torch._dynamo.reset()
    plain, compiled = tiny_teacher("gemma3"), tiny_teacher("gemma3")
    compiled.compile_layers(backend="aot_eager")
    first = make_segments(MIXED)
    for number, segments in enumerate((first, dataclasses.replace(first, horizon=4), make_segments(2))):
        for got, expected in zip(
            states_and_gradient(compiled, segments), states_and_gradient(plain, segments), strict=True
        ):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
        if number == 0:
            graphs = counters["stats"]["unique_graphs"]
            assert graphs > 0
    assert counters["stats"]["unique_graphs"] == graphs


def test_a_missing_compiler_is_said_before_anything_is_trained(teacher_folder, monkeypatch):
    def without_compiler(function):
        def fail(tensor):
            raise RuntimeError("No working C++ compiler found\nlong explanation")

        return fail

    monkeypatch.setattr(teacher_module.torch, "compile", without_compiler)
    with pytest.raises(
        TeacherError, match=r"torch.compile does not work for cpu here \(No working C\+\+ compiler found\)"
    ):
        teacher_module.Teacher.from_pretrained(TeacherConfig(name=str(teacher_folder), compile=True))
