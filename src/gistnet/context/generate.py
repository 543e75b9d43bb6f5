"""The teacher answers a prompt about a long document that it reads as gists and tokens.

    document = compress(text, encoder)
    print(generate(document, "Who crossed the bridge?", teacher=teacher, budget=512).text)

Where the tokenizer has a chat template, document and prompt are one turn of the user: the document, an empty line, and
the prompt as `ASKED` puts it. The template is rendered around a marker for the document and cut there and at the
prompt, so that every control token is the template's own, whatever the prompt says, and the document's tokens are
exactly those that were compressed. Without a template the prompt follows the document, as text.
"""

import copy
import difflib
import hashlib
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from gistnet.context.assembly import Context, assemble, continue_context
from gistnet.context.plan import Plan
from gistnet.context.select import RECENT_SHARE, Selection, select
from gistnet.context.selectors import Selector, by_words
from gistnet.context.turns import render
from gistnet.errors import ConfigError, DataError, TeacherError
from gistnet.model.teacher import Teacher
from gistnet.model.tokenizer import TeacherTokenizer, require_unicode
from gistnet.positions import Positions
from gistnet.tree.document import CompressedDocument

Surroundings = tuple[list[int], list[int]]
"""Tokens before a document, and tokens after it, which end with a prompt."""

ASKED = "Answer the question from the text above.\n\nQuestion: {}"
"""A prompt behind a document. Set apart so, a small model answers the question more often and writes on less often
(docs/ablations.md)."""
CONTINUED_SHARE = 0.5
"""Part of the budget that recent text has where the prompt continues the document."""
SINK_TOKENS = 4
"""So many tokens at least are raw at the beginning of a context: the template's head, or else the document's
(docs/decisions.md, 11)."""


@dataclass(frozen=True)
class Generation:
    """Text that the teacher wrote.

    Attributes:
        text: without special tokens.
        tokens: the new token ids, an end token included.
        context: what it had read.
        selection: why it had read that; None where the caller had planned it.
    """

    text: str
    tokens: list[int] = field(repr=False)
    context: Context = field(repr=False)
    selection: Selection | None = field(default=None, repr=False)


class Looping(StoppingCriteria):
    """Stops a text that says the same over and over: 8 to 64 tokens three times in a row."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **options: Any) -> Tensor:
        """True for each text that is in a loop, `[texts]`."""
        return torch.tensor([self._loops(row.tolist()) for row in input_ids], device=input_ids.device)

    def _loops(self, tokens: list[int]) -> bool:
        longest = min(64, len(tokens) // 3)
        return any(tokens[-n:] == tokens[-2 * n : -n] == tokens[-3 * n : -2 * n] for n in range(8, longest + 1))


def generate(
    document: CompressedDocument,
    prompt: str,
    *,
    teacher: Teacher,
    budget: int | None = None,
    plan: Plan | None = None,
    positions: Positions | None = None,
    chat: bool | None = None,
    selector: Selector = by_words,
    surroundings: Surroundings | None = None,
    recent_share: float | None = None,
    max_new_tokens: int = 256,
    streamer: BaseStreamer | None = None,
    **options: Any,
) -> Generation:
    """Let the teacher answer a prompt, or continue a text, with a compressed document before it.

    Args:
        document: of a tree, or from `compress`.
        prompt: what follows it.
        teacher: the language model that the gists were made for.
        budget: the most vectors that the teacher reads, template and prompt included; `select` chooses what, with
            the prompt as its query.
        plan: what stands in the context of the document, in place of a budget.
        positions: where gists stand; None is `compact` within a budget, or else as `assemble` decides.
        chat: whether to use the chat template; None uses it where there is one.
        selector: finds the passages that the prompt needs; `fused(by_words, ByStates(teacher))` finds more, for
            which the teacher reads the document through half of its layers.
        surroundings: the tokens before and after the document, the prompt among them; None makes them of the prompt
            and the chat template.
        recent_share: part of the budget that recent text has at least; None gives it none beside the passages of a
            question, and `CONTINUED_SHARE` where the prompt continues the text.
        max_new_tokens: the most tokens to write; it stops earlier at an end token, and where it says the same thing a
            third time.
        streamer: of transformers, given each token as it comes (`TextStreamer` prints them).
        options: of transformers' generation, such as `do_sample=True, temperature=0.7`; without any it is greedy.
            (Repetition penalties see the new tokens only: gists have no ids.)

    Raises:
        DataError: the prompt is empty or not valid Unicode, or the plan does not fit the document.
        ConfigError: the budget has no room for the document beside prompt and sink; both or neither of budget and plan;
            an unknown or impossible option; positions beyond those the teacher was trained for.
        TeacherError: the teacher has no tokenizer, or no chat template and one was asked for; or its template does not
            render a conversation of one user's turn.
    """
    settings = _generation_settings(teacher, max_new_tokens, options)
    context, selection = prompt_context(
        document,
        prompt,
        teacher=teacher,
        budget=budget,
        plan=plan,
        positions=positions,
        chat=chat,
        selector=selector,
        surroundings=surroundings,
        recent_share=recent_share,
    )
    assert teacher.tokenizer is not None
    try:
        tokens, _ = continue_context(teacher, context, settings, streamer, Looping())
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        # Many options are looked at only when tokens are made. Without any, nothing of the caller's is to blame.
        if not options or isinstance(error, (torch.OutOfMemoryError, UnicodeError)):
            raise
        raise _refused(error) from error
    text = teacher.tokenizer.inner.decode(tokens, skip_special_tokens=True)
    return Generation(text, tokens, context, selection)


def prompt_context(
    document: CompressedDocument,
    prompt: str,
    *,
    teacher: Teacher,
    budget: int | None = None,
    plan: Plan | None = None,
    positions: Positions | None = None,
    chat: bool | None = None,
    selector: Selector = by_words,
    surroundings: Surroundings | None = None,
    recent_share: float | None = None,
) -> tuple[Context, Selection | None]:
    """The context that `generate` lets the teacher continue, and why it is so; arguments and errors are its own."""
    if not isinstance(document, CompressedDocument):
        raise DataError(f"Got a document of type {type(document).__name__}, expected one that `compress` made.")
    if not isinstance(prompt, str):
        raise DataError(f"Got a prompt of type {type(prompt).__name__}, expected a text.")
    if not isinstance(budget, int | None):
        raise ConfigError(f"Got the budget {budget!r}, expected a whole number of vectors.")
    if not prompt.strip():
        raise DataError("Got an empty prompt, expected something for the teacher to continue or answer.")
    require_unicode(prompt, "a prompt")
    if teacher.tokenizer is None:
        raise TeacherError(f"{teacher.name} has no tokenizer, expected one to read the prompt.")
    before, after = surroundings or prompt_surroundings(teacher.tokenizer, prompt, chat, teacher.name)
    selection = None
    if recent_share is None:
        continues = surroundings is None and (chat is False or not _has_template(teacher.tokenizer))
        recent_share = CONTINUED_SHARE if continues else RECENT_SHARE
    if plan is None and budget is not None:
        sink, left = _room(budget, document, len(before), len(after))
        selection = select(
            document,
            prompt,
            left,
            tokenizer=teacher.tokenizer,
            selector=selector,
            sink_tokens=sink,
            recent_share=recent_share,
        )
        plan = selection.plan
        positions = positions or "compact"  # over gaps small models find less, and gists beside recent text tell less
    elif plan is None or budget is not None:
        got = "neither" if plan is None else "both"
        raise ConfigError(f"Got {got} of a budget and a plan, expected one of them.")
    return assemble(document, plan, teacher, positions=positions, before=before, after=after), selection


def _room(budget: int, document: CompressedDocument, before: int, after: int) -> tuple[int, int]:
    """Tokens of the document that are raw as the sink, and the vectors that prompt and template leave for all of it."""
    sink = max(0, SINK_TOKENS - before)
    if document.branchings:
        sink = min(sink, document.branchings[0] // 2)  # before the first gist, see `Plan`
    left = budget - before - after
    if left <= sink:
        beginning = f" and {sink} of the document's beginning" if sink else ""
        raise ConfigError(
            f"Got a budget of {budget} vectors, expected more than the {before + after} of the prompt with what stands "
            f"around it{beginning}."
        )
    return sink, left


def _has_template(tokenizer: TeacherTokenizer) -> bool:
    return bool(getattr(tokenizer.inner, "chat_template", None))


def prompt_surroundings(tokenizer: TeacherTokenizer, prompt: str, chat: bool | None, teacher_name: str) -> Surroundings:
    """The tokens before a document and after it, which end with a prompt about it.

    Args:
        chat: whether to use the chat template; None uses it where there is one.
        teacher_name: for messages.

    Raises:
        TeacherError: no chat template and one was asked for, or it does not render a conversation of one user's turn.
    """
    has_template = _has_template(tokenizer)
    if chat and not has_template:
        raise TeacherError(f"The tokenizer of {teacher_name} has no chat template, expected one or chat=False.")
    if chat is False or not has_template:
        (after,) = tokenizer.encode_batch([prompt], continued=True)
        return list(tokenizer.window_prefix), after
    marker = f"document-{hashlib.sha256(prompt.encode()).hexdigest()}"  # in no prompt but by design
    head, tail = _rendered_around(marker, marker, tokenizer, teacher_name)
    same_head, rest = _rendered_around(marker, f"{marker}\n\n{ASKED.format(prompt)}", tokenizer, teacher_name)
    if same_head != head or not rest.endswith(tail):
        raise TeacherError(
            f"The chat template of {teacher_name} writes other things around another message, expected the same; "
            "chat=False goes without it."
        )
    # The prompt is text, and so is what the template has after it up to its next control token.
    text, control = tokenizer.split_at_control(tail)
    (asked,) = tokenizer.encode_batch([rest.removesuffix(tail) + text], continued=True)
    (ending,) = tokenizer.encode_batch([control], control=True)
    return tokenizer.encode_head(head, marker), [*asked, *ending]


def _rendered_around(marker: str, message: str, tokenizer: TeacherTokenizer, teacher_name: str) -> tuple[str, str]:
    """Text of the chat template before and after the document in a user's message."""
    instead = "; chat=False goes without it"
    rendered = render(tokenizer, [("user", message)], teacher_name, answer=True, instead=instead)
    if rendered.count(marker) != 1:
        raise TeacherError(
            f"The chat template of {teacher_name} shows a message {rendered.count(marker)} times, expected once."
        )
    head, tail = rendered.split(marker)
    return head, tail


class _Stopped(Exception):
    """Ends generation whose text nobody reads any more."""


class _StoppableStreamer(TextIteratorStreamer):
    """An iterator over pieces of text; once `stopped`, the next token ends the generation."""

    stopped = False

    def put(self, value: Tensor) -> None:
        """Take tokens."""
        if self.stopped:
            raise _Stopped
        super().put(value)


def streamed(teacher: Teacher, write: Callable[[BaseStreamer], Generation]) -> Generator[str, None, Generation]:
    """Pieces of text as a generation writes them in a thread of its own, then what it returned; closing stops it.

    Args:
        teacher: whose tokens are written.
        write: calls `generate` with the streamer that it is given.

    Raises:
        TeacherError: the teacher has no tokenizer.
    """
    if teacher.tokenizer is None:
        raise TeacherError(f"{teacher.name} has no tokenizer, expected one to read the prompt.")
    streamer = _StoppableStreamer(teacher.tokenizer.inner, skip_special_tokens=True)

    def run() -> Generation:
        try:
            return write(streamer)
        finally:
            streamer.on_finalized_text("", stream_end=True)  # or who reads would wait for ever after an error

    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(run)
        try:
            yield from filter(None, streamer)  # it has an empty piece for each token that ends no word
        finally:
            streamer.stopped = True
        return written.result()


def _generation_settings(teacher: Teacher, max_new_tokens: int, options: dict[str, Any]) -> GenerationConfig:
    """The teacher's own settings, made greedy, with the options over them.

    Raises:
        ConfigError: an option is unknown or impossible.
    """
    settings = copy.deepcopy(teacher.model.generation_config)
    ends = _end_tokens(teacher)
    greedy: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    given = {
        "eos_token_id": ends,
        "pad_token_id": ends[0] if ends else None,
        **({} if options.get("do_sample") else greedy),
        **options,
        "max_new_tokens": max_new_tokens,
    }
    try:
        unknown = settings.update(**given)
        settings.validate()
    except (ValueError, TypeError) as error:
        raise _refused(error) from error
    if unknown:
        near = difflib.get_close_matches(min(unknown), vars(settings), n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise ConfigError(f"Got the unknown generation option '{min(unknown)}'{meant}, expected one of transformers.")
    if settings.num_return_sequences not in (None, 1):
        raise ConfigError(f"Got {settings.num_return_sequences} sequences to return, expected 1.")
    return settings


def _refused(error: Exception) -> ConfigError:
    return ConfigError(f"Got generation options that transformers refuses: {_reason(error)}.")


def _reason(error: Exception) -> str:
    """The first line of an error's message, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _end_tokens(teacher: Teacher) -> list[int]:
    """End tokens by the model's settings, and that of the tokenizer, which for a chat model ends its turn."""
    stated = teacher.model.generation_config.eos_token_id
    ends = {stated} if isinstance(stated, int) else set(stated or ())
    if teacher.tokenizer is not None:
        ends.add(teacher.tokenizer.inner.eos_token_id)
    return sorted(ends - {None})
