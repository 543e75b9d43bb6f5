"""What the teacher writes after a context equals a loop of whole passes, one for each token."""

import pytest
import torch
from transformers import GenerationConfig

from gistnet.context.assembly import Context, assemble, continue_context
from gistnet.context.plan import Gists, Plan, Raw
from gistnet.errors import ConfigError
from gistnet.model.prefix_attention import BranchPass
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions
from tests.context.documents import random_document
from tests.teachers import FAMILIES, tiny_teacher

END = 2
SETTINGS = GenerationConfig(
    max_new_tokens=24, do_sample=False, no_repeat_ngram_size=1, eos_token_id=END, pad_token_id=0
)
PREFIX = 9
"""So many tokens are raw at the beginning of the contexts here."""


def context_of(teacher: Teacher, policy: Positions) -> Context:
    """Tokens, gists of both levels, text left out, tokens, and a prompt: 46 vectors, positions up to 159 or 45."""
    document = random_document(160, teacher)
    plan = Plan([Raw(0, PREFIX), Gists(0, 2, 8), Gists(1, 1, 2), Raw(130, 156)], (8, 8))
    return assemble(document, plan, teacher, positions=policy, after=(11, 12, 13, 14))


def loop(teacher: Teacher, context: Context, prefix: list[int], new_tokens: int) -> list[int]:
    """The best token that was not yet written after a whole pass for each; by training's branches, not by a cache.

    (No token twice, because random models of tied embeddings repeat themselves whatever they have read.)
    """
    vectors, positions, written = context.inputs_embeds[0], context.position_ids[0].tolist(), []
    while len(written) < new_tokens and END not in written:
        cache = teacher.prefill(torch.tensor([prefix])).cache
        own = torch.tensor(positions)[None, len(prefix) :]
        hidden = teacher.read_branches(vectors[None, len(prefix) :], BranchPass(cache, (0,), (len(prefix),), own))
        logits = teacher.logits(hidden[0, -1])
        logits[written] = -torch.inf
        written.append(int(logits.argmax()))
        vectors = torch.cat([vectors, teacher.embed(torch.tensor(written[-1:]))])
        positions.append(positions[-1] + 1)
    return written


@pytest.mark.parametrize("policy", ["center", "end", "compact"])
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_equals_a_loop_of_whole_passes(family: str, policy: Positions) -> None:
    teacher = tiny_teacher(family)
    context = context_of(teacher, policy)
    prefix = random_document(160, teacher).token_ids[:PREFIX].tolist()
    with torch.no_grad():
        expected = loop(teacher, context, prefix, 24)
    tokens, cache = continue_context(teacher, context, SETTINGS)
    assert tokens == expected
    assert len(set(expected)) > 3  # the comparison is of something
    assert cache.get_seq_length() == len(context) + len(tokens) - 1


def test_the_loop_notices_indices_in_place_of_positions() -> None:
    """transformers alone, whose sliding layers count indices, writes something else after a gapped context."""
    teacher = tiny_teacher("gemma3")
    context = context_of(teacher, "center")
    tokens, _ = continue_context(teacher, context, SETTINGS)
    alone = teacher.model.generate(**context.model_inputs, generation_config=SETTINGS)[0].tolist()
    assert alone != tokens
    assert continue_context(teacher, context, SETTINGS)[0] == tokens  # and nothing stays behind in the model


def test_new_tokens_beyond_the_trained_positions_are_refused() -> None:
    teacher = tiny_teacher("llama")
    context = context_of(teacher, "end")  # its last position is 159
    settings = GenerationConfig(max_new_tokens=98, min_new_tokens=97, do_sample=False, pad_token_id=0)
    with pytest.raises(ConfigError, match="98 new tokens after position 159"):
        continue_context(teacher, context, settings)
    settings.update(max_new_tokens=97)  # the last is written at 256, and not read
    assert len(continue_context(teacher, context, settings)[0]) == 97
