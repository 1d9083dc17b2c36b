"""Names a recipe gives to rows and models, and what `--budget` may shrink; all gone before the recipe is checked.

```yaml
data:
  folder: null                      # --data FOLDER: look for `file` there; without it the hub is asked
  sets:
    medmcqa: {file: eval/medmcqa_validation.jsonl.gz, hub: openlifescienceai/medmcqa, preset: medmcqa}
models: {large: Qwen/Qwen2.5-Coder-1.5B-Instruct}     # --set models.large=FOLDER puts another in its place
budget: {scores.benchmarks.medmcqa.limit: [100, 4183]}
```

A step writes `data/medmcqa` and `models/large`; what it gets is the file, the hub id or the folder, so artifacts,
fingerprints and the recipe inside a release know nothing of the names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aloe.errors import AloeError
from aloe.recipe_file import parse_yaml

Where = Callable[..., str]
ROWS, MODEL = "data/", "models/"
FIELDS = ("data", "models", "budget")  # of the head, used up here


class DataSet(BaseModel):
    """Where a named set lies: `file` below the folder of `--data`, or `hub` (with the `preset` its columns need)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    file: str
    hub: str | None = None
    preset: str | None = None


class Data(BaseModel):
    """The head's field `data`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    folder: str | None = None
    sets: dict[str, DataSet] = Field(default_factory=dict)


def spelled_out(raw: Mapping[str, Any], where: Where, near: Path | None = None) -> dict[str, Any]:
    """`raw` with every name replaced and the fields of this module taken out.

    Raises:
        AloeError: a field of the wrong form; a set whose file isn't in the folder, or that has no hub id where no
            folder is given.
    """
    if not any(name in raw for name in FIELDS):
        return dict(raw)
    rest = {k: v for k, v in raw.items() if k not in FIELDS}
    names, presets = _sets(raw.get("data"), where, near)
    names |= _models(raw.get("models"), where)
    ranges(raw, where)
    steps = _replaced(rest.get("steps"), names, presets)
    return {**rest, "steps": steps} if "steps" in rest else rest


def _sets(value: Any, where: Where, near: Path | None) -> tuple[dict[str, str], dict[str, str]]:
    """What each `data/NAME` stands for, and the presets of those that stand for a hub id."""
    if value is None:
        return {}, {}
    try:
        data = Data.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
        dotted = ".".join(map(str, problem["loc"]))
        fix = "data: {folder: FOLDER, sets: {NAME: {file: PATH, hub: ORG/NAME, preset: PRESET}}}"
        raise AloeError(f"data.{dotted}: {problem['msg']}", where=where("data", *problem["loc"]), fix=fix) from None
    names, presets = {}, {}
    for name, spec in data.sets.items():
        spot = where("data", "sets", name)
        if data.folder is not None:
            names[ROWS + name] = _file(data.folder, spec.file, name, spot, near)
        elif spec.hub is None:
            # Raised only when a step uses it would be kinder, and would hide the gap until somebody does.
            fix = f"give --data FOLDER, which holds {spec.file}"
            raise AloeError(f"the set {name!r} is on no hub", where=spot, fix=fix)
        else:
            names[ROWS + name] = spec.hub
            if spec.preset:
                presets[spec.hub] = spec.preset
    return names, presets


def _file(folder: str, file: str, name: str, spot: str, near: Path | None) -> str:
    """The path of a set's file, as it is found: from the working directory, then from the recipe's folder."""
    for base in (Path(), near):
        if base is not None and (base / folder / file).exists():
            return str(Path(folder) / file) if base == Path() else str(base / folder / file)
    raise AloeError(
        f"the set {name!r} is not there: {Path(folder) / file}", where=spot,
        fix="give the folder that holds it with --data, or correct `file`",
    )  # fmt: skip


def _models(value: Any, where: Where) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) and v for v in value.values()):
        fix = "models: {NAME: folder, GGUF file, packaged model or hub id}"
        raise AloeError("`models` is a map of names to models", where=where("models"), fix=fix)
    return {f"{MODEL}{name}": ref for name, ref in value.items()}


def _replaced(value: Any, names: Mapping[str, str], presets: Mapping[str, str]) -> Any:
    """The value with names replaced wherever a whole text or key is one. A map under a hub id gets its preset."""
    if isinstance(value, dict):
        made = {}
        for key, inner in value.items():
            new = names.get(key, key) if isinstance(key, str) else key
            inner = _replaced(inner, names, presets)
            if new in presets and new != key and isinstance(inner, dict):
                inner = {"preset": presets[new], **inner}
            made[new] = inner
        return made
    if isinstance(value, list):
        return [_replaced(v, names, presets) for v in value]
    return names.get(value, value) if isinstance(value, str) else value


def ranges(raw: Mapping[str, Any], where: Where) -> dict[str, tuple[int, int]]:
    """The head's field `budget`: dotted field -> (least, most).

    Raises:
        AloeError: it is no map of fields to two whole numbers in order.
    """
    value = raw.get("budget")
    if value is None:
        return {}
    fix = "budget: {step.field: [least, most]}, whole numbers"
    if not isinstance(value, dict):
        raise AloeError("`budget` is a map of fields", where=where("budget"), fix=fix)
    for name, pair in value.items():
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair)
        if not whole or not 1 <= pair[0] <= pair[1]:
            raise AloeError(f"budget.{name}: {pair!r} is no range", where=where("budget", name), fix=fix)
    return {name: (pair[0], pair[1]) for name, pair in value.items()}


def ranges_of(path: Path) -> dict[str, tuple[int, int]]:
    """The ranges of a recipe file."""
    raw, lines = parse_yaml(path.read_text(encoding="utf-8"), str(path))

    def where(*place: str | int) -> str:
        return f"{path}:{lines[place]}" if place in lines else str(path)

    return ranges(raw if isinstance(raw, dict) else {}, where)


def seconds_of(text: str) -> float:
    """`2h`, `90m`, `45min`, `30s`, `1h30m` in seconds.

    Raises:
        AloeError: none of these.
    """
    match = re.fullmatch(
        r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s)?", text.strip().lower()
    )
    total = sum(float(n or 0) * unit for n, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    if not total:
        raise AloeError(f"--budget {text!r} is no length of time", fix="for example --budget 2h, 45m or 1h30m")
    return total
