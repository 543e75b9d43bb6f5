"""Runs a part of a benchmark in a process of its own, so that its peak memory, threads and caches are its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def in_own_process(module: str, *arguments: object) -> Any:
    """Run `python -m module arguments…` and return the value that its last line of output is the JSON of."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(output.stdout.splitlines()[-1])
