"""What training is estimated to take: by method, precision, adapters and processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import aloe.run.estimate as estimate
from aloe.recipe import Recipe
from aloe.run.estimate import LOADING, by_arithmetic

SIZE, SPEED = 100_000_000, 1e11


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "_flops", lambda precision: SPEED if precision == "float32" else 4 * SPEED)
    monkeypatch.setattr(estimate, "_parameters", lambda *_: SIZE)


def guess(verb: str = "sft", launch: dict[str, Any] | None = None, **values: Any) -> estimate.Guess:
    rows = {"sft": {"base": "m", "data": "starter/general"}, "dpo": {"model": "m", "pairs": "starter/preferences"}}
    step = {**rows[verb], "epochs": 1, "max_rows" if verb == "sft" else "max_pairs": 1000, **values}
    if verb == "sft":
        step["data"] = {"corpus": 1.0}
    steps = {"corpus": {"curate": {"sources": ["starter/general"]}}, "tuned": {verb: step}}
    recipe = Recipe.parse({"family": "f", "licence": "cc0-1.0", "launch": launch or {}, "steps": steps})
    return by_arithmetic(recipe, recipe.steps["tuned"], "tuned")


def flops_a_token(found: estimate.Guess, speed: float = SPEED) -> float:
    return (found.seconds - LOADING) * speed / SIZE / found.tokens


@pytest.mark.parametrize(
    ("verb", "lora", "flops"), [("sft", None, 6), ("sft", {}, 4), ("dpo", None, 8), ("dpo", {}, 6)]
)
def test_flops_a_token(verb: str, lora: dict[str, Any] | None, flops: int) -> None:
    assert flops_a_token(guess(verb, lora=lora, precision="float32")) == pytest.approx(flops)


def test_bf16_runs_at_its_own_speed() -> None:
    assert flops_a_token(guess(precision="bf16_autocast"), 4 * SPEED) == pytest.approx(6)


@pytest.mark.parametrize(
    ("precision", "lora", "gigabytes"),
    [("float32", None, 1.6), ("bf16_autocast", None, 1.8), ("bf16_stochastic", None, 0.8), ("float32", {}, 0.4)],
)
def test_memory_by_precision_and_adapters(precision: str, lora: dict[str, Any] | None, gigabytes: float) -> None:
    assert guess(precision=precision, lora=lora).memory_gb == pytest.approx(gigabytes + 2.5)


def test_shards_share_the_memory_and_copies_do_not() -> None:
    shards = guess(precision="float32", launch={"processes": 4})
    copies = guess(precision="float32", launch={"processes": 4, "strategy": "ddp"})
    assert shards.memory_gb == pytest.approx(0.4 + 2.5)
    assert copies.memory_gb == pytest.approx(1.6 + 2.5)
    assert shards.seconds == copies.seconds  # processes of one machine share its cores


def test_nodes_share_the_time(tmp_path: Path) -> None:
    one = guess(precision="float32")
    two = guess(precision="float32", launch={"nodes": 2, "rendezvous": "host:29500"})
    assert two.seconds - LOADING == pytest.approx((one.seconds - LOADING) / 2)


def test_a_recipe_that_asks_a_server_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server has no size here: its step has tokens and no seconds."""
    monkeypatch.undo()
    recipe = Recipe.parse({
        "family": "f", "licence": "cc0-1.0",
        "servers": {"writer": {"endpoints": ["http://127.0.0.1:9/v1"], "model": "m", "licence": "mit"}},
        "steps": {"reasoning": {"synthesize": {"questions": "starter/medical_mcq", "writer": "writer", "limit": 5}}},
    })  # fmt: skip
    found = by_arithmetic(recipe, recipe.steps["reasoning"], "reasoning")
    assert found.tokens > 0
    assert found.seconds == 0
