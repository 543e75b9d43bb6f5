"""The training loop of the spec, corrected and taken literally: the definition that the engine must equal.

Per segment, one forward over the original window and one over the whole replaced context, through transformers' own
attention with a mask written out. Slow on purpose; tests and `benchmarks/speed.py` hold the engine against it, and a
teacher of a family that has not been verified is checked with it when it is loaded.
"""

import torch
from torch import Tensor

from gistnet.errors import TeacherError
from gistnet.model.teacher import Teacher
from gistnet.model.teacher_support import VERIFIED_FAMILIES
from gistnet.objective.branches import Replacements, SegmentBatch, gist_replacements, replaced_hidden
from gistnet.objective.losses import token_losses


def reference_original_hidden(teacher: Teacher, segments: SegmentBatch, branch: int) -> Tensor:
    """One forward over the original window: the states that predict one branch's horizon, `[H, dim]`, no gradient."""
    tokens = segments.tokens[segments.windows[branch]]
    positions = torch.arange(len(tokens), device=tokens.device)
    with torch.no_grad():
        hidden = _plain_forward(teacher, teacher.embed(tokens), positions)
    first = int(segments.starts[branch]) + int(segments.replaced_tokens[branch]) - 1
    return hidden[first : first + segments.horizon]


def reference_replaced_hidden(
    teacher: Teacher, segments: SegmentBatch, replacements: Replacements, branch: int
) -> Tensor:
    """One forward over the whole replaced context: the states that predict one branch's horizon, `[H, dim]`."""
    tokens, start = segments.tokens[segments.windows[branch]], int(segments.starts[branch])
    count, suffix = int(replacements.lengths[branch]), tokens[start + int(segments.replaced_tokens[branch]) :]
    vectors = replacements.vectors[branch, :count].to(teacher.dtype)
    prefix_positions = torch.arange(start, device=tokens.device)
    suffix_positions = replacements.continuation[branch] + torch.arange(len(suffix), device=tokens.device)
    context = torch.cat([teacher.embed(tokens[:start]), vectors, teacher.embed(suffix)])
    positions = torch.cat([prefix_positions, replacements.positions[branch, :count], suffix_positions])
    first = start + count - 1
    return _plain_forward(teacher, context, positions)[first : first + segments.horizon]


def _plain_forward(teacher: Teacher, vectors: Tensor, positions: Tensor) -> Tensor:
    """transformers' own forward of one context, `[length, dim]` → `[length, dim]`, with an explicit mask."""
    # A mask of ones says that this is one document, whatever the gaps of the positions; where all layers see all that
    # precedes, that is enough, and leaves transformers its fastest attention. Sliding layers count in positions.
    mask: Tensor | dict[str, Tensor] = torch.ones(1, len(positions), dtype=torch.bool, device=positions.device)
    layer_types = getattr(teacher.config, "layer_types", None)
    window = getattr(teacher.config, "sliding_window", None)
    if window is not None and (layer_types is None or "sliding_attention" in layer_types):
        distance = positions[:, None] - positions[None, :]
        causal = (distance >= 0)[None, None]
        near = causal & (distance < window)
        mask = near if layer_types is None else {"full_attention": causal, "sliding_attention": near}
    output = teacher.model.base_model(
        inputs_embeds=vectors[None], position_ids=positions[None], attention_mask=mask, use_cache=False
    )
    return output.last_hidden_state[0]


def require_exact(teacher: Teacher, *, tolerance_nats: float = 0.02) -> None:
    """Hold the engine against the loop on a few random segments, for a teacher of a family that no test covers.

    Raises:
        TeacherError: their predictions differ by more than `tolerance_nats` of mean KL per token (room for bfloat16),
            or one of the two fails.
    """
    family = teacher.config.model_type
    if family in VERIFIED_FAMILIES:
        return
    try:
        difference = _difference_in_nats(teacher)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # code of a family that nobody has tried may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise TeacherError(
            f"'{teacher.name}' cannot be a teacher: reading a few tokens with its type ({family}) fails ({reason})."
        ) from error
    if not difference < tolerance_nats:
        raise TeacherError(
            f"'{teacher.name}' cannot be a teacher: for its type ({family}) the shared-prefix engine differs from "
            f"plain forwards by {difference:.3f} nats, more than {tolerance_nats}."
        )


@torch.no_grad()
def _difference_in_nats(teacher: Teacher) -> float:
    """Mean KL per token between engine and loop, plus how far the head's log probabilities are from the model's own."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, teacher.vocabulary_size, (1, 96), generator=generator).to(teacher.device)
    starts = torch.tensor([3, 40], device=teacher.device)
    segments = SegmentBatch(tokens, torch.zeros_like(starts), starts, span_tokens=32, n_spans=1, horizon=8)
    replacements = gist_replacements(segments, teacher.embed(segments.replaced[:, -1:]), "center")
    engine = replaced_hidden(teacher, teacher.prefill(tokens), segments, replacements)
    loop = torch.stack([reference_replaced_hidden(teacher, segments, replacements, branch) for branch in (0, 1)])
    plain = teacher.model(inputs_embeds=teacher.embed(tokens), use_cache=False).logits[:, -1]
    head = teacher.logits(teacher.prefill(tokens).hidden[:, -1])
    difference = float(token_losses(teacher, loop, engine, segments.targets).kl.mean())
    return difference + float((plain.float().log_softmax(-1) - head.float().log_softmax(-1)).abs().mean())
