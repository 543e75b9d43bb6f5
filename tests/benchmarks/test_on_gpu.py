"""The unattended run on a GPU: it keeps to its time, survives what fails, and does on a CPU what it will do there."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import on_gpu, speed
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
        Job("fails", ("print('some'); sys.exit('out of luck')",), at_least_seconds=0),
        Job("warns, and is done", ("warnings.warn('kernels are not used')",), at_least_seconds=0),
        Job("wants more", ("print('never')",), at_least_seconds=1000),
        Job("hangs", ("time.sleep(600)",), at_least_seconds=0),
        Job("comes too late", ("print('never')",), at_least_seconds=0.5),
    ]
    summary = run_jobs(jobs, tmp_path, seconds=8)
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
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (tmp_path / "fails.log").read_text() == "some\nout of luck\n"


def test_the_jobs_of_a_gpu_are_understood_by_their_program(tmp_path: Path) -> None:
    for job in gpu_jobs(tmp_path):
        asked = speed.parse([*job.arguments, "--device", "cuda"])
        assert asked.command in speed.RUN
        assert asked.out.parent == tmp_path and asked.out.name == f"{asked.command}-cuda.json"


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
    assert set(json.loads((tmp_path / "sweep-cpu.json").read_text())["series"]) == set(speed.SERIES)
