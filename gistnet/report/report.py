"""The report: one HTML file that shows a run, or several side by side, and opens offline.

Style, script and data are all in the file, and its content security policy forbids every request and every script but
its own. Text from documents reaches the page as JSON and is shown as text, never as markup. The charts are drawn by
the page's own script: a plotting library that draws as much weighs megabytes and took seconds to start.

    gistnet report RUN                     writes RUN/report.html, within a second
    gistnet report --compare RUN RUN …     writes comparison.html
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from gistnet.errors import DataError
from gistnet.files import write_text
from gistnet.report.page_data import RunRecord, comparable_data, differences, read_run, run_data
from gistnet.run_folder import REPORT_FILE
from gistnet.terminal import escaped
from gistnet.version import __version__

COMPARISON_FILE = "comparison.html"
_SCRIPTS = (
    "dom.js",
    "looks.js",
    "charts.js",
    "dots.js",
    "selection.js",
    "curves.js",
    "results.js",
    "long_context.js",
    "span_map.js",
    "span_panel.js",
    "pages.js",
)


def write_report(run_folder: Path, out: Path | None = None, *, shown_as: Path | None = None) -> Path:
    """Write the page of a run, also while it trains, and return where: `out`, or `report.html` in the run folder.

    What evaluation adds may be absent; the page then says which command adds it.

    Args:
        shown_as: what the page calls the run's folder, where that is not its name for good.

    Raises:
        DataError, ConfigError: see `read_run`.
        StorageError: the page cannot be written.
    """
    target = out or run_folder / REPORT_FILE
    run = read_run(run_folder)
    data = run_data(run if shown_as is None else replace(run, folder=shown_as))
    write_text(target, page(data["name"], {"kind": "report", "run": data}))
    return target


def write_comparison(run_folders: Sequence[Path], out: Path) -> Path:
    """Write the page that puts runs side by side, and return where.

    Raises:
        DataError, ConfigError: fewer than two runs, or see `read_run`.
        StorageError: the page cannot be written.
    """
    if len(run_folders) < 2:
        raise DataError(f"Got {len(run_folders)} run to compare, expected two at least.")
    runs = [read_run(folder) for folder in run_folders]
    data = [comparable_data(run) | {"name": name} for run, name in zip(runs, _names(runs), strict=True)]
    content = {"kind": "comparison", "runs": data, "differences": differences([run.config for run in runs])}
    write_text(out, page(f"{len(runs)} runs compared", content))
    return out


def page(title: str, content: dict[str, Any]) -> str:
    """The HTML of a page that shows `content`, which is plain JSON values."""
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    parts = {
        "title": html.escape(escaped(title)),
        "policy": f"default-src 'none'; script-src {_hash(script)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        "style": _asset("style.css"),
        "data": embedded_json({"version": __version__, **content}),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("template.html"))


def embedded_json(value: Any) -> str:
    """`value` as JSON that is inert inside a script element: ASCII, without `<`, `>` and `&`."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """The folders' names, with as many of their parents' as tell them apart; a run given twice keeps one name."""
    paths = [run.folder.resolve() for run in runs]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _asset(name: str) -> str:
    return files("gistnet.report").joinpath("page", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
