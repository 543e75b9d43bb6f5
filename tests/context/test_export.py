"""Prompt embeddings: what was assembled comes back, only contiguous positions leave unforced, damage is noticed."""

import json
from pathlib import Path

import pytest
import torch

from gistnet.context.assembly import Context, assemble
from gistnet.context.export import export_prompt_embeds, load_prompt_embeds
from gistnet.context.plan import Gists, Plan, Raw
from gistnet.errors import ConfigError, DataError, StorageError
from gistnet.model.teacher import Teacher
from tests.context.histories import random_history
from tests.teachers import tiny_teacher


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return tiny_teacher("llama", torch.bfloat16)


def context_of(teacher: Teacher, positions: str = "compact") -> Context:
    plan = Plan([Gists(1, 0, 1), Gists(0, 8, 10), Raw(80, 82)], span_tokens=8, sink_tokens=1)
    return assemble(random_history(100, teacher), plan, teacher, positions=positions, after=(5,))


def test_what_was_assembled_comes_back(teacher: Teacher, tmp_path: Path) -> None:
    context = context_of(teacher)
    export_prompt_embeds(context, teacher, tmp_path / "new" / "folder")
    vectors, described = load_prompt_embeds(tmp_path / "new" / "folder")
    assert vectors.dtype == torch.bfloat16
    assert torch.equal(vectors, context.inputs_embeds[0])
    assert described.teacher == teacher.fingerprint
    assert described.position_ids == list(range(7))
    assert described.spans == [(0, 1), (0, 64), (64, 72), (72, 80), (80, 81), (81, 82), (-1, -1)]
    assert described.levels == [-1, 1, 0, 0, -1, -1, -1]
    assert described.plan == [(1, 0, 1), (0, 8, 10), (-1, 80, 82)]
    assert (described.span_tokens, described.sink_tokens, described.positions) == (8, 1, "compact")


def test_the_vectors_numbered_from_zero_are_the_context(tmp_path: Path) -> None:
    """What a server does with them, done by transformers: the same predictions."""
    teacher = tiny_teacher("qwen3")
    context = context_of(teacher)
    export_prompt_embeds(context, teacher, tmp_path)
    vectors, _ = load_prompt_embeds(tmp_path)
    with torch.no_grad():
        served = teacher.model(inputs_embeds=vectors[None], use_cache=False).logits
        torch.testing.assert_close(served, teacher.model(**context.model_inputs).logits)


def test_gaps_are_refused_unless_forced(teacher: Teacher, tmp_path: Path) -> None:
    for policy in ("center", "end"):
        context = context_of(teacher, policy)
        with pytest.raises(ConfigError, match=f"policy '{policy}', expected 'compact'"):
            export_prompt_embeds(context, teacher, tmp_path)
        assert not list(tmp_path.iterdir())
    export_prompt_embeds(context_of(teacher, "end"), teacher, tmp_path, force=True)
    _, described = load_prompt_embeds(tmp_path)
    assert described.positions == "end"
    assert described.position_ids == [0, 63, 71, 79, 80, 81, 82]


def test_damage_is_noticed(teacher: Teacher, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a file prompt_embeds\.json"):
        load_prompt_embeds(tmp_path)
    export_prompt_embeds(context_of(teacher), teacher, tmp_path)
    tensor, description = tmp_path / "prompt_embeds.safetensors", tmp_path / "prompt_embeds.json"
    whole, described = tensor.read_bytes(), json.loads(description.read_text())
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for damaged in (bytes(flipped), whole[:-1], b""):
        tensor.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            load_prompt_embeds(tmp_path)
    tensor.write_bytes(whole)
    for text in ("", "[]", "{}", json.dumps({**described, "levels": "no"}), json.dumps({**described, "more": 1})):
        description.write_text(text)
        with pytest.raises(DataError, match="not the description of an exported context"):
            load_prompt_embeds(tmp_path)
    description.write_text(json.dumps({**described, "format_version": 9}))
    with pytest.raises(DataError, match="format 9, expected 2"):
        load_prompt_embeds(tmp_path)
    tensor.unlink()
    description.write_text(json.dumps(described))
    with pytest.raises(DataError, match=r"expected a file prompt_embeds\.safetensors"):
        load_prompt_embeds(tmp_path)


def test_a_folder_that_cannot_be_is_refused(teacher: Teacher, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="Could not write"):
        export_prompt_embeds(context_of(teacher), teacher, tmp_path / "file" / "folder")
