"""Checkpoints come back bit for bit under any number of ranks, survive a kill anywhere, and never end a run."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from aloe.errors import AloeError
from aloe.train import checkpoint_files as files
from aloe.train.checkpoints import Checkpoints, Found, Shard, random_states, restore_random_states

IDENTITY = {"sft": {"lr": 2e-5, "betas": (0.9, 0.999)}, "data": "abc", "seed": 7}
Tensors = dict[str, torch.Tensor]


class Team:
    """Ranks as threads of this process, with a barrier and a broadcast as torch.distributed has them."""

    def __init__(self, folder: Path, world: int = 1, **options: Any) -> None:
        self.logs: list[str] = []
        self._gate = threading.Barrier(world, timeout=20)
        self._slot: Any = None
        shared = {"keep": 2, "every_steps": None, "every_minutes": 15.0, "log": self.logs.append, **options}
        identity = shared.pop("identity", IDENTITY)
        self.ranks = [
            Checkpoints(
                folder, identity, rank=r, world=world, barrier=self._barrier, broadcast=self._broadcast(r), **shared
            )
            for r in range(world)
        ]

    def _barrier(self) -> None:
        self._gate.wait()

    def _broadcast(self, rank: int) -> Callable[[Any], Any]:
        def broadcast(value: Any) -> Any:
            self._gate.wait()
            if rank == 0:
                self._slot = value
            self._gate.wait()
            return self._slot

        return broadcast

    def call(self, work: Callable[[int, Checkpoints], Any]) -> list[Any]:
        """`work(rank, checkpoints)` on every rank at once; what each returned or raised."""
        found: list[Any] = [None] * len(self.ranks)

        def run(rank: int) -> None:
            try:
                found[rank] = work(rank, self.ranks[rank])
            except Exception as cause:
                found[rank] = cause

        threads = [threading.Thread(target=run, args=(r,)) for r in range(len(self.ranks))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    def write(self, step: int, shards: list[list[Shard]], state: dict[str, Any]) -> list[Any]:
        return self.call(lambda r, c: c.write(step, iter(shards[r]), state))


def tensors_of(step: int) -> Tensors:
    draw = torch.Generator().manual_seed(step)
    return {
        "param/a": torch.randn(6, 4, generator=draw),
        "param/b": torch.randn(5, generator=draw).bfloat16(),
        "exp_avg/a": torch.randn(6, 4, generator=draw),
        "scale": torch.randn((), generator=draw),
    }


def whole(tensors: Tensors) -> list[Shard]:
    return [Shard(name, t, tuple(t.shape), 0) for name, t in tensors.items()]


def same(found: Found | None, tensors: Tensors) -> None:
    assert found is not None
    assert found.shapes == {name: tuple(t.shape) for name, t in tensors.items()}
    for name, expected in tensors.items():
        got = found.read(name, 0, None)
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        assert torch.equal(got.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8)), name


def single(folder: Path, **options: Any) -> Checkpoints:
    (checkpoints,) = Team(folder, **options).ranks
    return checkpoints


def saved(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# -- what is written comes back -------------------------------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn) -> tuple[Tensors, list[list[Shard]], int, list[tuple[str, int, int]]]:
    """Tensors of random bytes, how ranks share them (also empty parts and replicas), later ranks, later reads."""
    world, later = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    noise = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    tensors: Tensors = {}
    shards: list[list[Shard]] = [[] for _ in range(world)]
    reads = []
    for i in range(draw(st.integers(0, 6))):
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.float8_e4m3fn]))
        shape = tuple(draw(st.lists(st.integers(0, 7), max_size=3)))
        size = int(np.prod(shape)) * torch.empty((), dtype=dtype).element_size()
        raw = torch.tensor(noise.integers(0, 256, size).tolist(), dtype=torch.uint8)
        name = f"param/layer.{i}"
        tensors[name] = tensor = raw.view(dtype).reshape(shape)
        rows = shape[0] if shape else 1
        if not shape or draw(st.booleans()):  # replicated: every rank has all of it
            for mine in shards:
                mine.append(Shard(name, tensor, shape, 0))
        else:
            cuts = sorted(draw(st.lists(st.integers(0, rows), min_size=world - 1, max_size=world - 1)))
            for mine, a, b in zip(shards, [0, *cuts], [*cuts, rows], strict=True):
                mine.append(Shard(name, tensor[a:b], shape, a))
        a = draw(st.integers(0, rows))
        reads.append((name, a, draw(st.integers(a, rows))))
    return tensors, shards, later, reads


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plan=plans())
def test_any_ranks_read_what_any_ranks_wrote(
    tmp_path_factory: pytest.TempPathFactory, plan: tuple[Tensors, list[list[Shard]], int, list[tuple[str, int, int]]]
) -> None:
    tensors, shards, later, reads = plan
    folder = tmp_path_factory.mktemp("checkpoints")
    state = {"cursor": 12, "loss": 0.1 + 0.2, "seen": [1e-310, -0.0], "words": "ü"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "FILE_BYTES", 128)  # so that a rank writes several files
        patch.setattr(files, "HEADER_BYTES", 512)
        assert Team(folder, len(shards)).write(40, shards, state) == [True] * len(shards)
    assert saved(folder) == ["step-00000040"]
    assert not list((folder / "step-00000040").glob("rank-*.json"))
    for found in Team(folder, later).call(lambda _, c: c.latest()):
        same(found, tensors)
        assert (found.step, found.state) == (40, state)
        for name, a, b in reads:
            part = found.read(name, a, b)
            expected = tensors[name][a:b] if tensors[name].ndim else tensors[name]
            if tensors[name].ndim or b > a:
                assert torch.equal(part.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))


def test_files_are_plain_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FILE_BYTES", 100)
    tensors = tensors_of(1)
    rows = [Shard("param/a", tensors["param/a"][i : i + 3], (6, 4), i) for i in (0, 3)]
    checkpoints = single(tmp_path / "c")
    assert checkpoints.write(1, [*rows, *whole({k: tensors[k] for k in ("param/b", "scale")})], {})
    found = {}
    for path in (tmp_path / "c" / "step-00000001").glob("*.safetensors"):
        with safe_open(path, "pt") as handle:
            found |= {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    assert found.keys() == {"param/a@0", "param/a@3", "param/b", "scale"}
    assert torch.equal(torch.cat([found["param/a@0"], found["param/a@3"]]), tensors["param/a"])
    assert torch.equal(found["param/b"], tensors["param/b"])


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def stream() -> Iterator[Shard]:
        nonlocal most
        for i in range(20):
            tensor = torch.full((64,), float(i))
            alive.append(weakref.ref(tensor))
            most = max(most, sum(ref() is not None for ref in alive))
            yield Shard(f"param/{i}", tensor, (64,), 0)
            del tensor

    assert single(tmp_path / "c").write(1, stream(), {})
    assert most <= 2  # the one being made and the one just written


def test_random_generators_go_on_where_they_were() -> None:
    def draws() -> list[Any]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()]

    before = random_states()
    try:
        random.gauss(0, 1)  # both keep the second of a pair of normal numbers back
        np.random.randn()
        kept = json.loads(json.dumps(random_states()))
        first = draws()
        assert draws() != first
        restore_random_states(kept)
        assert draws() == first
    finally:
        restore_random_states(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_random_generators_on_cuda() -> None:
    kept = json.loads(json.dumps(random_states()))
    first = torch.rand(5, device="cuda")
    restore_random_states(kept)
    assert torch.equal(torch.rand(5, device="cuda"), first)


# -- kills and damage -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Neither an error nor caught anywhere: nothing of the program runs after it, as after a kill."""


class Axe:
    """Ends the process before its `at`-th operation on files, or in the middle of a write."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        self.left, self.done = at, 0
        for module, name in ((os, "mkdir"), (os, "fsync"), (os, "replace"), (os, "unlink"), (os, "rmdir")):
            patch.setattr(module, name, self._guarded(getattr(module, name)))
        write = files._write_all

        def torn(handle: Any, data: memoryview) -> None:
            self._strike(lambda: write(handle, data[: len(data) // 2]))
            write(handle, data)

        patch.setattr(files, "_write_all", torn)

    def _guarded(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self._strike()
            return real(*args, **options)

        return call

    def _strike(self, last: Callable[[], None] = lambda: None) -> None:
        self.done += 1
        if self.done > self.left:
            last()
            raise Killed


@pytest.mark.parametrize("keep", [1, 2])
def test_a_kill_anywhere_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
    monkeypatch.setattr(files, "FILE_BYTES", 100)
    start = tmp_path / "start"
    first = single(start, keep=keep)
    for step in (1, 2):
        assert first.write(step, whole(tensors_of(step)), {"cursor": step})
    at = 0
    while True:
        folder = tmp_path / f"kill-{at}"
        shutil.copytree(start, folder)
        checkpoints = single(folder, keep=keep)
        assert checkpoints.latest().step == 2
        with monkeypatch.context() as patch:
            axe = Axe(patch, at)
            try:
                checkpoints.write(3, whole(tensors_of(3)), {"cursor": 3})
                killed = False
            except Killed:
                killed = True
        again = Team(folder, keep=keep)
        found = again.ranks[0].latest()
        assert not again.logs, again.logs
        same(found, tensors_of(found.step))
        assert found.step in (2, 3)
        assert found.state == {"cursor": found.step}
        assert again.ranks[0].write(3, whole(tensors_of(3)), {"cursor": 3})
        same(single(folder).latest(), tensors_of(3))
        assert saved(folder) == [f"step-{s:08d}" for s in (2, 3)[-keep:]]
        if not killed:
            break
        at += 1
    assert at == axe.done >= 25


def test_all_is_on_disk_before_the_name_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[tuple[str, str]] = []
    sync, rename = os.fsync, os.replace

    def fsync(handle: int) -> None:
        happened.append(("sync", os.path.realpath(f"/proc/self/fd/{handle}")))
        sync(handle)

    def replace(old: Any, new: Any) -> None:
        happened.append(("rename", str(new)))
        rename(old, new)

    monkeypatch.setattr(files, "FILE_BYTES", 100)
    checkpoints = single(tmp_path / "c")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "replace", replace)
        assert checkpoints.write(1, whole(tensors_of(1)), {})
    final = tmp_path / "c" / "step-00000001"
    at = happened.index(("rename", str(final)))
    before = {path for what, path in happened[:at] if what == "sync"}
    partial = tmp_path / "c" / ".partial-00000001"
    assert {str(partial / p.name) for p in final.iterdir()} | {str(partial)} <= before
    assert ("sync", str(tmp_path / "c")) in happened[at:]


def two(folder: Path) -> Path:
    """Two checkpoints; the folder of the newer one."""
    checkpoints = single(folder)
    for step in (1, 2):
        checkpoints.write(step, whole(tensors_of(step)), {"cursor": step})
    return folder / "step-00000002"


def test_any_changed_byte_is_found(tmp_path: Path) -> None:
    newest = two(tmp_path / "c")
    draw = random.Random(7)
    names = [p.name for p in newest.iterdir()]
    assert sorted(names) == ["index.json", "rank-00000-00000.safetensors", "state.json"]
    for name in names:
        data = (newest / name).read_bytes()
        places = {0, 7, 8, len(data) - 1, *(draw.randrange(len(data)) for _ in range(20))}
        for place in sorted(p for p in places if p < len(data)):
            broken = bytearray(data)
            broken[place] ^= 1 << draw.randrange(8)
            (newest / name).write_bytes(broken)
            team = Team(tmp_path / "c")
            same(team.ranks[0].latest(), tensors_of(1))
            (line,) = team.logs
            assert "step-00000002 is damaged" in line
            assert name in line
        (newest / name).write_bytes(data)
    same(single(tmp_path / "c").latest(), tensors_of(2))


@pytest.mark.parametrize("name", ["index.json", "state.json", "rank-00000-00000.safetensors"])
@pytest.mark.parametrize("how", ["missing", "truncated", "empty", "longer", "other json"])
def test_the_one_before_serves_when_the_newest_is_damaged(tmp_path: Path, name: str, how: str) -> None:
    path = two(tmp_path / "c") / name
    data = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes({"truncated": data[:-3], "empty": b"", "longer": data + b" ", "other json": b"[1]"}[how])
    team = Team(tmp_path / "c", world=2)
    for found in team.call(lambda _, c: c.latest()):
        same(found, tensors_of(1))
    assert len(team.logs) == 1
    assert name in team.logs[0]
    # What is written next stands, the damaged one goes.
    assert team.write(2, [whole(tensors_of(2)), []], {"cursor": 2}) == [True, True]
    assert saved(tmp_path / "c") == ["step-00000001", "step-00000002"]
    same(single(tmp_path / "c").latest(), tensors_of(2))


def test_a_damaged_later_one_goes_when_an_earlier_step_is_written(tmp_path: Path) -> None:
    (two(tmp_path / "c") / "state.json").write_text("{")
    checkpoints = single(tmp_path / "c", keep=1)
    assert checkpoints.latest().step == 1
    (tmp_path / "c" / "step-00000002").rename(tmp_path / "c" / "step-00000005")
    checkpoints.latest()
    assert checkpoints.write(3, whole(tensors_of(3)), {})
    assert saved(tmp_path / "c") == ["step-00000003"]


def test_none_is_whole(tmp_path: Path) -> None:
    two(tmp_path / "c")
    for path in (tmp_path / "c").glob("*/*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    team = Team(tmp_path / "c")
    assert team.ranks[0].latest() is None
    assert len(team.logs) == 3
    assert team.logs[-1].endswith("training starts anew")


def test_nothing_there_is_no_news(tmp_path: Path) -> None:
    team = Team(tmp_path / "c")
    assert team.ranks[0].latest() is None
    assert not team.logs


def test_another_recipe_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    two(tmp_path / "c")
    other = {"sft": {"lr": 1e-5, "betas": (0.9, 0.999)}, "data": "abc", "packed": True}
    raised = Team(tmp_path / "c", world=2, identity=other).call(lambda _, c: c.latest())
    for cause in raised:
        assert isinstance(cause, AloeError)
        assert cause.what == (
            "this checkpoint is of another run: packed: nothing then, true now; seed: 7 then, nothing now; "
            "sft.lr: 2e-05 then, 1e-05 now"
        )
        assert "to start anew" in cause.fix


def test_reading_says_what_is_missing(tmp_path: Path) -> None:
    two(tmp_path / "c")
    found = single(tmp_path / "c").latest()
    with pytest.raises(AloeError, match="holds no exp_avg/b"):
        found.read("exp_avg/b", 0, None)
    with pytest.raises(AloeError, match="has rows 0 to 6, asked for 4 to 7"):
        found.read("param/a", 4, 7)
    broken = files.reader(
        tmp_path, {"x": {"dtype": "F32", "shape": [4, 2], "pieces": [[0, 0, "f", 0], [2, 2, "f", 0]]}}
    )
    with pytest.raises(AloeError, match="row 0 of x is in no file"):
        broken("x", 0, None)
    (path,) = (tmp_path / "c" / "step-00000002").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[: 8 + files.HEADER_BYTES + 10])
    with pytest.raises(AloeError, match="ends too early"):
        found.read("param/a", 0, None)


# -- a checkpoint never ends a run ----------------------------------------------------------------------------------


def broken_write(patch: pytest.MonkeyPatch, nth: int, folder: str = "") -> None:
    """The `nth` write from now (of files whose path holds `folder`) meets a full disk."""
    write, count = files._write_all, 0

    def full(handle: Any, data: memoryview) -> None:
        nonlocal count
        if folder in handle.name.__str__():
            count += 1
            if count == nth:
                write(handle, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
        write(handle, data)

    patch.setattr(files, "_write_all", full)


def test_a_full_disk_in_the_middle_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two(tmp_path / "c")
    for nth in range(1, 30):
        with monkeypatch.context() as patch:
            team = Team(tmp_path / "c")
            broken_write(patch, nth)
            wrote = team.ranks[0].write(3, whole(tensors_of(3)), {"cursor": 3})
        if wrote:
            break
        assert any("No space left" in line for line in team.logs)
        assert "no checkpoint at step 3" in team.logs[-1]
        assert saved(tmp_path / "c") == ["step-00000001", "step-00000002"]
        same(single(tmp_path / "c").latest(), tensors_of(2))
    assert nth == 9  # four tensors, a header, the part, state and index
    same(single(tmp_path / "c").latest(), tensors_of(3))


def test_a_rank_that_fails_still_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making a shard may be a collective: the rank goes through all of them, and no rank waits for ever."""
    asked = [0, 0]

    def stream(rank: int) -> Iterator[Shard]:
        for i in range(6):
            asked[rank] += 1
            yield Shard(f"param/{i}", torch.ones(2), (4,), 2 * rank)

    team = Team(tmp_path / "c", world=2)
    with monkeypatch.context() as patch:
        broken_write(patch, 2, folder="rank-00001-")
        assert team.call(lambda r, c: c.write(1, stream(r), {})) == [False, False]
    assert asked == [6, 6]
    assert "rank 1 can't write its part" in team.logs[0]
    assert "rank 1 of 2 couldn't write its part" in team.logs[1]
    assert saved(tmp_path / "c") == []
    assert team.call(lambda r, c: c.write(1, stream(r), {})) == [True, True]
    assert torch.equal(single(tmp_path / "c").latest().read("param/3", 1, 3), torch.ones(2))


def test_rows_that_no_rank_wrote_are_found_at_once(tmp_path: Path) -> None:
    team = Team(tmp_path / "c", world=2)
    shards = [[Shard("param/a", torch.ones(2, 3), (6, 3), 0)], [Shard("param/a", torch.ones(3, 3), (6, 3), 3)]]
    assert team.write(1, shards, {}) == [False, False]
    assert "no rank wrote row 2 of param/a, which has 6" in team.logs[0]
    shards = [[Shard("param/a", torch.ones(2, 3), (6, 3), 0)], [Shard("param/a", torch.ones(3, 3), (5, 3), 2)]]
    assert team.write(1, shards, {}) == [False, False]
    assert "ranks disagree over param/a" in team.logs[1]


def test_no_room_is_said_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two(tmp_path / "c")
    disk = type("Disk", (), {"free": files.SPARE_BYTES + 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)

    def never() -> Iterator[Shard]:
        raise AssertionError("asked for a shard")
        yield

    for known, size in ((False, 10**9), (True, None)):  # told, or known from the checkpoint before
        team = Team(tmp_path / "c", keep=1)
        if known:
            assert team.ranks[0].latest().step == 2
            team.ranks[0]._bytes = 10**8
            disk.free = files.SPARE_BYTES - 10**7
        assert team.ranks[0].write(3, never(), {}, size=size) is False
        assert "free. Training goes on" in team.logs[-1]
        assert "GB" in team.logs[-1]
        assert saved(tmp_path / "c") == ["step-00000001", "step-00000002"]
    # Nothing known: each tensor is checked against what is free.
    disk.free = files.SPARE_BYTES + 100
    team = Team(tmp_path / "c")
    assert team.ranks[0].write(3, whole({**tensors_of(3), "big": torch.ones(100)}), {}) is False
    assert "big" in team.logs[0]
    assert saved(tmp_path / "c") == ["step-00000001", "step-00000002"]


def test_an_older_one_makes_room_but_never_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two(tmp_path / "c")
    team = Team(tmp_path / "c")
    checkpoints = team.ranks[0]
    checkpoints.latest()
    needed = checkpoints._bytes
    assert needed == sum(p.stat().st_size for p in (tmp_path / "c/step-00000002").iterdir() if p.name != "index.json")

    def usage(_: Any) -> Any:
        used = sum(p.stat().st_size for p in (tmp_path / "c").rglob("*.safetensors"))
        return type("Disk", (), {"free": files.SPARE_BYTES + int(2.5 * needed) - used})

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert checkpoints.write(3, whole(tensors_of(3)), {})
    assert "removing checkpoint step-00000001 early" in team.logs[0]
    assert saved(tmp_path / "c") == ["step-00000002", "step-00000003"]
    same(single(tmp_path / "c").latest(), tensors_of(3))


def test_a_folder_that_can_not_be_made_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    team = Team(tmp_path / "file" / "c")
    assert team.ranks[0].write(1, whole(tensors_of(1)), {}) is False
    assert "no checkpoint at step 1" in team.logs[0]


def test_another_runs_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    two(tmp_path / "c")
    team = Team(tmp_path / "c", identity={"seed": 8})
    assert team.ranks[0].write(2, whole(tensors_of(3)), {}) is False
    assert "of another run" in team.logs[0]
    same(single(tmp_path / "c").latest(), tensors_of(2))


def test_state_must_be_plain(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        single(tmp_path / "c").write(1, [], {"seen": {1, 2}})
    assert not (tmp_path / "c").exists()


def test_shards_must_lie_in_their_tensor() -> None:
    for shape, offset in (((4, 3), 3), ((4, 2), 0), ((4,), 0), ((4, 3), -1)):
        with pytest.raises(ValueError, match="param/x: rows of shape"):
            Shard("param/x", torch.ones(2, 3), shape, offset)
    with pytest.raises(ValueError, match="complex64 can't be stored"):
        Shard("param/x", torch.ones(2, dtype=torch.complex64), (2,), 0)


# -- policy ---------------------------------------------------------------------------------------------------------


def test_due_by_steps(tmp_path: Path) -> None:
    checkpoints = single(tmp_path / "c", every_steps=3)
    assert [s for s in range(1, 11) if checkpoints.due(s, last=s == 10)] == [3, 6, 9, 10]
    checkpoints.write(9, [], {})
    assert not checkpoints.due(9, last=True)


def test_due_by_minutes_is_decided_by_rank_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = threading.local()
    monkeypatch.setattr(time, "monotonic", lambda: getattr(clocks, "now", 0.0))
    team = Team(tmp_path / "c", world=2, every_minutes=15.0)

    def ask(rank: int, checkpoints: Checkpoints) -> list[bool]:
        answers = []
        for minute in (10, 14.9, 15.1, 20, 30.2):
            clocks.now = 60.0 * minute if rank == 0 else 1e9 * minute  # rank 1's clock says yes every time
            answers.append(checkpoints.due(int(minute)))
            if answers[-1]:
                checkpoints.write(int(minute), [], {})
        return answers

    expected = [False, False, True, False, True]
    assert team.call(ask) == [expected, expected]
    assert saved(tmp_path / "c") == ["step-00000015", "step-00000030"]


def test_a_failed_write_is_not_tried_again_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Disk", (), {"free": 10}))
    checkpoints = single(tmp_path / "c", every_minutes=1.0)
    now = 61.0
    assert checkpoints.due(1)
    assert not checkpoints.write(1, [], {})
    assert not checkpoints.due(2)
    now = 122.0
    assert checkpoints.due(3)


def test_keep(tmp_path: Path) -> None:
    checkpoints = single(tmp_path / "c", keep=3)
    for step in range(1, 7):
        assert checkpoints.write(step, whole(tensors_of(step)), {})
        assert saved(tmp_path / "c") == [f"step-{s:08d}" for s in range(max(1, step - 2), step + 1)]
    with pytest.raises(ValueError, match="one checkpoint at least"):
        single(tmp_path / "c", keep=0)


def test_the_same_step_twice_is_written_once(tmp_path: Path) -> None:
    two(tmp_path / "c")
    before = (tmp_path / "c/step-00000002/index.json").stat().st_mtime_ns
    checkpoints = single(tmp_path / "c")
    assert checkpoints.write(2, whole(tensors_of(9)), {})
    assert (tmp_path / "c/step-00000002/index.json").stat().st_mtime_ns == before


def test_leftovers_go_at_the_next_start_and_foreign_files_stay(tmp_path: Path) -> None:
    two(tmp_path / "c")
    (tmp_path / "c" / ".partial-00000003").mkdir()
    (tmp_path / "c" / ".partial-00000003" / "rank-00000-00000.safetensors").write_text("half")
    (tmp_path / "c" / "notes.txt").write_text("mine")
    checkpoints = single(tmp_path / "c")
    assert checkpoints.latest().step == 2
    assert saved(tmp_path / "c") == ["notes.txt", "step-00000001", "step-00000002"]
    checkpoints.clear()
    assert saved(tmp_path / "c") == ["notes.txt"]
    (tmp_path / "c" / "notes.txt").unlink()
    checkpoints.clear()
    assert not (tmp_path / "c").exists()
    checkpoints.clear()
