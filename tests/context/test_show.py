"""Shown spans against plain forwards of a tiny teacher over bytes."""

from pathlib import Path

import pytest
import torch

from gistnet.context.show import show_spans
from gistnet.errors import DataError
from gistnet.model.config import TeacherConfig
from gistnet.model.teacher import Teacher
from gistnet.tree.document import compress
from gistnet.tree.gist_encoder import GistEncoder
from tests.gistnets import woken_gistnet

TEXT = "the river walked over seven quiet stones and never met the bridge; " * 3  # 201 bytes


def test_spans_are_shown_with_what_the_model_predicts(teacher_folder: Path) -> None:
    teacher = Teacher.from_pretrained(TeacherConfig(name=str(teacher_folder), precision="float32"))
    document = compress(TEXT, GistEncoder(teacher, woken_gistnet(teacher)))
    size = document.branchings[0]
    spans = show_spans(teacher, document, 3)
    assert len(spans) == 3
    assert [span.kl["dropped"] for span in spans] == sorted((span.kl["dropped"] for span in spans), reverse=True)
    tokens = teacher.tokenizer.encode(TEXT)
    starts = {teacher.tokenizer.decode(tokens[at : at + size]): at for at in range(size, len(tokens) - size, size)}
    for span in spans:
        start = starts[span.text]
        assert span.following == TEXT[start + size]
        for name, read in (("full", tokens[: start + size]), ("dropped", tokens[:start])):
            with torch.no_grad():
                predicted = teacher.model(torch.from_numpy(read)[None]).logits[0, -1].softmax(-1)
            text, share = span.likeliest[name]
            assert text == teacher.tokenizer.decode([int(predicted.argmax())])
            assert share == pytest.approx(float(predicted.max()), rel=1e-4)
    with pytest.raises(DataError, match="two spans"):
        show_spans(teacher, compress(TEXT[: 2 * size], GistEncoder(teacher, woken_gistnet(teacher))))
