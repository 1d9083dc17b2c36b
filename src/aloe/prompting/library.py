"""The versioned prompt library: one YAML file per prompt, each with a content digest that goes into every protocol
record. Changing what a prompt says changes its digest; its `version` is for people.

Packaged prompts lie under `prompts/`. Your own are read from the folders of `$ALOE_PROMPTS` (separated as in `$PATH`)
or from a folder that is given; the first folder that has a name decides. Packaged names are taken: a prompt of that
name elsewhere is an error, or one protocol name would stand for two texts.
"""

from __future__ import annotations

import os
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from aloe.digests import digest_json
from aloe.errors import AloeError
from aloe.json_file import read_bounded
from aloe.yaml_text import load_yaml

FOLDERS_FROM = "ALOE_PROMPTS"
TEXTS = ("system", "user", "answer", "prefill")  # what the model sees, each a text that may hold variables
FIELDS = ("name", "version", "about", "variables", "example", *TEXTS)
# What the strategies and protocols put in, by text. `system` and `prefill` are the same for every question.
GIVEN: dict[str, frozenset[str]] = {
    "system": frozenset(),
    "user": frozenset({"question"}),
    "answer": frozenset({"letter", "reasoning", "answer", "solution"}),
    "prefill": frozenset(),
}


@dataclass(frozen=True)
class Prompt:
    """`user` holds `{question}`; `answer` (an exemplar's assistant turn) holds what concludes it: `{letter}` and, with
    reasoning, `{reasoning}`. `prefill` starts the assistant's turn. `variables` are the names that the texts use,
    `example` has a value for each. `digest` covers what the model sees, with name and version: not `about`,
    `variables` and `example`."""

    name: str
    version: int
    about: str
    system: str
    user: str
    answer: str
    prefill: str
    variables: tuple[str, ...] = ()
    example: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of what the model sees, with name and version."""
        return digest_json({"name": self.name, "version": self.version, **{t: getattr(self, t) for t in TEXTS}})

    def fill(self, text: str, values: Mapping[str, str]) -> str:
        """One of the texts with its variables filled in. Braces inside a value stay as they are."""
        template: str = getattr(self, text)
        return template.format_map(dict(values)) if text in ("user", "answer") else template

    def filled(self) -> dict[str, str]:
        """Every text, filled with the example."""
        return {text: self.fill(text, self.example) for text in TEXTS}


def search_path(folders: Sequence[str | Path] | None = None) -> list[Path]:
    """Folders with prompts of one's own, in the order they are searched: those given, else those of `$ALOE_PROMPTS`.

    Raises:
        AloeError: a folder that isn't there.
    """
    given = folders is not None
    named = folders if folders is not None else [p for p in os.environ.get(FOLDERS_FROM, "").split(os.pathsep) if p]
    found = [Path(folder).expanduser() for folder in named]
    for folder in found:
        if not folder.is_dir():
            where = None if given else f"${FOLDERS_FROM}"
            raise AloeError(f"no folder of prompts {folder}", where=where, fix="name a folder of .yaml files")
    return found


def prompt_names(folders: Sequence[str | Path] | None = None) -> list[str]:
    """Names of the prompts in the library, packaged and one's own."""
    return sorted(_places(tuple(search_path(folders))))


def load_prompt(name: str, folders: Sequence[str | Path] | None = None) -> Prompt:
    """Read one prompt by name.

    Raises:
        AloeError: an unknown name (with the names there are), or a file that breaks the schema (with its key).
    """
    return _load(name, tuple(search_path(folders)))


@cache
def _load(name: str, folders: tuple[Path, ...]) -> Prompt:
    places = _places(folders)
    if name not in places:
        raise AloeError(f"no prompt named {name!r} in the library", fix=f"use one of {', '.join(sorted(places))}")
    return read_prompt(places[name])


def place_of(name: str, folders: Sequence[str | Path] | None = None) -> Path:
    """The file of a prompt; unknown names as of `load_prompt`."""
    load_prompt(name, folders)
    return _places(tuple(search_path(folders)))[name]


def is_packaged(name: str) -> bool:
    """Whether the prompt comes with the product."""
    return name in _packaged()


@cache
def _packaged() -> dict[str, Path]:
    folder = Path(str(resources.files("aloe.prompting"))) / "prompts"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _places(folders: tuple[Path, ...]) -> dict[str, Path]:
    places = dict(_packaged())
    for path in (path for folder in folders for path in sorted(folder.glob("*.yaml"))):
        if path.stem in _packaged():
            raise AloeError(
                f"the name {path.stem!r} is a packaged prompt's", where=str(path), fix="give your prompt another name"
            )
        places.setdefault(path.stem, path)
    return places


# ------------------------------------------------------------------------------------------------------ the schema


def read_prompt(path: Path) -> Prompt:
    """Read and check a prompt's file.

    Raises:
        AloeError: no file, no YAML, or a key that is missing, unknown or wrong; the message names file and key.
    """
    if not path.is_file():
        raise AloeError("no such prompt file", where=str(path), fix="name a .yaml file, or a prompt of the library")
    try:
        values = load_yaml(read_bounded(path), str(path), repeats=True)
    except AloeError as cause:
        raise AloeError(f"not YAML: {cause.what}", where=cause.where, fix="mend the file") from None
    if not isinstance(values, dict):
        raise AloeError("a prompt is a map", where=str(path), fix=f"give the keys {', '.join(FIELDS)}")
    for key in (*FIELDS, *values):
        if key not in values or key not in FIELDS:
            what = "is missing" if key not in values else "is no key of a prompt"
            raise _wrong(path, str(key), what, f"the keys are {', '.join(FIELDS)}")
    _check_types(path, values)
    used = _used(path, values)
    _check_variables(path, values, used)
    return Prompt(
        **{key: values[key] for key in ("name", "version", "about", *TEXTS)},
        variables=tuple(values["variables"]),
        example=dict(values["example"]),
    )


def _wrong(path: Path, key: str, what: str, fix: str) -> AloeError:
    return AloeError(f"`{key}` {what}", where=str(path), fix=fix)


def _check_types(path: Path, values: Mapping[str, Any]) -> None:
    for key in ("name", "about", *TEXTS):
        if not isinstance(values[key], str):
            raise _wrong(path, key, f"is {values[key]!r}, not a text", 'quote it; an empty one is ""')
    if values["name"] != path.stem:
        raise _wrong(path, "name", f"is {values['name']!r}, the file's is {path.stem!r}", "make the two equal")
    if not isinstance(values["version"], int) or isinstance(values["version"], bool) or values["version"] < 1:
        raise _wrong(path, "version", f"is {values['version']!r}, not a whole number from 1", "count from 1")
    if not values["about"].strip():
        raise _wrong(path, "about", "is empty", "say in a sentence what the prompt is for")
    if not isinstance(values["variables"], list) or any(not isinstance(v, str) for v in values["variables"]):
        raise _wrong(path, "variables", "is no list of names", "for example [question, letter]")
    example = values["example"]
    if not isinstance(example, dict) or any(not isinstance(v, str) for v in example.values()):
        raise _wrong(path, "example", "is no map from variables to texts", "for example {question: ..., letter: B}")


def _used(path: Path, values: Mapping[str, Any]) -> set[str]:
    """The variables that the texts use, each in a text that is given it."""
    used: set[str] = set()
    for text, given in GIVEN.items():
        if not given:  # shown as it stands, braces too
            continue
        names = set(_names(path, text, values[text]))
        if names - given:
            name = sorted(names - given)[0]
            fix = f"use {', '.join(f'{{{g}}}' for g in sorted(given))}; a brace that is text is written twice"
            raise _wrong(path, text, f"uses {{{name}}}, which it is not given", fix)
        used |= names
    if "question" not in used:
        raise _wrong(path, "user", "does not hold {question}", "say where the question goes")
    return used


def _names(path: Path, key: str, text: str) -> Iterator[str]:
    try:
        for _, name, form, conversion in string.Formatter().parse(text):
            if name is None:
                continue
            if form or conversion or not name.isidentifier():
                raise ValueError(f"{{{name}}} is no plain name")
            yield name
    except ValueError as cause:
        raise _wrong(path, key, f"cannot be filled in ({cause})", "write a brace that is text twice: {{ }}") from None


def _check_variables(path: Path, values: Mapping[str, Any], used: set[str]) -> None:
    declared = values["variables"]
    if set(declared) != used or len(declared) != len(used):
        fix = f"declare [{', '.join(sorted(used))}]"
        raise _wrong(path, "variables", f"declares {declared}, the texts use {sorted(used)}", fix)
    if set(values["example"]) != used:
        fix = f"give one value each for {', '.join(sorted(used))}"
        raise _wrong(path, "example", f"has values for {sorted(values['example'])}", fix)
