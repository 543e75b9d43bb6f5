"""From a configuration, or a run folder, to the objects that train and evaluate."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from rich.table import Table

from gistnet.config import RunConfig, config_text, load_config, save_config
from gistnet.data.dataset import PreparedDataset
from gistnet.data.prepare import find_prepared
from gistnet.errors import CheckpointError, ConfigError, DataError, StorageError, TeacherError
from gistnet.evaluation.validation import Validator
from gistnet.files import lock_for_writing
from gistnet.machine import keep_freed_memory, require_precision, share_cores, usable_devices
from gistnet.model.config import TeacherConfig
from gistnet.model.fingerprint import Precision, TeacherFingerprint
from gistnet.model.gistnet import GistNet
from gistnet.model.loading import load_tokenizer
from gistnet.model.saved_gistnet import WEIGHTS_FILE, read_saved
from gistnet.model.teacher import Teacher
from gistnet.model.tokenizer import TeacherTokenizer
from gistnet.objective.reference import require_exact
from gistnet.preparation import prepare_data
from gistnet.release_folder import HELD_OUT_FOLDER, find_folder, is_release
from gistnet.report.report import write_report
from gistnet.run_folder import CHECKPOINTS_FOLDER, CONFIG_FILE, left_by_a_run, remove_run
from gistnet.terminal import at_full_width
from gistnet.training.checkpoint import best_checkpoint, latest_checkpoint, load_checkpoint
from gistnet.training.micro_batch import USABLE, choose_micro_batch
from gistnet.training.parallel import Processes
from gistnet.training.recording import require_installed
from gistnet.training.run import Run, StageRun, TrainState, build_run
from gistnet.training.trainer import fit, restore, train_step
from gistnet.tree.gist_encoder import GistEncoder

logger = logging.getLogger(__name__)

Start = Literal["new", "resume", "restart"]

VALIDATION_CACHE_GIGABYTES = 2.0
"""Memory of a process for passes over held-out windows, which are the same at every validation."""
GPUS = {"24 GB (L4)": 24e9, "80 GB (A100, H100)": 80e9, "141 GB (H200)": 141e9}
"""Bytes of memory of the GPUs for which a dry run tells what fits."""


class TrainedGistNet(NamedTuple):
    """A GistNet with the run it came from."""

    config: RunConfig
    run_folder: Path
    """Present folder of the run; `config.run_folder` is where it was trained, perhaps relative to another folder."""
    teacher: Teacher
    gistnet: GistNet
    folder: Path
    """Folder that the GistNet was loaded from."""

    @property
    def is_released(self) -> bool:
        """True if it is from a release, which brings its documents and its figures, and not from a run."""
        return is_release(self.run_folder)

    def dataset(self) -> PreparedDataset:
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
        warn_of_other_corpus(self.gistnet, dataset)
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


def warn_of_other_corpus(gistnet: GistNet, dataset: PreparedDataset) -> None:
    """Log a warning where a GistNet, or the weights it began with, was trained on another corpus as well."""
    if set(gistnet.trained_on) - {dataset.content_fingerprint}:
        logger.warning(
            "The GistNet began with weights that were trained on another corpus: documents that are held out here may "
            "be among those, and figures on them may flatter."
        )


def load_teacher(config: RunConfig, device: torch.device) -> Teacher:
    """Load the teacher of a configuration; check that the engine is exact for it and its positions reach far enough.

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
        ConfigError: what `start_from` holds is of another shape or position policy, or has other levels.
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
        if gistnet.branchings != config.levels[: gistnet.level + 1]:
            raise ConfigError(
                f"start_from has the levels {list(gistnet.branchings)}, expected the first of the run's, "
                f"{list(config.levels)}, or all."
            )
    for branching in config.levels[0 if gistnet is None else gistnet.level + 1 :]:
        gistnet = GistNet.build(
            config.gistnet, teacher, branching, below=gistnet, positions=positions, seed=config.seed
        )
    assert gistnet is not None  # a run has one level at least
    return gistnet


def open_run(config: RunConfig) -> Run:
    """Everything a training run needs.

    Raises:
        GistNetError: of any kind; nothing has been trained yet.
    """
    processes = _processes(config.device)
    teacher = load_teacher(config, processes.device)
    dataset = processes.main_first(lambda: prepare_data(config))
    gistnet = build_gistnet(config, teacher)
    warn_of_other_corpus(gistnet, dataset)
    for level in gistnet.levels:
        level.trained_on = tuple(dict.fromkeys((*gistnet.trained_on, dataset.content_fingerprint)))
        level.longest_row = max(gistnet.longest_row, config.longest_row)
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
    )


def stage_validator(run: Run, stage: StageRun) -> Validator:
    """Validator of a stage of a run, in this process.

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
        documents=stage.train.validation.documents,
        segments_per_window=stage.train.validation.segments_per_window,
        spans_per_segment=stage.train.validation.spans_per_segment,
        rows=stage.train.validation.rows,
        cache_gigabytes=VALIDATION_CACHE_GIGABYTES,
        rank=run.processes.rank,
        processes=run.processes.count,
        hidden_state_layer=run.gistnet.hidden_state_layer,
    )


def train(
    config: RunConfig,
    *,
    start: Start = "new",
    report: bool = False,
) -> bool:
    """Train by a configuration, into its run folder.

    Args:
        start: `new` refuses a folder that holds a run, `resume` continues from its newest checkpoint, `restart`
            deletes what an earlier run left, once nothing else stands in the way. Each refuses a folder in which
            another program's files have the names of ours, or in which another process trains.
        report: write the run's report page anew after each validation.

    Returns:
        Whether the run is finished; it is not where a signal asked it to stop.

    Raises:
        GistNetError: of any kind; what was saved before stays.
    """
    _require_startable(config.run_folder, start)
    require_installed(config.trackers)
    run = open_run(config)
    with ExitStack() as stack:
        with run.processes.failing_together():
            if run.processes.is_main:
                stack.enter_context(closing(lock_for_writing(run.folder, "run", required=False)))
                _require_startable(run.folder, start)  # of two that began at once, the other may have ended
        return _train(run, config, start, report)


def _train(run: Run, config: RunConfig, start: Start, report: bool) -> bool:
    # The folder of an earlier run changes only now that nothing is left to refuse.
    if start == "resume":
        restore(run)
    if run.processes.is_main:
        if start == "restart":
            remove_run(config.run_folder)
        save_config(config)
        budget, layer = run.gistnet.parameter_budget(), run.gistnet.hidden_state_layer
        logger.info(
            "GistNet (%s): %s trained parameters; compute per span %s of the teacher's%s.",
            run.gistnet.config.architecture,
            f"{budget.trained:,}",
            f"{budget.share_of_teacher(run.gistnet.teacher_flops_per_span):.1%}",
            "" if layer is None else f", beside its own {layer} first layers",
        )
    refresh: Callable[[], object] = partial(write_report, config.run_folder) if report else lambda: None
    state = fit(run, resume=start == "resume", trackers=config.trackers, after_validation=refresh)
    if run.is_finished(state):
        return True
    stage = run.stages[state.stage - 1]
    of_stage = f" of stage '{stage.name}'" if len(run.stages) > 1 else ""
    logger.info(
        "Stopped after step %d of %d%s; --resume continues from there.", state.stage_step, stage.train.steps, of_stage
    )
    return False


def open_trained(path: str | Path, settings: Sequence[str] = ()) -> TrainedGistNet:
    """The GistNet of a run folder (its best checkpoint, otherwise its newest), of a checkpoint, or of a release.

    Args:
        path: where it is, the name of a release that comes with the package, or USER/NAME on the Hub.
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


def _run_of(path: Path, settings: Sequence[str] = ()) -> tuple[Path, RunConfig]:
    """The run folder that an absolute path is, or has a checkpoint of, and the run's configuration."""
    run_folder = path.parent.parent if path.parent.name == CHECKPOINTS_FOLDER else path
    if not (run_folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{path} is no run folder: expected {run_folder / CONFIG_FILE}, as training writes it.")
    return run_folder, load_config(run_folder / CONFIG_FILE, settings)


def open_gistnet(
    path: Path | str, *, device: str = "auto", precision: Precision | None = None, revision: str | None = None
) -> tuple[Teacher, GistNet]:
    """A GistNet and its teacher, from anything that `find_folder` finds: a run folder, a checkpoint, a saved GistNet.

    Args:
        path: where it is, a release's name, or USER/NAME on the Hub.
        device: of the teacher, as in `open_teacher`.
        precision: of the teacher; None is the one that the GistNet was trained with.
        revision: of the repository on the Hub.

    Raises:
        CheckpointError: there is none at `path`, it is damaged, or it belongs to another teacher than the one named.
        TeacherError: the teacher cannot be loaded.
        ConfigError: there is no such device, or it does not compute in that precision.
    """
    path = find_folder(path, revision=revision)
    if not (path / WEIGHTS_FILE).is_file():
        settings = [] if device == "auto" else [f"device={device}"]
        settings += [] if precision is None else [f"teacher.precision={precision}"]
        trained = open_trained(path, settings)
        return trained.teacher, trained.gistnet
    saved, _ = read_saved(path)
    teacher = open_teacher(saved.teacher, device=device, precision=precision)
    return teacher, GistNet.from_pretrained(path, teacher)


@dataclass(frozen=True)
class LoadEncoder:
    """Loads the encoder of a checkpoint when called; can be sent to another process, unlike the encoder."""

    checkpoint: Path

    def __call__(self) -> GistEncoder:
        """The encoder.

        Raises:
            CheckpointError: there is no usable checkpoint, or it belongs to another teacher.
        """
        return GistEncoder(*open_gistnet(self.checkpoint))


def open_teacher(
    fingerprint: TeacherFingerprint, *, device: str = "auto", precision: Precision | None = None
) -> Teacher:
    """The teacher that a saved GistNet or a tree names.

    Args:
        fingerprint: of the teacher.
        device: auto (the GPU where there is one), cpu, cuda, or another device of PyTorch.
        precision: number format; None is that of the fingerprint.

    Raises:
        TeacherError: it cannot be loaded, or is another one by now.
        ConfigError: there is no such device, or it does not compute in that precision.
    """
    if precision not in (None, *get_args(Precision)):
        raise ConfigError(f"Got the precision '{precision}', expected one of {', '.join(get_args(Precision))}.")
    config = _config_of(fingerprint)
    if precision is not None:
        config = config.model_copy(update={"precision": precision})
    found = _processes(device).device
    require_precision(found, config.precision)
    teacher = Teacher.from_pretrained(config, found)
    if not teacher.fingerprint.same_model(fingerprint):
        raise TeacherError(f"Got the teacher {teacher.fingerprint.describe()}, expected {fingerprint.describe()}.")
    require_exact(teacher)
    return teacher


def open_tokenizer(fingerprint: TeacherFingerprint) -> TeacherTokenizer:
    """The tokenizer of the teacher that a saved GistNet or a tree names, without its weights.

    Raises:
        TeacherError: it cannot be loaded, or another model has that name by now.
    """
    config = _config_of(fingerprint)
    found = Teacher.without_weights(config).fingerprint
    if found.config_hash != fingerprint.config_hash:
        raise TeacherError(f"Got the teacher {found.describe()}, expected {fingerprint.describe()}.")
    return load_tokenizer(config)


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


def _processes(device: str) -> Processes:
    keep_freed_memory()
    share_cores()
    try:
        processes = Processes(device)
        torch.empty(1, device=processes.device)
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch was built without CUDA
        reason = str(error).splitlines()[0].partition(". ")[0].rstrip(".")
        raise ConfigError(
            f"device is '{device}', which PyTorch cannot use here ({reason}); expected {usable_devices()}."
        ) from error
    return processes


# Dry run --------------------------------------------------------------------------------------------------------------


def dry_run(config: RunConfig, *, gpu_memory: bool = False, show_config: bool = False) -> Iterator[str | Table]:
    """Estimated time and sizes of a run, in lines; nothing is saved.

    Args:
        gpu_memory: also a table of the micro-batches that fit on GPUs; there is one anyway on a machine with a GPU.
        show_config: also the resolved configuration.

    On the device `meta` neither weights nor data are read, only the shape of the teacher is, and no step is made.

    Raises:
        GistNetError: of any kind: the run could not be made.
    """
    _require_writable(config.run_folder)
    if config.device == "meta":
        teacher = Teacher.without_weights(config.teacher)
        _require_short_enough(config, teacher)
        gistnet, processes = build_gistnet(config, teacher), 1
    else:
        run = open_run(config)
        steps = list(_describe_steps(run))  # in every process; the main one shows them
        if not run.processes.is_main:
            return
        teacher, gistnet, processes = run.teacher, run.gistnet, run.processes.count
        yield from steps
    budget = gistnet.parameter_budget()
    share = budget.share_of_teacher(gistnet.teacher_flops_per_span)
    yield f"teacher: {teacher.fingerprint.describe()}, {teacher.dtype}".replace("torch.", "")
    yield f"GistNet: {budget.trained:,} trained and {budget.frozen:,} frozen parameters"
    yield f"compute per span: {budget.flops_per_span / 1e9:.2f} GFLOP, {share:.1%} of the teacher's on the same tokens"
    if gpu_memory or config.device == "meta" or torch.cuda.is_available():
        yield _memory_table(teacher, gistnet, config, processes)
    if show_config:
        yield from config_text(config).rstrip("\n").split("\n")


def _describe_steps(run: Run) -> Iterator[str]:
    """Make one step of each stage; lines on how long all of them would take, and on what the step gave."""
    seconds_of_all, of_stages = 0.0, []
    for stage in run.stages:
        state = TrainState.at_start_of(stage)
        began = time.monotonic()
        metrics = train_step(run, stage, state, stage.optimiser())
        seconds = time.monotonic() - began
        seconds_of_all += seconds * stage.train.steps
        takes = f"{stage.train.steps:,} steps in about {_duration(seconds * stage.train.steps)}; "
        of_stages.append(
            f"stage '{stage.name}': {takes if len(run.stages) > 1 else ''}one step of {metrics['spans_seen']} spans "
            f"took {seconds:.1f} s with a micro-batch of {state.micro_batch}: loss {metrics['loss']:.4f}, "
            f"ΔNLL {metrics['delta_nll']:+.4f}"
        )
    steps = sum(stage.train.steps for stage in run.stages)
    yield f"{steps:,} steps take about {_duration(seconds_of_all)} here, validations and checkpoints left out."
    yield from of_stages


def _memory_table(teacher: Teacher, gistnet: GistNet, config: RunConfig, processes: int) -> Table:
    """Micro-batches that fit into GPUs of several sizes, and the memory that they take (estimated).

    Args:
        processes: GPUs among which a batch is shared; the figures are those of one.
    """
    table = Table(title="Micro-batch that fits on a GPU, and the memory it takes (estimated)", title_justify="left")
    table.add_column("stage")
    for name in GPUS:
        table.add_column(name, justify="right")
    for stage in config.stages:
        cells = []
        for room in GPUS.values():
            sizes, needed = choose_micro_batch(
                teacher,
                gistnet,
                stage,
                window_tokens=min(config.data.window_tokens, stage.train.window_tokens or config.data.window_tokens),
                processes=processes,
                device_type="cuda",
                recompute=config.teacher.gradient_checkpointing,
                room_bytes=USABLE * room,
            )
            verdict = "" if needed <= USABLE * room else "does not fit: "
            cells.append(f"{verdict}{sizes}, {needed / 1e9:.1f} GB")
        table.add_row(stage.name, *cells)
    return at_full_width(table)


def _require_writable(run_folder: Path) -> None:
    """Refuse a run folder that could not be made.

    Raises:
        StorageError: it is a file, or a folder above it cannot be written.
    """
    there = next(folder for folder in (run_folder.absolute(), *run_folder.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise StorageError(f"Could not write the run in {run_folder}: {there} is a file, expected a folder.")
    if not os.access(there, os.W_OK):
        raise StorageError(f"Could not write the run in {run_folder}: {there} cannot be written.")


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{_count(hours, 'hour')} {_count(minutes, 'minute')}"
    return _count(minutes, "minute") if minutes else f"{seconds:.0f} seconds"
