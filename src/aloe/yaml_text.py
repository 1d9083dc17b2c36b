"""YAML from anyone: plain values only, and never more of them than the file is long.

PyYAML's safe loader makes no objects of the file's choosing; it still lets a file of a few hundred bytes stand for
2^60 values (aliases of aliases), recurse until the interpreter gives up, or fail with an error of its own kind. Here
size, depth and the number of values are bounded, and whatever is wrong is an `AloeError` with file and line.
`2e-5` is a number, as every ML engineer means it.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from aloe.errors import AloeError

LinePath = tuple[str | int, ...]
MAX_BYTES = 512 << 10  # a recipe has tens of kilobytes; a megabyte takes the parser a minute
MAX_DEPTH = 64  # maps and lists inside one another
MAX_VALUES = 30_000  # aliases written out
_PLAIN = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")}


class _TooDeep(yaml.YAMLError):
    """Maps and lists inside one another beyond `MAX_DEPTH`; `problem_mark` says where."""

    def __init__(self, mark: Any) -> None:
        super().__init__("nested too deeply")
        self.problem, self.problem_mark = f"nested more than {MAX_DEPTH} deep", mark


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `2e-5` as text for want of a dot; every ML engineer means a number."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _TooDeep(self.peek_event().start_mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_yaml(text: str, where: str, *, repeats: bool = False) -> Any:
    """The value of a YAML text; None for an empty one. With `repeats` the last of equal keys counts, else they are an
    error.

    Raises:
        AloeError: as `parse`.
    """
    return parse(text, where, repeats=repeats)[0]


def parse(text: str, file: str, *, repeats: bool = False) -> tuple[Any, dict[LinePath, int]]:
    """The value of a YAML text and the line of every key and item; `file` is named in errors.

    Raises:
        AloeError: not YAML, equal keys, keys that are no words, a value of a kind that isn't plain, too long a text,
            too deep, or too many values.
    """
    if len(text) > MAX_BYTES:
        what = f"{len(text):,} characters of YAML; at most {MAX_BYTES:,} are read"
        raise AloeError(what, where=file, fix="keep rows and long texts in files of their own")
    try:
        node = yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as cause:
        mark = getattr(cause, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        what = f"not valid YAML: {getattr(cause, 'problem', None) or ' '.join(str(cause).split())[:200]}"
        raise AloeError(what, where=f"{file}{line}", fix="check indentation and colons at that line") from None
    if node is None:
        return None, {}
    reader = _Values(file, repeats)
    return reader.value(node, (), 0), reader.lines


class _Values:
    """The values of a node tree. Aliases make it a graph: what is written out is counted."""

    def __init__(self, file: str, repeats: bool) -> None:
        self.file, self.repeats, self.count = file, repeats, 0
        self.lines: dict[LinePath, int] = {}
        self.loader = _Loader("")  # for scalars alone: it never builds a map or a list

    def value(self, node: yaml.Node, path: LinePath, depth: int) -> Any:
        self.count += 1
        if self.count > MAX_VALUES or depth > MAX_DEPTH:
            what = (
                "an alias that contains itself"
                if depth > MAX_DEPTH
                else f"aliases that stand for over {MAX_VALUES:,} values"
            )
            raise self._error(node, what, "write the values out where they are used")
        if isinstance(node, yaml.MappingNode):
            return self._map(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node)
            for i, item in enumerate(node.value):
                self.lines[(*path, i)] = item.start_mark.line + 1
            return [self.value(item, (*path, i), depth + 1) for i, item in enumerate(node.value)]
        return self._scalar(node)

    def _map(self, node: yaml.MappingNode, path: LinePath, depth: int) -> dict[Any, Any]:
        self._check_tag(node)
        result: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a key is a word, not a map or a list", "quote it if it is meant as text")
            if key_node.tag.endswith(":merge"):
                raise self._error(key_node, "merge keys (<<) are not read", "write the values out, or use an alias")
            key = self._scalar(key_node)
            if key in result and not self.repeats:
                raise self._error(key_node, f"key {key!r} stands twice", "remove one of them")
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            result[key] = self.value(value_node, (*path, key), depth + 1)
        return result

    def _scalar(self, node: yaml.Node) -> Any:
        self._check_tag(node)
        try:
            value = self.loader.construct_object(node)
            return float(value) if node.tag.endswith(":float") else value
        except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError, TypeError) as cause:
            text = str(node.value)[:40]
            what = f"{text!r} can't be read as {node.tag.rpartition(':')[2]} ({str(cause).splitlines()[0][:80]})"
            raise self._error(node, what, "quote it if it is meant as text") from None

    def _check_tag(self, node: yaml.Node) -> None:
        if node.tag not in _PLAIN:
            raise self._error(
                node, f"the tag {node.tag[:80]!r} is not read", "write plain values: text, numbers, lists, maps"
            )

    def _error(self, node: yaml.Node, what: str, fix: str) -> AloeError:
        return AloeError(what, where=f"{self.file}:{node.start_mark.line + 1}", fix=fix)
