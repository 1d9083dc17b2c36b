"""The reference cache: what its key holds, when it is reused and when it is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from aloe.models.packed import Tree
from aloe.train import reference
from aloe.train.packing import Example
from aloe.train.reference import Floats, cached_logprobs, shard_key


def pairs(count: int) -> list[Example]:
    return [
        Example(f"p{i}", Tree([1, 2 + i], [[3, 4], [5]]), [False, False, True, True, True], "mit") for i in range(count)
    ]


class Counting:
    """Stands for a model: -(prompt's second token) and half of it; counts the pairs it was asked for."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale, self.asked, self.logged = scale, 0, [""]

    def __call__(self, shard: Sequence[Example], advance: Callable[[int], None]) -> Floats:
        self.asked += len(shard)
        advance(len(shard))
        return np.array([[-self.scale * p.tree.prefix[1], -self.scale * p.tree.prefix[1] / 2] for p in shard])

    def run(self, cache: Path, rows: Sequence[Example], weights: str = "w") -> tuple[Floats, int, int]:
        done: list[int] = []
        found = cached_logprobs(
            cache, weights, rows, "float32", self, advance=done.append, log=lambda text: self.logged.append(text)
        )
        return *found, sum(done)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SHARD", 4)


def test_computed_once_then_only_sentinels(tmp_path: Path) -> None:
    rows, first, second = pairs(10), Counting(), Counting()
    values, reused, done = first.run(tmp_path, rows)
    assert (reused, first.asked, done) == (0, 10, 10)
    again, reused, done = second.run(tmp_path, rows)
    assert (reused, second.asked, done) == (10, 3, 10)
    assert np.array_equal(values, again)
    assert values.shape == (10, 2)
    assert {p.suffix for p in (tmp_path / "reference").iterdir()} == {".safetensors"}


def test_an_interrupted_run_goes_on_at_its_shard(tmp_path: Path) -> None:
    Counting().run(tmp_path, pairs(4))
    model = Counting()
    _, reused, _ = model.run(tmp_path, pairs(10))
    assert (reused, model.asked) == (4, 7)


def test_key_holds_weights_tokens_boundaries_and_precision_only() -> None:
    rows = pairs(3)
    key = shard_key("w", rows, "float32")
    renamed = [Example("other", p.tree, p.scored, "cc0-1.0") for p in rows]
    assert shard_key("w", renamed, "float32") == key
    moved = [Example("p0", Tree([1, 2], [[3], [4, 5]]), [False, False, True, True, True]), *rows[1:]]
    others = [shard_key("v", rows, "float32"), shard_key("w", rows, "bf16_autocast"), shard_key("w", moved, "float32")]
    assert len({key, *others, shard_key("w", rows[::-1], "float32")}) == 5


@pytest.mark.parametrize("damage", ["values", "shape", "bytes", "nan"])
def test_a_file_that_does_not_fit_is_computed_again(tmp_path: Path, damage: str) -> None:
    Counting().run(tmp_path, pairs(4))
    (path,) = (tmp_path / "reference").iterdir()
    values = load_file(path)["logprobs"]
    if damage == "bytes":
        path.write_bytes(path.read_bytes()[:40])
    elif damage == "nan":
        save_file({"logprobs": np.where(np.arange(8).reshape(4, 2) == 7, np.nan, values)}, path)
    else:
        save_file({"logprobs": values + 1 if damage == "values" else values[:3].copy()}, path)
    model = Counting()
    again, reused, _ = model.run(tmp_path, pairs(4))
    assert reused == 0
    assert "again" in model.logged[-1]
    assert np.array_equal(again, values)
    assert Counting().run(tmp_path, pairs(4))[1] == 4  # and the good one is kept
