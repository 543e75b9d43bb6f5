"""The file of `benchmarks/engine.py`: parts measured at different times on one machine, and the ratios between them.

`machine`, `matmul_flops_per_second`, and under `teachers` for each its `float32_equality` and `cases`: one for each
window and horizon, with what has been measured of it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.machine import describe_machine
from gistnet.files import write_json

VARIANTS = ("loop", "cached", "engine")


@dataclass
class EngineResults:
    """The results of one teacher within a file; written after each addition."""

    path: Path
    content: dict[str, Any]
    teacher: str

    @classmethod
    def read(cls, path: Path, teacher: str, *, restart: bool = False) -> Self:
        """What the file holds, or nothing yet; ends the program where it is of another machine.

        Args:
            restart: whether what it holds is to be forgotten.
        """
        content: dict[str, Any] = {"machine": describe_machine(), "teachers": {}}
        if path.exists() and not restart:
            content = json.loads(path.read_text())
            if content.get("machine") != describe_machine() or "teachers" not in content:
                raise SystemExit(
                    f"{path} holds results of another machine or in an older form; name another file with --out, "
                    f"or begin this one anew with --restart."
                )
        content["teachers"].setdefault(teacher, {"cases": []})
        return cls(path, content, teacher)

    def add_general(self, part: str, measured: Any) -> str:
        """Keep what holds for all cases ("ceiling" or "equality"); returns a line to print."""
        if part == "ceiling":
            self.content["matmul_flops_per_second"] = measured
            line = f"large matrix products in bfloat16: {measured / 1e9:,.0f} GFLOP/s at best"
        else:
            self.content["teachers"][self.teacher]["float32_equality"] = measured
            line = (
                f"float32, loop against engine: KL differs by {measured['kl_difference_nats']:.1e} nats at most, "
                f"GistNet's gradient by {measured['gradient_relative_difference']:.1e} of its norm"
            )
        self._write()
        return line

    def add(self, window: int, horizon: int, part: str, measured: dict[str, Any]) -> str:
        """Keep what was measured of a case, in place of an earlier measurement; returns a line to print."""
        case = self.case(window, horizon)
        case[part] = measured
        case |= self._ratios(case)
        self._write()
        where = f"window {window} H {horizon}"
        if part == "breakdown":
            parts = (
                f"{name} {1000 * row['seconds_per_span']:.1f} ({row['flops_per_second'] / 1e9:,.0f} GFLOP/s)"
                for name, row in measured.items()
            )
            return f"{where}, where the engine's time goes, ms a span: {', '.join(parts)}"
        return (
            f"{where} {part:>7}: {measured['seconds_per_span']:9.4f} s a span, "
            f"{measured['spans_per_second']:9.3f} spans/s, peak {measured['peak_memory_megabytes']:7.0f} MB "
            f"(timed on {measured['spans_timed']})"
        )

    def case(self, window: int, horizon: int) -> dict[str, Any]:
        """What is known of a window and horizon; a new case where nothing is."""
        cases: list[dict[str, Any]] = self.content["teachers"][self.teacher]["cases"]
        for case in cases:
            if (case["window"], case["horizon"]) == (window, horizon):
                return case
        cases.append({"window": window, "horizon": horizon})
        cases.sort(key=lambda case: (case["window"], case["horizon"]))
        return self.case(window, horizon)

    def describe(self, window: int, horizon: int) -> str:
        """The ratios of a case that are known, as lines to print; the last is the speedup over the loop."""
        case, lines = self.case(window, horizon), []
        where = f"window {window} H {horizon}"
        if "model_flop_utilisation" in case:
            lines.append(f"{where}: model FLOP utilisation {case['model_flop_utilisation']:.1%} of the ceiling")
        if "speedup_over_cached" in case:
            lines.append(f"{where}: {case['speedup_over_cached']:.1f}x over cached")
        if "kl_difference_nats" in case:
            lines.append(f"{where}: bfloat16 KL differs by {case['kl_difference_nats']:.1e} nats at most")
        if "speedup_over_loop" in case:
            lines.append(f"speedup {case['speedup_over_loop']:.1f}")
        return "\n".join(lines)

    def _ratios(self, case: dict[str, Any]) -> dict[str, float]:
        ratios: dict[str, float] = {}
        engine = case.get("engine")
        if engine is None:
            return ratios
        for variant in ("loop", "cached"):
            if variant in case:
                ratios[f"speedup_over_{variant}"] = case[variant]["seconds_per_span"] / engine["seconds_per_span"]
        if "loop" in case:
            shared = case["loop"]["kl"].keys() & engine["kl"].keys()
            pairs = [(case["loop"]["kl"][start], engine["kl"][start]) for start in shared]
            ratios |= {"kl_difference_nats": max(abs(a - b) for a, b in pairs)} if pairs else {}
        if ceiling := self.content.get("matmul_flops_per_second"):
            ratios["model_flop_utilisation"] = engine["flops_per_span"] / engine["seconds_per_span"] / ceiling
        return ratios

    def _write(self) -> None:
        write_json(self.path, self.content)
