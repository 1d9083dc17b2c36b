"""YAML as recipes are written in it: every value knows its line, keys stand once, `2e-5` is a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from aloe.errors import AloeError

LinePath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `2e-5` as text for want of a dot; every ML engineer means a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str, file: str) -> tuple[Any, dict[LinePath, int]]:
    """The value of a YAML text and the line of every key and item; `file` is named in errors."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as cause:
        mark = getattr(cause, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise AloeError(
            f"not valid YAML: {getattr(cause, 'problem', cause)}",
            where=f"{file}{line}",
            fix="check indentation and colons at that line",
        ) from None
    if node is None:
        raise AloeError("the recipe is empty", where=file, fix="start from recipes/demo.yaml")
    lines: dict[LinePath, int] = {}
    return _value(node, (), lines, file), lines


def read_yaml(path: Path) -> Any:
    """A YAML file, read as recipes are: duplicate keys are refused, `2e-5` is a number."""
    return parse_yaml(path.read_text(encoding="utf-8"), str(path))[0]


def read_value(text: str) -> Any:
    """A single YAML value, read as in a recipe (`2e-5` is a number)."""
    return parse_yaml(text, "value")[0] if text.strip() else ""


def _value(node: yaml.Node, path: LinePath, lines: dict[LinePath, int], file: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _scalar(key_node)
            line = key_node.start_mark.line + 1
            if key in result:
                raise AloeError(f"key {key!r} stands twice", where=f"{file}:{line}", fix="remove one of them")
            lines[(*path, key)] = line
            result[key] = _value(value_node, (*path, key), lines, file)
        return result
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            lines[(*path, i)] = item.start_mark.line + 1
        return [_value(item, (*path, i), lines, file) for i, item in enumerate(node.value)]
    return _scalar(node)


def _scalar(node: yaml.Node) -> Any:
    loader = _Loader("")
    try:
        value = loader.construct_object(node)
    finally:
        loader.dispose()
    return float(value) if node.tag.endswith(":float") else value
