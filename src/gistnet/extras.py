"""Optional packages: which extra of gistnet installs them, and what is said where they are missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from gistnet.errors import MissingPackageError

EXTRAS = {
    "tree": ("lance", "pyarrow"),
    "data": ("pyarrow", "rensa", "zstandard", "datasets"),
    "ray": ("ray",),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Extra → modules that it installs."""


@contextmanager
def needing(extra: str, purpose: str) -> Iterator[None]:
    """Import packages of an extra inside the block.

    Args:
        purpose: what they are for, as the beginning of a sentence.

    Raises:
        MissingPackageError: one is not installed; says how to install it.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS[extra]:
            raise
        raise MissingPackageError(
            f"{purpose} needs the package `{error.name}`, which is missing: pip install 'gistnet[{extra}]'.",
            name=error.name,
        ) from error
