"""The tasks of EleutherAI's lm-evaluation-harness, with long contexts compressed to a budget before they are scored.

    model = compressed_lm(teacher, encoder, budget=1024)
    lm_eval.simple_evaluate(model, tasks=["quality"])

Tasks that compare continuations are served (multiple choice, last words, perplexity over short contexts); tasks that
generate are refused, since the harness hands out their contexts as tokens to be read whole. Control tokens that a task
spells are text, unless the harness applies the chat template. Needs the extra `lm-eval`.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gistnet.context.assembly import Context, assemble
from gistnet.context.plan import default_plan
from gistnet.errors import ConfigError, TeacherError
from gistnet.evaluation.contexts.alternatives import alternatives_hidden
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions
from gistnet.objective.losses import token_nll
from gistnet.tree.document import InMemoryDocument, compress
from gistnet.tree.encoder import Encoder

Request = tuple[Any, list[int], list[int]]
"""What the harness asks for: the two texts, and the tokens of the context and of the continuation."""


def compressed_lm(
    teacher: Teacher, encoder: Encoder, *, budget: int, positions: Positions = "compact", sink_tokens: int = 4
) -> Any:
    """A model for `lm_eval.simple_evaluate` that reads at most `budget` vectors of any context.

    A context that fits is read as it is. Of a longer one the recent tokens, where a task has its question, stay tokens.

    Args:
        budget: the most vectors of a context; the continuations that are scored come on top.
        positions: where gists stand; `compact` is the only policy that reaches beyond the teacher's trained length.

    Raises:
        ConfigError: lm-eval is not installed, or the budget leaves nothing beside the sink.
        TeacherError: the teacher has no tokenizer.
    """
    try:
        from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ConfigError(
            "lm-eval is not installed; expected the extra that has it: pip install 'gistnet[lm-eval]'."
        ) from error
    if teacher.tokenizer is None:
        raise TeacherError(f"{teacher.name} has no tokenizer, expected one for the tasks of lm-eval.")
    if budget <= sink_tokens:
        raise ConfigError(f"Got a budget of {budget} vectors, expected more than the sink's {sink_tokens}.")
    tokenizer, prefix = teacher.tokenizer, teacher.tokenizer.window_prefix

    def context_of(tokens: list[int]) -> Context:
        fits = len(tokens) <= budget
        raw = InMemoryDocument(
            np.array(tokens), (), encoder.info.span_tokens, encoder.info.positions, encoder.info.teacher
        )
        history = raw if fits else compress(tokens, encoder)
        size = (history.n_tokens, history.span_tokens, history.levels)
        plan = default_plan(*size, budget, sink_tokens=sink_tokens)
        before = () if tuple(tokens[: len(prefix)]) == tuple(prefix) else prefix
        return assemble(history, plan, teacher, positions=positions, before=before)

    class CompressedLM(HFLM):  # type: ignore[misc, unused-ignore]
        _templated = False

        def apply_chat_template(self, *arguments: Any, **options: Any) -> str:
            # The harness asks for this before it tokenises, and hands out template and text as one string.
            self._templated = True
            return str(super().apply_chat_template(*arguments, **options))

        def tok_encode(self, string: str, *, left_truncate_len: int | None = None, **options: Any) -> list[int]:
            (tokens,) = tokenizer.encode_batch([string], control=self._templated)
            return tokens[-left_truncate_len:] if left_truncate_len else tokens

        def _loglikelihood_tokens(
            self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list[tuple[float, bool]]:
            by_context: dict[tuple[int, ...], list[int]] = {}
            for row, (_, context, _) in enumerate(requests):
                by_context.setdefault(tuple(context), []).append(row)
            scores: dict[int, tuple[float, bool]] = {}
            for tokens, rows in by_context.items():
                continuations = [requests[row][2] for row in rows]
                scores.update(zip(rows, _scores(teacher, context_of(list(tokens)), continuations), strict=True))
            return [scores[row] for row in range(len(requests))]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            raise ConfigError("Got a task that generates text, expected one that compares continuations.")

    # A copy, because the harness gives a tokenizer without padding a new token for it.
    return CompressedLM(pretrained=teacher.model, tokenizer=copy.deepcopy(teacher.tokenizer.inner), batch_size=1)


def _scores(teacher: Teacher, context: Context, continuations: Sequence[list[int]]) -> list[tuple[float, bool]]:
    """Of each continuation its log-likelihood, in nats, and whether every token is the teacher's first choice."""
    found = []
    for hidden, tokens in zip(alternatives_hidden(teacher, context, continuations), continuations, strict=True):
        targets = torch.tensor(tokens, device=hidden.device)
        nll = token_nll(teacher, hidden[None], targets[None])
        greedy = bool((teacher.logits(hidden).argmax(dim=-1) == targets).all())
        found.append((-float(nll.double().sum()), greedy))
    return found
