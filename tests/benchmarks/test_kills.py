"""`python benchmarks/tree.py kills`, in small: writers killed at random moments, readers attached."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "tree.py"


def test_twenty_kills_lose_nothing_and_no_reader_sees_a_mixture() -> None:
    """In a process of its own, since it forks, and this one may have used Lance."""
    command = [sys.executable, str(PROGRAM), "kills", "--kills", "20"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    results = json.loads(ended.stdout)
    assert results["kills"] == sum(results["killed_during"].values()) == 20
    assert results["appends_acknowledged"] > 0
    assert all(reader["looks"] > 0 for reader in results["readers"])
    assert results["tree"]["recomputed"] == sum(results["tree"]["gists"]) > 0
