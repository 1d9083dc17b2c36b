"""A small finished recipe on disk, as `tests/release` makes it, for tests that spoil it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parents[1] / "release" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("release_conftest", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
_MADE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MADE)
write_manifest = _MADE.write_manifest
SmallRecipe = Any  # `FakeContext` of that file


def small_recipe(root: Path) -> SmallRecipe:
    """Scores and a red team of one model, each with its manifest."""
    root.mkdir()
    made = _MADE.FakeContext(root)
    for name, verb, write in (
        ("scores", "evaluate", _MADE.write_scores),
        ("red_team", "red_team", _MADE.write_red_team),
    ):
        (root / name).mkdir()
        write(root / name)
        made.add(name, verb, name, version=1)
    return made
