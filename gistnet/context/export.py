"""A context as prompt embeddings for an inference server: one tensor, and beside it what its vectors stand for.

vLLM reads them where it is started with `enable_prompt_embeds` (its documentation, "Prompt Embedding Inputs"):

    vectors, described = load_prompt_embeds(folder)
    llm = vllm.LLM(model=described.teacher.name, enable_prompt_embeds=True)
    llm.generate({"prompt_embeds": vectors})

and with `vllm serve MODEL --enable-prompt-embeds`, where a request carries the tensor, written by `torch.save` and in
base64, as `prompt_embeds`. The server numbers the vectors 0, 1, 2, …, whatever positions they were made for.
"""

import hashlib
import json
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from gistnet.context.assembly import Context
from gistnet.errors import ConfigError, DataError
from gistnet.files import storage_errors, write_bytes, write_json
from gistnet.model.fingerprint import TeacherFingerprint
from gistnet.model.teacher import Teacher
from gistnet.paths import local_path
from gistnet.settings import Section
from gistnet.version import __version__

FORMAT_VERSION = 2
TENSOR = "prompt_embeds"
TENSOR_FILE = f"{TENSOR}.safetensors"
DESCRIPTION_FILE = f"{TENSOR}.json"


class ExportedContext(Section):
    """What is written beside the vectors."""

    format_version: int
    gistnet_version: str
    teacher: TeacherFingerprint
    positions: str
    """The position policy that the context was assembled for."""
    position_ids: list[int]
    """The position of each vector; 0, 1, 2, … with `compact`."""
    spans: list[tuple[int, int]]
    """For each vector the first token of the document that it stands for, and the one after its last; or -1, -1."""
    levels: list[int]
    """The level of each gist; -1 for a token."""
    plan: list[tuple[int, int, int]]
    """The plan's pieces: level (-1 for tokens), first index, the one after the last."""
    span_tokens: int
    """K."""
    sink_tokens: int
    """First tokens that are raw in front of the pieces."""
    tensor_sha256: str
    """Ties this file to the vectors: a damaged or exchanged file is noticed."""


def export_prompt_embeds(context: Context, teacher: Teacher, folder: Path | str, *, force: bool = False) -> None:
    """Write `prompt_embeds.safetensors`, `[n, dim]` in the teacher's number format, and `prompt_embeds.json`.

    Each is written atomically, the description last; one of another export is replaced.

    Raises:
        ConfigError: the context is not `compact`, so that the server would read it at other positions, and `force` is
            not set.
        StorageError: the folder could not be written.
    """
    if context.positions != "compact" and not force:
        raise ConfigError(
            f"Got a context of the position policy '{context.positions}', expected 'compact': inference servers number "
            "vectors without gaps (force exports it all the same)."
        )
    tensor = save_tensors({TENSOR: context.inputs_embeds[0].contiguous().cpu()})
    described = ExportedContext(
        format_version=FORMAT_VERSION,
        gistnet_version=__version__,
        teacher=teacher.fingerprint,
        positions=context.positions,
        position_ids=context.position_ids[0].tolist(),
        spans=context.spans.tolist(),
        levels=context.levels.tolist(),
        plan=[(piece.level, piece.start, piece.stop) for piece in context.plan.pieces],
        span_tokens=context.plan.span_tokens,
        sink_tokens=context.plan.sink_tokens,
        tensor_sha256=hashlib.sha256(tensor).hexdigest(),
    )
    folder = local_path(folder)
    write_bytes(folder / TENSOR_FILE, tensor)
    write_json(folder / DESCRIPTION_FILE, described.model_dump(mode="json"))


def load_prompt_embeds(folder: Path | str) -> tuple[Tensor, ExportedContext]:
    """The vectors `[n, dim]` of an export, and what they stand for.

    Raises:
        DataError: a file is missing or damaged, is of another format, or the two do not belong together.
        StorageError: the folder could not be read.
    """
    folder = local_path(folder)
    described = _described(folder / DESCRIPTION_FILE)
    content = _read_bytes(folder / TENSOR_FILE)
    if hashlib.sha256(content).hexdigest() != described.tensor_sha256:
        raise DataError(f"{folder / TENSOR_FILE} is damaged, or not the vectors that {DESCRIPTION_FILE} describes.")
    try:
        return load_tensors(content)[TENSOR], described
    except (SafetensorError, KeyError) as error:
        raise DataError(f"{folder / TENSOR_FILE} holds no tensor '{TENSOR}' ({error}), expected one.") from error


def _described(path: Path) -> ExportedContext:
    try:
        content = json.loads(_read_bytes(path))
        version = content["format_version"]
        if version != FORMAT_VERSION:  # its other fields may mean anything
            raise DataError(f"{path} is of format {version}, expected {FORMAT_VERSION}.")
        return ExportedContext.model_validate(content)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not the description of an exported context ({reason}).") from error


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise DataError(f"{path.parent} holds no exported context: expected a file {path.name} in it.")
    with storage_errors("read", path):
        return path.read_bytes()
