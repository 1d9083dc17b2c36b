"""Removing what runs left behind that nobody took up again: `aloe clean OUT --older-than 7d`.

A step that takes long keeps its unfinished work in `out/<family>/.cache/<room>/<key>` and removes it when its artifact
is complete. Other settings have another key, so what was begun under the old ones stays for good: checkpoints of twelve
bytes a parameter, unredacted rows of a curation. Whether somebody will go on with it can't be known; that no file in it
was written for a while can. Artifacts, remembered replies and caches that later runs read are no such work.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aloe.errors import AloeError
from aloe.run.store import Store

ROOMS = ("curate", "merge", "red-team-loop", "train")  # of unfinished work, below `.cache`


@dataclass(frozen=True)
class Left:
    """A folder of unfinished work: its bytes, and the seconds since a file in it was last written."""

    path: Path
    size: int
    age: float


def families(out: Path) -> list[Path]:
    """The families below `out`, or `out` itself where it is one.

    Raises:
        AloeError: nothing was ever run there.
    """
    found = [p for p in (out, *sorted(out.iterdir())) if (p / ".cache").is_dir()] if out.is_dir() else []
    if not found:
        fix = "name a folder that `aloe run` wrote to: OUT, or OUT/<family>"
        raise AloeError("no run was ever here: no .cache folder", where=str(out), fix=fix)
    return found


def left_over(family: Path, older_than: float, now: float | None = None) -> list[Left]:
    """Unfinished work in which nothing was written for `older_than` seconds, in the order of its path."""
    at = time.time() if now is None else now
    places = [p for room in ROOMS for p in sorted(_folders(family / ".cache" / room))]
    return [left for left in (_looked_at(p, at) for p in places) if left.age >= older_than]


def remove(family: Path, older_than: float) -> list[Left]:
    """Remove it, while no run is at work in the family; what was removed.

    Raises:
        AloeError: a run has the family; a folder can't be removed.
    """
    with Store(family).lock():
        found = left_over(family, older_than)  # looked for under the lock: nobody has just gone on with one
        for left in found:
            try:
                shutil.rmtree(left.path)
            except OSError as cause:
                where, fix = str(left.path), "check who owns it, and run the same command again"
                raise AloeError(f"can't be removed: {cause.strerror}", where=where, fix=fix) from None
    return found


def _folders(room: Path) -> Iterator[Path]:
    if room.is_dir() and not room.is_symlink():
        yield from (p for p in room.iterdir() if p.is_dir() and not p.is_symlink())


def _looked_at(folder: Path, now: float) -> Left:
    """Size and age; links count as what they are, and are not followed."""
    newest, size = folder.stat().st_mtime, 0
    for root, inner, files in os.walk(folder):
        for name in (*inner, *files):
            found = os.lstat(os.path.join(root, name))
            newest = max(newest, found.st_mtime)
            size += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return Left(folder, size, max(0.0, now - newest))
