"""Reference of a configuration, made from its sections: every setting's type, default and description.

Reads what pydantic knows of the fields; `gistnet.config.config_reference` is the page of a run's configuration.
"""

import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeGuard, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from gistnet.settings import Section

ITEM = "NAME"
"""Stands in a key for the name of an item of a list, such as a stage."""
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_BARE = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path", NoneType: "null"}
# Other programs' words for what has another name here.
_SYNONYMS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "batch_size": "windows_per_batch",
    "gradient_accumulation_steps": "accumulation_steps",
    "max_steps": "steps",
    "output_dir": "run_folder",
    "model": "teacher",
}


class Setting(NamedTuple):
    """One setting."""

    key: str
    """With its groups, as on the command line: `train.optimiser.learning_rate`."""
    type: str
    default: str
    """Default of a field as YAML, or `required`."""
    description: str

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]


class Group(NamedTuple):
    """Settings that stand together."""

    key: str
    """Empty for the outermost."""
    title: str
    description: str
    settings: list[Setting]


def groups_of(section: type[Section], key: str = "", renamed: Mapping[str, str] | None = None) -> Iterator[Group]:
    """A section's settings, and then those of the sections within it.

    Args:
        key: of the section.
        renamed: keys that a user writes in another way.
    """
    renamed = renamed or {}
    inner: list[tuple[str, type[Section]]] = []
    settings = []
    for name, field in section.model_fields.items():
        own = f"{key}.{name}" if key else name
        own = renamed.get(own, own)
        if _is_section(field.annotation):
            inner.append((own, field.annotation))
            continue
        inner += [(f"{own}.{ITEM}", item) for item in _sections_in(field.annotation)]
        settings.append(
            Setting(own, type_text(field.annotation, field.metadata), _default(field), _plain(field.description))
        )
    kinds = get_args(section.model_fields["kind"].annotation) if "kind" in section.model_fields else ()
    title = f"{key} of kind {kinds[0]}" if len(kinds) == 1 else key or "The run"
    yield Group(key, title, _plain(section.__doc__), settings)
    for own, of_field in inner:
        yield from groups_of(of_field, own, renamed)


def type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type with its bounds, in words that need no Python: `list of integer > 0`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, UnionType):
        return " or ".join(type_text(part, () if part is NoneType else metadata) for part in arguments)
    if origin is Literal:
        return " | ".join(str(value) for value in arguments)
    if origin is tuple:
        if list(_sections_in(annotation)):
            return "list of groups"
        if arguments[-1] is Ellipsis:
            return f"list of {type_text(arguments[0])}"
        return f"list [{', '.join(type_text(part) for part in arguments)}]"
    if origin is dict:
        return f"mapping of {type_text(arguments[0])} to {type_text(arguments[1])}"
    if _is_section(annotation):
        fields = annotation.model_fields
        return f"{{{', '.join(fields)}}}"
    return " ".join([_BARE.get(annotation, getattr(annotation, "__name__", str(annotation))), *_bounds(metadata)])


def markdown(groups: Sequence[Group]) -> str:
    """The reference as Markdown: a heading and a table for each group."""
    parts = []
    for group in groups:
        lines = [f"## {group.title}", "", group.description]
        if group.settings:
            lines += ["", "| setting | type | default | description |", "|---|---|---|---|"]
        for setting in group.settings:
            cells = (f"`{setting.name}`", setting.type, f"`{setting.default}`", setting.description)
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def described(groups: Sequence[Group], columns: int = 80) -> Iterator[str]:
    """The reference as lines for a terminal."""
    for number, group in enumerate(groups):
        yield from [""] * (number > 0)
        yield from textwrap.wrap(f"{group.title}: {group.description}", columns)
        for setting in group.settings:
            yield ""
            yield f"  {setting.key} = {setting.default}"
            yield from textwrap.wrap(
                f"({setting.type}) {setting.description}", columns, initial_indent="      ", subsequent_indent="      "
            )


def matching(groups: Sequence[Group], key: str) -> list[Group]:
    """Groups with the settings that a key names: one setting, or all of a group and of the groups within it."""
    found = []
    for group in groups:
        within = group.key == key or group.key.startswith(f"{key}.")
        settings = [setting for setting in group.settings if within or setting.key == key]
        if settings:
            found.append(group._replace(settings=settings))
    return found


def similar_keys(groups: Sequence[Group], key: str) -> list[str]:
    """Keys that may have been meant by one that is unknown: three at most, the likeliest first."""
    outer, _, word = key.rpartition(".")
    keys = list(
        dict.fromkeys(name for group in groups for name in (group.key, *(s.key for s in group.settings)) if name)
    )
    siblings = {name.rpartition(".")[2]: name for name in keys if name.rpartition(".")[0] == outer}
    by_name: dict[str, list[str]] = {}
    for name in keys:
        by_name.setdefault(name.rpartition(".")[2], []).append(name)
    word = _SYNONYMS.get(word, word)
    if word not in by_name and (close := get_close_matches(word, siblings, 1, 0.7)):
        return [siblings[close[0]]]
    close = [word] if word in by_name else get_close_matches(word, by_name, 1, 0.8)
    # What lies in the same section first, then what lies least deep.
    first = key.partition(".")[0]
    return (
        sorted(by_name[close[0]], key=lambda name: (not name.startswith(f"{first}."), name.count(".")))[:3]
        if close
        else []
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = to_jsonable_python(field.get_default(call_default_factory=True))
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _bounds(metadata: Sequence[Any]) -> Iterator[str]:
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _bounds(item.metadata)
        for name, sign in _SIGNS.items():
            if (bound := getattr(item, name, None)) is not None:
                yield f"{sign} {'2^63' if bound == 2**63 else bound}"


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    """The sections that a list holds; those in a mapping are part of its type."""
    if get_origin(annotation) is not dict:
        for part in get_args(annotation):
            if _is_section(part):
                yield part
            else:
                yield from _sections_in(part)


def _is_section(annotation: Any) -> TypeGuard[type[Section]]:
    return inspect.isclass(annotation) and issubclass(annotation, Section)


def _plain(text: str | None) -> str:
    """A docstring as one paragraph, with YAML's word for nothing."""
    return re.sub(r"\bNone\b", "null", " ".join((text or "").split()))
