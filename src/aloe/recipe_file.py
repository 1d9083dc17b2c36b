"""YAML as recipes are written in it: every value knows its line, keys stand once, `2e-5` is a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aloe.errors import AloeError
from aloe.json_file import read_bounded
from aloe.yaml_text import MAX_BYTES, LinePath, parse

__all__ = ["LinePath", "parse_yaml", "read_text", "read_value", "read_yaml"]


def parse_yaml(text: str, file: str) -> tuple[Any, dict[LinePath, int]]:
    """The value of a YAML text and the line of every key and item; `file` is named in errors."""
    value, lines = parse(text, file)
    if value is None and not lines:
        raise AloeError("the recipe is empty", where=file, fix="start from recipes/demo.yaml")
    return value, lines


def read_text(path: Path) -> str:
    """The text of a YAML file, of which there is never so much that it would have to be read in parts."""
    return read_bounded(path, 4 * MAX_BYTES, "name a recipe or another YAML file, in UTF-8")


def read_yaml(path: Path) -> Any:
    """A YAML file, read as recipes are: duplicate keys are refused, `2e-5` is a number."""
    return parse_yaml(read_text(path), str(path))[0]


def read_value(text: str) -> Any:
    """A single YAML value, read as in a recipe (`2e-5` is a number)."""
    return parse(text, "value")[0] if text.strip() else ""
