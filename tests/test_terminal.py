"""What is printed: text as it is, but for control characters; what a model wrote, byte for byte."""

import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.table import Table

from gistnet.terminal import PlainConsole, at_full_width, escaped, showing_messages

SPOOF = "a\x1b]0;title\x07\x1b[2J\r\nb\tc\x9b2J\u202e\u2028\x7f\ud800"
SHOWN = r"a\x1b]0;title\x07\x1b[2J\r\nb\tc\x9b2J\u202e\u2028\x7f\ud800"


def printed(show: Callable[[PlainConsole], None], width: int = 20, **options: Any) -> str:
    console = PlainConsole(file=(output := io.StringIO()), width=width, color_system=None, **options)
    show(console)
    return output.getvalue()


def test_control_characters_are_escaped_and_other_text_stays() -> None:
    assert escaped(SPOOF) == SHOWN
    text = "ΔNLL 日本 👩‍👩‍👧 नमस्ते a\u00a0b\u3000c \\n :warning: [bold]"  # joiners and wide spaces are text
    assert escaped(text) == text


def test_a_line_is_printed_as_it_is() -> None:
    text = ":warning: [bold] 120 characters, " + "x" * 90
    assert printed(lambda console: console.print(text)) == text + "\n"
    assert printed(lambda console: console.print(SPOOF)) == SHOWN + "\n"


def test_the_cells_of_a_table_are_escaped_and_its_lines_are_even() -> None:
    table = Table(SPOOF, "b", title=SPOOF)
    table.add_row(SPOOF, ":key:")
    lines = printed(lambda console: console.print(at_full_width(table)), force_terminal=True).splitlines()
    assert [line.count(SHOWN) for line in lines] == [1, 0, 1, 0, 1, 0]
    assert ":key:" in lines[4]


def test_a_table_in_a_pipe_has_neither_frames_nor_broken_lines() -> None:
    table = Table("name", "text")
    table.add_row("a", "several words " * 9)
    lines = printed(lambda console: console.print(table)).splitlines()
    assert [line.split() for line in lines] == [["name", "text"], ["a", *["several", "words"] * 9]]


def test_what_the_encoding_lacks_is_escaped_and_nothing_is_lost() -> None:
    program = """
import sys
from gistnet import cli, terminal
cli.app = lambda: (print("Zoë"), terminal.out.print("ΔNLL"))
cli.main()
"""
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=True)
    assert result.stdout == b"Zo\\xeb\n\\u0394NLL\n"


@pytest.mark.parametrize(
    ("rank", "shown"), [(None, SHOWN + "\n"), ("0", SHOWN + "\n"), ("1", "")], ids=["alone", "main", "other"]
)
def test_messages_of_the_log_are_shown_escaped_by_the_main_process_while_a_command_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str | None, shown: str
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    # Or pytest keeps the message for its report, and half of a surrogate pair cannot be sent to another process.
    monkeypatch.setattr(logging.getLogger("gistnet"), "propagate", False)
    logger = logging.getLogger("gistnet.some.module")
    with showing_messages():
        logger.info("%s", SPOOF)
        logging.getLogger("other").info("not ours")
    logger.info("afterwards")
    assert capsys.readouterr().err == shown
