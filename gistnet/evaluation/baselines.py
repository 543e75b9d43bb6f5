"""What could stand where a gist stands, for nothing: every figure is shown beside these, on the same spans."""

import torch
from torch import Tensor

from gistnet.model.teacher import ReadWindows, Teacher
from gistnet.objective.branches import Positions, StandIns, Stretches, gist_stand_ins, no_stand_ins
from gistnet.objective.losses import token_nll


def drop(teacher: Teacher, stretches: Stretches) -> StandIns:
    """Nothing: the span is removed and what follows keeps its positions. The denominator of `recovered`."""
    return no_stand_ins(teacher, stretches)


def last_token(teacher: Teacher, stretches: Stretches, policy: Positions) -> StandIns:
    """Each span's last token, the strongest cheap stand-in; at its own place, or packed under `compact`."""
    tokens = _spans(stretches)[:, :, -1]
    return gist_stand_ins(stretches, teacher.embed(tokens), "compact" if policy == "compact" else "end")


def surprisal_token(teacher: Teacher, read: ReadWindows, stretches: Stretches, policy: Positions) -> StandIns:
    """Each span's least expected token, at its own place, or packed under `compact`."""
    with torch.no_grad():
        surprisal = token_nll(teacher, stretches.hidden_before_replaced(read), stretches.replaced)
    surprisal = surprisal.view(_spans(stretches).shape)
    place = surprisal.argmax(dim=2)  # [branches, k]
    vectors = teacher.embed(_spans(stretches).gather(2, place[..., None])[..., 0])
    if policy == "compact":
        return gist_stand_ins(stretches, vectors, policy)
    first = stretches.starts[:, None] + torch.arange(stretches.longest, device=teacher.device) * stretches.span_tokens
    return StandIns(vectors, first + place, stretches.starts + stretches.replaced_tokens, stretches.counts)


def mean(teacher: Teacher, stretches: Stretches, policy: Positions) -> StandIns:
    """The mean of each span's token embeddings, where the gist would stand."""
    return gist_stand_ins(stretches, teacher.embed(_spans(stretches)).mean(dim=2), policy)


def other_documents(documents: Tensor, seed: int) -> Tensor:
    """For each row a row of another document, `[rows]`: whose gist is the `shuffled` baseline.

    Args:
        documents: `[rows]`, the document of each row, at least two different ones.
        seed: decides the choice.
    """
    generator = torch.Generator().manual_seed(seed)
    choices = [torch.nonzero(documents != document)[:, 0] for document in documents]
    return torch.stack([rows[torch.randint(len(rows), (), generator=generator)] for rows in choices])


def _spans(stretches: Stretches) -> Tensor:
    """The replaced tokens by span, `[branches, longest, K]`."""
    return stretches.replaced.view(len(stretches.starts), stretches.longest, stretches.span_tokens)
