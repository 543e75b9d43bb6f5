"""Progress: what a log file gets, what fits beside a bar, and that a library's caller is shown nothing."""

import io

import pytest

from gistnet import terminal
from gistnet.progress import ProgressDisplay, track
from gistnet.terminal import PlainConsole, showing_messages


class Clock:
    """A clock that stands still until told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


DETAILS = ["loss 0.5123", "ΔNLL +0.250", "12.0 spans/s"]


def test_plain_lines_come_every_few_seconds_and_at_the_first_and_last_step() -> None:
    output, clock = io.StringIO(), Clock()
    console = PlainConsole(file=output, force_terminal=False, width=20)
    with ProgressDisplay("narrative", 6, console=console, every_seconds=10, clock=clock) as display:
        for step in range(1, 7):
            clock.seconds += 4
            display.update(step, DETAILS)
    shown = "  ".join(DETAILS)
    assert output.getvalue().splitlines() == [
        f"narrative  1/6  0:00:20 left  {shown}",
        f"narrative  4/6  0:00:08 left  {shown}",
        f"narrative  6/6  0:00:00 left  {shown}",
    ]


def test_what_is_brief_has_plain_lines_only_where_it_lasts() -> None:
    output, clock = io.StringIO(), Clock()
    console = PlainConsole(file=output, force_terminal=False)
    with ProgressDisplay("windows", 4, brief=True, console=console, clock=clock) as display:
        for step, seconds in enumerate((1, 1, 10, 1), start=1):
            clock.seconds += seconds
            display.update(step)
    assert output.getvalue() == "windows  3/4  0:00:04 left\n"


def test_the_time_left_of_a_resumed_stage_counts_only_its_own_steps() -> None:
    """8 of 100 steps were done before; 2 more in 20 s leave 90 at 10 s each: 15 minutes."""
    output, clock = io.StringIO(), Clock()
    console = PlainConsole(file=output, force_terminal=False)
    with ProgressDisplay("code", 100, completed=8, console=console, clock=clock) as display:
        display.update(8)
        clock.seconds += 20
        display.update(10, ["loss nan"])
    assert output.getvalue().splitlines() == ["code  8/100  -:--:-- left", "code  10/100  0:15:00 left  loss nan"]


def test_time_that_did_not_go_to_steps_is_left_out_of_the_estimate() -> None:
    """A validation of 500 s before the first of ten steps, which takes 3 s: 27 s are left."""
    output, clock = io.StringIO(), Clock()
    with ProgressDisplay("code", 10, console=PlainConsole(file=output), clock=clock) as display:
        clock.seconds += 500
        display.leave_out(500)
        clock.seconds += 3
        display.update(1)
    assert output.getvalue() == "code  1/10  0:00:27 left\n"


@pytest.mark.parametrize(("width", "fits"), [(200, 3), (80, 2), (60, 0)])
def test_a_bar_has_step_and_time_left_first_and_of_the_rest_what_fits(width: int, fits: int) -> None:
    output, clock = io.StringIO(), Clock()
    console = PlainConsole(file=output, force_terminal=True, width=width, color_system=None)
    with ProgressDisplay("mixed [a]", 50_000, console=console, clock=clock) as display:
        clock.seconds += 5
        display.update(5, DETAILS)
        console.print("checkpoint saved")
    text = output.getvalue()
    assert " 5/50,000  13:53:15 left  mixed [a]" in text
    assert [detail in text for detail in DETAILS] == [n < fits for n in range(3)]
    assert "checkpoint saved" in text
    lines = text.replace("\r", "\n").replace("\x1b[2K", "").splitlines()
    assert max(len(line) for line in lines if "left" in line) <= width


def test_a_loop_is_shown_while_a_command_runs_and_not_to_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(terminal, "err", PlainConsole(file=output, force_terminal=True, width=80))
    assert list(track("abc", 3, "letters")) == ["a", "b", "c"]
    assert output.getvalue() == ""
    with showing_messages():
        assert [(a, b) for a in track("abc", 3, "letters") for b in track("de", 2, "others")][-1] == ("c", "e")
    assert "letters" in output.getvalue()
    assert "others" not in output.getvalue()
