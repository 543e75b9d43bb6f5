"""A conversation that grows on disk, and is read within a budget of vectors.

    with model.memory("my-conversation") as memory:
        memory.add("system", "You are a keeper of lighthouses.")
        print(memory.reply("Who built the tower on the Eddystone rocks?", budget=512).text)

A memory is a `GistTree` of three documents at most: the turns of the system, turns that are pinned, and the
conversation, which is all other turns in order. Each holds the tokens of its turns as the chat template renders them
(`gistnet.context.turns`), so that the three in a row are the conversation as the model would read it in full. Whole
spans of the conversation become gists as it grows.

For an answer the model reads what opens the template, the turns of the system and the pinned ones as tokens, then what
`select` makes of the conversation for the prompt (passages of older turns opened, recent turns as
tokens), and the prompt. What `add` or `reply` returned for is on disk, as in every tree.
"""

from collections.abc import Generator
from pathlib import Path
from typing import Any, Self

import numpy as np

from gistnet.context.generate import Generation, Surroundings, generate, streamed
from gistnet.context.turns import TurnFormat
from gistnet.errors import DataError, TeacherError
from gistnet.model.teacher import Teacher
from gistnet.tree.document import CompressedDocument, InMemoryDocument
from gistnet.tree.encoder import Encoder
from gistnet.tree.tree import GistTree

CONVERSATION, PINNED, SYSTEM = "conversation", "pinned", "system"
"""Documents of a memory."""
RECENT_SHARE = 0.25
"""Part of the budget that recent turns have at least: a prompt may follow on from them without a word in common."""


class Memory:
    """A conversation on disk, open for writing; one process at a time can have it. Made by `Compressor.memory`.

    Args:
        teacher: the language model that answers.
        encoder: makes gists for it.
        uri: a folder, or a URI such as s3://bucket/tree; the conversation that is there, or a new one.

    Raises:
        TeacherError: the teacher has no tokenizer, or its chat template does not render turns one by one; or the
            conversation is of another teacher.
        CheckpointError: its gists are of another GistNet.
        DataError: a tree of other documents is there; or as `GistTree.open` and `GistTree.create`.
        StorageError: as these; another process has it.
    """

    def __init__(self, teacher: Teacher, encoder: Encoder, uri: str | Path) -> None:
        if teacher.tokenizer is None:
            raise TeacherError(f"{teacher.name} has no tokenizer, expected one for a conversation.")
        self._teacher, self._encoder = teacher, encoder
        self._turns = TurnFormat(teacher.tokenizer, teacher.name)
        self._tree = GistTree.open_or_create(uri, encoder)
        if others := [name for name in self._tree.documents() if name not in (CONVERSATION, PINNED, SYSTEM)]:
            self._tree.close()
            raise DataError(
                f"{uri} is a tree that has the document {others[0]!r}, expected a conversation, or no tree yet."
            )

    def close(self) -> None:
        """Let another process have it; nothing is lost without."""
        self._tree.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def document(self) -> CompressedDocument:
        """The conversation without pinned turns, as it is now: its tokens are those of the rendered turns."""
        if CONVERSATION in self._tree.documents():
            return self._tree.document(CONVERSATION)
        info = self._encoder.info
        no_tokens = np.empty(0, dtype=np.int64)
        no_gists = tuple(np.empty((0, info.dim), dtype=np.float16) for _ in info.branchings)
        trained = info.branchings, info.positions, info.teacher
        return InMemoryDocument(no_tokens, no_gists, *trained, CONVERSATION, info.longest_row)

    @property
    def head(self) -> list[int]:
        """Tokens in front of the conversation: what opens the template, the turns of the system, the pinned ones."""
        there = self._tree.documents()
        pinned = [self._tree.document(name) for name in (SYSTEM, PINNED) if name in there]
        tokens = [document.tokens(0, document.n_tokens).tolist() for document in pinned]
        return sum(tokens, self._turns.head(system=SYSTEM in there))

    def add(self, role: str, text: str, *, pin: bool = False) -> None:
        """Put a turn at the end; it is on disk when this returns.

        Args:
            role: system, user or assistant.
            text: what it says; white space at its ends is left out.
            pin: keep it in front of the conversation, always read as tokens. The system's turns are pinned in any case.

        Raises:
            DataError: there is no such role, or the text is empty or not valid Unicode.
            TeacherError: a system's turn for a chat template that has none.
            StorageError: it could not be written.
        """
        if not text.strip():
            raise DataError("Got an empty turn, expected a text.")
        tokens = self._turns.turn(role, text.strip())
        document = SYSTEM if role == "system" else PINNED if pin else CONVERSATION
        self._tree.append(tokens, document, gists=document == CONVERSATION)

    def reply(self, prompt: str, *, budget: int = 1024, **options: Any) -> Generation:
        """The answer to a prompt; both become turns, together: none of it is kept where this raises.

        Args:
            prompt: of the user.
            budget: the most vectors that the model reads, pinned turns, template and prompt included.
            options: of `generate`: `max_new_tokens`, `selector`, `streamer`, options of transformers' generation.

        Raises:
            DataError: the prompt is empty or not valid Unicode.
            ConfigError: the budget has no room for pinned turns and prompt; an option is unknown or impossible.
            StorageError: the turns could not be written.
        """
        generation = self._generate(prompt.strip(), budget, options)
        self._keep(prompt, generation.text)
        return generation

    def stream(self, prompt: str, *, budget: int = 1024, **options: Any) -> Generator[str, None, None]:
        """Pieces of the answer as they are written; arguments and errors are those of `reply`.

        Closed before its end, or interrupted, the writing stops; prompt and what was written of the answer are kept.
        """
        pieces: list[str] = []
        writing = streamed(
            self._teacher, lambda streamer: self._generate(prompt.strip(), budget, {**options, "streamer": streamer})
        )
        try:
            for piece in writing:
                pieces.append(piece)
                yield piece
        except BaseException:
            writing.close()
            if any(map(str.strip, pieces)):
                self._keep(prompt, "".join(pieces))
            raise
        self._keep(prompt, "".join(pieces))

    def _generate(self, prompt: str, budget: int, options: dict[str, Any]) -> Generation:
        document = self.document
        surroundings: Surroundings = self.head, self._turns.prompt(prompt)
        given = {"recent_share": RECENT_SHARE, **self._turns.options}
        return generate(
            document, prompt, teacher=self._teacher, budget=budget, surroundings=surroundings, **{**given, **options}
        )

    def _keep(self, prompt: str, answer: str) -> None:
        asked, answered = self._turns.turn("user", prompt.strip()), self._turns.turn("assistant", answer.strip())
        self._tree.append([*asked, *answered], CONVERSATION)
