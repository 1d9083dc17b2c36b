"""What a run will cost, before it runs. From the step's own last run here where there was one; else from arithmetic.

Training a token costs about 6 FLOPs a parameter (forward 2, backward 4), reading one 2 (Kaplan et al. 2020,
arXiv 2001.08361, section 2.1). Speed is this machine's measured matrix product times the share of it that such work
reaches here (`SHARE`, from the stored demo run). Estimates, not promises: they are labelled so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from aloe.contract import Step, references
from aloe.errors import AloeError
from aloe.run.inputs import Resource, open_resource
from aloe.run.plan import StepPlan
from aloe.run.store import Store

SHARE = 0.5  # of the measured float32 matrix speed
ADAM_BYTES = 16  # float32 weights, gradients and two moments, per parameter


@dataclass(frozen=True)
class Guess:
    """Tokens handled, seconds, gigabytes at peak; zeros where nothing is known."""

    tokens: int = 0
    seconds: float = 0.0
    memory_gb: float = 0.0


def estimates(recipe: Any, planned: list[StepPlan], store: Store) -> dict[str, Guess]:
    """A guess per step."""
    guesses = {}
    for item in planned:
        current = store.current(item.name)
        if current is not None and current.manifest["verb"] == item.verb:
            m = current.manifest
            guesses[item.name] = Guess(sum(m["tokens"].values()), m["wall_seconds"], m["peak_memory_bytes"] / 1e9)
        else:
            guesses[item.name] = _by_arithmetic(recipe, recipe.steps[item.name], item.name)
    return guesses


def _by_arithmetic(recipe: Any, step: Step, name: str) -> Guess:
    size = max(
        (_parameters(recipe, name, ref) for _, ref, mark in references(step) if mark.resource == "model"), default=0
    )
    values = step.model_dump(mode="json")
    rows = _rows(recipe, step, values)
    if step.makes == "model" and step.verb != "merge":
        tokens = int(rows * values.get("epochs", 1) * (400 if step.verb == "dpo" else 250))
        return Guess(
            tokens, 6 * size * tokens / _flops() if size else 0.0, size * ADAM_BYTES / 1e9 + 1.0 if size else 0.0
        )
    if step.verb == "merge":
        return Guess(0, size * 4 * 3 / 2e8, 1.0)
    if step.verb in ("evaluate", "red_team", "red_team_pairs", "synthesize"):
        models = len(values.get("models", [0]))
        tokens = int(rows * models * 300)
        return Guess(tokens, 2 * size * tokens / _flops() if size else 0.0, size * 4 / 1e9 + 1.0 if size else 0.0)
    return Guess()


def _parameters(recipe: Any, name: str, ref: str, depth: int = 0) -> int:
    """Parameters of the model behind a reference, following steps back to a base whose weights are here."""
    if ref in recipe.steps:
        inner = recipe.steps[ref]
        found = [_parameters(recipe, ref, r, depth + 1) for _, r, m in references(inner) if m.resource == "model"]
        return max(found, default=0) if depth < 20 else 0
    mark = next((m for _, r, m in recipe.outside[name] if r == ref), None)
    if mark is None or mark.resource != "model":
        return 0
    try:
        resource = open_resource(ref, mark, recipe.near)
    except AloeError:
        return 0
    return model_size(resource)


def model_size(resource: Resource) -> int:
    """Parameters by the safetensors headers (shapes only); 0 when the weights aren't here."""
    from aloe.models.sources import cached_model_folder

    folder = cached_model_folder(resource.model) if resource.model else None
    if folder is None:
        return 0
    return sum(_tensor_sizes(p) for p in sorted(folder.glob("*.safetensors")))


def _tensor_sizes(path: Path) -> int:
    import json
    import math

    with open(path, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header: Mapping[str, Any] = json.loads(handle.read(length))
    return sum(math.prod(t["shape"]) for n, t in header.items() if n != "__metadata__")


def _rows(recipe: Any, step: Step, values: Mapping[str, Any]) -> int:
    limits = [values[k] for k in ("max_rows", "max_pairs", "limit", "rows") if isinstance(values.get(k), int)]
    if limits:
        return int(min(limits))
    total = 0
    for _, ref, mark in references(step):
        if mark.resource != "rows" or ref in recipe.steps:
            continue
        try:
            path = open_resource(ref, mark, recipe.near).path
        except AloeError:
            continue
        if path is not None and path.suffix == ".jsonl":
            with open(path, "rb") as handle:
                total += sum(1 for _ in handle)
    return total


@cache
def _flops() -> float:
    from aloe.run.doctor import matmul_gflops

    return matmul_gflops(0.3) * 1e9 * SHARE
