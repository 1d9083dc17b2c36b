"""The recipe file: closed, typed, checked whole before anything runs.

Every error names the file, the line and what would have been valid. A value that names another step is an edge of
the graph; nothing else is needed to order the steps.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aloe.contract import Hardware, Ref, Step, references
from aloe.errors import AloeError
from aloe.generate.server_spec import ServerSpec, direct, is_direct
from aloe.licence import require_known
from aloe.recipe_file import LinePath, parse_yaml, read_text, read_value
from aloe.recipe_names import FIELDS, spelled_out
from aloe.run.slurm import Slurm, check_launch, check_steps
from aloe.steps import VERBS


class EngineSettings(BaseModel):
    """How models answer when steps ask them. `precision` changes results, so it enters fingerprints; `max_batch`
    (replies side by side) does not."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    precision: Literal["float32", "bfloat16"] = "float32"
    max_batch: int = 16


class Launch(BaseModel):
    """Where steps run: `here` in this process, `process` in a fresh Python process each (memory is given back), `slurm`
    as a job each; and how many processes share a training step (`processes` on each of `nodes`). None of it enters a
    fingerprint."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    via: Literal["here", "process", "slurm"] = "here"
    processes: int = Field(default=1, ge=1)
    nodes: int = Field(default=1, ge=1)
    strategy: Literal["ddp", "fsdp2", "zero3"] = "fsdp2"
    rendezvous: str | None = Field(default=None, pattern=r"^\S+:\d+$")  # host:port of one of the nodes
    slurm: Slurm | None = None

    @model_validator(mode="after")
    def _nodes_meet(self) -> Launch:
        check_launch(self)
        return self


class Head(BaseModel):
    """The recipe's own fields, beside its steps."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    family: str
    seed: int = 0
    licence: str
    engine: EngineSettings = EngineSettings()
    launch: Launch = Launch()
    hardware: Hardware = Hardware()
    servers: dict[str, ServerSpec] = Field(default_factory=dict)


@dataclass(frozen=True)
class Edge:
    """`field` of a step takes its value from the step `source`."""

    field: str
    source: str


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. `order` lists step names so that inputs come first; `outside` are references to resources."""

    path: Path | None
    head: Head
    steps: dict[str, Step]
    edges: dict[str, list[Edge]]
    outside: dict[str, list[tuple[str, str, Ref]]]
    order: list[str]
    lines: Mapping[LinePath, int] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
        """Read and check a recipe file. `overrides` are `step.field=value` (or `seed=7`) assignments.

        Raises:
            AloeError: with file, line and the valid alternatives.
        """
        path = Path(path)
        if not path.exists():
            raise AloeError("no such recipe", where=str(path), fix="check the path; examples are in recipes/")
        raw, lines = parse_yaml(read_text(path), str(path))
        for assignment in overrides:
            _override(raw, assignment)
        return cls.parse(raw, lines, path)

    @classmethod
    def parse(cls, raw: Any, lines: Mapping[LinePath, int] | None = None, path: Path | None = None) -> Recipe:
        """Check a recipe given as plain values."""
        where = _Where(str(path) if path else "recipe", lines or {})
        if not isinstance(raw, dict):
            raise AloeError("a recipe is a map with family, licence and steps", where=where())
        raw = spelled_out(raw, where, path.resolve().parent if path else None)
        fields = {k: v for k, v in raw.items() if k != "steps"}
        if "servers" in fields:
            fields["servers"] = _servers(fields["servers"], raw.get("steps"), where)
        head = _build(Head, fields, where, (), "recipe", {"steps", *FIELDS})
        if not re.fullmatch(r"[\w.-]+", head.family):
            raise AloeError(
                f"family {head.family!r} must be a folder name",
                where=where("family"),
                fix="use letters, digits, '.', '_' and '-'",
            )
        steps = _steps(raw.get("steps"), where)
        own = [getattr(s, "licences", None) for s in steps.values() if s.verb == "release"]
        require_known(head.licence, own, where("licence"))
        check_steps(head.launch, steps, where)
        edges, outside = _edges(steps, head.servers, where)
        return cls(path, head, steps, edges, outside, _sort(edges, where), dict(lines or {}))

    def line(self, *path: str | int) -> str:
        """`file:line` of a place in the file, as near as it is known."""
        return _Where(str(self.path) if self.path else "recipe", self.lines)(*path)

    @property
    def near(self) -> Path | None:
        """The folder relative paths of the recipe may start from."""
        return self.path.resolve().parent if self.path else None

    def ancestors(self, name: str) -> list[str]:
        """Steps that `name` depends on, directly or not, in running order."""
        need: set[str] = set()
        todo = [name]
        while todo:
            for edge in self.edges[todo.pop()]:
                if edge.source not in need:
                    need.add(edge.source)
                    todo.append(edge.source)
        return [n for n in self.order if n in need]

    def setting(self, dotted: str) -> Any:
        """A field of the head by dotted name (`seed`, `engine.precision`)."""
        value: Any = self.head
        for part in dotted.split("."):
            value = getattr(value, part)
        return value

    def dump(self, names: Iterable[str]) -> str:
        """The recipe of these steps, and the servers they ask, as YAML with every default written out."""
        names = set(names)
        head = self.head.model_dump(mode="json")
        asked = {ref for n in names for _, ref, mark in self.outside[n] if mark.served is not None}
        head["servers"] = {name: spec for name, spec in head["servers"].items() if name in asked}
        if not head["servers"]:
            del head["servers"]
        steps = {
            n: {self.steps[n].verb: self.steps[n].model_dump(mode="json", by_alias=True)}
            for n in self.order
            if n in names
        }
        return yaml.safe_dump({**head, "steps": steps}, sort_keys=False, allow_unicode=True, width=100)

    def run(self, **options: Any) -> Any:
        """Run the recipe; see `aloe.run.execute.run_recipe`."""
        from aloe.run.execute import run_recipe

        return run_recipe(self, **options)


class _Where:
    """Turns a path inside the recipe into `file:line`, falling back to the nearest enclosing line."""

    def __init__(self, file: str, lines: Mapping[LinePath, int]) -> None:
        self.file, self.lines = file, lines

    def __call__(self, *path: str | int) -> str:
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return f"{self.file}:{self.lines[path[:end]]}"
        return self.file

    def inside(self, path: LinePath, place: str) -> LinePath:
        """`path`, followed into the file as far as `place` leads: `models.sft.density[1].value`. Keys may hold dots."""
        while place:
            below = {p[len(path)] for p in self.lines if len(p) == len(path) + 1 and p[:-1] == path}
            fitting = [key for key in below if re.match(rf"{re.escape(str(key))}(\]|\.|\[|$)", place)]
            if not fitting:
                break
            key = max(fitting, key=lambda k: len(str(k)))
            path, place = (*path, key), re.sub(r"^\]?[.\[]?", "", place[len(str(key)) :])
        return path


# -- checking -----------------------------------------------------------------------------------------------------


def _override(raw: Any, assignment: str) -> None:
    """Apply `step.field.sub=value`; the step's verb is found, so users needn't write it."""
    path, sign, text = assignment.partition("=")
    if not sign or not isinstance(raw, dict):
        raise AloeError(
            f"--set {assignment!r} is not of the form step.field=value", fix="for example --set sft.lr=2e-5"
        )
    value = read_value(text)
    first, *rest = path.split(".")
    steps = raw.get("steps") or {}
    target: Any = raw
    if first in steps and isinstance(steps[first], dict) and len(steps[first]) == 1:
        target = next(iter(steps[first].values()))
    else:
        rest = [first, *rest]
        if len(rest) > 1 and first not in raw:
            raise AloeError(f"--set names no step {first!r}{_nearest(first, steps)}", fix=f"steps: {', '.join(steps)}")
    if not rest:
        raise AloeError(f"--set {assignment!r} names a step but no field", fix="for example --set sft.lr=2e-5")
    for part in rest[:-1]:
        target = target.setdefault(part, {})
    target[rest[-1]] = value


def _servers(raw: Any, steps: Any, where: _Where) -> dict[str, ServerSpec]:
    """The map `servers`, each entry checked by itself so that an error names its line."""
    if not isinstance(raw, dict):
        raise AloeError("`servers` is a map of named servers", where=where("servers"), fix="see docs/servers.md")
    servers = {}
    for name, body in raw.items():
        spot = where("servers", name)
        if not re.fullmatch(r"[A-Za-z][\w.-]*", str(name)):
            raise AloeError(f"server name {name!r} must be a word", where=spot, fix="start with a letter")
        if isinstance(steps, dict) and name in steps:
            raise AloeError(f"{name!r} names a server and a step", where=spot, fix="rename one of them")
        servers[str(name)] = _build(ServerSpec, body, where, ("servers", name), f"servers.{name}")
    return servers


def _steps(raw: Any, where: _Where) -> dict[str, Step]:
    if not isinstance(raw, dict) or not raw:
        raise AloeError("the recipe has no steps", where=where("steps"), fix="add a map `steps:` of named steps")
    steps = {}
    for name, body in raw.items():
        if not re.fullmatch(r"[A-Za-z][\w-]*", str(name)):
            raise AloeError(
                f"step name {name!r} must be a word",
                where=where("steps", name),
                fix="use letters, digits, '_' and '-', starting with a letter",
            )
        if not isinstance(body, dict) or len(body) != 1:
            raise AloeError(
                f"step {name!r} must hold exactly one verb",
                where=where("steps", name),
                fix=f"verbs: {', '.join(VERBS)}",
            )
        verb, parameters = next(iter(body.items()))
        if verb not in VERBS:
            raise AloeError(
                f"unknown verb {verb!r}{_nearest(str(verb), VERBS)}",
                where=where("steps", name, verb),
                fix=f"verbs: {', '.join(VERBS)}",
            )
        steps[name] = _build(VERBS[verb], parameters or {}, where, ("steps", name, verb), f"{name}.{verb}")
    return steps


def _build(cls: type[Any], values: Any, where: _Where, path: LinePath, label: str, also: Iterable[str] = ()) -> Any:
    if not isinstance(values, dict):
        raise AloeError(f"{label} takes a map of parameters, found {type(values).__name__}", where=where(*path))
    try:
        near = Path(where.file).resolve().parent if where.file != "recipe" else None
        return cls.model_validate(values, context={"near": near})  # where paths inside the recipe may start
    except AloeError as cause:  # a step's own check of what its parameters mean together
        place = (cause.where or "").partition(".")[2]
        named = f"{label}.{place}" if re.split(r"[.\[]", place)[0] in values else label
        raise AloeError(f"{named}: {cause.what}", where=where(*where.inside(path, place)), fix=cause.fix) from None
    except ValidationError as error:
        problem = error.errors()[0]
        loc = tuple(p for p in problem["loc"] if p != "[key]")
        spot = where(*path, *loc)
        dotted = ".".join(str(p) for p in loc)
        if problem["type"] == "extra_forbidden":
            valid = sorted({*_fields_at(cls, loc[:-1]), *(also if len(loc) == 1 else ())})
            raise AloeError(
                f"unknown key {dotted!r} in {label}{_nearest(str(loc[-1]), valid)}",
                where=spot,
                fix=f"valid keys: {', '.join(valid)}",
            ) from None
        if problem["type"] == "missing":
            raise AloeError(
                f"{label} lacks {dotted!r}",
                where=spot,
                fix=f"add it; the keys are {', '.join(sorted(set(_fields_at(cls, loc[:-1]))))}",
            ) from None
        found = repr(problem.get("input"))[:80]
        message = problem["msg"].removeprefix("Value error, ")
        raise AloeError(f"{label}.{dotted}: {message} (found {found})", where=spot) from None


def _fields_at(cls: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """Field names (aliases where set) of the model at `loc`, walking through dicts, lists and unions."""
    hints: list[Any] = [cls]
    for part in loc:
        following: list[Any] = []
        for hint in hints:
            if isinstance(hint, type) and issubclass(hint, BaseModel):
                entry = hint.model_fields.get(str(part)) or next(
                    (f for f in hint.model_fields.values() if f.alias == part), None
                )
                following += [entry.annotation] if entry else [hint] if part == hint.__name__ else []
            else:
                following += list(get_args(hint))
        hints = _flatten(following)
    models = [h for h in _flatten(hints) if isinstance(h, type) and issubclass(h, BaseModel)]
    return [f.alias or n for m in models for n, f in m.model_fields.items()]


def _flatten(hints: Iterable[Any]) -> list[Any]:
    """Hints and, for generics and unions, the models inside them."""
    found: list[Any] = []
    for hint in hints:
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            found.append(hint)
        else:
            found += [hint, *_flatten(a for a in get_args(hint) if not isinstance(a, Ref | str))]
    return found


def _edges(
    steps: dict[str, Step], servers: Mapping[str, ServerSpec], where: _Where
) -> tuple[dict[str, list[Edge]], dict[str, list[tuple[str, str, Ref]]]]:
    edges: dict[str, list[Edge]] = {}
    outside: dict[str, list[tuple[str, str, Ref]]] = {}
    for name, step in steps.items():
        edges[name], outside[name] = [], []
        for field_path, value, mark in references(step):
            spot = where("steps", name, step.verb, *_split_path(field_path))
            if value in steps:
                made = steps[value].makes
                if made not in mark.kinds:
                    fitting = [n for n, s in steps.items() if s.makes in mark.kinds and n != name]
                    raise AloeError(
                        f"{name}.{field_path} takes {' or '.join(mark.kinds)}, but step {value!r} makes {made}",
                        where=spot,
                        fix=f"steps that fit: {', '.join(fitting) or 'none yet'}",
                    )
                edges[name].append(Edge(field_path, value))
            elif value in servers or is_direct(value):
                _refuse_server(step, mark, f"{name}.{field_path}", value, spot)
                spec = servers[value] if value in servers else direct(value)
                outside[name].append((field_path, value, replace(mark, served=spec)))
            elif mark.resource is None:
                raise AloeError(
                    f"{name}.{field_path} names no step {value!r}{_nearest(value, steps)}",
                    where=spot,
                    fix=f"steps: {', '.join(steps)}",
                )
            else:
                outside[name].append((field_path, value, mark))
    return edges, outside


def _refuse_server(step: Step, mark: Ref, label: str, value: str, spot: str) -> None:
    """A server can be asked; it has no weights to train, merge or release, and no rows."""
    if mark.resource == "model" and not step.needs_weights():
        return
    wants, fix = {
        "model": ("weights", "name a folder, a GGUF file, a packaged model, a hub id or a step that makes a model"),
        "rows": ("rows", "name a file, a data set or a step that makes rows"),
        None: ("a step", "name a step of the recipe"),
    }[mark.resource]
    raise AloeError(f"{label} takes {wants}, but {value!r} is a server, which can only be asked", where=spot, fix=fix)


def _split_path(field_path: str) -> list[str | int]:
    parts: list[str | int] = []
    for part in field_path.split("."):
        match = re.fullmatch(r"(.*?)((?:\[\d+\])*)", part)
        assert match
        if match[1]:
            parts.append(match[1])
        parts += [int(n) for n in re.findall(r"\[(\d+)\]", match[2])]
    return parts


def _sort(edges: dict[str, list[Edge]], where: _Where) -> list[str]:
    """Topological order that keeps the file's order where it may; a cycle is an error that spells it out."""
    done: list[str] = []
    open_: list[str] = []

    def visit(name: str) -> None:
        if name in done:
            return
        if name in open_:
            cycle = [*open_[open_.index(name) :], name]
            raise AloeError(
                f"steps depend on each other in a circle: {' -> '.join(cycle)}",
                where=where("steps", name),
                fix="break the circle at one of these steps",
            )
        open_.append(name)
        for edge in edges[name]:
            visit(edge.source)
        open_.pop()
        done.append(name)

    for name in edges:
        visit(name)
    return done


def _nearest(word: str, valid: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
