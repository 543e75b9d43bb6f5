"""From a configuration, or a run folder, to the objects that train and evaluate."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from gistnet.config import CONFIG_FILE, RunConfig, load_config
from gistnet.data.dataset import PreparedDataset
from gistnet.data.prepare import prepare
from gistnet.errors import CheckpointError, ConfigError
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher, load_tokenizer
from gistnet.objective.reference import require_exact
from gistnet.train.checkpoint import best_checkpoint, latest_checkpoint
from gistnet.train.parallel import Processes
from gistnet.train.trainer import Run, build_run


class TrainedGistNet(NamedTuple):
    """A GistNet with the run it came from."""

    config: RunConfig
    teacher: Teacher
    gistnet: GistNet
    folder: Path
    """Where the GistNet was loaded from."""


def prepare_data(config: RunConfig, progress: Callable[[str], None] = lambda message: None) -> PreparedDataset:
    """The prepared corpus of a configuration, made where it does not exist yet.

    Raises:
        DataError, ConfigError, TeacherError, StorageError: see `prepare` and `load_tokenizer`.
    """
    return prepare(config.data, load_tokenizer(config.teacher), progress)


def load_teacher(config: RunConfig, device: torch.device) -> Teacher:
    """The configuration's teacher, checked to be one for which the engine is exact and the windows are not too long.

    Raises:
        TeacherError: it cannot be loaded or cannot be a teacher.
        ConfigError: the windows are longer than its positions.
    """
    teacher = Teacher.from_pretrained(config.teacher, device)
    if config.data.window_tokens > teacher.max_positions:
        raise ConfigError(
            f"window_tokens is {config.data.window_tokens}, expected at most the {teacher.max_positions} positions "
            f"that {teacher.name} was trained for."
        )
    require_exact(teacher)
    return teacher


def open_run(config: RunConfig, progress: Callable[[str], None] = lambda message: None) -> Run:
    """Everything a training run needs.

    Raises:
        GistNetError: of any kind; nothing has been trained yet.
    """
    processes = Processes(config.device)
    teacher = load_teacher(config, processes.device)
    if processes.is_main:
        dataset = prepare_data(config, progress)
        processes.wait()
    else:
        processes.wait()
        dataset = prepare_data(config)
    gistnet = GistNet.build(config.gistnet, teacher, positions=config.objective.positions, seed=config.seed)
    return build_run(
        config.run_folder,
        teacher,
        gistnet,
        dataset,
        config.objective,
        config.train,
        seed=config.seed,
        processes=processes,
        source_weights={source.name: source.weight for source in config.data.sources},
    )


def open_trained(path: Path, settings: tuple[str, ...] = ()) -> TrainedGistNet:
    """The GistNet of a run folder (its best checkpoint, otherwise its newest) or of one of its checkpoints.

    Args:
        settings: `key=value` changes to the run's configuration.

    Raises:
        CheckpointError: there is no run or no checkpoint at `path`, it is damaged, or it belongs to another teacher.
    """
    is_checkpoint = path.parent.name == "checkpoints"
    run_folder = path.parent.parent if is_checkpoint else path
    if not (run_folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{path} is no run folder: expected {run_folder / CONFIG_FILE}, as training writes it.")
    config = load_config(run_folder / CONFIG_FILE, settings)
    checkpoint = path if is_checkpoint else best_checkpoint(run_folder) or latest_checkpoint(run_folder)
    if checkpoint is None:
        raise CheckpointError(f"The run {run_folder} has no checkpoint yet.")
    teacher = load_teacher(config, Processes(config.device).device)
    folder = checkpoint / "gistnet"
    return TrainedGistNet(config, teacher, GistNet.from_pretrained(folder, teacher), folder)
