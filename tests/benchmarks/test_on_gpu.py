"""The unattended run on a GPU: it keeps to its time, survives what fails, and does on a CPU what it will do there."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import on_gpu
from benchmarks.gpu_checks import check_equality, check_read_ahead
from benchmarks.on_gpu import Job, gpu_jobs, run_jobs


@pytest.fixture
def fake_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that print, warn, sleep or fail, in place of the benchmarks."""
    real = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        program = "import sys, time, warnings\n" + command[3]
        return real([sys.executable, "-c", program], **options)

    monkeypatch.setattr(on_gpu.subprocess, "run", run)


def test_what_fails_or_takes_too_long_does_not_stop_the_others(fake_programs: None, tmp_path: Path) -> None:
    jobs = [
        Job("fails", ("x", "print('some'); sys.exit('out of luck')"), at_least_seconds=0),
        Job("warns, and is done", ("x", "warnings.warn('kernels are not used')"), at_least_seconds=0),
        Job("wants more", ("x", "print('never')"), at_least_seconds=1000),
        Job("hangs", ("x", "time.sleep(600)"), at_least_seconds=0),
        Job("comes too late", ("x", "print('never')"), at_least_seconds=0.5),
    ]
    summary = run_jobs(jobs, tmp_path, seconds=4)
    status = {name: job["status"] for name, job in summary["jobs"].items()}
    assert status == {
        "fails": "failed: out of luck",
        "warns, and is done": "done",
        "wants more": "not begun",
        "hangs": "out of time",
        "comes too late": "not begun",
    }
    (warning,) = summary["jobs"]["warns, and is done"]["warnings"]
    assert warning.endswith("UserWarning: kernels are not used")
    assert summary["seconds"] < 8
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (tmp_path / "fails.log").read_text() == "some\nout of luck\n"


def test_the_jobs_of_a_gpu_are_understood_by_their_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command line is parsed by the program it is for, which is stopped at the first thing that it then does."""

    class ParsedError(Exception):
        pass

    def parsed(*arguments: object, **options: object) -> None:
        raise ParsedError

    for job in gpu_jobs(tmp_path):
        module = importlib.import_module(f"benchmarks.{job.arguments[0]}")
        for first in ("build_teacher", "check_equality", "check_read_ahead", "part_runner"):
            if hasattr(module, first):
                monkeypatch.setattr(module, first, parsed)
        if job.arguments[0] == "sweep":
            monkeypatch.setattr(module, "sweep", parsed)
        monkeypatch.setattr(sys, "argv", [job.arguments[0], *job.arguments[1:]])
        with pytest.raises(ParsedError):
            module.main()
    assert not capsys.readouterr().err


def test_a_machine_without_a_gpu_is_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(on_gpu, "run_jobs", lambda *arguments: pytest.fail("nothing can be measured"))
    monkeypatch.setattr(sys, "argv", ["on_gpu", "--out", str(tmp_path)])
    assert on_gpu.main() == 1
    assert "no GPU" in capsys.readouterr().err


def test_smoke_runs_every_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["on_gpu", "--smoke", "--minutes", "9", "--out", str(tmp_path)])
    assert on_gpu.main() == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {job["status"] for job in summary["jobs"].values()} == {"done"}
    (case,) = json.loads((tmp_path / "engine-cpu.json").read_text())["teachers"]["tiny-shape"]["cases"]
    assert case["speedup_over_loop"] > 0
    assert set(json.loads((tmp_path / "sweep-cpu.json").read_text())["series"]) >= {"windows", "spans"}
    assert json.loads((tmp_path / "read-ahead-cpu.json").read_text())["speedup"] > 0


def test_equality_measures_rounding_and_nothing_else() -> None:
    """On the CPU the engine equals itself to the bit, and the loop to rounding; bfloat16 is far from both."""
    figures = check_equality("tiny-shape", "cpu", 192)
    assert figures["engine, float32 - engine, cpu"] == {"kl_nats": 0, "gradient_relative": 0}
    assert 0 < figures["engine, float32 - loop, float32"]["gradient_relative"] < 1e-4
    assert 1e-4 < figures["engine, bfloat16 - engine, cpu"]["gradient_relative"] < 0.5
    assert 1e-4 < figures["loop, bfloat16 - engine, cpu"]["gradient_relative"] < 0.5


def test_reading_ahead_is_timed_on_every_branch() -> None:
    figures = check_read_ahead("tiny-shape", "cpu", 128, n_groups=2)
    assert (figures["groups"], figures["branches_per_group"]) == (2, 2)
    assert figures["speedup"] == figures["seconds_in_turn"] / figures["seconds_ahead"]
