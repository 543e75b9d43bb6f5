"""The example notebook runs from top to bottom, with the real teacher."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "examples" / "your-own-data.ipynb"


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # kept without results, which would age
    NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    last = next(cell for cell in reversed(notebook.cells) if cell.cell_type == "code")
    assert "read as tokens:" in "".join(output["text"] for output in last.outputs)
