"""The engine of this checkout beside that of an earlier commit, in one run, each on a core of its own.

    python benchmarks/against.py 6bae44d [--windows 1152 4096] [--rounds 2]

Both sides run their own `benchmarks/speed.py engine` at the same time, with one thread each, and change cores from
round to round, so that neither the machine's hour nor a core favours one. The ratio is that of the seconds a span, this
checkout's over the commit's; losses of the same spans are compared, too. Some eighty seconds a round on two cores.
Results: benchmarks/results/against.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # so that `python benchmarks/…` works, and `-m benchmarks.…`

from benchmarks.machine import RESULTS, ROOT
from gistnet.files import write_json
from gistnet.machine import describe_machine

HORIZON = 32


def main() -> int:
    """Measure, keep, and print a line for each window and round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="of this repository, to compare with")
    parser.add_argument("--windows", type=int, nargs="+", default=[1152, 4096], metavar="TOKENS")
    parser.add_argument("--rounds", type=int, default=2, help="an even number gives each side each core as often")
    asked = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    rounds = []
    with tempfile.TemporaryDirectory() as temporary:
        before = Path(temporary) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", before, asked.commit], cwd=ROOT, check=True)
        try:
            for number in range(asked.rounds):
                for window in asked.windows:
                    rounds.append({"window": window, **one_round(before, window, cores[:: -1 if number % 2 else 1])})
                    print(rounds[-1], flush=True)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)
    about = {"machine": describe_machine(), "commit": asked.commit, "horizon": HORIZON}
    write_json(RESULTS / "against.json", {**about, "rounds": rounds})
    return 0


def one_round(before: Path, window: int, cores: Sequence[int]) -> dict[str, Any]:
    """Seconds a span of both sides at once, and how far their losses are apart, in nats."""
    runs = []
    for folder, core in zip((before, ROOT), cores, strict=True):
        out = before.parent / f"{folder.name}-{core}.json"
        command = ["taskset", "--cpu-list", str(core), sys.executable, "benchmarks/speed.py", "engine", "--restart"]
        command += ["--windows", str(window), "--horizons", str(HORIZON), "--parts", "engine", "--out", str(out)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{folder / 'src'}:{folder}"}
        runs.append((subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL), out))
    statuses = [process.wait() for process, _ in runs]
    if any(statuses):
        raise SystemExit("against: one of the two did not end well; see above.")
    earlier, now = (json.loads(out.read_text(encoding="utf-8")) for _, out in runs)
    earlier, now = (next(iter(of["teachers"].values()))["cases"][0]["engine"] for of in (earlier, now))
    spans = earlier["kl"].keys() & now["kl"].keys()
    return {
        "seconds_before": earlier["seconds_per_span"],
        "seconds_now": now["seconds_per_span"],
        "ratio": now["seconds_per_span"] / earlier["seconds_per_span"],
        "spans": len(spans),
        "largest_difference": max(abs(earlier["kl"][span] - now["kl"][span]) for span in spans),
    }


if __name__ == "__main__":
    sys.exit(main())
