"""How the benchmarks cut the engine's work into passes: as training does (`gistnet.training.fitting`)."""

from gistnet.training.fitting import USABLE, Batch, find_fit
from gistnet.training.memory import StepMemory, held_by_teacher, step_memory

from benchmarks.workload import SINK, Branches
from gistnet.devices import free_bytes
from gistnet.evaluation.validation import ValidationConfig
from gistnet.model.gistnet import GistNet
from gistnet.model.teacher import Teacher
from gistnet.objective.objective import ObjectiveConfig
from gistnet.training.stage import Stage, TrainConfig


def memory_of_step(
    teacher: Teacher, gistnet: GistNet, *, window: int, horizon: int, spans: int, device_type: str
) -> StepMemory:
    """What a step of training on single spans takes of a device's memory; nothing is kept for validation."""
    train = TrainConfig(spans_per_window=spans, sink_tokens=SINK, validation=ValidationConfig(cache_gigabytes=0))
    stage = Stage(name="benchmark", train=train, objective=ObjectiveConfig(horizon_tokens=horizon))
    return step_memory(teacher, gistnet, stage, window_tokens=window, device_type=device_type)


def branches_per_pass(teacher: Teacher, gistnet: GistNet, branches: Branches) -> int:
    """How many branches training would run at once with these windows held, and without recomputing layers.

    One where nothing fits: then the benchmark finds out.
    """
    windows, window = branches.tokens.shape
    device = teacher.device
    memory = memory_of_step(
        teacher,
        gistnet,
        window=window,
        horizon=branches.horizon,
        spans=len(branches.starts),
        device_type=device.type,
    )
    batch = Batch(windows, len(branches.starts), windows_per_pass=windows, gradient_checkpointing=False)
    held = held_by_teacher(teacher) + sum(parameter.nbytes for parameter in gistnet.parameters())
    room = USABLE * (free_bytes(device) + held)
    fit = find_fit(memory, batch, room_bytes=room, device_type=device.type)
    return 1 if fit is None else fit.sizes.branches
