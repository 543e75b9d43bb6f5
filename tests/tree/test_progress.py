"""What is shown while a tree is being compressed."""

import io

from gistnet.terminal import PlainConsole
from gistnet.tree.compress import Progress
from gistnet.tree.progress import CompressionDisplay
from gistnet.tree.texts import Survey


class Clock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def after(characters: int, appended: int, found: int = 0) -> Progress:
    """Two characters a token; `found` tokens were in the tree."""
    return Progress(Survey(3, 10_000), "b.txt", 1, characters, 2 * appended, appended, found)


def test_plain_lines_tell_rate_and_time_left() -> None:
    """2000 characters were in the tree; 2000 more took 20 s, so the other 6000 take a minute."""
    output, clock = io.StringIO(), Clock()
    console = PlainConsole(file=output, force_terminal=False, width=20)
    with CompressionDisplay(console=console, every_seconds=10, clock=clock) as display:
        display.update(after(2000, 0, 1000))
        clock.seconds += 15
        display.update(after(2600, 300, 1000))
        clock.seconds += 5
        display.update(after(4000, 1000, 1000))
        clock.seconds += 60
        display.update(after(10_000, 4000, 1000))
    assert output.getvalue().splitlines() == [
        "26%  b.txt  documents 1/3  300 tokens  20 tokens/s  0:03:05 left",
        "100%  b.txt  documents 1/3  4,000 tokens  50 tokens/s  0:00:00 left",
    ]


def test_nothing_is_said_of_the_time_left_before_anything_is_appended() -> None:
    output, clock = io.StringIO(), Clock()
    with CompressionDisplay(console=PlainConsole(file=output, force_terminal=False), clock=clock) as display:
        clock.seconds += 10
        display.update(after(2000, 0, 1000))
    assert output.getvalue() == "20%  b.txt  documents 1/3  0 tokens  0 tokens/s  unknown time left\n"


def test_a_terminal_gets_a_bar() -> None:
    output = io.StringIO()
    console = PlainConsole(file=output, force_terminal=True, width=200, color_system=None)
    with CompressionDisplay(console=console) as display:
        display.update(after(5000, 2500))
    text = output.getvalue()
    assert "50%" in text
    assert "b.txt  documents 1/3  2,500 tokens" in text
