"""What could stand where a gist stands, for nothing: every figure is shown beside these, on the same spans."""

import torch
from torch import Tensor

from gistnet.model.teacher import PrefillOutput, Teacher
from gistnet.objective.branches import Positions, Replacements, SegmentBatch, gist_replacements, no_replacements
from gistnet.objective.losses import token_nll


def drop(teacher: Teacher, segments: SegmentBatch) -> Replacements:
    """Nothing: the span is removed and what follows keeps its positions. The denominator of `recovered`."""
    return no_replacements(teacher, segments)


def last_token(teacher: Teacher, segments: SegmentBatch, policy: Positions) -> Replacements:
    """Each span's last token, the strongest cheap replacement; at its own place, or packed under `compact`."""
    tokens = _spans(segments)[:, :, -1]
    return gist_replacements(segments, teacher.embed(tokens), "compact" if policy == "compact" else "end")


def surprisal_token(teacher: Teacher, read: PrefillOutput, segments: SegmentBatch, policy: Positions) -> Replacements:
    """Each span's least expected token, at its own place, or packed under `compact`."""
    with torch.no_grad():
        surprisal = token_nll(teacher, segments.hidden_before_replaced(read), segments.replaced)
    surprisal = surprisal.view(_spans(segments).shape)
    place = surprisal.argmax(dim=2)  # [branches, k]
    vectors = teacher.embed(_spans(segments).gather(2, place[..., None])[..., 0])
    if policy == "compact":
        return gist_replacements(segments, vectors, policy)
    first = segments.starts[:, None] + torch.arange(segments.longest, device=teacher.device) * segments.span_tokens
    return Replacements(vectors, first + place, segments.starts + segments.replaced_tokens, segments.counts)


def mean(teacher: Teacher, segments: SegmentBatch, policy: Positions) -> Replacements:
    """The mean of each span's token embeddings, where the gist would stand."""
    return gist_replacements(segments, teacher.embed(_spans(segments)).mean(dim=2), policy)


def other_documents(documents: Tensor, seed: int) -> Tensor:
    """For each row a row of another document, `[rows]`: whose gist is the `shuffled` baseline.

    Args:
        documents: `[rows]`, the document of each row, at least two different ones.
        seed: decides the choice.
    """
    generator = torch.Generator().manual_seed(seed)
    choices = [torch.nonzero(documents != document)[:, 0] for document in documents]
    return torch.stack([rows[torch.randint(len(rows), (), generator=generator)] for rows in choices])


def _spans(segments: SegmentBatch) -> Tensor:
    """The replaced tokens by span, `[branches, longest, K]`."""
    return segments.replaced.view(len(segments.starts), segments.longest, segments.span_tokens)
