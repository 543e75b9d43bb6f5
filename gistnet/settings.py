"""The base of every section of a run's configuration.

Each room declares its own section beside the code that reads it; `gistnet.config` composes them.
"""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """An immutable group of settings. An unknown key is an error; each field's docstring states its unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)
