"""The model for lm-eval against lm-eval's own model, and what it refuses."""

import copy
import sys

import pytest
import torch

from gistnet.context.assembly import assemble
from gistnet.context.plan import default_plan
from gistnet.errors import ConfigError, TeacherError
from gistnet.evaluation.contexts.harness import compressed_lm
from gistnet.model.config import TeacherConfig
from gistnet.model.teacher import Teacher
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.tree.document import compress
from gistnet.tree.gist_encoder import GistEncoder
from tests.gistnets import woken_gistnet
from tests.tokenizers import BOS, END, EOS, TURN, merging


@pytest.fixture(scope="module")
def teacher(teacher_folder) -> Teacher:
    teacher = Teacher.from_pretrained(TeacherConfig(name=str(teacher_folder), precision="float64"))
    teacher.tokenizer.inner.eos_token = "Ā"  # byte 0: the harness needs a token that ends texts
    return teacher


@pytest.fixture(scope="module")
def encoder(teacher) -> GistEncoder:
    return GistEncoder(teacher, woken_gistnet(teacher))


def requests() -> list:
    instances = pytest.importorskip("lm_eval.api.instance", reason="lm-eval is not installed")
    long, short = "the river walked over " * 8, "a bridge and"
    pairs = [(long, "seven lanterns"), (short, " never"), (long, " stone"), (short, " the quiet")]
    return [
        instances.Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0, metadata=("t", 0, 1))
        for pair in pairs
    ]


def test_contexts_within_the_budget_score_as_in_lm_eval_itself(teacher, encoder):
    asked = requests()
    from lm_eval.models.huggingface import HFLM

    own = HFLM(pretrained=teacher.model, tokenizer=copy.deepcopy(teacher.tokenizer.inner), batch_size=1)
    expected = own.loglikelihood(asked, disable_tqdm=True)
    fingerprint = teacher.tokenizer.fingerprint
    found = compressed_lm(teacher, encoder, budget=250).loglikelihood(asked, disable_tqdm=True)
    assert TeacherTokenizer(teacher.tokenizer.inner).fingerprint == fingerprint  # the harness changed its own copy
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected])


@torch.no_grad()
def test_longer_contexts_are_compressed(teacher, encoder):
    asked = requests()
    found = compressed_lm(teacher, encoder, budget=40).loglikelihood(asked, disable_tqdm=True)
    for row in (0, 2):
        context, answer = asked[row].args
        # The harness moves the spaces that a context ends in to its continuation.
        context, answer = context.rstrip(), context[len(context.rstrip()) :] + answer
        history = compress(context, encoder)
        plan = default_plan(history.n_tokens, 8, 1, 40, sink_tokens=4)
        assert plan.vectors <= 40 < history.n_tokens
        tokens = encoder.tokenize(answer)
        vectors = assemble(history, plan, teacher, positions="compact", after=tokens[:-1].tolist()).inputs_embeds
        log_p = teacher.model(inputs_embeds=vectors).logits[0, -len(tokens) :].log_softmax(-1)
        assert found[row][0] == pytest.approx(float(log_p.gather(1, torch.from_numpy(tokens)[:, None]).sum()))


def test_control_tokens_of_a_task_are_text_and_those_of_its_template_are_not(teacher, encoder):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    other = Teacher(teacher.model, name="chatting")
    other.tokenizer = merging(f"{BOS} $A {EOS}")
    lm = compressed_lm(other, encoder, budget=40)
    inner = other.tokenizer.inner
    control = {inner.convert_tokens_to_ids(name) for name in (BOS, EOS, TURN, END)}
    assert not control & set(lm.tok_encode(f"Who?{END}{EOS}"))
    chat = lm.apply_chat_template([{"role": "user", "content": "Who?"}])
    assert lm.tok_encode(chat) == inner(chat, add_special_tokens=False)["input_ids"]
    assert lm.tok_encode(chat, left_truncate_len=3) == lm.tok_encode(chat)[-3:]


def test_tasks_that_generate_are_refused(teacher, encoder):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    with pytest.raises(ConfigError, match="generates text"):
        compressed_lm(teacher, encoder, budget=40).generate_until([])
    with pytest.raises(ConfigError, match="budget of 4 vectors"):
        compressed_lm(teacher, encoder, budget=4)
    with pytest.raises(TeacherError, match="no tokenizer"):
        compressed_lm(Teacher(teacher.model, name="wordless"), encoder, budget=40)


def test_without_lm_eval_the_extra_is_named(teacher, encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(ConfigError, match=r"pip install 'gistnet\[lm-eval\]'"):
        compressed_lm(teacher, encoder, budget=40)
