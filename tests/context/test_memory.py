"""A conversation on disk: restarts, pins, budgets, crashes; with a tiny teacher over bytes."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import gistnet
from gistnet.context.memory import CONVERSATION, Memory
from gistnet.errors import ConfigError, DataError, StorageError
from gistnet.model.config import TeacherConfig
from gistnet.model.teacher import Teacher
from gistnet.tree.tree import GistTree
from tests.conftest import Command
from tests.gistnets import woken_gistnet

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] | trim }}[/]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TURNS = [("user", "the river walked over seven quiet stones"), ("assistant", "and never met the bridge; ")] * 5


@pytest.fixture
def model(teacher_folder: Path) -> gistnet.Compressor:
    teacher = Teacher.from_pretrained(TeacherConfig(name=str(teacher_folder), precision="float32"))
    teacher.tokenizer.inner.chat_template = TEMPLATE
    teacher.tokenizer.inner.bos_token = "!"
    return gistnet.Compressor(teacher, woken_gistnet(teacher))


def rendered(model: gistnet.Compressor, turns: list[tuple[str, str]]) -> list[int]:
    messages = [{"role": role, "content": text} for role, text in turns]
    text = model.teacher.tokenizer.inner.apply_chat_template(messages, tokenize=False)
    return model.teacher.tokenizer.encode_batch([text])[0]


def whole(memory: Memory) -> list[int]:
    document = memory.document
    return [*memory.head, *document.tokens(0, document.n_tokens).tolist()]


def test_the_documents_are_the_rendered_conversation_and_a_restart_continues_it(
    model: gistnet.Compressor, tmp_path: Path
) -> None:
    with model.memory(tmp_path / "memory") as memory:
        first = memory.reply("seven stones?", budget=60, max_new_tokens=4)
        turns = [("user", "seven stones?"), ("assistant", first.text)]
        assert whole(memory) == rendered(model, turns)
        for turn in TURNS:
            memory.add(*turn)
    with model.memory(tmp_path / "memory") as memory:
        turns += TURNS
        assert whole(memory) == rendered(model, turns)
        assert memory.document.n_tokens > model.teacher.max_positions
        assert memory.document.levels == 1
        memory.add("system", "a lantern")  # is read first, wherever it came
        answer = memory.reply(" quiet bridge? ", budget=150, max_new_tokens=4)
        turns = [("system", "a lantern"), *turns, ("user", "quiet bridge?"), ("assistant", answer.text)]
        assert whole(memory) == rendered(model, turns)
        assert len(answer.context) <= 150
        assert answer.selection.opened
        for problem, word in ((lambda: memory.add("user", " "), "empty"), (lambda: memory.add("tool", "a"), "role")):
            with pytest.raises(DataError, match=word):
                problem()
        with pytest.raises(StorageError, match="one writer"):
            model.memory(tmp_path / "memory")


def test_pinned_turns_are_read_as_tokens_within_the_budget(model: gistnet.Compressor, tmp_path: Path) -> None:
    with model.memory(tmp_path / "memory") as memory:
        for number, turn in enumerate(TURNS):
            memory.add(*turn)
            if number == 3:
                memory.add("user", "never a lantern", pin=True)
        head = rendered(model, [("user", "never a lantern")])
        assert memory.head == head
        context = memory.reply("the river?", budget=120, max_new_tokens=2).context
        assert len(context) <= 120
        assert torch.equal(context.inputs_embeds[0, : len(head)], model.teacher.embed(torch.tensor(head)))
        before = whole(memory)
        with pytest.raises(ConfigError, match="budget of 40"):
            memory.reply("the river?", budget=40)
        assert whole(memory) == before


def test_a_stream_that_is_closed_keeps_what_was_written(model: gistnet.Compressor, tmp_path: Path) -> None:
    with model.memory(tmp_path / "whole") as memory:
        expected = memory.reply("the river?", max_new_tokens=40).text
    with model.memory(tmp_path / "memory") as memory:
        assert "".join(memory.stream("the river?", max_new_tokens=40)) == expected
    with model.memory(tmp_path / "stopped") as memory:
        stream = memory.stream("the river?", max_new_tokens=40)
        pieces = next(stream)
        while not pieces.strip():
            pieces += next(stream)
        stream.close()
        assert whole(memory) == rendered(model, [("user", "the river?"), ("assistant", pieces)])
    with model.memory(tmp_path / "refused") as memory:
        with pytest.raises(ConfigError, match="temprature"):
            list(memory.stream("the river?", temprature=1))
        assert memory.document.n_tokens == 0


KILLED = """
import sys, gistnet
memory = gistnet.load(sys.argv[1]).memory(sys.argv[2])
for number in range(10000):
    memory.add("user", f"turn {number} of the river")
    print(number + 1, flush=True)
"""


def test_a_tree_of_other_documents_is_no_conversation(model: gistnet.Compressor, tmp_path: Path) -> None:
    model.compress("the river walked over seven quiet stones", tree=tmp_path / "tree", name="river.txt")
    with pytest.raises(DataError, match=r"has the document 'river.txt', expected a conversation"):
        model.memory(tmp_path / "tree")
    document = model.compress("and never met the bridge", tree=tmp_path / "tree", name="bridge.txt")
    assert document.n_tokens == 24  # the lock was given up


def test_what_was_added_is_there_after_a_kill(model: gistnet.Compressor, tmp_path: Path) -> None:
    model.gistnet.save_pretrained(tmp_path / "gistnet")
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "gistnet"), str(tmp_path / "memory")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        acknowledged = [process.stdout.readline() for _ in range(5)]
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += process.stdout.readlines()
    turns = [f"user: turn {number} of the river\n" for number in range(len(acknowledged) + 1)]
    with GistTree.open(tmp_path / "memory") as tree:
        document = tree.document(CONVERSATION)
        text = model.teacher.tokenizer.decode(document.tokens(0, document.n_tokens))
        assert text in ("".join(turns[:-1]), "".join(turns))
        assert tree.verify().ok


def raise_next(errors: Iterator[type[BaseException]]) -> None:
    for error in errors:
        raise error


def test_a_chat_in_a_pipe_goes_on_where_it_ended(
    gistnet: Command, model: gistnet.Compressor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.gistnet.save_pretrained(tmp_path / "gistnet")
    arguments = ("chat", tmp_path / "gistnet", "--memory", tmp_path / "memory", "--max-new-tokens", "3")
    for lines in ("the river?\n\n", "a stone?\nquiet?"):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        outcome = gistnet(*arguments)
        assert outcome.status == 0, outcome.err
    assert len(outcome.out.splitlines()) >= 2
    with GistTree.open(tmp_path / "memory") as tree:
        document = tree.document(CONVERSATION)
        text = model.teacher.tokenizer.decode(document.tokens(0, document.n_tokens))
    assert [line for line in text.split("\n") if line.startswith("user: ")] == [
        "user: the river?",
        "user: a stone?",
        "user: quiet?",
    ]
    interrupted = iter([KeyboardInterrupt])  # by the first piece that is printed
    monkeypatch.setattr("builtins.print", lambda *pieces, **how: raise_next(interrupted))
    monkeypatch.setattr("sys.stdin", io.StringIO("never?\nseven?\n"))
    assert gistnet(*arguments).status == 0
    with GistTree.open(tmp_path / "memory") as tree:
        document = tree.document(CONVERSATION)
        assert "user: seven?" in model.teacher.tokenizer.decode(document.tokens(0, document.n_tokens))
    monkeypatch.setattr("sys.stdin", io.StringIO("the river?\n"))
    refused = gistnet(*arguments, "--budget", "20")
    assert refused.status == 1
    assert "budget of 20" in refused.err
