"""YAML as this program reads and writes it: scalars by the core schema of YAML 1.2, and no key twice.

PyYAML follows YAML 1.1, where 010 is 8, 1:30 is 90, `yes` is true and 1e-4 is a text, and it drops the first of two
values of a key silently.
"""

import re
from typing import Any

import yaml

# Tag → pattern and first characters (YAML 1.2.2, section 10.3.2). Merging (<<) is not of YAML 1.2 either.
_CORE_SCHEMA = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - of this class alone, not YAML 1.1's

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(problem=f"the key {key!r} stands twice, again in line {line}")
            seen.add(key)
        return node


class _Dumper(yaml.SafeDumper):
    """Puts quotes around texts that either version of YAML would read as something else."""

    yaml_implicit_resolvers = {key: list(each) for key, each in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012


for _tag, (_pattern, _first) in _CORE_SCHEMA.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    try:
        return int(text.removeprefix("0o"), base)
    except ValueError as error:  # Python reads at most some thousand digits
        raise yaml.constructor.ConstructorError(problem=str(error), problem_mark=node.start_mark) from error


_Loader.add_constructor("tag:yaml.org,2002:int", _int)


def read_yaml(text: str) -> Any:
    """Plain values of a YAML document.

    Raises:
        ValueError: it is not YAML, has a key twice, or is nested too deeply; one line that says why.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        AttributeError,
    ) as error:  # the latter of tags such as !!bool maybe
        raise ValueError(" ".join(str(error).split()) or "it is no YAML") from error


def write_yaml(values: Any, **options: Any) -> str:
    """YAML that `read_yaml` reads back as the same values; options as of `yaml.dump`."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, **options)
