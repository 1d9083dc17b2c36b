"""`aloe plan` held against what runs then took: seconds, tokens and peak memory of each step.

    python benchmarks/plan_accuracy.py [--quick] [--demo FILE] [--out FILE]
        [--study FOLDER ... --data FOLDER --set A=B]

The prediction is the arithmetic that `aloe plan` shows for a recipe that never ran here (`run/estimate.py`), made anew
on this machine; the measurement is the manifests of a finished run of the same recipe with the same settings. What a
run took beside other work says nothing of the predicted seconds, so only runs on a quiet machine are held against them:
the demo is made here (about ten minutes), unless `--demo` names the stored result of `demo.py` on a quiet machine.
`--study` adds the tokens and memory of finished families of the study recipes (with the sizes in their manifests),
without seconds.
`--quick` predicts only.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from demo import steps as steps_of

from aloe import __version__
from aloe.recipe import Recipe
from aloe.recipe_sizes import assignments
from aloe.run.estimate import by_arithmetic
from aloe.run.execute import library_versions, machine
from aloe.run.store import Store

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "recipes" / "demo.yaml"
SIZES = ("limit", "max_rows", "max_pairs", "rows")
SHORT = 5.0  # seconds: a shorter step is loading and starting, about which nothing is predicted
Found = dict[str, Any]


def compared(recipe: Recipe, family: Path | None) -> Found:
    """Each step's prediction and measurement, and how far off they are together; of a folder without seconds."""
    store = Store(family) if family else None
    steps: dict[str, Found] = {}
    for name in recipe.order:
        guess = by_arithmetic(recipe, recipe.steps[name], name)
        steps[name] = {
            "verb": recipe.steps[name].verb,
            "predicted": {"seconds": guess.seconds, "tokens": guess.tokens, "memory_gb": guess.memory_gb},
        }
        made = store.current(name) if store else None
        if made is not None and made.manifest["verb"] == recipe.steps[name].verb:
            m = made.manifest
            steps[name]["measured"] = measured(None, m["tokens"], m["peak_memory_bytes"])
    return {"steps": steps, "summary": summary(steps)}


def measured(seconds: float | None, tokens: dict[str, int], peak_bytes: int) -> Found:
    handled = sum(v for k, v in tokens.items() if k != "trained")  # those are among the processed
    return {"seconds": seconds, "tokens": handled, "memory_gb": peak_bytes / 1e9}


def summary(steps: dict[str, Found]) -> Found:
    """Of steps that were measured: sums, and the geometric mean and range of predicted / measured."""
    found: Found = {}
    for field in ("seconds", "tokens", "memory_gb"):
        both = [(s["predicted"][field], s["measured"][field]) for s in steps.values()
                if s.get("measured") and s["measured"][field] is not None]  # fmt: skip
        if not both:
            continue
        known = [(p, m) for p, m in both if p and m and (field != "seconds" or m >= SHORT)]
        ratios = sorted(p / m for p, m in known)
        join = max if field == "memory_gb" else sum
        found[field] = {
            "predicted": join(p for p, _ in both), "measured": join(m for _, m in both),
            "steps": len(both), "steps_with_a_ratio": len(ratios),
            "geometric_mean_ratio": math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None,
            "within_a_factor_of_2": sum(0.5 <= r <= 2 for r in ratios),
            "ratios": ratios,
        }  # fmt: skip
    return found


def run_demo(out: Path) -> dict[str, Found]:
    """What the demo's steps took, as `demo.py` tells it."""
    subprocess.run([sys.executable, "-m", "aloe", "run", str(DEMO), "--out", str(out)], check=True, stdout=sys.stderr)
    return steps_of(out / Recipe.load(DEMO).head.family)


def as_run(recipe: Path, family: Path, data: Path | None, sets: list[str]) -> Recipe:
    """The recipe with the sizes of that run."""
    given, _ = assignments(recipe, sets, data, None, family.parent, keep=False)
    store = Store(family)
    for name in Recipe.load(recipe, given).order:
        made = store.current(name)
        if made is not None:
            given = [*given, *(f"{name}.{path}={value}" for path, value in sizes(made.manifest["parameters"]))]
    return Recipe.load(recipe, given)


def sizes(parameters: Found, above: str = "") -> list[tuple[str, int]]:
    """(field, value) of every field that bounds rows, however deep it stands."""
    found = []
    for key, value in parameters.items():
        if isinstance(value, dict):
            found += sizes(value, f"{above}{key}.")
        elif key in SIZES and isinstance(value, int):
            found.append((above + key, value))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--demo", type=Path, help="result of demo.py on this machine while it was quiet")
    parser.add_argument("--study", type=Path, nargs="*", default=[], help="OUT/<family> of finished studies")
    parser.add_argument("--data", type=Path, help="the folder of data that those studies were run with")
    parser.add_argument("--set", action="append", default=[], help="a setting of those studies: where a model is, say")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: Found = {
        "name": "plan_accuracy", "unit": "predicted / measured", "machine": machine(), "aloe": __version__,
        "versions": library_versions(), "runs": {},
    }  # fmt: skip
    demo = compared(Recipe.load(DEMO), None)  # predicted before anything runs: afterwards the machine is warm
    if not options.quick:
        with tempfile.TemporaryDirectory(dir=ROOT) as folder:
            took = json.loads(options.demo.read_text())["steps"] if options.demo else run_demo(Path(folder))
        for name, step in took.items():
            demo["steps"][name]["measured"] = measured(step["seconds"], step["tokens"], step["peak_bytes"])
        demo["summary"] = summary(demo["steps"])
    result["runs"]["demo"] = demo
    for family in options.study:
        name = family.name
        recipe = as_run(ROOT / "recipes" / f"{name}.yaml", family, options.data, options.set)
        result["runs"][name] = compared(recipe, family)
    text = json.dumps(result, indent=1, ensure_ascii=False)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
