"""GistNet: learned context compression for frozen language models."""

from gistnet.version import __version__

__all__ = ["__version__"]
