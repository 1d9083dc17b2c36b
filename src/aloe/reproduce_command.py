"""`aloe reproduce`: run the recipe that a release carries once more, and say where results differ and by how much."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aloe.errors import AloeError
from aloe.json_file import read_bounded, read_json, read_object
from aloe.manifest_file import check_manifest, read_manifest
from aloe.yaml_text import load_yaml

if TYPE_CHECKING:
    from aloe.release.reproduced import Outcome, WeightChange

SHOWN = 8  # figures printed of a step; all stand in --json
MARKS = {"identical": "=", "same figures": "~", "differs": "!", "not made": "?"}


def reproduce(
    release: Path,
    out: Annotated[Path, typer.Option(help="Where the second run goes.")] = Path("out-reproduced"),
    input_: Annotated[
        list[str] | None,
        typer.Option("--input", help="NAME=PATH: where an input of the recipe lies here. May be repeated."),
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Write everything that was compared here.")] = None,
    servers: Annotated[
        bool, typer.Option("--servers", help="Ask the servers that the recipe names, with the keys it names.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Run a release's recipe again and compare: exit code 1 where a figure or a weight came out otherwise.

    Inputs must be the ones that were used: their digests are checked before anything runs.
    """
    from aloe.recipe import Recipe
    from aloe.release.reproduced import compare_steps, compare_weights
    from aloe.release.verify import verify_artifact
    from aloe.run.execute import run_recipe
    from aloe.run.progress import Console
    from aloe.terminal import neutral

    folder = release.resolve()
    broken = [f for f in verify_artifact(folder) if f.level == "error"]
    if broken:
        fix = "get the release again: what it states can't be compared with"
        raise AloeError(f"the release is damaged: {broken[0].message}", where=str(release), fix=fix)
    lineage, model = _lineage(folder)
    places = _places(input_ or [])
    recipe = Recipe.parse(_recipe(folder, places))
    if not servers:
        _check_servers(recipe, folder)
    _check_inputs(recipe, folder, places)
    # The release itself quotes wall times, so it is not made again; its model and all evidence are.
    steps = [name for name in recipe.order if name in lineage]
    if model not in steps:
        fix = "get the release again"
        raise AloeError(f"its recipe has no step {model!r}, whose model it states to be", where=str(release), fix=fix)
    result = run_recipe(recipe, out=out, steps=steps, console=Console(quiet))
    # An input that lies elsewhere is the same input: it goes by the name that the release has for it.
    names = {path: name for name, path in places.items()}
    after = {name: put(artifact.manifest, names) for name, artifact in result.artifacts.items()}
    outcomes = compare_steps(lineage, after, recipe.order)
    weights = compare_weights(folder, result.artifacts[model].path)
    for line in told(outcomes, weights, model):
        print(neutral(line))  # a release of others may quote anything
    if json_ is not None:
        content = {"release": release.name, "steps": [asdict(o) for o in outcomes], "weights": asdict(weights)}
        json_.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if weights.differing or any(o.state in ("differs", "not made") for o in outcomes):
        raise SystemExit(1)


def _lineage(folder: Path) -> tuple[dict[str, Any], str]:
    """(step -> manifest, the step whose model was released)."""
    try:
        lineage = read_object(folder / "lineage.json")
        for step, upstream in lineage.items():
            check_manifest(upstream, f"{folder / 'lineage.json'}: {step}")
        return lineage, str(read_manifest(folder)["parameters"]["model"])
    except (KeyError, TypeError):
        fix = "name a folder that `release` wrote, for example out/<family>/release"
        raise AloeError("is no release: it carries no lineage", where=str(folder), fix=fix) from None


def _places(stated: Sequence[str]) -> dict[str, str]:
    places = {}
    for text in stated:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise AloeError(f"--input {text!r} names no place", fix="write --input NAME=PATH")
        if not Path(path).exists():
            raise AloeError("there is no such file or folder", where=path, fix=f"say where {name} lies")
        places[name] = str(Path(path).resolve())
    return places


def _recipe(folder: Path, places: Mapping[str, str]) -> dict[str, Any]:
    """The recipe that the release carries, as plain values, with inputs put where they lie here."""
    file = folder / "recipe.yaml"
    if not file.is_file():
        raise AloeError("the release carries no recipe.yaml", where=str(folder), fix="it can't be made again")
    raw = load_yaml(read_bounded(file), str(file))
    if not isinstance(raw, dict) or not isinstance(raw.get("steps"), dict):
        raise AloeError("a recipe is a map with steps", where=str(file), fix="get the release again")
    seen: set[str] = set()
    raw["steps"] = put(raw["steps"], places, seen)
    if places.keys() - seen:
        missing = sorted(places.keys() - seen)[0]
        fix = "see inputs.json in the release for their names"
        raise AloeError(f"the recipe has no input {missing!r}", where="--input", fix=fix)
    return dict(raw)


def put(value: Any, places: Mapping[str, str], seen: set[str] | None = None) -> Any:
    """`value` with every string (keys, too) that stands in `places` replaced; those found are added to `seen`."""
    if isinstance(value, Mapping):
        return {put(k, places, seen): put(v, places, seen) for k, v in value.items()}
    if isinstance(value, list):
        return [put(v, places, seen) for v in value]
    if isinstance(value, str) and value in places:
        if seen is not None:
            seen.add(value)
        return places[value]
    return value


def _check_servers(recipe: Any, folder: Path) -> None:
    """Refuse to send anything, keys above all, to a server of somebody else's choice unless it was asked for."""
    specs = [mark.served for refs in recipe.outside.values() for _, _, mark in refs if mark.served is not None]
    asked = sorted({f"{', '.join(s.endpoints)}{f' (with the key in {s.key_env})' if s.key_env else ''}" for s in specs})
    if asked:
        fix = "read the recipe; if you trust these servers with its rows and your key, say --servers"
        raise AloeError(f"the recipe asks {'; '.join(asked)}", where=str(folder / "recipe.yaml"), fix=fix)


def _check_inputs(recipe: Any, folder: Path, places: Mapping[str, str]) -> None:
    """Refuse inputs that aren't the recorded ones, each under its own name: another model's or file's result reproduces
    nothing."""
    from aloe.run.plan import open_resources

    listed = read_json(folder / "inputs.json")
    if not isinstance(listed, list) or not all(isinstance(e, dict) and {"name", "digest"} <= e.keys() for e in listed):
        raise AloeError("the list of inputs can't be read", where=str(folder / "inputs.json"), fix="get it again")
    stated = {str(e["name"]): e["digest"] for e in listed}
    names = {path: name for name, path in places.items()}
    for ref, resource in open_resources(recipe).items():
        digest = resource.digest or resource.fetch().digest
        if digest != stated.get(names.get(ref, ref)):
            raise AloeError(
                f"input {ref} is not one that the release was made from (digest {digest})",
                where=str(folder / "inputs.json"),
                fix="put the recorded one in its place, or say where it lies with --input NAME=PATH",
            )


def told(outcomes: Sequence[Outcome], weights: WeightChange, model: str) -> list[str]:
    """What is printed: a line per step, the figures that differ, and the weights."""
    wide = max(len(o.step) for o in outcomes)
    lines = []
    for o in outcomes:
        lines.append(f"{MARKS[o.state]} {o.step:<{wide}}  {o.verb:<14} {o.state}{_files(o)}")
        lines += [f"    because {cause}" for cause in o.causes]
        shown = sorted(o.figures, key=lambda f: -abs(f.change or 0.0))
        lines += [f"    {f.place}: {_value(f.before)} -> {_value(f.after)}{_change(f.change)}" for f in shown[:SHOWN]]
        lines += [f"    and {len(shown) - SHOWN} more (--json FILE has all)"] if len(shown) > SHOWN else []
    same = not weights.differing
    lines.append(
        f"weights of {model}: "
        + (
            f"all {weights.tensors} tensors are bit for bit equal"
            if same
            else f"{weights.differing} of {weights.tensors} tensors differ, by {weights.largest:.3g} at most, "
            f"{weights.relative:.3g} of the norm"
        )
    )
    lines += [f"    {weights.note}"] if weights.note else []
    counts = {state: sum(o.state == state for o in outcomes) for state in MARKS}
    lines.append(", ".join(f"{n} {state}" for state, n in counts.items() if n))
    return lines


def _files(outcome: Outcome) -> str:
    if not outcome.files:
        return ""
    return f" ({', '.join(outcome.files[:3])}{f' and {len(outcome.files) - 3} more' if len(outcome.files) > 3 else ''})"


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _change(change: float | None) -> str:
    return f" ({change:+.3g})" if change is not None else ""
