"""Multiple-choice questions over long articles: does a context that holds gists answer as the whole article does?

A file has one question a line, as JSON: `{"article": text, "question": text, "options": [text, …], "gold": index}`, the
first option having index 0. The teacher reads a context of the article, then "Question: …", then "Answer:"; each option
follows as " option". Chosen is the option of lowest mean NLL per token, which does not prefer short options; where
several are lowest, each counts its share. A small teacher is near chance, so every figure stands beside it.

    full        the whole article, or as much of it as the teacher was trained for: its first tokens and the last ones
    truncated   the first tokens and as many of the last ones as the budget has
    gist        gists of what is old, the end as tokens
    shuffled    the same with gists of another article
    mean        the same with mean embeddings
    no_context  the question alone
    chance      one in as many as there are options
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from gistnet.data.inputs import read_lines, reading
from gistnet.errors import DataError, TeacherError
from gistnet.evaluation.alternatives import mean_nll, share_right
from gistnet.evaluation.baselines import other_documents
from gistnet.evaluation.equal_budget import BudgetConfig, compare, highest_level
from gistnet.evaluation.metrics import Baseline, MetricRecord, bootstrap_over_documents
from gistnet.model.teacher import Teacher
from gistnet.objective.branches import Positions
from gistnet.tree.context import assemble
from gistnet.tree.encoder import Encoder
from gistnet.tree.in_memory import InMemoryHistory, compress
from gistnet.tree.plan import Plan, Raw

Say = Callable[[str], None]
DOMAIN = "multiple choice"


class MultipleChoiceConfig(BudgetConfig):
    """With what budgets articles are read; the question is no part of them."""

    tokens_per_vector: tuple[PositiveInt, ...] = Field(default=(4, 16), min_length=1)
    """The budgets: one vector for every so many tokens of the article."""
