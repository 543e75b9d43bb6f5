"""GistNet: learned context compression for frozen language models.

The public names load on first use, so that `import gistnet` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gistnet.version import __version__

if TYPE_CHECKING:
    from gistnet.compressor import Compressor, load
    from gistnet.config import load_config
    from gistnet.context.assembly import assemble
    from gistnet.context.generate import generate
    from gistnet.context.plan import Plan, default_plan
    from gistnet.context.select import Selection, select
    from gistnet.evaluation.evaluator import evaluate
    from gistnet.model.encoder import SpanEncoder
    from gistnet.model.gistnet import GistNet
    from gistnet.model.teacher import Teacher
    from gistnet.preparation import prepare_data
    from gistnet.report.report import write_comparison, write_report
    from gistnet.session import open_trained, train
    from gistnet.tree.document import compress
    from gistnet.tree.gist_encoder import GistEncoder
    from gistnet.tree.tree import GistTree

__all__ = [
    "Compressor",
    "GistEncoder",
    "GistNet",
    "GistTree",
    "Plan",
    "Selection",
    "SpanEncoder",
    "Teacher",
    "__version__",
    "assemble",
    "compress",
    "default_plan",
    "evaluate",
    "generate",
    "load",
    "load_config",
    "open_trained",
    "prepare_data",
    "select",
    "train",
    "write_comparison",
    "write_report",
]

_HOMES = {
    "Compressor": "gistnet.compressor",
    "GistEncoder": "gistnet.tree.gist_encoder",
    "GistNet": "gistnet.model.gistnet",
    "GistTree": "gistnet.tree.tree",
    "Plan": "gistnet.context.plan",
    "Selection": "gistnet.context.select",
    "SpanEncoder": "gistnet.model.encoder",
    "Teacher": "gistnet.model.teacher",
    "assemble": "gistnet.context.assembly",
    "compress": "gistnet.tree.document",
    "default_plan": "gistnet.context.plan",
    "evaluate": "gistnet.evaluation.evaluator",
    "generate": "gistnet.context.generate",
    "load": "gistnet.compressor",
    "load_config": "gistnet.config",
    "open_trained": "gistnet.session",
    "prepare_data": "gistnet.preparation",
    "select": "gistnet.context.select",
    "train": "gistnet.session",
    "write_comparison": "gistnet.report.report",
    "write_report": "gistnet.report.report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gistnet' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
