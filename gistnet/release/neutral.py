"""The configuration of a run as a release states it: complete, and without a path that says anything of a machine."""

from pathlib import Path
from typing import Any

from gistnet.config import RunConfig
from gistnet.data.sources import SourceConfig
from gistnet.evaluation.config import ContextsConfig
from gistnet.run_folder import CHECKPOINTS_FOLDER


def neutral_config(config: RunConfig, name: str) -> RunConfig:
    """The configuration of the release `name`, for any machine and for the documents that the release brings.

    Of files only their names are left, of a GistNet that the run started from its run and checkpoint. The teacher is
    neither compiled nor spread over processes, which needs a compiler or several. Reconstruction and long contexts are
    not asked for: a release has neither training documents nor whole ones.
    """
    default_folder = type(config.data).model_fields["folder"].default
    sources = tuple(neutral_source(source) for source in config.data.sources)
    without = {"reconstruction": False, "contexts": ContextsConfig()}
    return config.model_copy(
        update={
            "run_folder": Path("released") / name,
            "device": "auto",
            "teacher": config.teacher.model_copy(update={"compile": False}),
            "data": config.data.model_copy(update={"folder": default_folder, "sources": sources}),
            "start_from": None if config.start_from is None else Path(_after_runs(config.start_from)),
            "evaluation": config.evaluation.model_copy(update=without),
        }
    )


def neutral_source(source: SourceConfig) -> SourceConfig:
    """A source whose files are names alone; what is on the Hub is named as it is."""
    changes: dict[str, Any] = {}
    for field in ("paths", "data_files"):
        match getattr(source, field, None):
            case str(path):
                changes[field] = _file_name(path)
            case tuple(paths):
                changes[field] = tuple(_file_name(path) for path in paths)
    return source.model_copy(update=changes)


def _file_name(path: str) -> str:
    return path if "://" in path else Path(path).name


def _after_runs(path: Path) -> str:
    """RUN/checkpoints/STEP/gistnet of a checkpoint's network, and the last name of any other folder."""
    parts = path.parts
    first = parts.index(CHECKPOINTS_FOLDER) - 1 if CHECKPOINTS_FOLDER in parts else len(parts) - 1
    return "/".join(parts[max(first, 0) :])
