"""Single spans, shown: the model's next token after the full text, after a gist for the span, and without the span."""

from typing import NamedTuple

import torch
from torch import Tensor

from gistnet.context.assembly import assemble, read_context
from gistnet.context.plan import Gists, Piece, Plan, Raw
from gistnet.errors import DataError, TeacherError
from gistnet.model.teacher import Teacher
from gistnet.tree.document import CompressedDocument

FIRST_TOKENS = 512
"""Tokens of a document whose spans are looked at: a few seconds of one core."""


class ShownSpan(NamedTuple):
    """A span, and the likeliest next token in each context."""

    text: str
    """The span's own text."""
    following: str
    """The token that follows it in the document."""
    likeliest: dict[str, tuple[str, float]]
    """Next token and its probability after `full`, `gist` and `dropped`."""
    kl: dict[str, float]
    """KL(full ‖ the context) of the next token, nats, of `gist` and `dropped`."""


@torch.no_grad()
def show_spans(teacher: Teacher, document: CompressedDocument, count: int = 5) -> list[ShownSpan]:
    """The spans without which the next token would be the hardest to predict, hardest first.

    All spans among the first tokens are tried, the first one apart, whose tokens are the attention sink. The context is
    all that precedes the span, and the next token follows at once.

    Raises:
        DataError: the document has no second span with a token behind it.
        TeacherError: the teacher has no tokenizer.
    """
    tokenizer = teacher.tokenizer
    if tokenizer is None:
        raise TeacherError(f"{teacher.name} has no tokenizer, expected one to show text.")
    size = document.branchings[0]
    shown = []
    for index in range(1, (min(document.n_tokens, FIRST_TOKENS) - 1) // size):
        start, stop = index * size, (index + 1) * size
        before = Raw(0, start)
        plans: dict[str, list[Piece]] = {
            "full": [before, Raw(start, stop)],
            "gist": [before, Gists(0, index, index + 1)],
            "dropped": [before],
        }
        logs = {
            name: _next_token(teacher, document, Plan(pieces, document.branchings)) for name, pieces in plans.items()
        }
        likeliest = {
            name: (tokenizer.decode([int(log.argmax())]), float(log.max().exp())) for name, log in logs.items()
        }
        full = logs["full"]
        kl = {name: float((full.exp() * (full - logs[name])).sum()) for name in ("gist", "dropped")}
        tokens = document.tokens(start, stop + 1).tolist()
        shown.append(ShownSpan(tokenizer.decode(tokens[:-1]), tokenizer.decode(tokens[-1:]), likeliest, kl))
    if not shown:
        raise DataError(
            f"Got a text of {document.n_tokens} tokens, expected more than {2 * size}: two spans of {size}."
        )
    return sorted(shown, key=lambda span: -span.kl["dropped"])[:count]


def _next_token(teacher: Teacher, document: CompressedDocument, plan: Plan) -> Tensor:
    """Log-probabilities of the token behind a context, `[vocab]`."""
    hidden = read_context(teacher, assemble(document, plan, teacher))
    return torch.log_softmax(teacher.logits(hidden[0, -1]).double(), dim=-1)
