"""Turns of a conversation as tokens: by the chat template, or as lines `role: text` where the tokenizer has none.

A template renders all messages at once. What it writes around one of them is found in conversations of markers, so that
a turn can be rendered by itself and a conversation grows by appending its tokens. They are the tokens of the template
applied to all turns, for every template that writes a turn the same wherever it stands. Control tokens are the
template's own, whatever a turn says.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from gistnet.errors import DataError, TeacherError
from gistnet.model.tokenizer import TeacherTokenizer

Role = Literal["system", "user", "assistant"]

_FIRST, _SECOND, _THIRD = "marker-one", "marker-two", "marker-three"


def render(
    tokenizer: TeacherTokenizer,
    turns: Sequence[tuple[str, str]],
    teacher_name: str,
    *,
    answer: bool,
    instead: str = "",
) -> str:
    """Text of the chat template for turns, each a role and a text; with `answer`, also what begins the answer to them.

    Raises:
        TeacherError: the template refuses them; the message ends with what to do `instead`.
    """
    messages = [{"role": role, "content": text} for role, text in turns]
    try:
        rendered = tokenizer.inner.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    except Exception as error:  # a template is a program, and may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        roles = ", ".join(role for role, _ in turns)
        raise TeacherError(
            f"The chat template of {teacher_name} refuses a conversation of the turns {roles} ({reason}), expected it "
            f"to render one{instead}."
        ) from error
    return str(rendered)


class TurnFormat:
    """Tokens of a conversation, turn by turn.

    Attributes:
        options: generation options with which an answer ends where its turn does.

    Raises:
        TeacherError: the chat template writes a turn in another way where others follow, or refuses a conversation.
    """

    def __init__(self, tokenizer: TeacherTokenizer, teacher_name: str) -> None:
        self._tokenizer, self._name = tokenizer, teacher_name
        self.options: dict[str, Any] = {}
        self._around: dict[str, tuple[str, str]] = {}
        self._opening = self._opening_of_system = ""
        self._has_template = bool(getattr(tokenizer.inner, "chat_template", None))
        if self._has_template:
            self._read_template()
        else:
            self._around = {role: (f"{role}: ", "\n") for role in get_args(Role)}
            self._answer = "assistant:"
            self.options = {"stop_strings": ["\n"]}

    def head(self, *, system: bool) -> list[int]:
        """Tokens before the first turn, which is the system's or not: BOS, and a system turn of the template's own."""
        if not self._has_template:
            return list(self._tokenizer.window_prefix)
        opening = self._opening_of_system if system else self._opening
        return self._tokenizer.encode_batch([opening], control=True)[0]

    def turn(self, role: str, text: str) -> list[int]:
        """Tokens of a turn.

        Raises:
            DataError: there is no such role, or the text is not valid Unicode.
            TeacherError: the template has no system turns.
        """
        return self._encode(role, text)

    def prompt(self, text: str) -> list[int]:
        """Tokens of a user's turn, and of what begins the answer to it."""
        return self._encode("user", text, self._answer)

    def _encode(self, role: str, text: str, following: str = "") -> list[int]:
        if role not in get_args(Role):
            raise DataError(f"Got the role {role!r}, expected one of {', '.join(get_args(Role))}.")
        if role not in self._around:
            raise TeacherError(
                f"The chat template of {self._name} has no turns of the {role}, expected the text as a user's turn."
            )
        before, after = self._around[role]
        after += following
        tokenizer, whole = self._tokenizer, before + text + after
        if self._has_template and not tokenizer.split_at_control(text)[1]:
            continued = bool(tokenizer.split_at_control(whole)[0])  # it begins with text, which follows another turn's
            return tokenizer.encode_batch([whole], continued=continued, control=True)[0]
        control, lead = tokenizer.split_after_control(before) if self._has_template else ("", before)
        trail, closing = tokenizer.split_at_control(after) if self._has_template else (after, "")
        (said,) = tokenizer.encode_batch([lead + text + trail], continued=True)
        opened, closed = tokenizer.encode_batch([control, closing], control=True)
        return [*opened, *said, *closed]

    def _read_template(self) -> None:
        """Find what the template writes before and after each kind of turn."""
        user, reply = ("user", _FIRST), ("assistant", _SECOND)
        start, between, before_last, end = self._rendered([user, reply, ("user", _THIRD)])
        _, after_user = self._rendered([user])
        *_, after_reply = self._rendered([user, reply])
        _, asked = self._rendered([user], answer=True)
        before_user = before_last.removeprefix(after_reply)
        grows = (
            between.startswith(after_user)
            and before_last.startswith(after_reply)
            and start.endswith(before_user)
            and end == after_user
            and asked.startswith(after_user)
        )
        if not grows:
            raise TeacherError(
                f"The chat template of {self._name} writes a turn in another way where others follow, expected one "
                "whose conversations grow at their end."
            )
        self._opening = start.removesuffix(before_user)
        self._answer = asked.removeprefix(after_user)
        self._around = {
            "user": (before_user, after_user),
            "assistant": (between.removeprefix(after_user), after_reply),
        }
        try:
            start, between, _ = self._rendered([("system", _FIRST), ("user", _SECOND)])
        except TeacherError:
            return  # it has no system turns
        if between.endswith(before_user):  # or the system's text is a part of the user's turn
            bos = getattr(self._tokenizer.inner, "bos_token", None) or ""
            self._opening_of_system = bos if start.startswith(bos) else ""
            before_system = start.removeprefix(self._opening_of_system)
            self._around["system"] = before_system, between.removesuffix(before_user)

    def _rendered(self, turns: Sequence[tuple[str, str]], *, answer: bool = False) -> list[str]:
        """Text of the template between the texts of turns."""
        rest = render(self._tokenizer, turns, self._name, answer=answer)
        parts = []
        for _, text in turns:
            if rest.count(text) != 1:
                raise TeacherError(
                    f"The chat template of {self._name} shows a message {rest.count(text)} times, expected once."
                )
            part, rest = rest.split(text)
            parts.append(part)
        return [*parts, rest]
