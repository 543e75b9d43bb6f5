"""From a configuration, or a run folder, to the objects that train and evaluate."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from rich.table import Table

from gistnet.config import RunConfig, load_config, save_config
from gistnet.data.dataset import PreparedDataset
from gistnet.data.prepare import find_prepared
from gistnet.devices import require_precision, share_cores, usable_devices
from gistnet.errors import CheckpointError, ConfigError, DataError, TeacherError
from gistnet.evaluation.validation import Validator
from gistnet.files import lock_for_writing
from gistnet.memory import keep_freed_memory
from gistnet.model.config import TeacherConfig
from gistnet.model.fingerprint import TeacherFingerprint
from gistnet.model.gistnet import GistNet
from gistnet.model.saved_gistnet import WEIGHTS_FILE, read_saved
from gistnet.model.teacher import Teacher
from gistnet.objective.reference import require_exact
from gistnet.preparation import prepare_data
from gistnet.release_folder import HELD_OUT_FOLDER, find_folder, is_release
from gistnet.report.report import write_report
from gistnet.run_folder import CHECKPOINTS_FOLDER, CONFIG_FILE, left_by_a_run, remove_run
from gistnet.training.checkpoint import best_checkpoint, latest_checkpoint, load_checkpoint
from gistnet.training.config import DEFAULT_TIMEOUT_MINUTES
from gistnet.training.dry_run import describe_config, describe_sizes, describe_steps, memory_table
from gistnet.training.parallel import Processes
from gistnet.training.run import Run, StageRun, build_run
from gistnet.training.trackers import require_installed
from gistnet.training.trainer import fit, restore

Start = Literal["new", "resume", "restart"]


class TrainedGistNet(NamedTuple):
    """A GistNet with the run it came from."""

    config: RunConfig
    run_folder: Path
    """Where the run is now; `config.run_folder` is where it was trained, perhaps relative to another folder."""
    teacher: Teacher
    gistnet: GistNet
    folder: Path
    """Where the GistNet was loaded from."""

    @property
    def is_released(self) -> bool:
        """Whether it is from a release, which brings its documents and its figures, and not from a run."""
        return is_release(self.run_folder)

    def dataset(self, progress: Callable[[str], None] = lambda message: None) -> PreparedDataset:
        """The documents that it is evaluated on: a release's own, otherwise the prepared corpus of its run.

        The corpus is the one that was trained on, by the checkpoint's record of its content, so that no document counts
        as held out that was trained on. It is prepared anew where `data.folder` has it no longer.

        Raises:
            DataError: the corpus is another by now; the message says what differs.
            DataError, ConfigError, TeacherError, StorageError: as `PreparedDataset.open` and `prepare_data`.
        """
        if self.is_released:
            return PreparedDataset.open(self.run_folder / HELD_OUT_FOLDER)
        dataset = self._trained_on()
        if told := trained_elsewhere(self.gistnet, dataset):
            progress(told)
        return dataset

    def _trained_on(self) -> PreparedDataset:
        """The prepared corpus of the run, by its record of the content."""
        expected = load_checkpoint(self.folder.parent).identity["dataset"]
        own = find_prepared(self.config.data, expected["content"])
        if own is not None:
            return own
        lost = f"{self.run_folder} was trained on another corpus, which {self.config.data.folder} does not have"
        try:
            dataset = prepare_data(self.config)
        except DataError as error:
            raise DataError(
                f"{lost}, and it cannot be prepared anew: {error} Expected where it is now: data.folder=FOLDER, or "
                "data.sources.NAME.paths=[FILES] for each source that moved."
            ) from error
        differences = [
            f"{name} is {dataset.identity.get(name)}, expected {value}"
            for name, value in expected.items()
            if dataset.identity.get(name) != value
        ]
        if differences:
            raise DataError(
                f"{lost}: its configuration and sources give one in which {', '.join(differences)}; what is held out "
                "here may have been trained on."
            )
        return dataset


def trained_elsewhere(gistnet: GistNet, dataset: PreparedDataset) -> str | None:
    """A sentence where a GistNet, or the weights it began with, was trained on another corpus as well; else None."""
    if not set(gistnet.trained_on) - {dataset.content_fingerprint}:
        return None
    return (
        "The GistNet began with weights that were trained on another corpus: documents that are held out here may be "
        "among those, and figures on them may flatter."
    )


def load_teacher(config: RunConfig, device: torch.device) -> Teacher:
    """The configuration's teacher, checked to be one for which the engine is exact and the windows are not too long.

    Raises:
        TeacherError: it cannot be loaded or cannot be a teacher.
        ConfigError: the windows are longer than its positions.
    """
    if device.type == "meta":
        raise ConfigError("device is 'meta', which holds no weights; expected it in a dry run only.")
    require_precision(device, config.teacher.precision)
    teacher = Teacher.from_pretrained(config.teacher, device)
    _require_short_enough(config, teacher)
    require_exact(teacher)
    return teacher


def build_gistnet(config: RunConfig, teacher: Teacher) -> GistNet:
    """The GistNet that a run begins with: new levels on those of `start_from`, where that is given.

    Raises:
        ConfigError: what `start_from` holds is of another shape or position policy, or has more levels.
        CheckpointError: it is missing or damaged, or belongs to another teacher.
    """
    positions = config.stages[0].objective.positions
    gistnet: GistNet | None = None
    if config.start_from is not None:
        gistnet = GistNet.from_pretrained(config.start_from, teacher)
        for name, got, expected in (
            ("shape", gistnet.config, config.gistnet.for_teacher(teacher.n_layers)),
            ("position policy", gistnet.positions, positions),
        ):
            if got != expected:
                raise ConfigError(f"start_from has the {name} {got}, expected that of the run, {expected}.")
        if gistnet.level >= config.levels:
            raise ConfigError(f"start_from has {gistnet.level + 1} levels, expected at most levels, {config.levels}.")
    while gistnet is None or gistnet.level + 1 < config.levels:
        gistnet = GistNet.build(config.gistnet, teacher, below=gistnet, positions=positions, seed=config.seed)
    return gistnet


def open_run(config: RunConfig, progress: Callable[[str], None] = lambda message: None) -> Run:
    """Everything a training run needs.

    Raises:
        GistNetError: of any kind; nothing has been trained yet.
    """
    processes = _processes(config.device, config.process_timeout_minutes)
    teacher = load_teacher(config, processes.device)
    dataset = processes.main_first(lambda: prepare_data(config))
    gistnet = build_gistnet(config, teacher)
    if told := trained_elsewhere(gistnet, dataset):
        progress(told)
    for level in gistnet.levels:
        level.trained_on = tuple(dict.fromkeys((*gistnet.trained_on, dataset.content_fingerprint)))
    return build_run(
        config.run_folder,
        teacher,
        gistnet,
        dataset,
        config.stages,
        seed=config.seed,
        processes=processes,
        make_validator=stage_validator,
        source_weights={source.name: source.weight for source in config.data.sources},
        gradient_checkpointing=config.teacher.gradient_checkpointing,
        say=progress,
    )


def stage_validator(run: Run, stage: StageRun) -> Validator:
    """What a stage of a run is validated with, in this process.

    Raises:
        DataError: a domain has no held-out window long enough.
    """
    return Validator(
        run.teacher,
        run.dataset,
        stage.layout,
        stage.objective.positions,
        stage.train.probabilities,
        run.seed,
        **stage.train.validation.model_dump(exclude={"every_steps"}),
        rank=run.processes.rank,
        processes=run.processes.count,
        hidden_state_layer=run.gistnet.hidden_state_layer,
    )


def dry_run(config: RunConfig, say: Callable[[str], None] = lambda message: None) -> Iterator[str | Table]:
    """Estimated time, sizes, memory and configuration of a run, in lines and a table; nothing is saved.

    On the device `meta` neither weights nor data are read, only the shape of the teacher is, and no step is made.

    Raises:
        GistNetError: of any kind: the run could not be made.
    """
    if config.device == "meta":
        teacher = Teacher.without_weights(config.teacher)
        _require_short_enough(config, teacher)
        gistnet, processes = build_gistnet(config, teacher), 1
    else:
        run = open_run(config, say)
        steps = list(describe_steps(run))  # in every process; the main one shows them
        if not run.processes.is_main:
            return
        teacher, gistnet, processes = run.teacher, run.gistnet, run.processes.count
        yield from steps
    yield from describe_sizes(teacher, gistnet)
    yield memory_table(
        teacher,
        gistnet,
        config.stages,
        window_tokens=config.data.window_tokens,
        processes=processes,
        gradient_checkpointing=config.teacher.gradient_checkpointing,
    )
    yield from describe_config(config)


def train(
    config: RunConfig,
    *,
    start: Start = "new",
    report: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> bool:
    """Train by a configuration, into its run folder.

    Args:
        start: `new` refuses a folder that holds a run, `resume` continues from its newest checkpoint, `restart`
            deletes what an earlier run left, once nothing else stands in the way. Each refuses a folder in which
            another program's files have the names of ours, or in which another process trains.
        report: write the run's report page anew after each validation.
        say: is called with a sentence about what happens, in the main process.

    Returns:
        Whether the run is finished; it is not where a signal asked it to stop.

    Raises:
        GistNetError: of any kind; what was saved before stays.
    """
    _require_startable(config.run_folder, start)
    require_installed(config.trackers)
    run = open_run(config, say)
    with ExitStack() as stack:
        with run.processes.failing_together():
            if run.processes.is_main:
                stack.enter_context(closing(lock_for_writing(run.folder, "run", required=False)))
                _require_startable(run.folder, start)  # of two that began at once, the other may have ended
        return _train(run, config, start, report, say)


def _train(run: Run, config: RunConfig, start: Start, report: bool, say: Callable[[str], None]) -> bool:
    # The folder of an earlier run changes only now that nothing is left to refuse.
    if start == "resume":
        restore(run)
    if run.processes.is_main:
        if start == "restart":
            remove_run(config.run_folder)
        save_config(config)
        budget = run.gistnet.parameter_budget()
        beside = (
            ""
            if run.gistnet.hidden_state_layer is None
            else f", beside its own {run.gistnet.hidden_state_layer} first layers"
        )
        say(
            f"GistNet ({run.gistnet.config.architecture}): {budget.trained:,} trained parameters; compute per span "
            f"{budget.share_of_teacher(run.gistnet.teacher_flops_per_span):.1%} of the teacher's{beside}."
        )
    refresh: Callable[[], object] = partial(write_report, config.run_folder) if report else lambda: None
    progress = fit(run, resume=start == "resume", trackers=config.trackers, after_validation=refresh)
    finished = run.is_finished(progress)
    if run.processes.is_main and finished:
        say(f"Trained on {progress.spans_seen} spans; the run is in {config.run_folder}.")
    elif run.processes.is_main:
        stage = run.stage(progress)
        place = f"step {progress.stage_step} of {stage.train.steps}"
        place += f" of stage '{stage.name}'" if len(run.stages) > 1 else ""
        say(f"Stopped after {place}; --resume continues from there.")
    return finished


def open_trained(path: Path, settings: tuple[str, ...] = ()) -> TrainedGistNet:
    """The GistNet of a run folder (its best checkpoint, otherwise its newest), of a checkpoint, or of a release.

    Args:
        path: where it is, or the name of a release that comes with the package.
        settings: `key=value` changes to the run's configuration.

    Raises:
        CheckpointError: there is no run or no checkpoint at `path`, it is damaged, or it belongs to another teacher.
    """
    path = find_folder(path).resolve()
    run_folder, config = _run_of(path, settings)
    if is_release(run_folder):
        folder = run_folder
    else:
        checkpoint = path if path != run_folder else best_checkpoint(run_folder) or latest_checkpoint(run_folder)
        if checkpoint is None:
            raise CheckpointError(f"The run {run_folder} has no checkpoint yet.")
        folder = checkpoint / "gistnet"
    teacher = load_teacher(config, _processes(config.device).device)
    return TrainedGistNet(config, run_folder, teacher, GistNet.from_pretrained(folder, teacher), folder)


def _run_of(path: Path, settings: tuple[str, ...] = ()) -> tuple[Path, RunConfig]:
    """The run folder that an absolute path is, or has a checkpoint of, and the run's configuration."""
    run_folder = path.parent.parent if path.parent.name == CHECKPOINTS_FOLDER else path
    if not (run_folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{path} is no run folder: expected {run_folder / CONFIG_FILE}, as training writes it.")
    return run_folder, load_config(run_folder / CONFIG_FILE, settings)


def open_gistnet(path: Path) -> tuple[Teacher, GistNet]:
    """A GistNet and its teacher, from a run folder, one of its checkpoints, a saved GistNet, or a release's name.

    Raises:
        CheckpointError: there is none at `path`, it is damaged, or it belongs to another teacher than the one named.
        TeacherError: the teacher cannot be loaded.
    """
    path = find_folder(path)
    if not (path / WEIGHTS_FILE).is_file():
        trained = open_trained(path)
        return trained.teacher, trained.gistnet
    saved, _ = read_saved(path)
    teacher = open_teacher(saved.teacher)
    return teacher, GistNet.from_pretrained(path, teacher)


def teacher_config(path: Path) -> TeacherConfig:
    """Which teacher a GistNet was trained with, from what `open_gistnet` takes; the teacher is not loaded.

    Raises:
        CheckpointError: there is no GistNet at `path`, or it is damaged.
    """
    path = find_folder(path)
    if not (path / WEIGHTS_FILE).is_file():
        return _run_of(path.resolve())[1].teacher
    return _config_of(read_saved(path)[0].teacher)


def open_teacher(fingerprint: TeacherFingerprint) -> Teacher:
    """The teacher that a saved GistNet or a tree names, in its precision, on the GPU where there is one.

    Raises:
        TeacherError: it cannot be loaded, or is another one by now.
    """
    teacher = Teacher.from_pretrained(_config_of(fingerprint), _processes("auto").device)
    if not teacher.fingerprint.same_model(fingerprint):
        raise TeacherError(f"Got the teacher {teacher.fingerprint.describe()}, expected {fingerprint.describe()}.")
    require_exact(teacher)
    return teacher


def _config_of(fingerprint: TeacherFingerprint) -> TeacherConfig:
    return TeacherConfig(name=fingerprint.name, revision=fingerprint.revision, precision=fingerprint.precision)


def _require_short_enough(config: RunConfig, teacher: Teacher) -> None:
    if config.data.window_tokens > teacher.max_positions:
        raise ConfigError(
            f"window_tokens is {config.data.window_tokens}, expected at most the {teacher.max_positions} positions "
            f"that {teacher.name} was trained for."
        )


def _require_startable(run_folder: Path, start: Start) -> None:
    """Never write a new run over an old one unasked, nor over anything else."""
    if is_release(run_folder):
        raise ConfigError(f"{run_folder} is a release; use another run_folder.")
    if left_by_a_run(run_folder) and start == "new":
        raise ConfigError(f"{run_folder} holds a run already; use --resume, --restart, or another run_folder.")


def _processes(device: str, timeout_minutes: float = DEFAULT_TIMEOUT_MINUTES) -> Processes:
    keep_freed_memory()
    share_cores()
    try:
        processes = Processes(device, timeout_minutes=timeout_minutes)
        torch.empty(1, device=processes.device)
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch was built without CUDA
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        raise ConfigError(
            f"device is '{device}', which PyTorch cannot use here ({reason}); expected {usable_devices()}."
        ) from error
    return processes
