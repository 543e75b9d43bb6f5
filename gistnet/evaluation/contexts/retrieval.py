"""Does a context still hold what is asked of it? Facts, rows of lists and passages from far back, by kind of context.

The teacher is right where the mean NLL of the right answer is the lowest of four. With the whole text it nearly always
is; a truncated context has lost what decides, and chance is one in four.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from gistnet.context.assembly import assemble
from gistnet.context.in_memory import InMemoryHistory, compress
from gistnet.context.plan import Plan
from gistnet.errors import TeacherError
from gistnet.evaluation.baselines import other_documents
from gistnet.evaluation.config import RetrievalConfig
from gistnet.evaluation.contexts.alternatives import mean_nll, share_right
from gistnet.evaluation.contexts.equal_budget import compare, highest_level
from gistnet.evaluation.contexts.long_documents import LongDocument
from gistnet.evaluation.contexts.retrieval_cases import ANSWERS, CASE_KINDS, RetrievalCase, retrieval_cases
from gistnet.evaluation.metrics import Floats
from gistnet.evaluation.records import Baseline, MetricRecord
from gistnet.evaluation.resampling import bootstrap_over_documents
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions
from gistnet.tree.encoder import Encoder

Say = Callable[[str], None]
DOMAIN = "synthetic"


def retrieval(
    teacher: Teacher,
    encoder: Encoder,
    filler: Sequence[LongDocument],
    config: RetrievalConfig,
    say: Say = lambda message: None,
) -> list[MetricRecord]:
    """Ask for what stands far back in passages of the filler.

    Returns:
        `retrieval_accuracy` and `retrieval_nll` (of the right answer) for each policy and budget, of all cases and of
        each kind: "budget 1/4", "budget 1/4, fact"; with `full`, `truncated`, `shuffled`, `mean`, and `chance`.

    Raises:
        TeacherError: the teacher has no tokenizer.
        DataError: the filler is too short.
        ConfigError: a context is longer than the teacher's positions, or a budget leaves nothing beside the sink.
    """
    if teacher.tokenizer is None:
        raise TeacherError(f"{teacher.name} has no tokenizer, expected one to make cases for retrieval.")
    size = {"count": config.cases, "context_tokens": config.context_tokens, "seed": config.seed}
    cases = retrieval_cases(teacher.tokenizer, filler, **size)
    histories = [compress(case.context, encoder) for case in cases]
    borrowed = other_documents(torch.arange(len(cases)), config.seed).tolist()
    asked = []
    for number, (case, history) in enumerate(zip(cases, histories, strict=True)):
        say(f"Asking for a {case.kind}, case {number + 1} of {len(cases)}.")

        def answered(of: InMemoryHistory, plan: Plan, policy: Positions, case: RetrievalCase = case) -> Floats:
            context = assemble(of, plan, teacher, positions=policy, after=case.question)
            return mean_nll(teacher, context, case.answers)

        asked.append(compare(teacher, history, histories[borrowed[number]], config, answered))
    kinds = np.array([case.kind for case in cases])
    return [
        record
        for policy in config.positions
        for budget in config.tokens_per_vector
        for record in _records(
            {name: np.stack([of[budget, policy][name] for of in asked]) for name in asked[0][budget, policy]},
            kinds,
            f"budget 1/{budget}",
            {"positions": policy, "level": highest_level(histories, budget, config)},
            config,
        )
    ]


def _records(
    nll: Mapping[str, Floats], kinds: NDArray[np.str_], budget: str, place: Mapping[str, Any], config: RetrievalConfig
) -> Iterator[MetricRecord]:
    """The records of one budget and policy: NLL of the answers by context, each `[cases, answers]`, the right first."""
    right = {name: np.array([share_right(of_case, 0) for of_case in answers]) for name, answers in nll.items()}
    cost = {name: answers[:, 0] for name, answers in nll.items()}
    parts = {"": np.ones(len(kinds), dtype=bool)} | {kind: kinds == kind for kind in CASE_KINDS}
    for part, rows in parts.items():
        for name, columns in (("retrieval_accuracy", right), ("retrieval_nll", cost)):
            if not rows.any():
                continue
            beside = {of: float(values[rows].mean()) for of, values in columns.items() if of != "gist"}
            if name == "retrieval_accuracy":
                beside["chance"] = 1 / ANSWERS
            values = columns["gist"][rows]
            yield MetricRecord(
                name=name,
                domain=DOMAIN,
                part=f"{budget}, {part}" if part else budget,
                value=float(values.mean()),
                interval=bootstrap_over_documents(
                    values, np.flatnonzero(rows), resamples=config.resamples, seed=config.seed
                ),
                n_spans=len(values),
                n_documents=len(values),
                baselines=cast(dict[Baseline, float], beside),
                **place,
            )
