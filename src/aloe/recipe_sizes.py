"""What --data, --budget and --set say of a recipe, as one list of assignments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aloe.errors import AloeError
from aloe.recipe import Recipe
from aloe.recipe_file import read_yaml
from aloe.recipe_names import ranges_of, seconds_of


def assignments(
    recipe: Path, sets: list[str], data: Path | None, budget: str | None, out: Path, *, keep: bool
) -> tuple[list[str], dict[str, Any] | None]:
    """(assignments, what the budget chose, where one is given). What --set says comes last and so wins.

    Args:
        keep: write down what the budget chose, so that the next run goes on with it.

    Raises:
        AloeError: --data for a recipe without named sets; what `aloe.run.sizing` refuses.
    """
    given = list(sets)
    if data is not None:
        raw = read_yaml(recipe) if recipe.is_file() else None
        if isinstance(raw, dict) and not (raw.get("data") or {}).get("sets"):
            fix = "add data: {sets: {NAME: {file: PATH}}} and write data/NAME in the steps, or leave --data out"
            raise AloeError("--data, but the recipe names no sets", where=str(recipe), fix=fix)
        given = [f"data.folder={data}", *given]
    if budget is None:
        return given, None
    from aloe.run.sizing import sized

    place = out / Recipe.load(recipe, given).head.family
    chosen, told = sized(
        lambda more: Recipe.load(recipe, [*more, *given]), ranges_of(recipe), seconds_of(budget), place,
        where=str(recipe), keep=keep,
    )  # fmt: skip
    return [*chosen, *given], told
