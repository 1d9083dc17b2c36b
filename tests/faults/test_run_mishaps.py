"""What the machine does to a run, told as one error: the parts of `aloe.run` and `aloe.generate` that see to it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import sqlite3
import stat
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from aloe.errors import AloeError
from aloe.generate import reply_store, wire
from aloe.generate.awake import LONGEST, AwakeClock
from aloe.generate.reply_store import ReplyStore
from aloe.recipe import Recipe
from aloe.run import launch as launching
from aloe.run.progress import Console
from aloe.run.store import Store, write_aside
from aloe.run.surroundings import TOLD, explained, mishap

# -- one error for each ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", sorted(TOLD), ids=lambda n: errno.errorcode[n])
def test_every_known_number_has_a_cause_and_a_fix(number: int, tmp_path: Path) -> None:
    told = mishap(OSError(number, os.strerror(number), "/somewhere/file"), tmp_path)
    assert told is not None
    assert told.where == "/somewhere/file"
    assert "same command" in str(told.fix)


@pytest.mark.parametrize(
    "cause",
    [
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        pa.ArrowInvalid("[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=["Rust", "Arrow", "Python"],
)
def test_a_full_disk_is_known_whichever_library_met_it(cause: Exception, tmp_path: Path) -> None:
    with pytest.raises(AloeError, match="the disk is full"), explained(tmp_path):
        raise cause


def test_no_memory_is_the_machines_state_too(tmp_path: Path) -> None:
    allocator = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes")
    for cause in (MemoryError(), allocator):
        assert "no memory" in str(mishap(cause, tmp_path))


def test_our_own_mistakes_keep_their_traceback(tmp_path: Path) -> None:
    for cause in (KeyError("x"), FileNotFoundError(errno.ENOENT, "no"), RuntimeError("(os error 2)"), AloeError("x")):
        assert mishap(cause, tmp_path) is None
        with pytest.raises(type(cause)), explained(tmp_path):
            raise cause


def test_an_output_folder_that_is_taken_away_is_said(tmp_path: Path) -> None:
    told = mishap(FileNotFoundError(errno.ENOENT, "no"), tmp_path / "gone")
    assert "was removed" in str(told)


# -- the store ------------------------------------------------------------------------------------------------------


def test_the_lock_names_who_has_it_and_is_free_after(tmp_path: Path) -> None:
    second = Store(tmp_path).lock()
    with Store(tmp_path).lock(), pytest.raises(AloeError, match=f"process {os.getpid()} on"), second:
        raise AssertionError
    with Store(tmp_path).lock():
        pass
    assert (tmp_path / ".store" / "lock").read_text() == ""


def test_a_file_system_without_locks_is_not_taken_for_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(AloeError, match="can't lock files") as caught, Store(tmp_path).lock():
        raise AssertionError
    assert "another run" not in str(caught.value)


def test_an_artifact_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    store = tmp_path / ".store"
    for name in ("old-sft-1", "old-sft-2", "sft-2"):
        (store / name).mkdir(parents=True)
        (store / name / "file").write_text(name)
    with Store(tmp_path).lock():
        pass
    assert sorted(p.name for p in store.iterdir()) == ["lock", "sft-1", "sft-2"]
    assert [(store / n / "file").read_text() for n in ("sft-1", "sft-2")] == ["old-sft-1", "sft-2"]


def _made(store: Store, spent: Path, text: str) -> None:
    folder = store.begin("sft")
    (folder / "weights").write_text(text)
    store.finish(folder, "sft", "sft", {"fingerprint": "f" * 32, "step": "sft"}, [spent])


def test_a_kill_after_an_artifact_stands_leaves_nothing_that_served_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints and a merge's shards are as large as the model: the next run must not leave them there for good."""
    store, spent = Store(tmp_path), tmp_path / ".cache" / "train" / "sft"
    spent.mkdir(parents=True)
    with monkeypatch.context() as killed, store.lock():
        killed.setattr(store, "_remove_spent", lambda note: None)
        _made(store, spent, "w")
    assert spent.exists()
    with Store(tmp_path).lock():
        assert not spent.exists()
    assert sorted(p.name for p in store.folder.iterdir()) == ["lock", f"sft-{'f' * 16}"]


def test_what_serves_to_make_an_artifact_stays_while_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the new one has its place: an older artifact of the same name is none."""
    store, spent = Store(tmp_path), tmp_path / ".cache" / "train" / "sft"
    spent.mkdir(parents=True)
    with store.lock():
        _made(store, tmp_path / "nothing", "older")

    class Killed(BaseException):
        pass

    real = os.replace

    def replace(source: Any, target: Any) -> None:
        if Path(source).name.startswith("tmp-sft"):
            raise Killed
        real(source, target)

    with monkeypatch.context() as killed, store.lock():
        killed.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            _made(store, spent, "newer")
    with Store(tmp_path).lock():
        assert spent.exists()
    assert (tmp_path / "sft" / "weights").read_text() == "older"


def test_an_artifact_is_the_same_to_what_follows_now_and_in_a_later_run(tmp_path: Path) -> None:
    """A card lists parameters in their order, and a run that was taken up has some manifests from the disk."""
    store = Store(tmp_path)
    with store.lock():
        folder = store.begin("sft")
        about = {"fingerprint": "f" * 32, "parameters": {"lr": 1, "epochs": 2, "base": (1, 2)}, "inputs": {}}
        now = store.finish(folder, "sft", "sft", about).manifest
    later = Store(tmp_path).find("sft", "f" * 32)
    assert later is not None
    assert json.dumps({**later.manifest, "manifest_digest": ""}) == json.dumps({**now, "manifest_digest": ""})
    assert list(now["parameters"]) == ["lr", "epochs", "base"]
    assert later.manifest["manifest_digest"] == now["manifest_digest"]


def test_small_files_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    left = [tmp_path / ".cache" / ".stats.json-x", tmp_path / ".store" / ".nodes.json-y", tmp_path / ".sft.new"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    with Store(tmp_path).lock():
        assert not [p for p in left if p.exists()]


def test_a_small_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small").write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_aside(tmp_path / "small", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["small"]
    assert (tmp_path / "small").read_text() == "old"


# -- a worker that is killed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "said"), [(9, r"signal 9 \(SIGKILL\)"), (11, r"signal 11 \(SIGSEGV\)")])
def test_a_steps_process_that_is_killed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    """As the kernel does when memory runs out: the child can say nothing itself."""
    child = tmp_path / "child"
    child.write_text(f"#!/bin/sh\nkill -{number} $$\n")
    child.chmod(child.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(launching.sys, "executable", str(child))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "family: f\nlicence: cc0-1.0\nlaunch: {via: process}\nsteps:\n  corpus:\n"
        "    curate: {sources: [starter/general]}\n"
    )
    with pytest.raises(AloeError, match=said) as caught:
        launching.launch(Recipe.load(recipe), out=tmp_path / "out", console=Console(quiet=True))
    assert "memory" in str(caught.value.fix)
    assert "recipe.yaml:5" in str(caught.value.where)
    assert signal.Signals(number).name in caught.value.what


# -- the request ledger ---------------------------------------------------------------------------------------------


def test_an_owner_that_was_taken_for_dead_is_known_again_with_its_next_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long pause: another process has taken this one out, and its claims must count again once it is awake."""
    monkeypatch.setattr(reply_store, "BEAT_S", 0.02)
    store = ReplyStore(tmp_path / "r.sqlite")
    store.take(["a"])
    with closing(sqlite3.connect(tmp_path / "r.sqlite")) as db:
        db.execute("DELETE FROM owners")
        db.commit()
        deadline = time.monotonic() + 30
        while not db.execute("SELECT count(*) FROM owners").fetchone()[0]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    other = ReplyStore(tmp_path / "r.sqlite")
    assert other.take(["a"]) == (set(), {})
    other.close()
    store.close()


def test_a_clock_set_back_leaves_a_dead_owners_claims_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ReplyStore(tmp_path / "r.sqlite")
    first.take(["a"])
    first._stop.set()
    real = time.time
    monkeypatch.setattr(reply_store.time, "time", lambda: real() - 86_400)
    second = ReplyStore(tmp_path / "r.sqlite")
    assert second.take(["a"]) == ({"a"}, {})
    second.close()
    first.close()


def test_setting_the_clock_changes_no_processs_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = reply_store._born(os.getpid())
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert reply_store._born(os.getpid()) == before


# -- a server -------------------------------------------------------------------------------------------------------


def test_patience_is_counted_awake() -> None:
    now = [0.0]
    clock = AwakeClock(lambda: now[0])
    for _ in range(5):
        now[0] += 1.0
        clock()
    assert clock() == 5.0
    now[0] += 3600.0  # asleep
    assert clock() == 5.0
    now[0] += LONGEST
    assert clock() == 5.0 + LONGEST


@pytest.mark.parametrize(
    "usage", [None, [], "x", {"prompt_tokens": "many"}, {"prompt_tokens": -3.5, "completion_tokens": [1]}, {}]
)
def test_tokens_that_are_no_counts_are_not_counted(usage: Any) -> None:
    assert wire.usage({"usage": usage}) == (0, 0)
    assert wire.usage({"usage": {"prompt_tokens": 3, "completion_tokens": 2}}) == (3, 2)


def test_json_nested_without_end_is_garbled() -> None:
    with pytest.raises(wire.Garbled, match="nested"):
        wire.decoded(b"[" * 200_000)


def test_json_is_utf8_whatever_a_header_says() -> None:
    assert wire.decoded('{"a": "é"}'.encode()) == {"a": "é"}
