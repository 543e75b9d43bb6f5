"""Finding and reading a teacher's files with transformers, and its tokenizer alone; without model code of gistnet."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils import logging

from gistnet.errors import TeacherError
from gistnet.model.config import TeacherConfig
from gistnet.model.embedded_teacher import EMBEDDED_REVISION, EMBEDDED_TEACHER, embedded_teacher_folder
from gistnet.model.tokenizer import TeacherTokenizer


def load_tokenizer(config: TeacherConfig) -> TeacherTokenizer:
    """The teacher's tokenizer alone, which is all that preparing data needs.

    Raises:
        TeacherError: there is no such model, or it has no tokenizer.
    """
    source, _, options = source_of(config)
    with loading_errors(config):
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    return TeacherTokenizer(tokenizer)


def source_of(config: TeacherConfig) -> tuple[str, str | None, dict[str, Any]]:
    """Path or name by which transformers finds the teacher, its revision, and the options to load it with."""
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if config.name == EMBEDDED_TEACHER:
        return str(embedded_teacher_folder()), EMBEDDED_REVISION, options
    if Path(config.name).is_dir():
        return config.name, config.revision, options
    return config.name, config.revision, {**options, "revision": config.revision}


@contextmanager
def loading_errors(config: TeacherConfig) -> Iterator[None]:
    """Turn what other libraries raise while they read a model's files into a `TeacherError`.

    For their calls alone: in ours, such an error would be a bug, and keeps its traceback. Files of this machine, which
    are read within seconds, have no progress bar.
    """
    hides_bars = logging.is_progress_bar_enabled() and (config.name == EMBEDDED_TEACHER or Path(config.name).is_dir())
    if hides_bars:
        logging.disable_progress_bar()
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in the Rust code of tokenizers is no Exception
        # The first line says what is wrong; one that ends in a colon goes on in the next.
        line = re.split(r"(?<!:)\n", str(error).strip())[0] or type(error).__name__
        reason = " ".join(line.split()).rstrip(".")
        raise TeacherError(
            f"Could not load '{config.name}' as a teacher: expected the embedded '{EMBEDDED_TEACHER}', a causal "
            f"language model of the Hugging Face Hub, or a local folder with one in safetensors ({reason})."
        ) from error
    finally:
        if hides_bars:
            logging.enable_progress_bar()
