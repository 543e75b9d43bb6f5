"""The base of every section of a run's configuration, and the types that sections share.

Each package declares its sections in a module that imports neither torch nor model code; `gistnet.config` composes
them.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

from gistnet.errors import ConfigError
from gistnet.paths import local_path


def _local_path(value: Any) -> Any:
    try:
        return local_path(value) if isinstance(value, str | Path) else value
    except ConfigError as error:  # pydantic adds the field to a ValueError
        raise ValueError(str(error).rstrip(".")) from error


LocalPath = Annotated[Path, BeforeValidator(_local_path)]
"""A path on this machine; `~` is the home folder."""

Name = Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]
"""A text that names something: not empty, without NUL."""

ModelName = Annotated[Name, AfterValidator(lambda name: str(_local_path(name)) if name.startswith("~") else name)]
"""A model's id or its folder; `~` is the home folder."""

MIN_BRANCHING, MAX_BRANCHING = 2, 64
"""Bounds of `Branching`: one vector compresses nothing, and a gist of more than these has not been tried."""
Branching = Annotated[int, Field(ge=MIN_BRANCHING, le=MAX_BRANCHING)]
"""Number of vectors that become one gist of a level (K)."""

Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A seed, as PyTorch's generators take it."""


class Section(BaseModel):
    """An immutable group of settings. An unknown key is an error; each field's docstring states its unit."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """Refuse true and false where a number is expected: pydantic takes them for 1 and 0."""
        for name, field in cls.model_fields.items() if isinstance(values, Mapping) else ():
            types, value = set(_types(field.annotation)), values.get(name)
            takes_bool = bool in types or not types & {int, float}
            if not takes_bool and any(isinstance(leaf, bool) for leaf in _leaves(value)):
                raise ValueError(f"{name} is {str(value).lower()}, expected a number")
        return values


class Target(Section):
    """Target of a value: above a bound, below one, or between the two."""

    above: FiniteFloat | None = None
    """Bound that the value must exceed; None has no such bound."""
    below: FiniteFloat | None = None
    """Bound that the value must stay under; None has no such bound."""

    def is_met_by(self, value: float) -> bool:
        """True if `value` is strictly within the bounds."""
        return (self.above is None or value > self.above) and (self.below is None or value < self.below)


def _types(annotation: Any) -> Iterator[Any]:
    """The types that a field's annotation is made of."""
    yield annotation
    for argument in get_args(annotation):
        yield from _types(argument)


def _leaves(value: Any) -> Iterator[Any]:
    """The values in nested lists and mappings."""
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
