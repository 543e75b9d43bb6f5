"""What gists are worth where they are used: in long contexts, for questions about them, and as multiple choice."""

from collections.abc import Callable, Iterator, Sequence

from gistnet.data.dataset import PreparedDataset
from gistnet.evaluation.config import ContextsConfig, LongContextConfig
from gistnet.evaluation.contexts.long_context import long_context
from gistnet.evaluation.contexts.long_documents import LongDocument, held_out_passages
from gistnet.evaluation.contexts.mcq import evaluate_mcq, read_questions
from gistnet.evaluation.contexts.retrieval import retrieval
from gistnet.evaluation.records import MetricRecord
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.positions import Positions
from gistnet.tree.gist_encoder import GistEncoder

Say = Callable[[str], None]


Passages = dict[str, list[LongDocument]]
"""Of each domain; empty where no contexts are asked for that need them."""


def choose_passages(dataset: PreparedDataset, domains: Sequence[str], config: ContextsConfig) -> Passages:
    """The held-out passages that contexts are made of; and a look at the questions, before any long work.

    Raises:
        DataError: a domain has fewer than two held-out documents that are long enough, or a question is damaged.
    """
    if config.questions is not None:
        read_questions(config.questions)
    if config.long_context is None and config.retrieval is None:
        return {}
    sizes = (config.long_context or LongContextConfig()).model_dump(
        include={"documents", "min_tokens", "max_tokens", "seed"}
    )
    return {domain: held_out_passages(dataset, domain, **sizes) for domain in domains}


def context_records(
    teacher: Teacher,
    gistnet: GistNet,
    passages: Passages,
    config: ContextsConfig,
    *,
    positions: tuple[Positions, ...],
    say: Say = lambda message: None,
) -> Iterator[MetricRecord]:
    """The records of everything that is asked for.

    Args:
        gistnet: of the highest level; contexts use all of them.
        passages: of `choose_passages`.
        positions: the policies under which gists are read.

    Raises:
        ConfigError: documents beyond the teacher's positions, or budgets that leave nothing.
    """
    encoder, policies = GistEncoder(teacher, gistnet), {"positions": positions}
    if config.long_context is not None:
        for domain, documents in passages.items():
            yield from long_context(
                teacher, encoder, documents, config.long_context.model_copy(update=policies), domain=domain, say=say
            )
    if config.retrieval is not None:
        filler = [document for documents in passages.values() for document in documents]
        yield from retrieval(teacher, encoder, filler, config.retrieval.model_copy(update=policies), say)
    if config.questions is not None:
        yield from evaluate_mcq(
            config.questions, teacher, encoder, config.multiple_choice.model_copy(update=policies), say
        )
