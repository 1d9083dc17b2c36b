"""The reference cache: what its key holds, when it is reused and when it is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from aloe.errors import AloeError
from aloe.models.load import load
from aloe.models.packed import Tree
from aloe.train import reference
from aloe.train.logprobs import row_logprobs
from aloe.train.packing import Example, PackedRow
from aloe.train.parallel import deal
from aloe.train.reference import Floats, cached_logprobs, pair_logprobs, shard_key


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


def test_half_written_files_of_killed_runs_are_cleared_away(tmp_path: Path) -> None:
    folder = tmp_path / "reference"
    folder.mkdir()
    old, young = folder / "a.partial", folder / "b.partial"
    finished = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead, living = folder / f"{int(finished.stdout)}-c.partial", folder / f"{os.getppid()}-d.partial"
    for path in (old, young, dead, living):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * reference.STALE,) * 2)
    Counting().run(tmp_path, pairs(4))
    assert not old.exists()
    assert young.exists()  # another run may be writing it
    assert not dead.exists()
    assert living.exists()


def test_a_diverged_reference_is_named_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(AloeError, match=r"2 pairs, p0, p3\n.*diverged"):
        cached_logprobs(
            tmp_path,
            "w",
            pairs(4),
            "float32",
            lambda shard, advance: np.array([[np.nan, 0], [1, 1], [1, 1], [1, -np.inf]]),
            advance=lambda done: None,
            log=print,
        )
    assert not list((tmp_path / "reference").iterdir())


# -- several processes, and a real model ----------------------------------------------------------------------------


def real_pairs(count: int) -> list[Example]:
    draw = np.random.default_rng(2)
    made = []
    for i in range(count):
        prompt, chosen, rejected = (draw.integers(3, 380, draw.integers(2, 15)).tolist() for _ in range(3))
        flags = [False] * len(prompt) + [True] * (len(chosen) + len(rejected))
        made.append(Example(f"r{i}", Tree(prompt, [chosen, rejected]), flags))
    return made


class Threads:
    """A rank of several, each a thread, with the dealing of the real team."""

    def __init__(self, rank: int, world: int, meeting: threading.Barrier, board: list[Any]) -> None:
        self.rank, self.world, self._meeting, self._board = rank, world, meeting, board

    def share(self, rows: Sequence[PackedRow]) -> list[tuple[PackedRow, float]]:
        return [(rows[i], factor) for i, factor in deal([len(r.layout.ids) for r in rows], self.world)[self.rank]]

    def gather(self, values: Any) -> Any:
        return np.concatenate(self._swap(values))

    def broadcast(self, value: Any) -> Any:
        return self._swap(value)[0]

    def _swap(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._meeting.wait(30)
        found = list(self._board)
        self._meeting.wait(30)
        return found


class Counted:
    """A policy that counts its passes."""

    def __init__(self, model: Any) -> None:
        self.model, self.passes = model, 0

    def __call__(self, row: PackedRow) -> torch.Tensor:
        self.passes += 1
        return row_logprobs(self.model, row)


def together(world: int, model: Any, rows: Sequence[Example], cache: Path) -> list[tuple[Floats, int, int, int]]:
    """(values, reused, passes, pairs told done) of each rank."""
    meeting, board = threading.Barrier(world), [None] * world

    def work(rank: int) -> tuple[Floats, int, int, int]:
        team, policy, done = Threads(rank, world, meeting, board), Counted(model), []
        compute = partial(pair_logprobs, policy, width=40, team=team)
        found, reused = cached_logprobs(
            cache, "w", rows, "float32", compute, advance=done.append, log=lambda text: None, team=team
        )
        return found, reused, policy.passes, sum(done)

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(work, range(world)))


def test_values_are_those_of_separate_rows_and_a_policy_may_stand_for_the_model(tiny_model_folder: Path) -> None:
    model, rows = load(tiny_model_folder).model, real_pairs(9)
    found = pair_logprobs(model, rows, precision="float32", width=40)
    for pair, (chosen, rejected) in zip(rows, found, strict=True):
        for branch, ours in zip(pair.tree.branches, (chosen, rejected), strict=True):
            ids = [*pair.tree.prefix, *branch]
            with torch.no_grad():
                logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            theirs = sum(float(logp[i - 1, ids[i]]) for i in range(len(pair.tree.prefix), len(ids)))
            assert ours == pytest.approx(theirs, abs=1e-4)
    assert np.array_equal(pair_logprobs(Counted(model), rows, width=40), found)
    assert not any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_gives_the_same_bits(tiny_model_folder: Path, tmp_path: Path, world: int) -> None:
    """And every process makes as many passes as the others, on a cold cache, a part of one, and a full one."""
    model, rows = load(tiny_model_folder).model, real_pairs(23)
    (alone,) = together(1, model, rows, tmp_path / "alone")
    cold = together(world, model, rows, tmp_path / "cache")
    files = sorted((tmp_path / "cache" / "reference").iterdir())
    assert len(files) == 6
    for path in (files[1], files[4]):
        path.unlink()
    part = together(world, model, rows, tmp_path / "cache")
    full = together(world, model, rows, tmp_path / "cache")
    for runs in (cold, part, full):
        assert len({passes for _, _, passes, _ in runs}) == 1
        assert all(np.array_equal(values, alone[0]) for values, *_ in runs)
        assert all(done == 23 for *_, done in runs)
    assert [runs[0][1] for runs in (cold, full)] == [0, 23]
    assert part[0][1] in (15, 16)
    assert full[0][2] < part[0][2] < cold[0][2]
    assert cold[0][2] < alone[2]
    assert sorted((tmp_path / "cache" / "reference").iterdir()) == files


def test_adapters_are_off_while_the_reference_is_computed(tiny_model_folder: Path) -> None:
    model, rows = load(tiny_model_folder).model, real_pairs(3)
    plain, inside = pair_logprobs(model, rows, width=40), []

    @contextmanager
    def off() -> Iterator[None]:
        inside.append(True)
        hook.remove()
        yield
        inside.append(False)

    hook = model.base_model.norm.register_forward_hook(lambda module, args, out: out * 2)
    assert np.array_equal(pair_logprobs(model, rows, width=40, off=off), plain)
    assert inside == [True, False]
