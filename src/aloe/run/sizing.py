"""How much of a recipe fits into a time: `--budget 2h` sets the fields that the recipe's `budget` names.

One share between 0 and 1 is sought for all of them: each field is its least plus that share of what lies between least
and most, rounded down. The largest share whose estimated time (`estimate.by_arithmetic`, so that what has run before
changes nothing) stays within the budget is taken. The choice depends on the machine's speed at that moment, so it is
written beside the artifacts and kept: the same command goes on with the same sizes. Delete the file to choose anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from aloe.errors import AloeError
from aloe.run.estimate import by_arithmetic
from aloe.run.store import write_aside
from aloe.schema import FIELD, LATEST, check_object

FILE = "budget.json"
STEPS = 12  # halvings: shares are multiples of 1/4096
Ranges = Mapping[str, tuple[int, int]]


def sized(
    load: Callable[[list[str]], Any], ranges: Ranges, seconds: float, place: Path, *, where: str, keep: bool = True
) -> tuple[list[str], dict[str, Any]]:
    """The assignments (`step.field=value`) that fit, and what is known of them.

    Args:
        load: a recipe with these assignments.
        ranges: field -> (least, most).
        seconds: the budget.
        place: OUT/<family>; a choice kept there for the same ranges and budget is taken as it is.
        where: the recipe, for errors.
        keep: write the choice.

    Raises:
        AloeError: the recipe names no fields; the least sizes already take longer than the budget.
    """
    if not ranges:
        fix = "add budget: {step.field: [least, most]} to the recipe, or leave --budget out"
        raise AloeError("--budget, but the recipe says nothing of what may shrink", where=where, fix=fix)
    asked: dict[str, Any] = {"budget_seconds": seconds, "ranges": {k: list(v) for k, v in ranges.items()}}
    found = _kept(place / FILE, asked)
    if found is None:
        found = asked | _chosen(load, ranges, seconds, where)
        if keep:
            place.mkdir(parents=True, exist_ok=True)
            write_aside(place / FILE, json.dumps({FIELD: LATEST["chosen sizes"], **found}, indent=1) + "\n")
    return [f"{field}={value}" for field, value in found["values"].items()], found


def _chosen(load: Callable[[list[str]], Any], ranges: Ranges, seconds: float, where: str) -> dict[str, Any]:
    def at(share: float) -> tuple[dict[str, int], float]:
        values = {field: least + int(share * (most - least)) for field, (least, most) in ranges.items()}
        recipe = load([f"{field}={value}" for field, value in values.items()])
        return values, sum(by_arithmetic(recipe, recipe.steps[n], n).seconds for n in recipe.order)

    low, (values, took) = 0.0, at(0.0)
    if took > seconds:
        said = f"the least sizes take about {took / 60:.0f} min, more than the budget of {seconds / 60:.0f} min"
        raise AloeError(said, where=where, fix="give more time, or lower the least sizes in `budget`")
    step = 0.5
    if at(1.0)[1] <= seconds:
        low, (values, took) = 1.0, at(1.0)
    else:
        for _ in range(STEPS):
            tried = at(low + step)
            if tried[1] <= seconds:
                low, (values, took) = low + step, tried
            step /= 2
    return {"share": low, "values": values, "estimated_seconds": round(took, 1)}


def _kept(path: Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    check_object("chosen sizes", found, path)
    same = isinstance(found, dict) and all(found.get(k) == v for k, v in asked.items())
    return {k: v for k, v in found.items() if k != FIELD} if same and isinstance(found.get("values"), dict) else None
