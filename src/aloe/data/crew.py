"""Batches of rows worked on by processes of other machines, which share a file system with this one and nothing else.

    python -m aloe.data.crew FOLDER     # a worker; `launch.slurm.workers` starts them as an array of jobs

The curation leads: it writes down a stage (a function and the rows' numbers in a spool), workers claim batches by
creating a file, and leave results as files. The lead takes results in order and works on batches that nobody has
claimed, so that it gets done without any worker, and a worker may come, go or die at any time. What a row gives doesn't
depend on who looked at it; all that compares rows stays with the lead.

    beat           touched by the lead         current            the stage that is open
    end            the workers may go          STAGE/function     pickled, read once by each worker
    alive-WORKER   touched by a worker         STAGE/claim-N      who works on batch N
                                               STAGE/result-N     pickled
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from aloe.data.spool import BATCH, Item, Spool, View

T = TypeVar("T")
CREW = "ALOE_CREW"  # folder of the crew that a curation leads
BEAT = 5.0  # seconds between touches
DEAD = 60.0  # seconds without a touch after which a worker's batch is done by the lead
LONELY = 900.0  # seconds without the lead after which a worker goes; a preempted lead comes back
POLL = 0.05  # seconds between looks
LEAD = "lead"  # instead of a worker's name
AHEAD = 128  # batches that workers may be ahead of the lead: results lie on disk until it takes them


class Crew:
    """The lead's side."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stop = threading.Event()
        self._beat = threading.Thread(target=_touch, args=(folder / "beat", self._stop), daemon=True)
        self._beat.start()

    def map(self, function: Callable[[list[Item]], T], view: View) -> Iterator[T]:
        """function(rows) for every `BATCH` rows of the view, in order. It must be picklable, and a batch's result may
        depend on nothing else."""
        stage = self.folder / f"stage-{uuid.uuid4().hex[:12]}"
        stage.mkdir()
        count = -(-len(view) // BATCH)
        try:
            write_work(stage, function, view)
            yield from self._results(stage, count, Work(stage))
        finally:
            (self.folder / "current").unlink(missing_ok=True)
            shutil.rmtree(stage, ignore_errors=True)

    def _results(self, stage: Path, count: int, work: Work) -> Iterator[Any]:
        spare = limit = 0
        for number in range(count):
            if number >= limit - AHEAD // 2 and limit < count:
                limit = min(count, number + AHEAD)
                _replace(self.folder / "current", json.dumps({"stage": stage.name, "limit": limit}).encode())
            result = stage / f"result-{number}"
            while not result.exists():
                if claim(stage, number, LEAD) or self._is_dead(stage, number):
                    yield work(number)
                    break
                # A worker has it: do one further on meanwhile.
                spare = max(spare, number + 1)
                while spare < limit and not claim(stage, spare, LEAD):
                    spare += 1
                if spare < limit:
                    dump(stage / f"result-{spare}", work(spare))
                else:
                    time.sleep(POLL)
            else:
                yield pickle.loads(result.read_bytes())
                result.unlink()

    def _is_dead(self, stage: Path, number: int) -> bool:
        """Whether the worker that claimed a batch has shown no sign for `DEAD` seconds (by the file system's clock)."""
        claimed = stage / f"claim-{number}"
        alive = self.folder / f"alive-{claimed.read_text()}"
        seen = max(path.stat().st_mtime for path in (claimed, alive) if path.exists())
        late = (self.folder / "beat").stat().st_mtime - seen > DEAD
        return late and not (stage / f"result-{number}").exists()

    def close(self) -> None:
        """Let the workers go."""
        self._stop.set()
        with contextlib.suppress(OSError):
            (self.folder / "end").touch()


def write_work(stage: Path, function: Callable[[list[Item]], Any], view: View) -> None:
    """Write down what a stage asks."""
    np.save(stage / "numbers.npy", view.numbers)
    dump(stage / "function", (function, str(view.spool.path.resolve())))


class Work:
    """What a stage asks, as each process sees it that works on it."""

    def __init__(self, stage: Path) -> None:
        self.function, spool = pickle.loads((stage / "function").read_bytes())
        self._view = View(Spool(Path(spool)), np.load(stage / "numbers.npy", mmap_mode="r"))

    def __call__(self, number: int) -> Any:
        """The result of a batch."""
        start = number * BATCH
        rows = self._view.spool.items(np.array(self._view.numbers[start : start + BATCH]))
        self._view.spool.forget()
        return self.function(rows)


@lru_cache(maxsize=1)
def opened(stage: Path) -> Work:
    """The work of a stage, kept for the next batch of it."""
    return Work(stage)


@lru_cache(maxsize=1)
def of_environment() -> Crew | None:
    """The crew that this process leads, where it was started with one."""
    folder = os.environ.get(CREW)
    if not folder:
        return None
    crew = Crew(Path(folder))
    atexit.register(crew.close)
    return crew


def dump(path: Path, value: Any) -> None:
    """Pickle into a file that is there whole or not at all."""
    _replace(path, pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))


def claim(stage: Path, number: int, worker: str) -> bool:
    """Take a batch; False where another has it. Creating a file is atomic on network file systems too."""
    try:
        handle = os.open(stage / f"claim-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(worker)
    return True


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    aside.write_bytes(content)
    os.replace(aside, path)


def _touch(path: Path, stop: threading.Event) -> None:
    while True:
        with contextlib.suppress(OSError):
            path.touch()
        if stop.wait(BEAT):
            return


# -- the workers' side ------------------------------------------------------------------------------------------------


def serve(folder: Path, worker: str) -> int:
    """Work until the lead says that it is over, or is long gone; batches done."""
    done = 0
    alive, stop = folder / f"alive-{worker}", threading.Event()
    threading.Thread(target=_touch, args=(alive, stop), daemon=True).start()
    try:
        while not (folder / "end").exists() and not _is_lonely(folder, alive):
            try:
                current = json.loads((folder / "current").read_text())
                done += _serve(folder / current["stage"], int(current["limit"]), worker)
            except FileNotFoundError:
                pass  # no stage is open, or it was over in the middle
            time.sleep(POLL)
    finally:
        stop.set()
    return done


def _serve(stage: Path, limit: int, worker: str) -> int:
    """Work on what is free of a stage below `limit`."""
    done = 0
    for number in range(limit):
        if not (stage / f"claim-{number}").exists() and claim(stage, number, worker):
            dump(stage / f"result-{number}", opened(stage)(number))
            done += 1
    return done


def _is_lonely(folder: Path, alive: Path) -> bool:
    """Whether the lead was there and is gone. It may not have come yet."""
    try:
        return alive.stat().st_mtime - (folder / "beat").stat().st_mtime > LONELY
    except FileNotFoundError:
        return not folder.exists()  # the job's files were removed: it is over


def main(folder: str) -> None:
    """A worker with a process for each core it was given."""
    name = f"{socket.gethostname()}-{os.getpid()}"
    if "--one" not in sys.argv:
        mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores = min(mine, int(os.environ.get("SLURM_CPUS_PER_TASK", mine)))  # not every Slurm binds tasks to cores
        command = [sys.executable, "-m", "aloe.data.crew", folder, "--one"]
        others = [subprocess.Popen(command) for _ in range(cores - 1)]
    else:
        others = []
    try:
        serve(Path(folder), name)
    finally:
        for other in others:
            other.wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1])
