"""YAML is read by version 1.2, and comes back from writing as it was."""

from typing import Any

import pytest
import yaml

from gistnet.yaml_format import read_yaml, write_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("-7", -7), ("0o17", 15), ("0x1F", 31), ("1:30", "1:30"), ("190:20:30", "190:20:30"),
        ("1_000", "1_000"), ("0b1", "0b1"), ("1e3", 1000.0), ("1.5", 1.5), (".5", 0.5), ("-.inf", float("-inf")),
        ("true", True), ("False", False), ("yes", "yes"), ("off", "off"), ("null", None), ("~", None), ("", None),
        ("2024-01-01", "2024-01-01"), ("'010'", "010"), ("[1, a, {b: 0.5}]", [1, "a", {"b": 0.5}]),
    ],
)  # fmt: skip
def test_scalars_are_those_of_the_core_schema(text: str, value: Any) -> None:
    """Examples of YAML 1.2.2, section 10.3, and what YAML 1.1 reads otherwise."""
    read = read_yaml(text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: 1\nb: 2\na: 3", "line 3"),
        ("a: {b: 1, c: {d: 1, d: 2}}", "'d'"),
        ("1: a\n0x1: b", "1"),
        ("a: " + "[" * 2000 + "]" * 2000, "deeply"),
        ("a: " + "1" * 5000, "digits"),
        ("a: !!bool maybe", "maybe"),
        ("a: !!timestamp never", "group"),
        ("a: !!python/name:os.system x", "tag"),
        ("a: [", "parsing"),
    ],
)
def test_what_is_no_yaml_is_one_line(text: str, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)
    assert str(caught.value)


TRICKY = (
    "010", "0o17", "0b1", "1e5", "1:30", "yes", "on", "null", "~", "2024-01-01", "<<", "=", "", "a: b", "é\n", "\x1b[J",
)  # fmt: skip


def test_what_is_written_is_read_back() -> None:
    """Also by programs that read YAML 1.1."""
    value = {
        "texts": list(TRICKY),
        "by text": dict.fromkeys(TRICKY, 1),
        "floats": [1e-05, 1e22, -0.0],
        "none": None,
    }
    text = write_yaml(value, allow_unicode=True)
    assert read_yaml(text) == value
    assert yaml.safe_load(text) == value
